"""On CUDA the host runs ahead of the device: no operation done per layer may make it wait.

Two stand-ins for a GPU: on the CPU, operations that read values back are counted; and layers run on the
meta device, whose tensors have no values to read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import is_dataclass, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from samkv_rag.chunk_cache import ChunkCache, SummarySpec
from samkv_rag.ingestion.encoder import encode
from samkv_rag.model.decoder import CausalPass, Decoder, causal_rows, side_by_side
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Clock, PrefillContext, PrefillMethod, Scout
from samkv_rag.prefill.passes.plan import Source, make_plan
from samkv_rag.prefill.passes.planned_pass import LayerReader, PlannedPass
from samkv_rag.prefill.scout import AttentionScores
from samkv_rag.prompt.layout import PromptLayout, Segment
from support import tiny

CPU, META = torch.device("cpu"), torch.device("meta")
SPEC = SummarySpec(initial_tokens=4, local_tokens=4, block_tokens=8)
READ_BACK = {
    "_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_consecutive", "_unique2",
}  # fmt: skip


class ReadBacks(TorchDispatchMode):
    """Counts operations whose result, on CUDA, the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        # A boolean index is turned into positions, and their number is read back.
        if name in READ_BACK or any(index is not None and index.dtype == torch.bool for index in indices):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def decoder_of(num_layers: int) -> Decoder:
    decoder = Decoder(tiny.model(num_hidden_layers=num_layers))
    decoder.rotation_by(torch.zeros(1))  # looks at each layer once, as the self-test does
    return decoder


def layout_of(decoder: Decoder, num_chunks: int = 3) -> PromptLayout:
    """A prefix, chunks with a token of text between them, a question."""
    (prefix,) = encode(decoder, [[1, 2, 3]], SummarySpec(0, 1, 3))
    segments = [Segment("prefix", prefix.token_ids, reader=prefix)]
    for number in range(num_chunks):
        (chunk,) = encode(decoder, [list(range(number, number + 64))], SPEC)
        segments.append(Segment("chunk", chunk.token_ids, reader=chunk, digest=str(number)))
        segments.append(Segment("text", torch.tensor([9])))
    segments.append(Segment("text", torch.arange(10, 22)))
    return PromptLayout(segments, CPU)


def read_backs(num_layers: int, method: PrefillMethod | None = None) -> Counter[str]:
    """Count those of a whole prefill."""
    decoder = decoder_of(num_layers)
    context = PrefillContext(decoder, layout_of(decoder), KVBuffer(num_layers), SPEC, Clock())
    with torch.inference_mode(), ReadBacks() as found:
        (method or Scout()).prefill(context)
    return found.counts


@pytest.mark.parametrize(
    "method",
    [
        Scout(),
        Scout(recompute_view="all"),
        Scout(placement="prompt"),
        Scout(recompute_view="chunk"),
        Scout(update="fusion"),
        *map(tiny.method, ("samkv", "naive_reuse", "cacheblend", "epic", "prophetkv")),
    ],
    ids=tiny.method_id,
)
def test_a_deeper_model_reads_no_more_back(method: PrefillMethod) -> None:
    shallow = read_backs(4, method)
    assert read_backs(8, method) == shallow
    assert sum(shallow.values()) > 0, "nothing was counted at all"


@pytest.mark.parametrize("num_chunks", [2, 9])
def test_a_plan_reads_back_a_few_times_however_many_chunks(num_chunks: int) -> None:
    decoder = decoder_of(2)
    layout = layout_of(decoder, num_chunks)
    retained = torch.arange(layout.num_tokens) % 3 == 0
    with ReadBacks() as found:
        make_plan(layout, retained | layout.is_text, retained & layout.is_chunk)
    assert sum(found.counts.values()) <= 8


# -- the meta device -----------------------------------------------------------------------------


def on_meta(thing: Any) -> Any:
    """``thing`` with its tensors on the meta device; sources are read on the host."""
    if isinstance(thing, torch.Tensor):
        return thing.to(META)
    if isinstance(thing, list):
        return [on_meta(part) for part in thing]
    if isinstance(thing, Source):
        return thing
    if isinstance(thing, LayerReader):
        thing._device, thing._rotate = META, on_meta(thing._rotate)
        return thing
    if isinstance(thing, (PlannedPass, AttentionScores)):
        for name, value in vars(thing).items():
            setattr(thing, name, on_meta(value))
    elif is_dataclass(thing) and not isinstance(thing, (type, ChunkCache)):
        return replace(thing, **{name: on_meta(value) for name, value in vars(thing).items()})
    return thing


@pytest.mark.parametrize("view", ["retained", "chunk", "all"])
@pytest.mark.parametrize("theta", [None, 0.5])
def test_recomputing_a_layer_reads_nothing_back(view: Any, theta: float | None) -> None:
    decoder = decoder_of(2)
    layout = layout_of(decoder)
    retained = (torch.arange(layout.num_tokens) % 3 == 0) | layout.is_text
    plan = make_plan(layout, retained, retained & layout.is_chunk, view, reads_recomputed=theta is not None)
    attend = on_meta(PlannedPass(decoder, plan, KVBuffer(2), fusion_theta=theta))
    run_on_meta(attend, plan.row_positions)


def test_scouting_a_layer_reads_nothing_back() -> None:
    decoder = decoder_of(2)
    layout = layout_of(decoder)
    plan = make_plan(layout, retained=torch.ones_like(layout.is_text))
    scores = AttentionScores(decoder, Scout(), layout.num_tokens, layout.tail.stop - layout.tail.start)
    run_on_meta(on_meta(PlannedPass(decoder, plan, observer=scores)), plan.row_positions)
    assert scores.scores.device == META


def test_decoding_a_token_reads_nothing_back() -> None:
    buffers = [KVBuffer(2), KVBuffer(2)]
    for buffer in buffers:
        run_on_meta(CausalPass(buffer, torch.arange(5)), torch.arange(5))
    rows = side_by_side([causal_rows(buffer, [7], 5) for buffer in buffers])
    run_on_meta(rows.attend, rows.position_ids)
    assert [buffer.layer(1)[0].shape[2] for buffer in buffers] == [6, 6]


@torch.inference_mode()
def run_on_meta(attend: Any, row_positions: torch.Tensor) -> None:
    decoder = Decoder(tiny.model(num_hidden_layers=2).to(META))
    hidden = decoder.embed(torch.zeros(1, len(row_positions), dtype=torch.int64))
    assert decoder.logits(decoder.run_layers(hidden, row_positions, attend)).device == META
