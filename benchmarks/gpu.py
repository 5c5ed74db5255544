"""Time to first token, memory and decoding speed of a Llama-3.1-8B-shaped model with random weights.

    python -m benchmarks.gpu [--contexts 4k,8k,16k,32k,64k] [--device cuda] [--json FILE]
    python -m benchmarks.gpu --device cpu --tiny --contexts 256,512 --chunk-tokens 64

Full prefill against the default method, chunk caches in (pinned) host memory and on disk, page cache
warm. Times are medians of runs after a warm-up; CUDA events measure them on CUDA. The clock runs
from a list of chunk keys to the first token's id: recognition of texts and tokenisation, which take
milliseconds, are in `benchmarks.engine`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

from benchmarks.machine import describe_machine
from benchmarks.synthetic import (
    SHAPES,
    PromptParts,
    encoded_chunks,
    open_chunk,
    parse_token_counts,
    prompt_parts,
    random_decoder,
    refuse_long_chunks,
    store_chunks,
)
from benchmarks.timing import WaitingClock, peak_device_bytes, timed_s
from samkv_rag import SamKVConfig
from samkv_rag.chunk_cache import ChunkCache, ChunkReader
from samkv_rag.prefill import METHODS, Clock, Prefilled
from samkv_rag.model import attention
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.model.loading import choose_device
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.store import DiskStore

_BATCH_SIZES = (1, 8)
OpenChunks = Callable[[], Sequence[ChunkReader]]


@dataclass(frozen=True)
class Row:
    """Figures of one method at one context length; None: not measured, or out of memory."""

    context_tokens: int
    method: str
    caches: str
    attention: str
    ttft_s: float | None = None
    ttft_ratio: float | None = None
    """To full prefill with the same attention."""
    phase_s: dict[str, float] = field(default_factory=dict)
    """Measured in runs of their own, which wait for the device at the end of every phase."""
    peak_bytes: int | None = None
    """Of device memory above the weights, until the first token; CUDA only."""
    kv_bytes_resident: int | None = None
    decode_tokens_per_s: dict[str, float | None] = field(default_factory=dict)
    """By batch size, all sequences together."""


@dataclass(frozen=True)
class Prefill:
    """A prefill that can be run again and again."""

    decoder: Decoder
    parts: PromptParts
    method: str
    open_chunks: OpenChunks
    reserve_tokens: int

    def __call__(self, clock: Clock) -> tuple[int, PromptLayout, KVBuffer]:
        """From chunk keys to the first token: what a user waits for."""
        layout = self.parts.layout(self.open_chunks(), self.decoder.device)
        buffer = KVBuffer(self.decoder.num_layers, self.reserve_tokens)
        prefilled: Prefilled = METHODS[self.method].prefill(self.decoder, layout, SamKVConfig(), buffer, clock)
        return int(self.decoder.logits(prefilled.hidden)[0, -1].argmax()), layout, buffer


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line as soon as it is known, and write JSON where asked to."""
    options = _options(arguments)
    device, shape = choose_device(options.device), "tiny" if options.tiny else "Llama-3.1-8B"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    machine = describe_machine()
    print(f"{shape} shape, random weights, {dtype}; " + ", ".join(f"{k}: {v}" for k, v in machine.items()))
    rows = []
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=options.store_dir) as folder:
        print(_HEADER)
        for row in measure(random_decoder(shape, device, dtype, options.layers), Path(folder), options):
            print(_line(row), flush=True)
            rows.append(row)
    if options.json is not None:
        setup = {"shape": shape, **SHAPES[shape], "layers": options.layers, "chunk_tokens": options.chunk_tokens}
        setup |= {"dtype": str(dtype), "rounds": options.rounds, "config": asdict(SamKVConfig())}
        figures = {"machine": machine, "setup": setup, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(decoder: Decoder, folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of every context length, attention and place of the caches."""
    contexts, on_cuda = parse_token_counts(options.contexts), decoder.device.type == "cuda"
    parts, store = prompt_parts(decoder, prefix_tokens=32, question_tokens=32), DiskStore(folder)
    caches = encoded_chunks(decoder, max(contexts) // options.chunk_tokens, options.chunk_tokens)
    keys = store_chunks(store, caches)
    default = SamKVConfig().method
    nearest: list[ChunkReader] = [_pinned(cache) for cache in caches] if on_cuda else [*caches]
    for context in contexts:
        num_chunks = context // options.chunk_tokens
        openers: list[tuple[str, str, OpenChunks]] = [
            ("full_prefill", "none", partial(list, nearest[:num_chunks])),
            (default, "pinned" if on_cuda else "memory", partial(list, nearest[:num_chunks])),
            (default, "disk", partial(_open_all, store, keys[:num_chunks])),
        ]
        for attention_name, using in _attentions(decoder.device):
            full_s: float | None = None
            for method, place, opener in openers:
                run = Prefill(decoder, parts, method, opener, options.decode_tokens)
                with using():
                    row = _measure_row(run, Row(context, method, place, attention_name), full_s, options)
                full_s = row.ttft_s if method == "full_prefill" else full_s
                yield row


def _open_all(store: DiskStore, keys: Sequence[str]) -> list[ChunkReader]:
    return [open_chunk(store, key) for key in keys]


def _pinned(cache: ChunkCache) -> ChunkCache:
    """The same with what a prefill reads in page-locked memory, from which CUDA copies without waiting."""
    hidden = None if cache.hidden is None else cache.hidden.pin_memory()
    return replace(cache, keys=cache.keys.pin_memory(), values=cache.values.pin_memory(), hidden=hidden)


def _measure_row(run: Prefill, row: Row, full_s: float | None, options: argparse.Namespace) -> Row:
    """``row`` filled in; ``full_s`` is full prefill's time to first token, where it was measured."""
    try:
        run(Clock())  # warms up
        row = replace(
            row,
            peak_bytes=peak_device_bytes(lambda: run(Clock()), run.decoder.device),
            ttft_s=_ttft_s(run, options.rounds),
        )
        row = replace(row, phase_s=_phases(run, options.rounds))
        _, layout, buffer = run(Clock())
    except torch.OutOfMemoryError:
        return row
    row = replace(row, ttft_ratio=_ratio(row, full_s), kv_bytes_resident=buffer.nbytes)
    speeds = {
        str(size): _decode_speed(run.decoder, buffer, layout.num_tokens, size, options.decode_tokens)
        for size in _BATCH_SIZES
    }
    return replace(row, decode_tokens_per_s=speeds)


def _ttft_s(run: Prefill, rounds: int) -> float:
    return median(timed_s(lambda: run(Clock()), run.decoder.device) for _ in range(rounds))


def _ratio(row: Row, full_s: float | None) -> float | None:
    if row.method == "full_prefill":
        return 1.0
    return row.ttft_s / full_s if row.ttft_s and full_s else None


def _phases(run: Prefill, rounds: int) -> dict[str, float]:
    """Median seconds of every phase."""
    clocks = [WaitingClock(run.decoder.device) for _ in range(rounds)]
    for clock in clocks:
        run(clock)
    return {name: median(clock.phase_s[name] for clock in clocks) for name in clocks[0].phase_s}


# -- decoding ------------------------------------------------------------------------------------


def _decode_speed(
    decoder: Decoder, prompt: KVBuffer, next_position_id: int, batch_size: int, num_tokens: int
) -> float | None:
    """Tokens a second of greedy decoding, all sequences together; None: out of memory."""
    try:
        _decode(decoder, _repeated(prompt, decoder.num_layers, batch_size, 2), next_position_id, 2)  # warms up
        buffer = _repeated(prompt, decoder.num_layers, batch_size, num_tokens)
        seconds = timed_s(lambda: _decode(decoder, buffer, next_position_id, num_tokens), decoder.device)
    except torch.OutOfMemoryError:
        return None
    return batch_size * num_tokens / seconds


def _repeated(prompt: KVBuffer, num_layers: int, batch_size: int, reserve_tokens: int) -> KVBuffer:
    """A buffer of ``batch_size`` sequences with memory of their own, all with the prompt's KV."""
    buffer = KVBuffer(num_layers, reserve_tokens)
    for layer in range(num_layers):
        buffer.append(layer, *(states.expand(batch_size, -1, -1, -1) for states in prompt.layer(layer)))
    return buffer


def _decode(decoder: Decoder, buffer: KVBuffer, next_position_id: int, num_tokens: int) -> None:
    """Greedy; the host looks at every token, as it must to find an answer's end."""
    batch_size = buffer.layer(0)[0].shape[0]
    token_ids = torch.zeros(batch_size, 1, dtype=torch.int64, device=decoder.device)
    positions = torch.arange(next_position_id, next_position_id + num_tokens, device=decoder.device)
    for step in range(num_tokens):
        hidden = decoder.run_layers(decoder.embed(token_ids), positions[step : step + 1], CausalPass(buffer))
        token_ids = decoder.logits(hidden)[:, -1:].argmax(dim=-1)
        token_ids.tolist()


# -- command line and table ----------------------------------------------------------------------


def _attentions(device: torch.device) -> list[tuple[str, Callable[[], AbstractContextManager[object]]]]:
    """Names of the attention implementations to measure, and what to enter to use them."""
    flash_is_there = device.type == "cuda" and attention._import_flash_attention() is not None

    def without_flash() -> AbstractContextManager[object]:
        return patch.object(attention, "_import_flash_attention", lambda: None)

    return [("sdpa", without_flash), *([("flash-attn", nullcontext)] if flash_is_there else [])]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="4k,8k,16k,32k,64k", help="tokens of all chunks together")
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--tiny", action="store_true", help="a toy shape, to try the script")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument(
        "--store-dir", type=Path, help="folder for the disk store, 9 GB at 64k; default: the temporary folder"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    refuse_long_chunks(parser, options)
    return options


_COLUMNS = "{:>8} {:<12} {:<7} {:<10} {:>9} {:>6} {:>10} {:>10} {:>9} {:>9}  {}"
_HEADER = _COLUMNS.format(
    "context",
    "method",
    "caches",
    "attention",
    "TTFT ms",
    "ratio",
    "peak MiB",
    "KV MiB",
    "tok/s b1",
    "tok/s b8",
    "phases",
)


def _line(row: Row) -> str:
    speeds = (_number(row.decode_tokens_per_s.get(str(size))) for size in _BATCH_SIZES)
    phases = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in row.phase_s.items())
    return _COLUMNS.format(
        row.context_tokens,
        row.method,
        row.caches,
        row.attention,
        _number(row.ttft_s, 1e3),
        _number(row.ttft_ratio, digits=3),
        _number(row.peak_bytes, 2**-20),
        _number(row.kv_bytes_resident, 2**-20, digits=2),
        *speeds,
        phases,
    )


def _number(value: float | None, factor: float = 1.0, digits: int = 1) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


if __name__ == "__main__":
    main()
