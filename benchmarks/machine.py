"""Describes the machine of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe_machine() -> dict[str, str]:
    """Processor, threads and versions."""
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "cuda": torch.version.cuda or "none",
        "flash-attn": _version_if_installed("flash-attn"),
    }


def _version_if_installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
