"""What to evaluate, validated before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from samkv_apps.evaluate.compressors import COMPRESSORS
from samkv_apps.evaluate.datasets import require_placeholders
from samkv_rag.checks import refuse_unknown
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prefill import PrefillMethod, Scout, method_classes

REFERENCE = "full_prefill"
WITHOUT_RATIO = (REFERENCE, "naive_reuse")
_RATIOS = ("sequence_ratio", "recompute_ratio")
"""A method's budget is the first of these that it has."""
_NOT_OPTIONS = (*_RATIOS, "min_chunk_tokens")
"""These are given per run, or would let a method fall back to full prefill unseen."""


@dataclass(frozen=True)
class Task:
    """One way to answer a case."""

    method: str
    ratio: float | None
    """Most of the chunk tokens to keep; None where the method has no such budget."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of :func:`~samkv_apps.evaluate.evaluate`.

    model: hub id, folder or .gguf file.
    data: case files; their names without extension name the data sets.
    output_dir: a folder that is new, empty or holds an evaluation to be continued.
    methods: names of methods and compressors; full_prefill is always run, for reference.
    sequence_ratios: every method with a budget runs at each.
    limit: cases of each file, all by default.
    seed: draws the cases of a limit (without it they are the first) and seeds the bootstrap.
    store: folder for the chunks' KV, by default ``kv`` in ``output_dir``.
    reference: folder of another evaluation, from which full prefill's answers are taken over.
    dtype: as of :meth:`SamKVEngine.from_pretrained`.
    max_new_tokens: most tokens of an answer.
    prompt: text of the user's message with ``{passages}`` and ``{question}`` in it, that of one's own
        pipeline say; by default one that asks for short answers.
    plots: draw them, which needs matplotlib.
    options: options of :class:`~samkv_rag.EngineConfig` and of methods; each goes to all that know it.

    Raises:
        ConfigurationError: an option is unknown or out of range.
    """

    model: str
    data: Sequence[Path]
    output_dir: Path
    methods: Sequence[str] = (Scout.name,)
    sequence_ratios: Sequence[float] = (Scout.sequence_ratio,)
    limit: int | None = None
    seed: int | None = None
    store: Path | None = None
    reference: Path | None = None
    dtype: str | None = None
    max_new_tokens: int = 16
    prompt: str | None = None
    plots: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_known_methods(self.methods)
        _require_distinct_names([file.stem for file in self.data])
        if not self.sequence_ratios or not all(0 < ratio <= 1 for ratio in self.sequence_ratios):
            raise ConfigurationError(
                f"sequence_ratio is {list(self.sequence_ratios)}; give numbers above 0 and up to 1"
            )
        for name, value in (("limit", self.limit), ("max_new_tokens", self.max_new_tokens)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value}; it must be at least 1")
        if self.seed is not None and self.seed < 0:
            raise ConfigurationError(f"seed is {self.seed}; it must be 0 or more")
        if refused := sorted(set(_NOT_OPTIONS) & set(self.options)):
            raise ConfigurationError(f"{refused[0]} cannot be set for all methods; give --methods and --sequence-ratio")
        refuse_unknown(self.options, {*_names(EngineConfig), *(n for c in self._classes() for n in _names(c))})
        if self.prompt is not None:
            require_placeholders(self.prompt)
        for task in self.tasks():  # refuses values out of range
            self.method(task)
        _ = self.engine_config

    @property
    def engine_config(self) -> EngineConfig:
        """What the engine fixes at ingestion."""
        return EngineConfig(**_only(self.options, EngineConfig))

    def method(self, task: Task) -> PrefillMethod:
        """The method of a task, with its budget and options; full prefill for a compressor."""
        cls = method_classes()[task.method if task.method not in COMPRESSORS else REFERENCE]
        budget = [name for name in _RATIOS if name in _names(cls)][:1]
        ratio = {name: task.ratio for name in budget if task.ratio is not None}
        always = {"min_chunk_tokens": 0} if "min_chunk_tokens" in _names(cls) else {}
        return cls(**{**_only(self.options, cls), **ratio, **always})

    def tasks(self) -> list[Task]:
        """Every way to answer a case, the reference first."""
        methods = [REFERENCE, *(method for method in dict.fromkeys(self.methods) if method != REFERENCE)]
        return [Task(method, ratio) for method in methods for ratio in self._ratios_of(method)]

    def _classes(self) -> list[type[PrefillMethod]]:
        return [method_classes()[name] for name in self.methods if name not in COMPRESSORS]

    def _ratios_of(self, method: str) -> list[float | None]:
        return [None] if method in WITHOUT_RATIO else list(dict.fromkeys(self.sequence_ratios))


def _require_known_methods(methods: Sequence[str]) -> None:
    known = [*method_classes(), *COMPRESSORS]
    if unknown := [method for method in methods if method not in known]:
        raise ConfigurationError(f"unknown method {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def _require_distinct_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigurationError("no data; give one or more case files")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigurationError(f"two data files are named {twice[0]!r}; rename one, the name tells them apart")


def _names(cls: type[Any]) -> set[str]:
    return {option.name for option in fields(cls)}


def _only(options: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _names(cls)}
