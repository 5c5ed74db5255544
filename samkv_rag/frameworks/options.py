"""Options of an integration's LLM: from plain values, checked, merged with those of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from os import PathLike, fspath
from typing import Any

from samkv_rag.checks import refuse_unknown
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.unreachable import MASK

ENGINE_OPTIONS = (
    "store",
    "config",
    "method",
    "device",
    "dtype",
    "device_map",
    "gguf_file",
    "revision",
    "token",
    "attn_implementation",
    "model_kwargs",
    "namespace",
    "store_secret",
)
"""Options of ``SamKVEngine.from_pretrained`` that an LLM takes beside the model."""

OWN_CALL_OPTIONS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "method",
)
"""Options of one call that an LLM has a field for; ``max_tokens`` is the frameworks' name of ``max_new_tokens``."""

CALL_OPTIONS = (*OWN_CALL_OPTIONS, "max_new_tokens", "n", "grammar")
"""Options of one call."""


def as_config(config: object) -> object:
    """Return an EngineConfig from a mapping of its options; anything else as it is.

    Raises:
        ConfigurationError: an option is unknown or out of range.
    """
    if not isinstance(config, Mapping):
        return config
    refuse_unknown(config, [field.name for field in fields(EngineConfig)])
    return EngineConfig(**config)


def as_method(method: object) -> object:
    """Return a prefill method from its name, or from a mapping of its name and options; None stays.

    Raises:
        ConfigurationError: no such method or option, or a value out of range.
    """
    if method is None:
        return None
    from samkv_rag.prefill import resolve_method  # late: it imports torch

    return resolve_method(method)  # type: ignore[arg-type]


def method_as_dict(method: Any) -> Any:
    """Return a method's name and options as plain values, as they are written out; None stays."""
    return None if method is None else method.to_dict()


def as_texts(stop: object) -> object:
    """Return one text as a list of it; anything else as it is."""
    return [stop] if isinstance(stop, str) else stop


def as_path_text(path: object) -> object:
    """Return a path as text; anything else as it is."""
    return fspath(path) if isinstance(path, PathLike) else path


def as_plain(options: object) -> object:
    """Return a mapping's quantization_config and the like as dicts, as they are written out; anything else as it is."""
    if not isinstance(options, Mapping):
        return options
    return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in options.items()}


def as_secret(secret: object, name: str = "store_secret") -> object:
    """Return a secret (text, or pydantic's ``SecretStr``) as it is; no message ever holds it.

    Raises:
        ConfigurationError: it is something else, empty, or the mask that stands for one in written options.
    """
    text = secret_value(secret)
    if text is not None and not isinstance(text, str):
        raise ConfigurationError(f"{name} is a {type(secret).__name__}; it must be text, or None")
    if text == "":
        raise ConfigurationError(f"{name} is empty; give its text, or None")
    if text == MASK:  # to go on without it would store chunks where everybody finds them
        raise ConfigurationError(f"{name} is masked, as it is in options that were written out; give it again")
    return secret


def secret_value(secret: Any) -> Any:
    """Return what a ``SecretStr`` holds; anything else as it is."""
    return secret.get_secret_value() if hasattr(secret, "get_secret_value") else secret


def as_dtype_name(dtype: object) -> object:
    """Return ``torch.bfloat16`` as ``"bfloat16"``; None stays."""
    return dtype if dtype is None else str(dtype).removeprefix("torch.")


def parse_bool(name: str, given: object, own: bool) -> bool:
    """Return what a call says of a switch; None: the LLM's ``own``.

    Raises:
        ConfigurationError: neither True nor False.
    """
    if given is not None and not isinstance(given, bool):
        raise ConfigurationError(f"{name} is {given!r}; it must be True or False")
    return own if given is None else given


def call_options(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's options of one call: the LLM's ``own``, changed by those ``given``; None changes nothing.

    Frameworks say ``max_tokens`` for the engine's ``max_new_tokens``; both are understood.

    Raises:
        ConfigurationError: a call gives both, or an option that is unknown.
    """
    refuse_unknown(given, CALL_OPTIONS)
    changes = {name: value for name, value in given.items() if value is not None}
    if "max_tokens" in changes and "max_new_tokens" in changes:
        raise ConfigurationError("max_tokens and max_new_tokens are the same option; give one")
    options = {_engine_name(name): value for name, value in own.items()}
    return options | {_engine_name(name): value for name, value in changes.items()}


def config_error(problems: Iterable[Mapping[str, Any]]) -> ConfigurationError:
    """Return the error for the problems that pydantic found (``ValidationError.errors()``)."""
    own = [problem for problem in problems if problem["type"] != "default_factory_not_called"]  # only a consequence
    return ConfigurationError("; ".join(map(_in_words, own)))


def _in_words(problem: Mapping[str, Any]) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is {problem['input']!r}: {problem['msg']}"


def _engine_name(name: str) -> str:
    return "max_new_tokens" if name == "max_tokens" else name
