"""The options of an evaluation, checked before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from samkv_apps.evaluate.compressors import COMPRESSORS
from samkv_apps.evaluate.controls import CONTROLS, MORE_CHUNKS, NO_CONTEXT, SAME_TTFT, TEXT_CONTROLS, RandomTokens
from samkv_apps.evaluate.datasets import Case
from samkv_apps.evaluate.prompts import Template, require_placeholders
from samkv_apps.evaluate.retrieval import Order, RetrieverName
from samkv_rag.checks import refuse_unknown, require_choice, require_integer
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prefill import PrefillMethod, Scout, method_classes

TaskName = Literal["short", "long"]
REFERENCE = "full_prefill"
TOP_K = 8
WITHOUT_RATIO = (REFERENCE, "naive_reuse", NO_CONTEXT)
_RATIOS = ("sequence_ratio", "recompute_ratio")
"""The names of budgets; a method uses the first that it has."""
_NOT_OPTIONS = (*_RATIOS, "min_chunk_tokens")
"""Ratios are set per task. ``min_chunk_tokens`` could make a method fall back to full prefill unnoticed."""


@dataclass(frozen=True)
class Task:
    """One way to answer a case."""

    method: str
    ratio: float | None
    """The largest share of the chunk tokens to keep; None for a method without a budget."""


FULL = Task(REFERENCE, None)


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of :func:`~samkv_apps.evaluate.evaluate`.

    model: hub id, folder or .gguf file.
    data: case files; their names without extension name the data sets.
    output_dir: a new or empty folder, or one with an evaluation to continue.
    methods: names of methods, compressors and controls; full_prefill always runs, as the reference.
    sequence_ratios: every method with a budget runs at each ratio.
    task: ``"short"``, or ``"long"``: answers of a page, see ``compare_long_answers``.
    group: with the task long, questions per prompt, where a file has questions.
    limit: number of cases per file (prompts, in the task long); default all.
    seed: seed of the sample that ``limit`` takes, and of the bootstrap; without it, ``limit`` takes the first cases.
    store: folder for the chunks' KV, by default ``kv`` in ``output_dir``.
    reference: folder of another evaluation whose full-prefill answers are reused.
    dtype: see :meth:`SamKVEngine.from_pretrained`.
    max_new_tokens: the longest answer, in tokens.
    prompt: text of the user's message with ``{passages}`` and ``{question}``, such as your pipeline's; by default
        it asks for short answers.
    template: replaces ``prompt`` with a framework's default, ``"llama_index"`` or ``"langchain"``, or with the chunks
        and the question alone, ``"plain"``.
    corpus: pool the chunks of each data file; every question gets the nearest of them.
    retriever: finds or ranks chunks: ``"minilm"`` (all-MiniLM-L6-v2) or ``"bm25"``.
    top_k: number of chunks that each question gets from a corpus.
    more_top_k: largest number of chunks for the control more_chunks.
    order: order of the chunks in the prompt: ``"file"``, ``"best_first"``, ``"best_last"`` or ``"random"``; by default
        ``"file"``, with a corpus ``"best_first"``, as in the frameworks.
    plots: draw plots; needs matplotlib.
    options: options of :class:`~samkv_rag.EngineConfig` and of methods; each goes to all that have it.

    Raises:
        ConfigurationError: an option is unknown or out of range.
    """

    model: str
    data: Sequence[Path]
    output_dir: Path
    methods: Sequence[str] = (Scout.name,)
    sequence_ratios: Sequence[float] = (Scout.sequence_ratio,)
    task: TaskName = "short"
    group: int = 5
    limit: int | None = None
    seed: int | None = None
    store: Path | None = None
    reference: Path | None = None
    dtype: str | None = None
    max_new_tokens: int = 16
    prompt: str | None = None
    template: Template | None = None
    corpus: bool = False
    retriever: RetrieverName = "minilm"
    top_k: int = TOP_K
    more_top_k: int = 30
    order: Order | None = None
    plots: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_known_methods(self.methods)
        _require_distinct_names([file.stem for file in self.data])
        if not self.sequence_ratios or not all(0 < ratio <= 1 for ratio in self.sequence_ratios):
            raise ConfigurationError(
                f"sequence_ratio is {list(self.sequence_ratios)}; give numbers above 0 and up to 1"
            )
        for name in ("limit", "max_new_tokens", "top_k", "more_top_k", "group"):
            if (value := getattr(self, name)) is not None:
                require_integer(name, value, 1)
        if self.seed is not None:
            require_integer("seed", self.seed, 0)
        if refused := sorted(set(_NOT_OPTIONS) & set(self.options)):
            raise ConfigurationError(f"{refused[0]} cannot be set for all methods; give --methods and --sequence-ratio")
        refuse_unknown(self.options, _names(EngineConfig).union(*(_names(_class_of(name)) for name in self.methods)))
        if self.prompt is not None:
            require_placeholders(self.prompt)
        self._require_known_prompts_and_chunks()
        for task in self.tasks():  # refuses values out of range
            self.method(task)
        _ = self.engine_config

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's options, which are fixed at ingestion."""
        return EngineConfig(**_only(self.options, EngineConfig))

    def method(self, task: Task) -> PrefillMethod:
        """Return a task's method with its budget and options; full prefill for a compressor."""
        cls = _class_of(task.method)
        budget = [name for name in _RATIOS if name in _names(cls)][:1]
        ratio = {name: task.ratio for name in budget if task.ratio is not None}
        always = {"min_chunk_tokens": 0} if "min_chunk_tokens" in _names(cls) else {}
        return cls(**{**_only(self.options, cls), **ratio, **always})

    def tasks(self) -> list[Task]:
        """Return every way to answer a case, the reference first."""
        compared = [Scout.name] if SAME_TTFT in self.methods else []  # SAME_TTFT needs scout's time
        methods = dict.fromkeys([REFERENCE, *compared, *self.methods])
        return [Task(method, ratio) for method in methods for ratio in self._ratios_of(method)]

    @property
    def retrieves_more(self) -> bool:
        """Whether a method reads more than ``top_k`` chunks of a corpus."""
        return MORE_CHUNKS in self.methods

    @property
    def chunk_order(self) -> Order:
        """The order of the chunks in the prompt."""
        return self.order or ("best_first" if self.corpus else "file")

    @property
    def retrieval(self) -> dict[str, Any] | None:
        """The options that decide the chunks and their order, as plain values; None if they are the file's."""
        order = self.chunk_order
        if order == "file":
            return None
        ranked = self.corpus or order != "random"
        return {
            "corpus": self.corpus,
            "top_k": self.top_k if self.corpus else None,
            "retriever": self.retriever if ranked else None,
            "order": order,
            "seed": self.seed if order == "random" else None,
        }

    def seed_of(self, case: Case) -> str:
        """Return the seed of a case's random order; it does not depend on the other cases."""
        return f"{self.seed} {case.case_id}"

    def _require_known_prompts_and_chunks(self) -> None:
        require_choice("task", self.task, get_args(TaskName))
        others = sorted({*self.methods} & {*COMPRESSORS, *TEXT_CONTROLS, MORE_CHUNKS})
        if self.task == "long" and others:
            raise ConfigurationError(f"{others[0]} answers other prompts; leave it out of the task long")
        require_choice("template", self.template, (None, *get_args(Template)))
        require_choice("retriever", self.retriever, get_args(RetrieverName))
        require_choice("order", self.order, (None, *get_args(Order)))
        if self.prompt is not None and self.template is not None:
            raise ConfigurationError(f"template is {self.template!r} and a prompt is given too; give one of them")
        if self.corpus and self.order == "file":
            raise ConfigurationError("order is 'file', which a corpus lacks; give best_first, best_last or random")
        if self.retrieves_more and not self.corpus:
            raise ConfigurationError(f"{MORE_CHUNKS} reads more of a corpus; give corpus too, or leave it out")
        if self.retrieves_more and self.more_top_k < self.top_k:
            raise ConfigurationError(f"more_top_k is {self.more_top_k}; it must be at least top_k, {self.top_k}")

    def _ratios_of(self, method: str) -> list[float | None]:
        return [None] if method in WITHOUT_RATIO else list(dict.fromkeys(self.sequence_ratios))


def _require_known_methods(methods: Sequence[str]) -> None:
    known = [*method_classes(), *COMPRESSORS, *CONTROLS]
    if unknown := [method for method in methods if method not in known]:
        raise ConfigurationError(f"unknown method {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def _class_of(method: str) -> type[PrefillMethod]:
    """Return a method's class; full prefill for compressors and controls that change the prompt's text."""
    if method in COMPRESSORS or method in TEXT_CONTROLS:
        method = REFERENCE
    classes: dict[str, type[PrefillMethod]] = {RandomTokens.name: RandomTokens, MORE_CHUNKS: Scout}
    return (classes | method_classes())[method]


def _require_distinct_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigurationError("no data; give one or more case files")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigurationError(f"two data files are named {twice[0]!r}; rename one, since names identify data sets")


def _names(cls: type[Any]) -> set[str]:
    return {option.name for option in fields(cls)}


def _only(options: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _names(cls)}
