"""What chunks stored in 8 or 4 bits change: bytes, kept tokens, answers, against the model's own dtype.

    python -m benchmarks.quantization --model PATH --data FILE --output-dir DIR [--source STORE] [--json FILE]

The same chunk caches are stored once in each ``kv_dtype``, and every case is answered from each store, in
three ways of recomputing, which read more or less of what is stored. ``--source`` is a disk store from
which chunk caches are taken rather than computed; it is only read. An interrupted run is continued by the
same command: answers are kept in ``answers.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine
from samkv_rag import SamKVConfig, SamKVEngine
from samkv_rag.chunk_cache import ChunkCache, ChunkReader, chunk_key
from samkv_rag.config import KVDtype
from samkv_apps.evaluate.datasets import Case, build_messages, load_cases
from samkv_apps.evaluate.scoring import f1
from samkv_apps.evaluate.statistics import bootstrap_interval
from samkv_rag.model.loading import load
from samkv_rag.prompt import describe
from samkv_rag.store import DiskStore, Entry
from samkv_rag.store.format.reading import ChunkFile

_REFERENCE: KVDtype = "auto"
_KV_DTYPES: tuple[KVDtype, ...] = ("auto", "int8", "int4")
_MODES: dict[str, dict[str, Any]] = {
    "kept, resumed": {},
    "kept, from the bottom": {"resume_layer": 0},
    "all, resumed": {"recompute_view": "all"},
}

Engines = dict[tuple[KVDtype, str], SamKVEngine]
"""By what they store in and how they recompute."""


@dataclass(frozen=True)
class Answer:
    """One case answered from one store."""

    case: str
    kv_dtype: str
    mode: str
    text: str
    f1: float
    gold_nll: float
    kept_tokens: list[list[int]]
    """Of every chunk, see :class:`~samkv_rag.results.ChunkUse`."""


@dataclass(frozen=True)
class Row:
    """One ``kv_dtype`` in one mode, against the model's own dtype on the same cases."""

    mode: str
    kv_dtype: str
    n: int
    overlap_mean: float
    """Tokens kept in both ÷ tokens kept."""
    overlap_min: float
    chosen_overlap_mean: float
    """The same without each chunk's first tokens, which are always kept."""
    same_answers: int
    f1: float
    f1_difference: float
    f1_difference_ci95: tuple[float, float]
    gold_nll: float
    gold_nll_difference: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or continue, print the tables, and write JSON where asked to."""
    options = _options(arguments)
    cases = load_cases(options.data, options.limit)
    model, tokenizer = load(options.model, None, options.dtype, None, False)
    folders = {kv_dtype: options.output_dir / kv_dtype for kv_dtype in _KV_DTYPES}
    engines = {kv_dtype: _engine(model, tokenizer, folder, kv_dtype, {}) for kv_dtype, folder in folders.items()}
    texts = list(dict.fromkeys(text.strip() for case in cases for text in case.chunks))
    _fill_stores(engines, texts, options.source)
    num_bytes = {kv_dtype: _stored_bytes(engines[kv_dtype], folders[kv_dtype], texts) for kv_dtype in _KV_DTYPES}
    jobs = [(kv_dtype, mode) for kv_dtype in _KV_DTYPES for mode in options.modes]
    engines_of = {
        (kv_dtype, mode): _engine(model, tokenizer, folders[kv_dtype], kv_dtype, _MODES[mode])
        for kv_dtype, mode in jobs
    }
    answers = _answer_all(engines_of, cases, options.output_dir / "answers.jsonl")
    rows = list(_summarise(answers))
    print(_as_table(rows, num_bytes))
    if options.json is not None:
        setup = {"model": Path(options.model).name, "data": options.data.stem, "cases": len(cases)}
        figures = {"machine": describe_machine(), "setup": setup, "stored_bytes": num_bytes}
        options.json.write_text(json.dumps({**figures, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


# -- stores --------------------------------------------------------------------------------------


def _engine(model: Any, tokenizer: Any, folder: Path, kv_dtype: KVDtype, options: dict[str, Any]) -> SamKVEngine:
    config = SamKVConfig(min_chunk_tokens=0, kv_dtype=kv_dtype, **options)
    return SamKVEngine.from_pretrained(model, tokenizer=tokenizer, store=DiskStore(folder), config=config)


def _fill_stores(engines: dict[KVDtype, SamKVEngine], texts: Sequence[str], source: Path | None) -> None:
    """Store the same caches in every dtype: those of ``source``, and computed ones where it has none."""
    reference = engines[_REFERENCE]
    missing = [text for text in texts if not reference.has_chunk(text)]
    for text in missing if source is not None else []:
        assert source is not None
        _take_over(reference, text, source)
    reference.add_chunks(missing)
    layers = range(reference.decoder.num_layers)
    for entry in (reference.store.changes(reference.fingerprint, 0) or ([], 0))[0]:
        for kv_dtype, engine in engines.items():
            if engine.store.open(entry.key, engine.fingerprint) is None:
                reader = reference.store.open(entry.key, reference.fingerprint)
                assert reader is not None
                cache = _as_cache(reader, layers, reference.fingerprint)
                engine.store.put(entry, replace(cache, kv_dtype=kv_dtype))


def _take_over(engine: SamKVEngine, text: str, source: Path) -> None:
    known = describe(text)
    key = chunk_key(engine.fingerprint, known.text_digest)
    try:
        reader = ChunkFile(source / "chunks" / key[:2] / f"{key}.safetensors", engine.fingerprint)
    except FileNotFoundError:
        return
    reader.verify()
    cache = _as_cache(reader, range(engine.decoder.num_layers), engine.fingerprint)
    place = (known.prefix, known.suffix, known.num_chars, cache.num_tokens, cache.layout)
    engine.store.put(Entry(key, known.text_digest, *place), cache)


def _as_cache(reader: ChunkReader, layers: Iterable[int], fingerprint: str) -> ChunkCache:
    keys, values = zip(*(reader.layer(layer) for layer in layers), strict=True)
    states = (torch.stack(keys), torch.stack(values), reader.means(), reader.layout, fingerprint)
    return ChunkCache(reader.token_ids, *states, reader.resume_hidden())


def _stored_bytes(engine: SamKVEngine, folder: Path, texts: Iterable[str]) -> int:
    keys = {chunk_key(engine.fingerprint, describe(text).text_digest) for text in texts}
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.stem in keys)


# -- answers -------------------------------------------------------------------------------------


def _answer_all(engines: Engines, cases: Sequence[Case], file: Path) -> list[Answer]:
    """Answers to ``cases``, those already in ``file`` and new ones, which are added to it; case by case."""
    wanted = {case.case_id for case in cases}
    known = [Answer(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    answers = [answer for answer in known if answer.case in wanted]
    done = {(answer.case, answer.kv_dtype, answer.mode) for answer in answers}
    with file.open("a") as lines:
        for case in cases:
            for (kv_dtype, mode), engine in engines.items():
                if (case.case_id, kv_dtype, mode) in done:
                    continue
                answers.append(_answer(engine, case, kv_dtype, mode))
                lines.write(json.dumps(asdict(answers[-1])) + "\n")
                lines.flush()
    return answers


def _answer(engine: SamKVEngine, case: Case, kv_dtype: str, mode: str) -> Answer:
    messages = build_messages(case.question, case.chunks)
    result, nll = engine.generate_scored(messages, case.answers[0], max_new_tokens=16, stop="\n")
    if result.metrics.chunks_missed:
        raise RuntimeError(f"case {case.case_id}: {result.metrics.chunks_missed} chunks were not in the store")
    text, kept = result.text.strip(), [list(use.kept_tokens) for use in result.chunks]
    return Answer(case.case_id, kv_dtype, mode, text, f1(text, case.answers), nll, kept)


# -- figures -------------------------------------------------------------------------------------


def _summarise(answers: Sequence[Answer]) -> Iterator[Row]:
    for mode in _MODES:
        by_dtype = {d: {a.case: a for a in answers if (a.mode, a.kv_dtype) == (mode, d)} for d in _KV_DTYPES}
        for kv_dtype, own in by_dtype.items():
            if own:
                yield _row(mode, kv_dtype, [(own[case], by_dtype[_REFERENCE][case]) for case in own])


def _row(mode: str, kv_dtype: str, pairs: Sequence[tuple[Answer, Answer]]) -> Row:
    """``pairs`` holds each answer and that from the model's own dtype."""
    overlaps = [_overlap(own, reference, 0) for own, reference in pairs]
    chosen = [_overlap(own, reference, SamKVConfig().initial_tokens) for own, reference in pairs]
    differences = [own.f1 - reference.f1 for own, reference in pairs]
    return Row(
        mode=mode,
        kv_dtype=kv_dtype,
        n=len(pairs),
        overlap_mean=_mean(overlaps),
        overlap_min=min(overlaps),
        chosen_overlap_mean=_mean(chosen),
        same_answers=sum(own.text == reference.text for own, reference in pairs),
        f1=_mean([own.f1 for own, _ in pairs]),
        f1_difference=_mean(differences),
        f1_difference_ci95=bootstrap_interval(differences, seed=0),
        gold_nll=_mean([own.gold_nll for own, _ in pairs]),
        gold_nll_difference=_mean([own.gold_nll - reference.gold_nll for own, reference in pairs]),
    )


