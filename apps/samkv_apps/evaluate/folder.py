"""Make cases from your own documents and a table of questions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from samkv_apps.evaluate.errors import CaseFileError
from samkv_apps.evaluate.options import TOP_K
from samkv_apps.evaluate.questions import Question, read_questions
from samkv_apps.evaluate.records import CASES_FILE
from samkv_apps.evaluate.retrieval import Embeds, Retriever, best_outside, minilm
from samkv_apps.terminal import write_private
from samkv_rag.checks import require_integer

_CHUNK_TOKENS = 256
Tokenize = Callable[[str], list[int]]
_Chunk = tuple[str, str]
"""The name of a document and a text from it."""


def cases_from_folder(
    documents: Path,
    questions: Path,
    output_dir: Path,
    tokenize: Tokenize | str,
    top_k: int = TOP_K,
    embedder: Embeds | None = None,
) -> Path:
    """Write ``cases.jsonl`` into ``output_dir``, for :func:`~samkv_apps.evaluate.evaluate`; return the file.

    documents: a folder of text, Markdown and PDF files, or one file. They are cut into chunks of about 250
        tokens, as `samkv ingest` does. Files that cannot be read are skipped with a warning.
    questions: a CSV file with the columns question, answer (several right answers are separated by ``|``) and
        optionally source: the file with the answer, which measures retrieval.
    tokenize: a function from text to token ids, such as ``engine.tokenize``, or the model whose tokenizer to use.
    top_k: the number of chunks per question: the nearest by all-MiniLM-L6-v2, with the best first and last.
    embedder: replaces all-MiniLM-L6-v2.

    A file made from the same input is kept, so that an evaluation can be continued.

    Raises:
        CaseFileError: a row of ``questions`` is wrong, or ``output_dir`` has cases made from other input.
        ConfigurationError: ``top_k`` is below 1, or there are no documents.
        ModelNotFoundError: the embedding model is not installed, or there is no such tokenizer.
    """
    require_integer("top_k", top_k, 1)
    asked, read = read_questions(questions), _read(documents, output_dir.resolve())
    _require_sources(questions, asked, list(dict.fromkeys(name for name, _ in read)))
    made_of = _digest(asked, read, top_k)
    file = output_dir / CASES_FILE
    if not file.exists():
        tokenize = _tokenizer_of(tokenize) if isinstance(tokenize, str) else tokenize
        lines = _case_lines(asked, _split(read, tokenize), top_k, embedder or minilm(), made_of)
        output_dir.mkdir(parents=True, exist_ok=True)
        write_private(file, "".join(lines))
    elif _made_of(file) != made_of:
        raise CaseFileError(
            f"{file} was made of other documents, questions or top_k; choose another --output-dir, or evaluate it "
            "as it is with --data"
        )
    return file


def _read(documents: Path, results: Path) -> list[_Chunk]:
    """Read the documents, except this evaluation's report. Names are relative to the folder: reports are shared."""
    from samkv_apps.ask.reading import find_files, read_documents  # late: it imports LlamaIndex

    folder = (documents if documents.is_dir() else documents.parent).resolve()
    read = read_documents([file for file in find_files([documents]) if results not in file.parents])
    return [
        (Path(os.path.relpath(document.metadata["file_path"], folder)).as_posix(), document.text) for document in read
    ]


def _split(read: Sequence[_Chunk], tokenize: Tokenize) -> list[_Chunk]:
    from llama_index.core.node_parser import SentenceSplitter

    from samkv_apps.ask.reading import cached_tokenizer

    splitter = SentenceSplitter(chunk_size=_CHUNK_TOKENS, chunk_overlap=0, tokenizer=cached_tokenizer(tokenize))
    return [(name, text) for name, whole in read for text in splitter.split_text(whole)]


def _require_sources(questions: Path, asked: Sequence[Question], names: Sequence[str]) -> None:
    for question in asked:
        if question.source is not None and question.source not in names:
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            raise CaseFileError(
                f"{questions}, row {question.row}: the source {question.source!r} is none of the {len(names)} "
                f"documents ({shown}); give a file's path within the folder, or leave it empty"
            )


def _case_lines(
    asked: Sequence[Question], chunks: Sequence[_Chunk], top_k: int, embedder: Embeds, made_of: str
) -> Iterator[str]:
    retriever = Retriever([text for _, text in chunks], embedder)
    for question in asked:
        found = [chunks[i] for i in best_outside(retriever.nearest(question.question, top_k))]
        case = {
            "id": f"row-{question.row}",
            "question": question.question,
            "answers": question.answers,
            "supporting": [question.source] if question.source else [],
            # Without a title, which would become part of the chunk's text in the prompt.
            "chunks": [{"title": "", "text": text, "source": source} for source, text in found],
            "made_of": made_of,
        }
        yield json.dumps(case, ensure_ascii=False) + "\n"


def _digest(asked: Sequence[Question], read: Sequence[_Chunk], top_k: int) -> str:
    """Hash what the cases are made from, except the tokenizer; the output folder is bound to one model."""
    rows = [[question.row, question.question, question.answers, question.source] for question in asked]
    return hashlib.sha256(json.dumps([_CHUNK_TOKENS, top_k, rows, list(read)]).encode()).hexdigest()


def _made_of(file: Path) -> object:
    try:
        with file.open(encoding="utf-8") as lines:
            return json.loads(lines.readline())["made_of"]
    except (ValueError, KeyError, TypeError):
        return None


def _tokenizer_of(model: str) -> Tokenize:
    from samkv_rag.model.loading import load_tokenizer
    from samkv_rag.model.tokenization import PromptTokenizer

    return PromptTokenizer(load_tokenizer(model)).chunk_ids
