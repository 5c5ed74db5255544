"""The policy of an engine: what to keep, what to recompute, when not to bother."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from samkv_rag.exceptions import ConfigurationError

Method = Literal["scout", "samkv", "full_prefill", "naive_reuse", "cacheblend", "epic"]
Update = Literal["overwrite", "fusion"]
RecomputeView = Literal["all", "chunk", "kept"]
KVDtype = Literal["auto", "bfloat16", "int8", "int4"]


@dataclass(frozen=True)
class SamKVConfig:
    """Validated, immutable options of a :class:`~samkv_rag.SamKVEngine`.

    Budget
        method: how the prompt becomes a KV cache. ``scout`` (ours) lets the question read the whole
            cached KV, layer by layer, and keeps the blocks it pays attention to; ``samkv`` compares
            personalised queries with block mean keys (arXiv 2508.11661). References: ``full_prefill``
            (no cache used), ``naive_reuse`` (all cached KV kept, nothing recomputed), and
            ``cacheblend`` (arXiv 2405.16444) and ``epic`` (arXiv 2410.15332), which keep all cached KV
            and recompute a share: the tokens that deviate most, or the chunks' beginnings.
        sequence_ratio: hard cap on chunk tokens kept ÷ chunk tokens in the prompt, in (0, 1]; with
            ``cacheblend`` and ``epic`` on those recomputed.
        min_chunk_tokens: a prompt with fewer chunk tokens takes full prefill, which is as fast.

    Selection
        initial_tokens: a chunk's first tokens, always kept (its anchors).
        span_tokens: (scout) tokens selected together.
        span_top_tokens: (scout) a span's score is the mean of its highest token scores.
        score_layers: (scout) share of the depth whose attention counts, from and to, in [0, 1].
        emphasis_tokens, emphasis_weight: (scout) the attention of so many last prompt tokens weighs so
            many times what that of all others does.
        local_tokens: (samkv) a chunk's last tokens, always kept too; their mean query speaks for it.
        block_tokens: (samkv) tokens summarised at ingestion and selected together.
        stable_layers: (samkv) how many last layers select.
        personalization: (samkv) add the other chunks' local queries to the question's.
        dynamic_share: (samkv) share kept from the scores, within the budget; else the budget.

    Recomputation
        recompute: run the kept tokens through the model again so that chunks see each other.
        recompute_view: what they attend to: the ``kept`` tokens; these and all of their own ``chunk``;
            or ``all`` tokens before them.
        update: recomputed KV ``overwrite`` the cached, or are mixed with them (``fusion``).
        fusion_theta: weight of the recomputed KV in a fusion, in [0, 1].
        resume_layer: recompute from this layer on, starting from hidden states stored at ingestion; 0
            recomputes every layer. None: a quarter of the depth, but 0 for a fusion and where
            everything is kept, which then equals full prefill.

    Storage
        kv_dtype: what a store keeps chunks in that are ingested: ``auto``, the model's own dtype;
            ``bfloat16``; ``int8`` or ``int4``, quantised in groups (arXiv 2402.02750). Chunks stored
            in any of them are read.

    Raises:
        ConfigurationError: a value is out of range.
    """

    method: Method = "scout"
    sequence_ratio: float = 0.15
    min_chunk_tokens: int = 256

    initial_tokens: int = 4
    span_tokens: int = 8
    span_top_tokens: int = 4
    score_layers: tuple[float, float] = (0.5, 0.83)
    emphasis_tokens: int = 1
    emphasis_weight: float = 3.0
    local_tokens: int = 4
    block_tokens: int = 16
    stable_layers: int = 4
    personalization: bool = True
    dynamic_share: bool = True

    recompute: bool = True
    recompute_view: RecomputeView = "kept"
    update: Update = "overwrite"
    fusion_theta: float = 0.9
    resume_layer: int | None = None

    kv_dtype: KVDtype = "auto"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _require_choice(name, getattr(self, name), choices)
        for name, low in _INTEGERS_FROM.items():
            if not (name == "resume_layer" and self.resume_layer is None):
                _require_integer(name, getattr(self, name), low)
        for name in _SWITCHES:
            _require_choice(name, getattr(self, name), (True, False))
        _require_number("sequence_ratio", self.sequence_ratio, 1e-6, 1.0)
        _require_number("fusion_theta", self.fusion_theta, 0.0, 1.0)
        _require_number("emphasis_weight", self.emphasis_weight, 0.0, 1e6)
        _require_layer_share(self.score_layers)
        if self.resume_layer and (not self.recompute or self.update == "fusion"):
            raise ConfigurationError(
                f"resume_layer is {self.resume_layer}, which needs recompute=True and update='overwrite'; "
                "set resume_layer=0 or change those"
            )

    def stored_resume_layer(self, num_layers: int) -> int:
        """Layer whose entering hidden states are stored at ingestion; 0: none are.

        Raises:
            ConfigurationError: the model has no such layer.
        """
        if self.resume_layer is None:
            return num_layers // 4
        if self.resume_layer >= num_layers:
            raise ConfigurationError(
                f"resume_layer is {self.resume_layer}; the model has {num_layers} layers, give a lower one"
            )
        return self.resume_layer

    def first_recomputed_layer(self, num_layers: int) -> int:
        """Layer at which recomputation of the kept tokens starts."""
        exact = self.update == "fusion" or self.sequence_ratio == 1
        return 0 if self.resume_layer is None and exact else self.stored_resume_layer(num_layers)

    def with_options(self, **options: Any) -> SamKVConfig:
        """Return a copy with some options changed.

        Raises:
            ConfigurationError: an option is unknown or out of range.
        """
        refuse_unknown(options, [field.name for field in fields(self)])
        return replace(self, **options)


def refuse_unknown(options: Collection[str], known: Collection[str]) -> None:
    """Raise ConfigurationError when ``options`` names something that is not ``known``."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigurationError(f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}")


_CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "update": get_args(Update),
    "recompute_view": get_args(RecomputeView),
    "kv_dtype": get_args(KVDtype),
}
_INTEGERS_FROM = {
    "min_chunk_tokens": 0,
    "initial_tokens": 0,
    "local_tokens": 1,
    "block_tokens": 1,
    "span_tokens": 1,
    "span_top_tokens": 1,
    "emphasis_tokens": 0,
    "stable_layers": 1,
    "resume_layer": 0,
}
_SWITCHES = ("personalization", "dynamic_share", "recompute")


def _require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ConfigurationError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def _require_integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(f"{name} is {value!r}; it must be an integer of at least {low}")


def _require_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")


def _require_layer_share(share: object) -> None:
    if not isinstance(share, tuple) or len(share) != 2 or not 0.0 <= share[0] < share[1] <= 1.0:
        raise ConfigurationError(f"score_layers is {share!r}; it must be (from, to) with 0 <= from < to <= 1")
