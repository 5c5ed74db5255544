"""The plan of one forward pass: which tokens are computed, which are read from the cache, which see which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.model.attention import Visibility
from samkv_rag.prompt.layout import PromptLayout, Segment

View = Literal["all", "chunk", "retained"]


@dataclass(frozen=True)
class Source:
    """Cached tokens of one segment and the columns they fill."""

    reader: ChunkReader
    columns: slice | torch.Tensor
    """On the host, where caches are read."""
    tokens: torch.Tensor | None
    """Which of the segment's tokens, on the host; None: all."""
    offset: int
    """How far to rotate its keys."""


@dataclass(frozen=True)
class Group:
    """Rows (computed tokens) that see the same columns."""

    rows: slice | torch.Tensor
    columns: slice | torch.Tensor | None
    """None: the retained columns."""
    visibility: Visibility
    """Which of the columns each row sees."""


@dataclass(frozen=True)
class Plan:
    """Columns are the positions in the pass, in order; rows are the positions it computes."""

    rotate_offsets: torch.Tensor
    """``[columns]``"""
    row_positions: torch.Tensor
    """``[rows]``, positions in the prompt"""
    row_ids: torch.Tensor
    """``[rows]``, token ids"""
    row_columns: torch.Tensor
    """``[rows]``, each row's column"""
    row_is_chunk: torch.Tensor
    """``[rows]``"""
    retained_columns: torch.Tensor | None
    """``[retained]``, columns kept for decoding; None: all"""
    retained_positions: torch.Tensor
    """``[retained]``, positions in the prompt, on the host"""
    sources: list[Source]
    groups: list[Group]


def make_plan(
    layout: PromptLayout,
    retained: torch.Tensor,
    recomputed: torch.Tensor | None = None,
    view: View = "retained",
    reads_recomputed: bool = False,
    with_text: bool = True,
) -> Plan:
    """Plan a pass that computes all text (unless not ``with_text``) and the ``recomputed`` chunk tokens.

    ``retained`` and ``recomputed`` are ``[tokens]`` masks over the prompt, the second within the first. Text and
    recomputed tokens see the retained tokens before them. With ``view="chunk"`` recomputed tokens also see their
    whole chunk, with ``view="all"`` every token before them. ``reads_recomputed`` also reads the cached KV of
    recomputed tokens (fusion).
    """
    recomputed = torch.zeros_like(retained) if recomputed is None else recomputed
    # Planned on the host: loops over chunks would synchronise with the device at every step.
    retained, recomputed, is_text = torch.stack((retained, recomputed, layout.is_text)).cpu()
    computed = is_text | recomputed if with_text else recomputed
    wide = view != "retained" and bool(recomputed.any())
    drops = wide and not bool(retained.all())
    present = torch.ones_like(retained) if wide else retained
    column_of = present.cumsum(0) - 1
    row_positions, retained_positions = _positions(computed), _positions(retained)
    rows = row_positions.to(layout.device)
    wanted = present if wide or reads_recomputed else present & ~computed
    if wide:
        groups = _wide_groups(layout, retained, is_text & computed, row_positions, view)
    else:
        groups = [Group(slice(0, len(row_positions)), None, Visibility(row_positions, retained_positions))]
    return Plan(
        rotate_offsets=layout.rotate_offsets[_positions(present).to(layout.device)],
        row_positions=rows,
        row_ids=layout.token_ids[rows],
        row_columns=column_of[row_positions].to(layout.device),
        row_is_chunk=layout.is_chunk[rows],
        retained_columns=column_of[retained_positions].to(layout.device) if drops else None,
        retained_positions=retained_positions,
        sources=_sources(layout, wanted, column_of),
        groups=groups,
    )


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return where ``mask`` ``[tokens]``, on the host, is True."""
    return mask.nonzero()[:, 0]


def _sources(layout: PromptLayout, wanted: torch.Tensor, column_of: torch.Tensor) -> list[Source]:
    """Return what to read of every cached segment; ``wanted`` and ``column_of``, ``[tokens]``, are on the host."""
    positions, sources = _positions(wanted), []
    for segment, (first, last) in zip(layout.cached, _ranges(positions, layout.cached), strict=True):
        if segment.reader is None or first == last:
            continue
        tokens: torch.Tensor | None = positions[first:last] - segment.start
        columns: torch.Tensor | slice = column_of[positions[first:last]]
        if last - first == segment.num_tokens:
            start = int(column_of[segment.start])
            tokens, columns = None, slice(start, start + segment.num_tokens)
        sources.append(Source(segment.reader, columns, tokens, segment.rotate_offset))
    return sources


def _ranges(positions: torch.Tensor, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Return where each segment begins and ends in rising ``positions``."""
    bounds = torch.tensor([(segment.start, segment.stop) for segment in segments], dtype=torch.int64)
    return [(first, last) for first, last in torch.searchsorted(positions, bounds.view(-1, 2)).tolist()]


def _wide_groups(
    layout: PromptLayout, retained: torch.Tensor, is_text: torch.Tensor, row_positions: torch.Tensor, view: View
) -> list[Group]:
    """Return one group for all text, which sees the retained, and one per chunk's rows. Columns are positions."""
    text_rows = _positions(is_text[row_positions])
    visibility = Visibility(row_positions[text_rows], _positions(retained))
    groups = [Group(text_rows.to(layout.device), None, visibility)] if len(text_rows) else []
    for (start, stop), segment in zip(_ranges(row_positions, layout.chunks), layout.chunks, strict=True):
        if stop > start:
            seen = torch.arange(segment.stop)
            if view == "chunk":
                seen = seen[retained[: segment.stop] | (seen >= segment.start)]
            columns = slice(0, segment.stop) if view == "all" else seen.to(layout.device)
            groups.append(Group(slice(start, stop), columns, Visibility(row_positions[start:stop], seen)))
    return groups
