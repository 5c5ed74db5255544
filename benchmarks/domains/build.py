"""Build the evaluation files of both domains from their sources: ``python -m benchmarks.domains.build``.

Equal sources give equal bytes: no random generator is involved, hashes decide order and distractors.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHUNKS_PER_CASE = 10
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


DOMAINS: dict[str, Callable[[], list[Chunk]]] = {"code": code_chunks, "manual": manual_chunks}


def questions(domain: str) -> list[dict[str, Any]]:
    """Rows of the domain's ``questions.jsonl``: id, question, answers, titles in ``supporting``.

    ``derived`` is true where the answer follows from the chunks but stands in none of them.
    """
    text = (HERE / domain / "questions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def build(domain: str) -> str:
    """Content of the domain's evaluation file, one case a line."""
    chunks = DOMAINS[domain]()
    return "".join(json.dumps(_case(question, chunks), ensure_ascii=False) + "\n" for question in questions(domain))


def _case(question: dict[str, Any], chunks: list[Chunk]) -> dict[str, Any]:
    by_title = {chunk.title: chunk for chunk in chunks}
    supporting = [by_title[title] for title in question["supporting"]]
    chosen = supporting + _distractors(question["id"], supporting, chunks)
    return {
        "id": question["id"],
        "question": question["question"],
        "answers": question["answers"],
        "chunks": [
            {"title": chunk.title, "text": chunk.text} for chunk in _shuffled(chosen, f"{question['id']} order")
        ],
        "supporting": question["supporting"],
    }


def _distractors(case_id: str, supporting: list[Chunk], chunks: list[Chunk]) -> list[Chunk]:
    """Chunks beside the supporting ones: some from the same files, which look alike, the rest from anywhere."""
    others = _shuffled([chunk for chunk in chunks if chunk not in supporting], f"{case_id} distractors")
    sources = {chunk.source for chunk in supporting}
    siblings = [chunk for chunk in others if chunk.source in sources][:SIBLINGS_PER_CASE]
    rest = [chunk for chunk in others if chunk not in siblings]
    return (siblings + rest)[: CHUNKS_PER_CASE - len(supporting)]


def _shuffled(chunks: list[Chunk], seed: str) -> list[Chunk]:
    return sorted(chunks, key=lambda chunk: hashlib.sha256(f"{seed} {chunk.title}".encode()).digest())


def main() -> None:
    for domain in DOMAINS:
        path = HERE / f"{domain}.jsonl"
        path.write_text(build(domain), encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(questions(domain))} questions over {len(DOMAINS[domain]())} chunks")


if __name__ == "__main__":
    main()
