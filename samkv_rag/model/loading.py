"""Loads a model and its tokenizer from a name, a folder or a GGUF file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import quantization_config as formats

from samkv_rag.checks import refuse_unknown, require_choice
from samkv_rag.exceptions import ConfigurationError, ModelError, ModelNotFoundError, SamKVError, UnsupportedModelError

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What model_kwargs may have besides fields of the model's configuration: nothing that lets downloaded code run.
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder")
_OF_THE_WEIGHTS = ("experts_implementation", "quantization_config", "use_safetensors", "variant")
_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")


class LoadingOptions(TypedDict, total=False):
    """How a model given by name is loaded, by transformers' own names. None is the same as leaving an option out."""

    device: str | torch.device | None
    """``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. By default CUDA if available, else the CPU."""
    device_map: Any
    """Another way to give ``device``; several devices are refused."""
    dtype: str | torch.dtype | None
    """By default bfloat16 if the processor computes in it, else float32."""
    gguf_file: str | None
    """A file in the model's folder."""
    revision: str | None
    """A branch, tag or commit of the model on the hub."""
    token: str | bool | None
    """The hub's access token; by default the one from the last login."""
    attn_implementation: str | None
    """``"eager"``, ``"sdpa"`` or ``"flash_attention_2"``: what the model must support. The engine replaces it with its
    own attention, which uses flash-attn if that is installed, else SDPA."""
    model_kwargs: Mapping[str, Any] | None
    """``quantization_config``, ``cache_dir``, ``variant``, ..., or fields of the model's configuration."""


def load(model: str | PathLike[str], options: LoadingOptions) -> tuple[Any, Any]:
    """Return a ``transformers`` model, on its device, and its tokenizer.

    A path that ends in ``.gguf`` is a folder and its ``gguf_file``. Nothing in a model folder is executed. Quantised
    weights stay quantised, except in formats that transformers can only unpack; then their new size is logged.

    Raises:
        ConfigurationError: an option is unknown, or there is no such device.
        ModelNotFoundError: there is nothing to load.
        ModelError: the model cannot be loaded on this machine.
    """
    target = choose_device(options.get("device"), options.get("device_map"))
    attention, given = options.get("attn_implementation"), dict(options.get("model_kwargs") or {})
    require_choice("attn_implementation", attention, (None, "eager", "sdpa", "flash_attention_2"))
    if misplaced := sorted(given.keys() & {"torch_dtype", "trust_remote_code", *LoadingOptions.__annotations__}):
        raise ConfigurationError(
            f"model_kwargs has {', '.join(misplaced)}; dtype and the like are options beside it, and nothing in a "
            "model folder is executed"
        )
    source, hub = _source(model, options.get("gguf_file"))
    hub |= {name: options[name] for name in ("revision", "token") if options.get(name) is not None}
    hub |= {name: given.pop(name) for name in _OF_THE_HUB if name in given}
    weights = {name: given.pop(name) for name in _OF_THE_WEIGHTS if name in given}
    weights |= {"dtype": choose_dtype(options.get("dtype"), target), "trust_remote_code": False}
    if attention is not None:
        weights["attn_implementation"] = attention
    with _explained(source):
        config, unknown = AutoConfig.from_pretrained(
            source, return_unused_kwargs=True, trust_remote_code=False, **hub, **given
        )
        refuse_unknown(unknown.keys() - hub.keys(), [*_OF_THE_HUB, *_OF_THE_WEIGHTS, *config.to_dict()])
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **hub)
    with _explained(source, target):
        if _unpacked(config, weights, "gguf_file" in hub):
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config, dtype=weights["dtype"])  # type: ignore[no-untyped-call]
            size_gb = empty.get_memory_footprint() / 1e9
            logger.warning("the weights of %s are unpacked, to %.3g GB in %s", source, size_gb, weights["dtype"])
        elif weights.get("quantization_config") or getattr(config, "quantization_config", None):
            weights["device_map"] = {"": target}  # weights are packed for the device that they are loaded on
        weights |= {"config": config, "output_loading_info": True}
        found: Any = AutoModelForCausalLM.from_pretrained(source, **hub, **weights)
        loaded, info = found
        if missing := sorted(info["missing_keys"]):
            raise ModelError(f"{source!r} lacks {len(missing)} weights, {missing[0]} among them; take a whole model")
        return loaded if "device_map" in weights else loaded.to(target), tokenizer


