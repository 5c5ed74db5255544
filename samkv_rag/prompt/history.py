"""Former turns of chats: the text after the chunks, with the KV that its answer was decoded from.

So a turn costs only its own question, however long the chat. As in FlowKV (arXiv 2505.15347), former turns keep the
KV that was computed from what was retained then, and are not compressed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from samkv_rag.chunk_cache import ChunkCache
from samkv_rag.forking import ProcessLock
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prompt.layout import PromptLayout, Segment


class Seen(NamedTuple):
    """What the text after a prompt's chunks has seen."""

    digests: frozenset[str]
    """Of the chunks."""
    before: tuple[int, ...]
    """Token ids of the text before the first chunk, such as instructions and a user's name; none without chunks."""

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Seen:
        digests = frozenset(segment.digest for segment in segments if segment.kind == "chunk")
        has_text = bool(digests) and segments[0].kind != "chunk"
        return cls(digests, tuple(segments[0].token_ids.tolist()) if has_text else ())


@dataclass(frozen=True)
class Turn:
    """The text after a prompt's last chunk, and its answer."""

    cache: ChunkCache
    """KV of both, with keys at their positions in the prompt."""
    start: int
    """Position of the first token in the prompt."""
    num_asked: int
    """Tokens before the answer."""
    seen: Seen

    def shared(self, token_ids: torch.Tensor) -> int:
        """Return how many first tokens the turn has in common with ``token_ids`` ``[tokens]``; 0 for another chat.

        Two chats may ask the same question. It is the same chat only if the answer follows, too, or half of it: its
        end may have been trimmed, or tokenised differently.
        """
        own = self.cache.token_ids
        room = min(len(own), len(token_ids))
        num_shared = int((own[:room] == token_ids[:room]).cumprod(0).sum())
        return num_shared if num_shared > (self.num_asked + len(own)) / 2 else 0


class History:
    """The last turns, at most ``max_tokens`` in all, on the host. Thread-safe."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._lock = ProcessLock()
        self._turns: list[Turn] = []

    def remember(self, layout: PromptLayout, answer_ids: Sequence[int], buffer: KVBuffer) -> None:
        """Keep the KV in ``buffer`` of a prompt's text after its last chunk, and of the answer."""
        start = max((segment.stop for segment in layout.chunks), default=0)
        num_tokens = int((buffer.positions >= start).sum())
        token_ids = torch.cat((layout.token_ids[start:].cpu(), torch.tensor(answer_ids, dtype=torch.int64)))
        layers = [buffer.layer(layer) for layer in range(buffer.num_layers)]
        if num_tokens > self._max_tokens or any(keys.shape[2] < num_tokens for keys, _ in layers):
            return  # too long, or a layer's window has dropped some of it
        keys, values = (torch.cat([kv[:, :, -num_tokens:] for kv in kind]).cpu() for kind in zip(*layers, strict=True))
        own = ChunkCache(token_ids[:num_tokens], keys, values)
        turn = Turn(own, start, layout.num_tokens - start, Seen.of(layout.segments))
        with self._lock:  # the turn replaces the same words after the same chunks and text
            others = [
                t for t in self._turns if t.seen != turn.seen or not torch.equal(t.cache.token_ids, own.token_ids)
            ]
            self._turns = [*others, turn]
            while sum(kept.cache.num_tokens for kept in self._turns) > self._max_tokens:
                del self._turns[0]

    def find(self, token_ids: torch.Tensor, seen: Seen) -> Turn | None:
        """Return the turn that a prompt's text ``[tokens]`` begins with, cut to what both share, or None.

        At least the text's last token is left over. The turn must have ``seen`` one of the prompt's chunks, and the
        text before them: another user's chat may have the same words.
        """
        with self._lock:
            found = [
                (turn.shared(token_ids[:-1]), len(turn.seen.digests & seen.digests), number)
                for number, turn in enumerate(self._turns)
                if turn.seen.before == seen.before
                and (turn.seen.digests & seen.digests or turn.seen.digests == seen.digests)
            ]
            num_tokens, _, number = max(found, default=(0, 0, -1))
            if not num_tokens:
                return None
            turn = self._turns.pop(number)
            self._turns.append(turn)
        cache, shared = turn.cache, slice(num_tokens)
        cut = ChunkCache(cache.token_ids[shared], cache.keys[:, :, shared], cache.values[:, :, shared])
        return replace(turn, cache=cut)
