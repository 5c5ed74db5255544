"""Options of an integration's LLM: pydantic fields that accept plain values, merged with the options of a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from os import PathLike, fspath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, SecretStr, ValidationError, ValidationInfo

from samkv_rag.checks import refuse_unknown, require_bool
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.unreachable import MASK, without_secrets

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine


def _config(config: object) -> object:
    if not isinstance(config, Mapping):
        return config
    refuse_unknown(config, [field.name for field in fields(EngineConfig)])
    return EngineConfig(**config)


def _plain(options: object) -> object:
    """Turn a quantization_config and similar objects into dicts."""
    if not isinstance(options, Mapping):
        return options
    return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in options.items()}


def _secret(secret: object, info: ValidationInfo) -> object:
    """Check a secret; no message ever shows it."""
    text, name = _unmasked(secret), info.field_name
    if text is not None and not isinstance(text, str):
        raise ConfigurationError(f"{name} is a {type(secret).__name__}; it must be text, or None")
    if text == "":
        raise ConfigurationError(f"{name} is empty; give its text, or None")
    if text == MASK:  # without the secret, chunks would be stored where everybody finds them
        raise ConfigurationError(f"{name} is masked, as it is in options that were written out; give it again")
    return secret


def _unmasked(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _method(method: object) -> object:
    if method is None:
        return None
    from samkv_rag.prefill import resolve_method  # late: it imports torch

    return resolve_method(method)  # type: ignore[arg-type]


def method_as_dict(method: Any) -> Any:
    """Return a method's name and options as plain values; None stays."""
    return None if method is None else method.to_dict()


PathText = Annotated[str, BeforeValidator(lambda path: fspath(path) if isinstance(path, PathLike) else path)]
_Secret = Annotated[SecretStr | None, BeforeValidator(_secret)]


class EngineOptions(BaseModel):
    """Options of ``SamKVEngine.from_pretrained`` for an LLM, except model and method."""

    store: Annotated[PathText, PlainSerializer(without_secrets)] = Field(
        default=":memory:", description="Where chunk KV is kept: ':memory:', a folder or a URL."
    )
    config: Annotated[EngineConfig | None, BeforeValidator(_config)] = Field(
        default=None, description="What is fixed at ingestion, or a dict of its options."
    )
    device: Annotated[str | None, BeforeValidator(lambda device: None if device is None else str(device))] = Field(
        default=None, description="Device of the model; None picks one."
    )
    dtype: Annotated[
        str | None, BeforeValidator(lambda dtype: None if dtype is None else str(dtype).removeprefix("torch."))
    ] = Field(default=None, description="Data type of the model, for example 'bfloat16'.")
    gguf_file: str | None = Field(default=None, description="GGUF file inside the model's folder.")
    device_map: dict[str, int | str] | int | str | None = Field(
        default=None, description="Another way to give the device."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of the model on the hub.")
    token: _Secret = Field(default=None, description="Token of the hub; None takes the one logged in with.")
    attn_implementation: str | None = Field(
        default=None, description="Attention implementation that the model must have."
    )
    model_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(_plain)] = Field(
        default=None, description="What else transformers takes, such as quantization_config."
    )
    max_running: int = Field(default=16, ge=1, description="Number of answers that are decoded together.")
    max_waiting: int = Field(default=65536, ge=1, description="Requests that may wait; more are refused at once.")
    namespace: str = Field(default="", description="Tenant whose chunks these are; no other gets them.")
    store_secret: _Secret = Field(default=None, description="Makes the store's keys unknowable without it.")

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_secrets(value) if name == "store" else value


class CallOptions(BaseModel):
    """Options of a call that are fields of an LLM. ``max_tokens`` is the frameworks' name of ``max_new_tokens``."""

    method: Annotated[Any, BeforeValidator(_method), PlainSerializer(method_as_dict)] = Field(
        default=None, description="How prompts are answered: a method, its name, or a dict with name and options."
    )
    max_tokens: int = Field(default=256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=0.0, ge=0.0, description="0 always takes the likeliest token.")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="Sample from the likeliest tokens of this mass.")
    top_k: int = Field(default=0, ge=0, description="Sample from so many of the likeliest tokens; 0: from all.")
    min_p: float = Field(default=0.0, ge=0.0, le=1.0, description="Least share of the likeliest token's probability.")
    repetition_penalty: float = Field(default=1.0, gt=0.0, description="Above 1 makes what was said less likely.")
    stop: Annotated[list[str] | None, BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)] = Field(
        default=None, description="Texts that end an answer and are not part of it."
    )
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    logprobs: bool = Field(default=False, description="Answers say how likely each token was.")
    top_logprobs: int = Field(
        default=0, ge=0, le=20, description="How many of the likeliest tokens are given beside each."
    )


ENGINE_OPTIONS = tuple(EngineOptions.model_fields)
OWN_CALL_OPTIONS = tuple(CallOptions.model_fields)


def load_engine(options: Mapping[str, Any]) -> SamKVEngine:
    """Return the engine for an LLM's options, which include ``model_name``."""
    from samkv_rag import SamKVEngine  # late: it imports torch

    plain = {name: _unmasked(value) for name, value in options.items()}
    return SamKVEngine.from_pretrained(plain.pop("model_name"), **plain)


def parse_bool(name: str, given: object, own: bool) -> bool:
    """Return a call's value of a switch, or the LLM's ``own`` if it is None."""
    if given is None:
        return own
    require_bool(name, given)
    return bool(given)


def call_options(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's options of a call: the LLM's ``own``, updated by those ``given`` that are not None.

    ``max_tokens`` and ``max_new_tokens`` are the same option.
    """
    refuse_unknown(given, (*OWN_CALL_OPTIONS, "max_new_tokens", "n", "grammar"))
    changes = {name: value for name, value in given.items() if value is not None}
    if "max_tokens" in changes and "max_new_tokens" in changes:
        raise ConfigurationError("max_tokens and max_new_tokens are the same option; give one")
    options = {**own, **changes}
    return {"max_new_tokens": options.pop("max_tokens"), **options}


@contextmanager
def plain_refusals() -> Iterator[None]:
    """Turn pydantic's errors into one ConfigurationError that names every option and its value."""
    try:
        yield
    except ValidationError as error:
        # "default_factory_not_called" only follows from other errors.
        problems = [one for one in error.errors() if one["type"] != "default_factory_not_called"]
        raise ConfigurationError("; ".join(map(_in_words, problems))) from error


def _in_words(problem: Mapping[str, Any]) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is {problem['input']!r}: {problem['msg']}"
