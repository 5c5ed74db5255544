"""A prompt as token positions: which are cached, which are chunks, which are text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, groupby, pairwise
from typing import Literal

import torch

from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.forking import cached_property


@dataclass(frozen=True)
class Segment:
    """A run of prompt tokens of one kind.

    A ``prefix`` is the text before the first chunk, with exact cached KV. A ``chunk`` has cached KV computed out of
    context, ``history`` the KV of former turns, and ``text`` none.
    """

    kind: Literal["prefix", "chunk", "history", "text"]
    token_ids: torch.Tensor
    start: int = 0
    """Position of the first token in the prompt."""
    reader: ChunkReader | None = None
    computed_at: int = 0
    """Position at which the first cached key was computed."""
    digest: str = ""
    """SHA-256 of a chunk's text."""
    start_char: int = 0
    text: str = ""
    hit: bool = True
    """Whether the store had the chunk; otherwise it was computed for this prompt."""
    is_label: bool = False
    """Text that describes the next chunk, and moves with it."""
    sentence_ends: torch.Tensor | None = None
    """``[tokens]`` mask of a chunk's tokens that end a sentence or a line."""
    is_structure: bool = False
    """Text with a control token, such as the end of a message."""

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + self.num_tokens

    @property
    def rotate_offset(self) -> int:
        """How far to rotate the cached keys."""
        return self.start - self.computed_at

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)


class PromptLayout:
    """Segments one right after the other, and masks over all prompt positions, each ``[tokens]``, on one device."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        starts = accumulate((segment.num_tokens for segment in segments), initial=0)
        self.segments = [replace(segment, start=start) for segment, start in zip(segments, starts, strict=False)]
        self.device = device
        self.token_ids = torch.cat([segment.token_ids for segment in segments]).to(device)
        self.num_tokens = len(self.token_ids)
        self.num_chunk_tokens = sum(segment.num_tokens for segment in self.chunks)
        self.num_tokens_reused = sum(segment.num_tokens for segment in self.cached if segment.hit)
        """Tokens whose KV was read, not computed."""

        numbers = count()
        of_segments = [
            (next(numbers) if s.kind == "chunk" else -1, s.kind == "text", s.rotate_offset if s.reader else 0, s.start)
            for s in self.segments
        ]
        lengths = torch.tensor([segment.num_tokens for segment in self.segments])
        # One copy to the device for all masks.
        spread = torch.tensor([*zip(*of_segments, strict=True)]).repeat_interleave(lengths, dim=1).to(device)
        self.chunk_number = spread[0]
        """Number of each position's chunk, from 0; -1 elsewhere."""
        self.is_chunk = self.chunk_number >= 0
        self.is_text = spread[1].bool()
        """Tokens without cached KV."""
        self.rotate_offsets = spread[2]
        """How far to rotate each position's cached key."""
        self.index_in_chunk = (torch.arange(self.num_tokens, device=device) - spread[3]) * self.is_chunk
        """Each chunk token's index within its chunk; 0 elsewhere."""
        self.chunk_lengths = torch.tensor([segment.num_tokens for segment in self.chunks], device=device)
        """Tokens of each chunk, ``[chunks]``."""

    @property
    def chunks(self) -> list[Segment]:
        return [segment for segment in self.segments if segment.kind == "chunk"]

    @property
    def cached(self) -> list[Segment]:
        """The segments with cached KV."""
        return [segment for segment in self.segments if segment.reader is not None]

    @cached_property
    def bytes_read(self) -> int:
        """Bytes of stored chunks read until the first access, at the latest until :meth:`release`."""
        return self.count_bytes_read()

    def count_bytes_read(self) -> int:
        """Return the bytes read so far of stored chunks, not of those computed for this prompt."""
        return sum(getattr(segment.reader, "bytes_read", 0) for segment in self.chunks if segment.hit)

    def placed(self, scores: Sequence[float]) -> tuple[PromptLayout, list[int]]:
        """Return the prompt with its chunks in rising order of ``scores`` ``[chunks]``, the best next to the tail.

        Also returns each placed chunk's present number. Labels move with their chunks. Chunks only change places
        within a message, and only if all texts between them are the same: other text may describe them.
        """
        chunks, order = self.chunks, list(range(len(self.chunks)))
        first = free = 0
        for divider, group in groupby(self._dividers()):
            last = first + len(list(group))
            if not divider or last - first > 1:  # a chunk between two such runs moves in the first one
                run = range(max(first, free), last + 1)
                order[run.start : run.stop] = sorted(run, key=lambda number: (scores[number], chunks[number].digest))
                free = run.stop
            first = last
        labels = [[s for s in self.segments[place - 1 : place] if s.is_label] for place in self._chunk_places]
        units = iter([[*labels[number], chunks[number]] for number in order])
        staying = [segment for segment in self.segments if not segment.is_label]
        segments = [s for one in staying for s in (next(units) if one.kind == "chunk" else [one])]
        return PromptLayout(segments, self.device), order

    def asking(self, question_ids: torch.Tensor) -> PromptLayout:
        """Return the prompt with a question ``[tokens]`` right before its tail."""
        if not len(question_ids):
            return self
        num_before = sum(segment.stop <= self.tail.start for segment in self.segments)
        asked = Segment("text", question_ids)
        return PromptLayout([*self.segments[:num_before], asked, *self.segments[num_before:]], self.device)

    def without_chunks(self) -> PromptLayout:
        """Return the prompt without everything from the first chunk to the last."""
        places = self._chunk_places
        before = [segment for segment in self.segments[: places[0]] if not segment.is_label]
        return PromptLayout([*before, *self.segments[places[-1] + 1 :]], self.device)

    @property
    def _chunk_places(self) -> list[int]:
        """Which of the segments are chunks."""
        return [place for place, segment in enumerate(self.segments) if segment.kind == "chunk"]

    def _dividers(self) -> list[str | int]:
        """Return the text between each chunk and the next; "" without letters or digits, a number for structure."""
        dividers: list[str | int] = []
        for a, b in pairwise(self._chunk_places):
            between = self.segments[a + 1 : b]
            text = "".join(segment.text for segment in between if not segment.is_label)
            is_structure = any(segment.is_structure for segment in between)
            dividers.append(b if is_structure else text if any(map(str.isalnum, text)) else "")  # b equals no other
        return dividers

    def release(self) -> None:
        """Drop the readers, once nothing reads them any more."""
        _ = self.bytes_read  # counts them
        self.segments = [replace(segment, reader=None) for segment in self.segments]

    @property
    def tail(self) -> slice:
        """Positions after the last chunk and former turns, usually the question."""
        last = max((segment.stop for segment in self.segments if segment.kind in ("chunk", "history")), default=0)
        return slice(last, self.num_tokens)

    @cached_property
    def ends_sentence(self) -> torch.Tensor:
        """Chunk tokens that end a sentence or a line."""
        none = torch.zeros(self.num_tokens, dtype=torch.bool)
        ends = [none[s.span] if s.sentence_ends is None else s.sentence_ends for s in self.segments]
        return torch.cat(ends).to(self.device)