def load_tokenizer(model: str | PathLike[str]) -> Any:
    """Return only the tokenizer of a model; see :func:`load`.

    Raises:
        ModelNotFoundError: there is nothing to load.
    """
    source, options = _source(model, None)
    with _explained(source):
        return AutoTokenizer.from_pretrained(source, **options)


def _source(model: str | PathLike[str], gguf_file: str | None) -> tuple[str, dict[str, Any]]:
    source = fspath(model)
    if gguf_file is None and source.endswith(".gguf"):
        source, gguf_file = str(Path(source).parent), Path(source).name
    return source, {} if gguf_file is None else {"gguf_file": gguf_file}


def _unpacked(config: Any, weights: dict[str, Any], is_gguf: bool) -> bool:
    """Return whether transformers can only unpack the weights, and have it do so while it loads them.

    By default it looks for GGUF kernels on the hub, and unpacks compressed-tensors in the first forward pass.
    """
    if is_gguf:
        if hasattr(formats, "GgufConfig"):  # earlier transformers always unpack
            weights["quantization_config"] = formats.GgufConfig(dequantize=True)
        return True
    packed = getattr(config, "quantization_config", None)
    if "quantization_config" in weights or not packed or packed["quant_method"] != "compressed-tensors":
        return False
    packed["dequantize"] = True
    return True


@contextmanager
def _explained(source: str, target: torch.device | None = None) -> Iterator[None]:
    """Turn any error of transformers and its packages into one of ours, with the reason."""
    try:
        yield
    except SamKVError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "custom code" in reason:
            raise UnsupportedModelError(
                f"{source!r} brings code of its own, and nothing in a model folder is executed; take an architecture "
                "that transformers has, or load it yourself and give the model and its tokenizer"
            ) from error
        if target is None or isinstance(error, OSError):
            raise ModelNotFoundError(
                f"no causal language model could be loaded from {source!r}: "
                f"{reason.rstrip('.')}; give a hub id, a folder written by save_pretrained, or a .gguf file"
            ) from error
        raise ModelError(
            f"{source!r} could not be loaded on {target}: {reason.rstrip('.')}; install what is missing, or give "
            "another device, dtype or model_kwargs"
        ) from error


def choose_device(device: str | torch.device | None, device_map: Any = None) -> torch.device:
    """Return the device given in either way; by default CUDA if available, else the CPU.

    ``device_map`` is transformers': a device, a mapping to devices, or ``"auto"`` and similar.

    Raises:
        ConfigurationError: there is no such device, or several are given.
    """
    if device is not None and device_map is not None:
        raise ConfigurationError(f"device is {device!r} and device_map is {device_map!r}; give one")
    named, wanted = ("device", device) if device_map is None else ("device_map", device_map)
    places = [*wanted.values()] if isinstance(wanted, Mapping) else [wanted]
    if len(set(map(str, places))) != 1 or (places[0] in _SPREADING and torch.cuda.device_count() > 1):
        raise ConfigurationError(
            f"{named} is {wanted!r}, which is not one device, and the engine keeps its model on one; give "
            "device='cuda:0', and a quantised model where one is too large for it"
        )
    if (place := places[0]) is None or place in _SPREADING:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(place)
        torch.zeros(1, device=chosen).item()  # fails if there is no such device, and for "meta", which has no values
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConfigurationError(
            f"{named} is {wanted!r}: {reason}; give 'cpu', or 'cuda', 'cuda:N' or 'mps' where there is one"
        ) from error
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype given; ``None`` or ``"auto"``: bfloat16 if the processor computes in it, else float32.

    Raises:
        ConfigurationError: the name is not a known floating-point dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in (None, "auto"):
        # Without AVX512-BF16 a CPU emulates bfloat16 products, slower than float32's.
        is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return torch.bfloat16 if device.type != "cpu" or is_supported() else torch.float32
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype is {dtype!r}; it must be 'auto' or one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
