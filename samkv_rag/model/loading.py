"""Bringing model and tokenizer from a name, a folder or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from samkv_rag.exceptions import ConfigurationError, ModelNotFoundError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str | PathLike[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    gguf_file: str | None,
    trust_remote_code: bool,
) -> tuple[Any, Any]:
    """Return a ``transformers`` model, on its device, and its tokenizer.

    A path that ends in ``.gguf`` is a folder and its ``gguf_file``. Nothing in a model folder is
    executed unless ``trust_remote_code``.

    Raises:
        ModelNotFoundError: nothing loadable there.
    """
    source, gguf_options = _source(model, gguf_file)
    target = choose_device(device)
    options = gguf_options | {"trust_remote_code": trust_remote_code}
    with _not_found(source):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=choose_dtype(dtype, target), **options)
    return loaded.to(target), tokenizer


def load_tokenizer(model: str | PathLike[str]) -> Any:
    """Return the tokenizer alone, of a model that :func:`load` takes.

    Raises:
        ModelNotFoundError: nothing loadable there.
    """
    source, options = _source(model, None)
    with _not_found(source):
        return AutoTokenizer.from_pretrained(source, **options)


def _source(model: str | PathLike[str], gguf_file: str | None) -> tuple[str, dict[str, Any]]:
    source = fspath(model)
    if gguf_file is None and source.endswith(".gguf"):
        source, gguf_file = str(Path(source).parent), Path(source).name
    return source, {} if gguf_file is None else {"gguf_file": gguf_file}


@contextmanager
def _not_found(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(
            f"no causal language model could be loaded from {source!r}: {reason} "
            "Give a hub id, a folder written by save_pretrained, or a .gguf file"
        ) from error


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or CUDA where there is one, else the CPU.

    Raises:
        ConfigurationError: no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device is {device!r}; give 'cpu', 'cuda' or 'cuda:N'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"device is {device!r}, but torch finds no CUDA device; give 'cpu'")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for; ``None`` or ``"auto"``: bfloat16 where the processor computes in it, else float32.

    Raises:
        ConfigurationError: not a floating-point dtype known here.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in (None, "auto"):
        return torch.bfloat16 if device.type != "cpu" or _cpu_computes_bfloat16() else torch.float32
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype is {dtype!r}; it must be 'auto' or one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _cpu_computes_bfloat16() -> bool:
    # Without AVX512-BF16 a bfloat16 product is emulated and slower than float32.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False
