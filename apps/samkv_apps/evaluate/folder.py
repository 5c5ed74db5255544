"""Cases from a user's own folder of documents and table of questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from samkv_apps.evaluate.errors import CaseFileError
from samkv_apps.evaluate.options import TOP_K
from samkv_apps.evaluate.questions import Question, read_questions
from samkv_apps.evaluate.records import CASES_FILE
from samkv_apps.evaluate.retrieval import Embeds, Retriever, best_outside, minilm
from samkv_apps.terminal import write_private
from samkv_rag.exceptions import ConfigurationError

_CHUNK_TOKENS = 256
Tokenize = Callable[[str], list[int]]
_Chunk = tuple[str, str]
"""Name of its document, and its text."""


def cases_from_folder(
    documents: Path,
    questions: Path,
    output_dir: Path,
    tokenize: Tokenize | str,
    top_k: int = TOP_K,
    embedder: Embeds | None = None,
) -> Path:
    """Write ``cases.jsonl`` into ``output_dir``, for :func:`~samkv_apps.evaluate.evaluate`; return the file.

    documents: a folder of text, Markdown and PDF files, or one file; read and cut into chunks of about 250
        tokens as `samkv ingest` does.
    questions: a CSV file with the columns question and answer (several, parted by ``|``: any is right), and
        perhaps source, the name of the file that holds the answer, which tells how good retrieval is.
    tokenize: text to token ids, ``engine.tokenize`` say; or the model whose tokenizer does it.
    top_k: how many chunks each question gets: those nearest by all-MiniLM-L6-v2, the best first and last.
    embedder: another in its place.

    A file that was made of the same is left as it is, so that an evaluation can be continued. Files that cannot
    be read are warned of.

    Raises:
        CaseFileError: a row of ``questions`` is wrong, or ``output_dir`` holds cases made of something else.
        ChunkError: no document can be read.
        ConfigurationError: ``top_k`` is below 1.
        ModelNotFoundError: the embedding model is not installed, or there is no such tokenizer.
    """
    if top_k < 1:
        raise ConfigurationError(f"top_k is {top_k}; it must be at least 1")
    asked, read = read_questions(questions), _read(documents)
    _require_sources(questions, asked, list(dict.fromkeys(name for name, _ in read)))
    made_of = _digest(asked, read, top_k)
    file = output_dir / CASES_FILE
    if not file.exists():
        tokenize = _tokenizer_of(tokenize) if isinstance(tokenize, str) else tokenize
        chunks = _split(read, tokenize)
        _write(file, _cases(asked, chunks, top_k, embedder or minilm(), made_of))
    elif _made_of(file) != made_of:
        raise CaseFileError(
            f"{file} was made of other documents, questions or top_k; choose another --output-dir, or evaluate it "
            "as it is with --data"
        )
    return file


def _read(documents: Path) -> list[_Chunk]:
    """Names within the folder, since reports are made to be shared, and texts, of the files that can be read."""
    from samkv_apps.ask.reading import find_files, read_documents  # late: it imports LlamaIndex

    folder = (documents if documents.is_dir() else documents.parent).resolve()
    read = list(read_documents(find_files([documents])))
    return [(Path(document.metadata["file_path"]).relative_to(folder).as_posix(), document.text) for document in read]


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


def _cases(
    asked: Sequence[Question], chunks: Sequence[_Chunk], top_k: int, embedder: Embeds, made_of: str
) -> list[dict[str, Any]]:
    retriever = Retriever([text for _, text in chunks], embedder)
    return [
        {
            "id": f"row-{question.row}",
            "question": question.question,
            "answers": question.answers,
            "supporting": [question.source] if question.source else [],
            "chunks": [_as_chunk(*chunks[i]) for i in best_outside(retriever.nearest(question.question, top_k))],
            "made_of": made_of,
        }
        for question in asked
    ]


def _as_chunk(source: str, text: str) -> dict[str, str]:
    # No title: it would stand before the text in the prompt, where no chunk of that name was ingested.
    return {"title": "", "text": text, "source": source}


def _write(file: Path, cases: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_private(file, "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases))


def _digest(asked: Sequence[Question], read: Sequence[_Chunk], top_k: int) -> str:
    """Hash of all that the cases are made of, but for the tokenizer, which the evaluation's folder is bound to."""
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
