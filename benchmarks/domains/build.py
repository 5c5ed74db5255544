"""Build the evaluation files of the domains from their sources: ``python -m benchmarks.domains.build``.

Equal sources give equal bytes: no random generator is involved, hashes decide order and distractors.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HANDBOOK = HERE.parents[1] / "apps" / "samkv_apps" / "demo" / "corpus"
CHUNKS_PER_CASE = 10
CHUNKS_PER_LONG_CASE = 16
SIBLINGS_PER_CASE = 4


@dataclass(frozen=True)
class Chunk:
    """A passage; ``source`` names the file it stands in, so that distractors can come from the same one."""

    title: str
    text: str
    source: str


def code_chunks() -> list[Chunk]:
    """Every top-level function and class of the library, titled by its qualified name."""
    return [chunk for path in sorted(HERE.glob("code/parcelkit/*.py")) for chunk in _definitions(path)]


def _definitions(path: Path) -> list[Chunk]:
    lines = path.read_text(encoding="utf-8").splitlines()
    chunks = []
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            text = "\n".join(lines[first - 1 : node.end_lineno])
            chunks.append(Chunk(f"parcelkit.{path.stem}.{node.name}", text, path.name))
    return chunks


def manual_chunks() -> list[Chunk]:
    """Every section of the manual, titled by its number and heading."""
    return [chunk for path in sorted(HERE.glob("manual/*.md")) for chunk in _sections(path)]


def _sections(path: Path) -> list[Chunk]:
    _, *sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = [section.partition("\n") for section in sections]
    return [Chunk(title.strip(), text.strip(), path.name) for title, _, text in parts]


def skerrow_chunks() -> list[Chunk]:
    """Every page of the demo's handbook, titled by its heading."""
    pages = [(path.name, path.read_text(encoding="utf-8")) for path in sorted(HANDBOOK.glob("*.md"))]
    parts = [(name, text.removeprefix("# ").partition("\n")) for name, text in pages]
    return [Chunk(title.strip(), text.strip(), name) for name, (title, _, text) in parts]


DOMAINS: dict[str, Callable[[], list[Chunk]]] = {"code": code_chunks, "manual": manual_chunks}
LONG_DOMAINS: dict[str, Callable[[], list[Chunk]]] = {"skerrow": skerrow_chunks, "manual": manual_chunks}
LONG_KINDS = {"lists": "-list-", "summaries": "-summary-"}
"""The files of long answers; the words are part of their cases' ids."""


def questions(domain: str) -> list[dict[str, Any]]:
    """Rows of the domain's ``questions.jsonl``: id, question, answers, titles in ``supporting``.

    ``derived`` is true where the answer follows from the chunks but stands in none of them.
    """
    return _rows(HERE / domain / "questions.jsonl")


def requests(domain: str, kind: str) -> list[dict[str, Any]]:
    """Rows of the domain's requests for long answers: id, question, items, titles or sources in ``supporting``."""
    return [row for row in _rows(HERE / "long" / f"{domain}.jsonl") if LONG_KINDS[kind] in row["id"]]


def build(domain: str) -> str:
    """Content of the domain's evaluation file, one case a line."""
    chunks = DOMAINS[domain]()
    return _lines(_case(question, "answers", chunks, CHUNKS_PER_CASE) for question in questions(domain))


def build_long(kind: str) -> str:
    """Content of the file of lists or of summaries, over all domains that have some."""
    return _lines(
        _case(request, "items", chunks(), CHUNKS_PER_LONG_CASE)
        for domain, chunks in LONG_DOMAINS.items()
        for request in requests(domain, kind)
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _lines(cases: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases)


def _case(question: dict[str, Any], right: str, chunks: list[Chunk], num_chunks: int) -> dict[str, Any]:
    """Return a case; ``right`` names the field with its right answers."""
    supporting = [chunk for chunk in chunks if {chunk.title, chunk.source} & set(question["supporting"])]
    chosen = supporting + _distractors(question["id"], supporting, chunks, num_chunks)
    return {
        "id": question["id"],
        "question": question["question"],
        right: question[right],
        "chunks": [
            {"title": chunk.title, "text": chunk.text} for chunk in _shuffled(chosen, f"{question['id']} order")
        ],
        "supporting": question["supporting"],
    }


def _distractors(case_id: str, supporting: list[Chunk], chunks: list[Chunk], num_chunks: int) -> list[Chunk]:
    """Chunks beside the supporting ones: some from the same files, which look alike, the rest from anywhere."""
    others = _shuffled([chunk for chunk in chunks if chunk not in supporting], f"{case_id} distractors")
    sources = {chunk.source for chunk in supporting}
    siblings = [chunk for chunk in others if chunk.source in sources][:SIBLINGS_PER_CASE]
    rest = [chunk for chunk in others if chunk not in siblings]
    return (siblings + rest)[: num_chunks - len(supporting)]


def _shuffled(chunks: list[Chunk], seed: str) -> list[Chunk]:
    return sorted(chunks, key=lambda chunk: hashlib.sha256(f"{seed} {chunk.title}".encode()).digest())


def main() -> None:
    for name, text in [(d, build(d)) for d in DOMAINS] + [(k, build_long(k)) for k in LONG_KINDS]:
        (HERE / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}.jsonl: {len(text.splitlines())} cases")


if __name__ == "__main__":
    main()