def _overlap(own: Answer, reference: Answer, first: int) -> float:
    """Share of the reference's kept tokens, from each chunk's token ``first`` on, that are kept here too."""
    pairs = zip(own.kept_tokens, reference.kept_tokens, strict=True)
    kept = [({t for t in mine if t >= first}, {t for t in theirs if t >= first}) for mine, theirs in pairs]
    return sum(len(mine & theirs) for mine, theirs in kept) / sum(len(theirs) for _, theirs in kept)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


_HEADER = ("recomputed", "stored in", "n", "kept tokens shared (least)", "chosen ones", "same answers")
_HEADER_2 = ("F1", "difference (95%)", "gold NLL", "difference", "bytes")


def _as_table(rows: Sequence[Row], num_bytes: dict[KVDtype, int]) -> str:
    header = (*_HEADER, *_HEADER_2)
    lines = [header, ("---",) * len(header), *(_cells(row, num_bytes) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: Row, num_bytes: dict[KVDtype, int]) -> tuple[str, ...]:
    low, high = row.f1_difference_ci95
    share = next(count for name, count in num_bytes.items() if name == row.kv_dtype) / num_bytes[_REFERENCE]
    return (
        row.mode,
        row.kv_dtype,
        str(row.n),
        f"{row.overlap_mean:.3f} ({row.overlap_min:.3f})",
        f"{row.chosen_overlap_mean:.3f}",
        str(row.same_answers),
        f"{row.f1:.3f}",
        f"{row.f1_difference:+.3f} ({low:+.3f} to {high:+.3f})",
        f"{row.gold_nll:.3f}",
        f"{row.gold_nll_difference:+.3f}",
        f"{share:.3f}",
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id, folder or .gguf file")
    parser.add_argument("--data", required=True, type=Path, help="case file")
    parser.add_argument("--output-dir", required=True, type=Path, help="for the stores and the answers")
    parser.add_argument("--limit", type=int, help="the first cases of the file; default: all")
    parser.add_argument("--source", type=Path, help="folder of a store with chunk caches; it is only read")
    parser.add_argument("--dtype", help="such as bfloat16; default: by processor")
    parser.add_argument("--modes", nargs="+", choices=_MODES, default=list(_MODES), help="ways of recomputing")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
