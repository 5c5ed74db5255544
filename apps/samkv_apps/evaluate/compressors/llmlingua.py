"""LongLLMLingua (arXiv 2310.06839): rank chunks by the question's perplexity, then drop tokens.

This is our implementation, on the engine's model. The authors' package (llmlingua 0.2.2) does not run with
transformers 5: it reads and writes KV caches as tuples, and downloads a tokenizer when it is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_apps.evaluate.compressors.base import Compressor
from samkv_rag.engine import SamKVEngine
from samkv_rag.model.decoder import CausalPass
from samkv_rag.model.kv_buffer import KVBuffer

RESTRICTION = "We can get the answer to this question in the given documents."
"""Section 4.1: appended to the question, so that its perplexity depends more on the document."""
COARSE_MARGIN_TOKENS = 100
"""The chunks retained whole exceed the budget by this, so that tokens can be dropped from them."""
SHARE_SPREAD = 0.3
"""δτ of section 4.4: the share kept of the best chunk, minus that of the average one."""
_BLANK_LINE = "\n\n"
_LOGITS_TOKENS = 256
"""Logits over the vocabulary are computed for this many tokens at a time."""


@dataclass(frozen=True)
class Retained:
    """A chunk that passed the ranking."""

    token_ids: torch.Tensor
    contrast: torch.Tensor
    """``[tokens]``: log p(token | question, before) − log p(token | before)"""
    rank: int
    """0 for the best."""


class LLMLingua(Compressor):
    """Question-aware coarse-to-fine compression (LongLLMLingua, sections 4.1, 4.2 and 4.4).

    Chunks are ranked by the likelihood of the question given the chunk. The best are retained until they exceed the
    budget by ``COARSE_MARGIN_TOKENS`` (the default of the authors' package). Then the tokens stay that the question
    makes likelier; better chunks keep a larger share. Simpler than the paper: each chunk is scored alone, not after
    the compressed chunks before it; chunks keep their order; the answer is not repaired afterwards. ``max_tokens``
    is a hard cap on the texts, counted by the engine.
    """

    name: ClassVar[str] = "llmlingua"

    def __init__(self, engine: SamKVEngine) -> None:
        self._engine = engine
        self._start_ids = engine.tokenizer.bos_ids or engine.tokenize(_BLANK_LINE)

    @torch.inference_mode()
    def compress(self, question: str, chunks: Sequence[str], max_tokens: int) -> list[str]:
        token_ids = [torch.tensor(self._engine.tokenize(chunk)) for chunk in chunks]
        lengths = [len(ids) for ids in token_ids]
        if sum(lengths) <= max_tokens:
            return list(chunks)
        likelihoods = [self.question_likelihood(question, ids) for ids in token_ids]
        best_first = sorted(range(len(chunks)), key=lambda i: -likelihoods[i])
        rank_of = {i: rank for rank, i in enumerate(until_full(best_first, lengths, max_tokens))}
        contrasts = {i: self.contrast(question, token_ids[i]) for i in rank_of}
        return self._fit([Retained(token_ids[i], contrasts[i], rank_of[i]) for i in sorted(rank_of)], max_tokens)

    def question_likelihood(self, question: str, token_ids: torch.Tensor) -> float:
        """Return the mean log-probability of the question's tokens after a chunk (section 4.1, negated)."""
        asked = torch.tensor(self._engine.tokenize(f"{_BLANK_LINE}{question} {RESTRICTION}"))
        return float(self.log_probabilities(torch.cat([torch.tensor(self._start_ids), token_ids]), asked).mean())

    def contrast(self, question: str, token_ids: torch.Tensor) -> torch.Tensor:
        """Return how much likelier the question makes each token of a chunk, ``[tokens]`` (section 4.2)."""
        start = torch.tensor(self._start_ids)
        asked = torch.tensor(self._engine.tokenize(f"{question}{_BLANK_LINE}"))
        plain = self.log_probabilities(start, token_ids)
        return self.log_probabilities(torch.cat([start, asked]), token_ids) - plain

    def log_probabilities(self, before: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each of ``token_ids`` after ``before``, ``[tokens]``, on the CPU."""
        decoder = self._engine.decoder
        read = torch.cat([before, token_ids])[None, :-1]
        positions = torch.arange(read.shape[1])
        attend = CausalPass(KVBuffer(decoder.num_layers), positions)
        hidden = decoder.run_layers(decoder.embed(read), positions, attend)
        parts = torch.split(hidden[:, len(before) - 1 :], _LOGITS_TOKENS, dim=1)
        logs = [
            decoder.logits(part)[0].float().log_softmax(-1).gather(1, ids[:, None].to(part.device))[:, 0]
            for part, ids in zip(parts, torch.split(token_ids, _LOGITS_TOKENS), strict=True)
        ]
        return torch.cat(logs).cpu()

    def _fit(self, retained: Sequence[Retained], max_tokens: int) -> list[str]:
        """Return texts of the best tokens. Retry with fewer if a text has more tokens than were kept of it."""
        num_tokens = max_tokens
        while True:
            texts = [self._text(item, n) for item, n in zip(retained, quotas(retained, num_tokens), strict=True)]
            surplus = sum(map(self._engine.count_tokens, texts)) - max_tokens
            if surplus <= 0:
                return [text for text in texts if text]
            num_tokens -= surplus

    def _text(self, item: Retained, num_tokens: int) -> str:
        best = item.contrast.argsort(descending=True, stable=True)[:num_tokens]
        text = self._engine.tokenizer.decode(item.token_ids[best.sort().values].tolist())
        # A character of several tokens may have lost some.
        return text.replace("\N{REPLACEMENT CHARACTER}", "").strip()


def until_full(best_first: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Return the best chunks, up to the one that exceeds ``max_tokens`` and the margin, which is included."""
    taken: list[int] = []
    room = max_tokens + COARSE_MARGIN_TOKENS
    for i in best_first:
        if room < 0:
            break
        taken.append(i)
        room -= lengths[i]
    return taken


def quotas(retained: Sequence[Retained], num_tokens: int) -> list[int]:
    """Return the number of tokens to keep of each chunk, at most ``num_tokens`` in total (section 4.4)."""
    total = sum(len(item.token_ids) for item in retained)
    tilts = [(1 - 2 * item.rank / len(retained)) * SHARE_SPREAD for item in retained]
    shares = [min(1.0, max(0.0, num_tokens / total + tilt)) for tilt in tilts]
    wanted = [share * len(item.token_ids) for share, item in zip(shares, retained, strict=True)]
    scale = min(1.0, max(0, num_tokens) / max(1.0, sum(wanted)))
    return [int(scale * tokens) for tokens in wanted]
