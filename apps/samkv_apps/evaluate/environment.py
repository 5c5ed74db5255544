"""The model, options, versions and hardware of an evaluation, for its config.json."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from samkv_apps.evaluate.options import EvaluationOptions
from samkv_apps.evaluate.records import KV_FOLDER
from samkv_rag import __version__
from samkv_rag.engine import SamKVEngine


def open_engine(options: EvaluationOptions) -> SamKVEngine:
    """Open the engine that the options ask for."""
    store = options.store or options.output_dir / KV_FOLDER
    return SamKVEngine.from_pretrained(options.model, store=store, config=options.engine_config, dtype=options.dtype)


def describe_run(options: EvaluationOptions, engine: SamKVEngine) -> dict[str, Any]:
    """Return everything that the figures depend on. Paths are shortened to names, since reports are shared."""
    tasks = options.tasks()
    return {
        "model": _name(options.model),
        "model_fingerprint": engine.fingerprint,
        "dtype": str(engine.decoder.dtype).removeprefix("torch."),
        "data": {
            file.stem: {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in options.data
        },
        "methods": list(dict.fromkeys(task.method for task in tasks)),
        "sequence_ratios": list(dict.fromkeys(options.sequence_ratios)),
        "limit": options.limit,
        "seed": options.seed,
        "max_new_tokens": options.max_new_tokens,
        "task": options.task,
        "group": options.group if options.task == "long" else None,
        "prompt": options.prompt,
        "template": options.template,
        "retrieval": options.retrieval,
        "more_top_k": options.more_top_k if options.retrieves_more else None,
        "options": dict(options.options),
        "plots": options.plots,
        "references": [options.reference.resolve().name] if options.reference else [],
        "versions": {
            "samkv_rag": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
        "hardware": _hardware(engine),
        "ran_before_on": [],
    }


def _name(model: str) -> str:
    """Return the last part of a path; a hub id unchanged."""
    return Path(model).resolve().name if Path(model).exists() else model


def _hardware(engine: SamKVEngine) -> dict[str, Any]:
    is_cuda = engine.decoder.device.type == "cuda"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(engine.decoder.device) if is_cuda else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
