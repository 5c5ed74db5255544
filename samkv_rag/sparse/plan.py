"""The plan of one forward pass: who is computed, who is read from the cache, who sees whom."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.config import RecomputeView
from samkv_rag.sparse.layout import PromptLayout, Segment


@dataclass(frozen=True)
class Source:
    """Cached tokens of one segment and the columns they fill."""

    reader: ChunkReader
    columns: slice | torch.Tensor
    tokens: torch.Tensor | None
    """Which of the segment's tokens; None: all."""


@dataclass(frozen=True)
class Group:
    """Rows (computed tokens) that see the same columns."""

    rows: slice | torch.Tensor
    columns: slice | torch.Tensor | None
    """What they may see; None: the kept columns."""
    mask: torch.Tensor
    """``[rows, columns seen]``, True where seen."""


@dataclass(frozen=True)
class Plan:
    """Columns are the positions present in the pass, in order; rows are those computed in it."""

    positions: torch.Tensor
    """``[columns]``, positions in the prompt"""
    turn_offsets: torch.Tensor
    """``[columns]``"""
    row_positions: torch.Tensor
    """``[rows]``, positions in the prompt"""
    row_columns: torch.Tensor
    """``[rows]``, columns that the rows fill"""
    row_is_chunk: torch.Tensor
    """``[rows]``"""
    kept_columns: torch.Tensor | None
    """Columns that stay for decoding; None: all."""
    sources: list[Source]
    groups: list[Group]


def make_plan(
    layout: PromptLayout,
    kept: torch.Tensor,
    recomputed: torch.Tensor | None = None,
    view: RecomputeView = "kept",
    reads_recomputed: bool = False,
) -> Plan:
    """Plan a pass that computes all text and the ``recomputed`` chunk tokens.

    ``kept`` and ``recomputed`` are ``[tokens]`` masks over the prompt, the second within the first.
    Text sees the kept tokens before it; so do recomputed tokens, which with ``view="chunk"`` see all of
    their own chunk too, with ``view="all"`` every token before them. ``reads_recomputed`` loads the
    cached KV of recomputed tokens too (fusion).
    """
    computed = layout.is_text if recomputed is None else layout.is_text | recomputed
    wide = view != "kept" and recomputed is not None and bool(recomputed.any())
    present = torch.ones_like(kept) if wide else kept
    positions = present.nonzero()[:, 0]
    column_of = present.cumsum(0) - 1
    row_positions = computed.nonzero()[:, 0]
    row_is_chunk = layout.is_chunk[row_positions]
    kept_columns = column_of[kept.nonzero()[:, 0]] if wide else None
    wanted = present if wide or reads_recomputed else present & ~computed
    return Plan(
        positions=positions,
        turn_offsets=layout.turn_offsets[positions],
        row_positions=row_positions,
        row_columns=column_of[row_positions],
        row_is_chunk=row_is_chunk,
        kept_columns=kept_columns,
        sources=[source for segment in layout.cached if (source := _source(segment, wanted, column_of))],
        groups=_wide_groups(layout, kept, row_positions, view) if wide else [_narrow(positions, row_positions)],
    )


def _source(segment: Segment, wanted: torch.Tensor, column_of: torch.Tensor) -> Source | None:
    assert segment.reader is not None
    tokens = wanted[segment.span].nonzero()[:, 0]
    if len(tokens) == 0:
        return None
    columns = column_of[segment.start + tokens]
    if len(tokens) == segment.stop - segment.start:
        first = int(columns[0])
        return Source(segment.reader, slice(first, first + len(tokens)), None)
    return Source(segment.reader, columns, tokens.cpu())


def _narrow(seen_positions: torch.Tensor, row_positions: torch.Tensor) -> Group:
    mask = seen_positions[None, :] <= row_positions[:, None]
    return Group(slice(0, len(row_positions)), None, mask)


def _wide_groups(
    layout: PromptLayout, kept: torch.Tensor, row_positions: torch.Tensor, view: RecomputeView
) -> list[Group]:
    """One group for all text, which sees what is kept; one for each chunk's rows. Columns are positions."""
    text_rows = layout.is_text[row_positions].nonzero()[:, 0]
    groups = [Group(text_rows, None, kept.nonzero()[None, :, 0] <= row_positions[text_rows][:, None])]
    bounds = torch.tensor([[s.start, s.stop] for s in layout.chunks], device=row_positions.device)
    for (start, stop), segment in zip(torch.searchsorted(row_positions, bounds).tolist(), layout.chunks, strict=True):
        if stop > start:
            seen = torch.arange(segment.stop, device=row_positions.device)
            if view == "chunk":
                seen = seen[kept[: segment.stop] | (seen >= segment.start)]
            mask = seen[None, :] <= row_positions[start:stop, None]
            groups.append(Group(slice(start, stop), slice(0, segment.stop) if view == "all" else seen, mask))
    return groups
