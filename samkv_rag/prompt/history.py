"""Former turns of chats: what was said behind the chunks, with the KV that its answer was decoded from.

So a turn costs what its own question costs, however long the chat. What was said then saw what was retained then,
and is not compressed again, as in FlowKV (arXiv 2505.15347).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from samkv_rag.chunk_cache import ChunkCache
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prompt.layout import PromptLayout


@dataclass(frozen=True)
class Turn:
    """A question with what preceded it behind the chunks, and its answer."""

    cache: ChunkCache
    """Of both; keys as they stood in the prompt."""
    start: int
    """Where its first token stood."""
    num_asked: int
    """Tokens that are the prompt's, and not the answer's."""

    def shared(self, token_ids: torch.Tensor) -> int:
        """How many tokens ``token_ids`` ``[tokens]`` and the turn begin with alike.

        The same question may be asked of other chunks: it is the same chat only where the answer follows, too. Half of
        it is enough, as its end may have been trimmed, or cut into other tokens.
        """
        own = self.cache.token_ids
        room = min(len(own), len(token_ids))
        differ = (own[:room] != token_ids[:room]).nonzero()
        num_shared = int(differ[0]) if len(differ) else room
        return num_shared if num_shared > (self.num_asked + len(own)) / 2 else 0

    def cut(self, num_tokens: int) -> Turn:
        """Its first ``num_tokens``, whose KV knows nothing of those that follow."""
        cache, kept = self.cache, slice(0, num_tokens)
        keys, values = cache.keys[:, :, kept], cache.values[:, :, kept]
        return replace(self, cache=ChunkCache(cache.token_ids[kept], keys, values))


class History:
    """The turns answered last, ``max_tokens`` of them in all, on the host. For any number of threads."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._turns: list[Turn] = []

    def remember(self, layout: PromptLayout, answer_ids: Sequence[int], buffer: KVBuffer) -> None:
        """Keep a prompt's text behind its last chunk, and the answer, as they are in ``buffer``."""
        start = max((segment.stop for segment in layout.chunks), default=0)
        num_tokens = int((buffer.positions >= start).sum())
        token_ids = torch.cat((layout.token_ids[start:].cpu(), torch.tensor(answer_ids, dtype=torch.int64)))
        layers = [buffer.layer(layer) for layer in range(buffer.num_layers)]
        if num_tokens > self._max_tokens or any(keys.shape[2] < num_tokens for keys, _ in layers):  # out of a window
            return
        keys, values = (torch.cat([kv[:, :, -num_tokens:] for kv in kind]).cpu() for kind in zip(*layers, strict=True))
        turn = Turn(ChunkCache(token_ids[:num_tokens], keys, values), start, layout.num_tokens - start)
        with self._lock:
            self._turns = [kept for kept in self._turns if not torch.equal(kept.cache.token_ids, turn.cache.token_ids)]
            self._turns.append(turn)
            while sum(kept.cache.num_tokens for kept in self._turns) > self._max_tokens:
                del self._turns[0]

    def find(self, token_ids: torch.Tensor) -> Turn | None:
        """The turn that text of a prompt, ``[tokens]``, begins with, cut to what both share; one token is left over."""
        with self._lock:
            shared = [(turn.shared(token_ids[:-1]), number) for number, turn in enumerate(self._turns)]
            num_tokens, number = max(shared, default=(0, -1))
            if not num_tokens:
                return None
            turn = self._turns.pop(number)
            self._turns.append(turn)
            return turn.cut(num_tokens)
