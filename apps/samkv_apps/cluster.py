"""Ray processes, on this machine or a cluster."""

from __future__ import annotations

import os

import ray
from ray._private import ray_constants

from samkv_rag.exceptions import ConfigurationError

_OBJECT_STORE_BYTES = 128 << 20
"""Holds requests, answers and texts in transit; KV does not pass through it."""


def start(num_processes: int) -> dict[str, float]:
    """Connect to the cluster at ``RAY_ADDRESS``, or start Ray for ``num_processes`` on this machine's 127.0.0.1.

    Return the resources of one process: a GPU if there are any, otherwise a CPU core.

    Raises:
        ConfigurationError: Ray would listen on another address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    if not ray.is_initialized() and "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    elif not ray.is_initialized():
        ray_constants.ENABLE_RAY_CLUSTER = False  # the only way to make Ray listen on 127.0.0.1 alone
        num_cpus = max(num_processes, os.cpu_count() or 1)
        ray.init("local", num_cpus=num_cpus, object_store_memory=_OBJECT_STORE_BYTES, include_dashboard=False, **quiet)
        if (address := ray.util.get_node_ip_address()) != "127.0.0.1":
            ray.shutdown()
            raise ConfigurationError(
                f"Ray {ray.__version__} would listen on {address}, for other machines too; take the release that the "
                "extra 'ray' names, or start Ray yourself and set RAY_ADDRESS"
            )
    return {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}


def model_for_all(model: str) -> str:
    """Return the absolute path of a model on disk, for processes with another working folder; a hub id unchanged."""
    return os.path.abspath(model) if os.path.exists(model) else model
