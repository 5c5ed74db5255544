"""`samkv serve`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samkv_apps import terminal
from samkv_apps.store.command import parse_bytes
from samkv_rag.exceptions import ConfigurationError

if TYPE_CHECKING:
    from samkv_apps.serve.backend import Backend

_PACKAGES = {"fastapi": "fastapi", "httpx": "httpx", "prometheus_client": "prometheus-client", "uvicorn": "uvicorn"}
_DRAIN_S = 30
"""Seconds that running answers may take after the server is told to stop."""
_KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Cache sizes of oneDNN and of PyTorch's layer above it. On CPUs both keep a kernel for each number of tokens."""
_MAX_KERNELS = "128"
"""The default is 1,024. A new prompt length takes over 2 MB; compiling it again takes some milliseconds."""


def serve(
    model: Annotated[str, typer.Option(help="Hub id, folder or .gguf file; 'demo' needs no hub.")],
    store: Annotated[str, typer.Option(help="Folder or URL for chunk KV, or ':memory:'.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="SAMKV_API_KEY", help="Key that clients must send.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:1.", show_default="CUDA, else cpu")] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16.", show_default="by processor")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")] = None,
    model_kwargs: Annotated[
        str, typer.Option(metavar="JSON", help="More options of transformers, such as quantization_config.")
    ] = "{}",
    namespace: Annotated[str, typer.Option(help=f"Tenant; its secret is in ${terminal.SECRET}.")] = "",
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused at once.")] = 256,
    max_running: Annotated[int, typer.Option(min=1, help="Answers decoded together.")] = 16,
    decode_with: Annotated[str | None, typer.Option(help="URL of a vLLM server with samkv-vllm.")] = None,
    handover: Annotated[Path | None, typer.Option(help="Folder shared with vLLM, best in memory.")] = None,
    decode_key: Annotated[str | None, typer.Option(envvar="VLLM_API_KEY", help="API key of vLLM.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Upper limit of an answer's tokens.")] = 2048,
    memory_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="KV kept in memory, such as 10GB.")] = None,
    disk_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="Budget of the store's folder.")] = None,
    ray_replicas: Annotated[int | None, typer.Option(min=1, help="Number of engine processes, with Ray.")] = None,
    ray_max_replicas: Annotated[int | None, typer.Option(min=1, help="Most engine processes under load.")] = None,
) -> None:
    """Serve a model over OpenAI's API, with the chunk KV in a store."""
    terminal.require_packages(_PACKAGES, "samkv serve", "serve")
    api_key = api_key and api_key.strip()  # a file's line break may have come along
    if api_key == "" or (api_key is None and os.environ.get("SAMKV_API_KEY") == ""):  # typer takes "" for unset
        raise ConfigurationError("the API key is empty; give it some random text, or leave it out for open access")
    if (decode_with is None) != (handover is None) or (decode_with is not None and ray_replicas is not None):
        raise ConfigurationError(
            "--decode-with URL goes with --handover FOLDER, the folder of vLLM's connector, and not with --ray-replicas"
        )
    if ray_max_replicas is not None and ray_max_replicas < (ray_replicas or ray_max_replicas + 1):
        raise ConfigurationError(
            f"--ray-max-replicas is {ray_max_replicas}; it goes with --ray-replicas and must be at least as large"
        )
    secret = terminal.store_secret()
    terminal.quieten_libraries(bars=False)
    import uvicorn

    from samkv_apps.serve.app import create_app

    _log_as_json()
    _bound_kernels()
    sizes = {"memory_bytes": memory_bytes, "disk_bytes": disk_bytes}
    budgets = {name: parse_bytes(size) for name, size in sizes.items() if size is not None}
    options: dict[str, Any] = {
        "store": store,
        "device": device,
        "dtype": dtype,
        "revision": revision,
        "model_kwargs": _as_object(model_kwargs),
        "namespace": namespace,
        "store_secret": secret,
        "max_running": max_running,
    }
    if ray_replicas is None:
        options["max_waiting"] = max_queue
        backend = _engine_backend(model, budgets, options, decode_with, handover, decode_key)
    else:
        options |= {"num_replicas": ray_replicas, "max_replicas": ray_max_replicas, "max_queue": max_queue}
        backend = _ray_backend(model, budgets=budgets, **options)
    name = Path(model).absolute().name if Path(model).exists() else model  # clients do not see the path
    app = create_app(backend, name, api_key=api_key, max_queue=max_queue, max_tokens=max_tokens)
    # On SIGTERM uvicorn refuses connections, finishes running answers, then closes the engine.
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=_DRAIN_S, **quiet)


def _engine_backend(
    model: str,
    budgets: dict[str, int],
    options: dict[str, Any],
    decode_with: str | None,
    handover: Path | None,
    decode_key: str | None,
) -> Backend:
    from samkv_apps.serve.backend import EngineBackend
    from samkv_apps.serve.decoding import VllmDecoder
    from samkv_rag.handover import require_dense
    from samkv_rag.store import open_store

    engine = terminal.open_engine(model, **options | {"store": open_store(options["store"], **budgets)})
    if decode_with is None or handover is None:
        return EngineBackend(engine)
    require_dense(engine.decoder)
    return EngineBackend(engine, VllmDecoder(decode_with, handover, decode_key))


def _ray_backend(model: str, **options: Any) -> Backend:
    terminal.require_packages({"ray": "ray[data,serve]"}, "--ray-replicas", "ray")
    from samkv_apps.serve.ray import deploy

    backend = deploy(model, **options)
    for log in map(logging.getLogger, ("ray", "ray.serve")):
        log.handlers.clear()  # they do not write JSON
        log.propagate = True
    return backend


def _as_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"--model-kwargs is {text!r}; it must be a JSON object, "
            """such as '{"quantization_config": {"load_in_8bit": true}}'"""
        )
    return value


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _bound_kernels() -> None:
    """Bound the memory that prompts of many lengths take. It has no effect after PyTorch's first computation."""
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, _MAX_KERNELS)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)  # such as damaged chunks or an unreachable store
