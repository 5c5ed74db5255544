"""The plan of one forward pass: who is computed, who is read from the cache, who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.model.attention import Visibility
from samkv_rag.prompt.layout import PromptLayout, Segment

View = Literal["all", "chunk", "retained"]
"""What recomputed tokens attend to: every token before them, the retained and all of their chunk, the retained."""


@dataclass(frozen=True)
class Source:
    """Cached tokens of one segment and the columns they fill."""

    reader: ChunkReader
    columns: slice | torch.Tensor
    """On the host, where caches are read."""
    tokens: torch.Tensor | None
    """Which of the segment's tokens, on the host too; None: all."""
    offset: int
    """How far its keys are rotated."""


@dataclass(frozen=True)
class Group:
    """Rows (computed tokens) that see the same columns."""

    rows: slice | torch.Tensor
    columns: slice | torch.Tensor | None
    """What they may see; None: the retained columns."""
    visibility: Visibility
    """Which of it each row sees."""


@dataclass(frozen=True)
class Plan:
    """Columns are the positions present in the pass, in order; rows are those computed in it."""

    positions: torch.Tensor
    """``[columns]``, positions in the prompt"""
    rotate_offsets: torch.Tensor
    """``[columns]``"""
    row_positions: torch.Tensor
    """``[rows]``, positions in the prompt"""
    row_ids: torch.Tensor
    """``[rows]``, token ids"""
    row_columns: torch.Tensor
    """``[rows]``, columns that the rows fill"""
    row_is_chunk: torch.Tensor
    """``[rows]``"""
    retained_columns: torch.Tensor | None
    """Columns that stay for decoding; None: all."""
    retained_positions: torch.Tensor
    """``[retained]``, theirs in the prompt, on the host"""
    sources: list[Source]
    groups: list[Group]


def make_plan(
    layout: PromptLayout,
    retained: torch.Tensor,
    recomputed: torch.Tensor | None = None,
    view: View = "retained",
    reads_recomputed: bool = False,
) -> Plan:
    """Plan a pass that computes all text and the ``recomputed`` chunk tokens.

    ``retained`` and ``recomputed`` are ``[tokens]`` masks over the prompt, the second within the first.
    Text sees the retained tokens before it; so do recomputed tokens, which with ``view="chunk"`` see all of
    their own chunk too, with ``view="all"`` every token before them. ``reads_recomputed`` loads the
    cached KV of recomputed tokens too (fusion).
    """
    recomputed = torch.zeros_like(retained) if recomputed is None else recomputed
    # Planned on the host, whose loops over chunks would make a device wait at every step.
    retained, recomputed, is_text = torch.stack((retained, recomputed, layout.is_text)).cpu()
    computed = is_text | recomputed
    wide = view != "retained" and bool(recomputed.any())
    drops = wide and not bool(retained.all())
    present = torch.ones_like(retained) if wide else retained
    column_of = present.cumsum(0) - 1
    positions, row_positions = _positions(present).to(layout.device), _positions(computed)
    rows = row_positions.to(layout.device)
    wanted = present if wide or reads_recomputed else present & ~computed
    if wide:
        groups = _wide_groups(layout, retained, is_text, row_positions, view)
    else:
        groups = [Group(slice(0, len(row_positions)), None, Visibility(row_positions, _positions(present)))]
    return Plan(
        positions=positions,
        rotate_offsets=layout.rotate_offsets[positions],
        row_positions=rows,
        row_ids=layout.token_ids[rows],
        row_columns=column_of[row_positions].to(layout.device),
        row_is_chunk=layout.is_chunk[rows],
        retained_columns=column_of[_positions(retained)].to(layout.device) if drops else None,
        retained_positions=_positions(retained),
        sources=_sources(layout, wanted, column_of),
        groups=groups,
    )


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Where ``mask`` ``[tokens]``, on the host, is True."""
    return mask.nonzero()[:, 0]


def _sources(layout: PromptLayout, wanted: torch.Tensor, column_of: torch.Tensor) -> list[Source]:
    """What is read of every cached segment; ``wanted`` and ``column_of`` ``[tokens]`` are on the host."""
    positions = _positions(wanted)
    columns = column_of[positions]
    sources = []
    for segment, (first, last) in zip(layout.cached, _ranges(positions, layout.cached), strict=True):
        if segment.reader is None or first == last:
            continue
        if last - first == segment.stop - segment.start:
            start = int(column_of[segment.start])
            sources.append(Source(segment.reader, slice(start, start + last - first), None, segment.rotate_offset))
        else:
            tokens = positions[first:last] - segment.start
            sources.append(Source(segment.reader, columns[first:last], tokens, segment.rotate_offset))
    return sources


def _ranges(positions: torch.Tensor, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Where in ``positions``, which rise, those of each segment begin and end."""
    bounds = torch.tensor([(segment.start, segment.stop) for segment in segments], dtype=torch.int64)
    return [(first, last) for first, last in torch.searchsorted(positions, bounds.view(-1, 2)).tolist()]


def _wide_groups(
    layout: PromptLayout, retained: torch.Tensor, is_text: torch.Tensor, row_positions: torch.Tensor, view: View
) -> list[Group]:
    """One group for all text, which sees what is retained; one for each chunk's rows. Columns are positions."""
    text_rows = _positions(is_text[row_positions])
    visibility = Visibility(row_positions[text_rows], _positions(retained))
    groups = [Group(text_rows.to(layout.device), None, visibility)]
    for (start, stop), segment in zip(_ranges(row_positions, layout.chunks), layout.chunks, strict=True):
        if stop > start:
            seen = torch.arange(segment.stop)
            if view == "chunk":
                seen = seen[retained[: segment.stop] | (seen >= segment.start)]
            columns = slice(0, segment.stop) if view == "all" else seen.to(layout.device)
            groups.append(Group(slice(start, stop), columns, Visibility(row_positions[start:stop], seen)))
    return groups
