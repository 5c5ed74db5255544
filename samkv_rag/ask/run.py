"""`samkv ask` from start to end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from samkv_rag import SamKVEngine
from samkv_rag.ask.embedding import load_embedder
from samkv_rag.ask.index import DamagedIndexError, Place, StoredPassage, discard, open_index
from samkv_rag.ask.library import Library, Update, path_name
from samkv_rag.ask.options import AskOptions
from samkv_rag.ask.picture import write_picture
from samkv_rag.ask.prompt import make_prompt
from samkv_rag.ask.report import AskReport, Source
from samkv_rag.ask.screen import Screen
from samkv_rag.demo.models import MODEL_NAME, language_model
from samkv_rag.documents import find_files
from samkv_rag.exceptions import PromptTooLongError
from samkv_rag.generation import GenerationResult, gather

Found = list[tuple[StoredPassage, float]]


def run_ask(options: AskOptions, screen: Screen) -> AskReport:
    """Bring what is stored into step with the files, retrieve, answer, and show it.

    Raises:
        SamKVError: no file can be read, the model cannot be had, no room on the disk.
    """
    find_files(options.paths)  # that there is nothing to read is said before the models are loaded
    options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = _load_engine(options, screen)
    with engine.store:
        update, found = _retrieve(options, engine, screen)
        result = _answer(options, engine, found, screen)
        report = _report(options, engine, update, found, result)
    screen.sources(report.sources)
    screen.figures(result.metrics)
    if options.explain is not None:
        write_picture(report.explanation, options.explain)
        screen.status(f"{options.explain} shows what was read")
    return report


def _load_engine(options: AskOptions, screen: Screen) -> SamKVEngine:
    model = options.model or language_model(screen.status)
    screen.status("Loading the models …")
    return SamKVEngine.from_pretrained(model, store=options.folder / "kv", config=options.config)


def _retrieve(options: AskOptions, engine: SamKVEngine, screen: Screen) -> tuple[Update, Found]:
    """Update the library and search it, with an index made again where it proves damaged."""
    index_path = options.folder / f"{options.scope}.sqlite"
    embed = load_embedder(engine.decoder.device)

    def update_and_search() -> tuple[Update, Found]:
        with open_index(index_path) as index:
            library = Library(index, engine, embed, options.scope, options.folder)
            update = library.update(find_files(options.paths), screen)
            return update, library.search(options.question, options.top_k)

    with _one_at_a_time(index_path.with_suffix(".lock"), screen):
        try:
            update, found = update_and_search()
        except DamagedIndexError as error:
            discard(index_path, error)
            update, found = update_and_search()
    screen.updated(update)
    return update, found


@contextmanager
def _one_at_a_time(path: Path, screen: Screen) -> Iterator[None]:
    """Wait for other processes that update the same library: what they compute is not computed again."""
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        screen.status("Another samkv ask is reading these files; waiting for it …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _answer(options: AskOptions, engine: SamKVEngine, found: Found, screen: Screen) -> GenerationResult:
    prompt = make_prompt([passage.text for passage, _ in found], options.question)
    pieces = []
    try:
        for piece in engine.stream(prompt, max_new_tokens=options.max_tokens):
            pieces.append(piece)
            screen.answer(piece.text)
    except PromptTooLongError as error:
        raise PromptTooLongError(f"{error}: --top-k is {options.top_k}") from error
    result = gather(pieces)
    screen.answer_ends(cut=result.finish_reason == "length")
    return result


def _report(
    options: AskOptions, engine: SamKVEngine, update: Update, found: Found, result: GenerationResult
) -> AskReport:
    num_kept = {use.text.strip(): len(use.kept_tokens) for use in result.chunks}
    base = _base(options.paths)
    sources = tuple(_source(passage, score, num_kept.get(passage.text), base) for passage, score in found)
    model = options.model or MODEL_NAME
    explanation = replace(result.explain(), model_name=model)
    named = explanation.with_sources({source.text: source.name for source in sources})
    return AskReport(options.question, model, result, sources, update, named)


def _source(passage: StoredPassage, score: float, num_kept: int | None, base: str) -> Source:
    first, *others = (Place(os.path.relpath(place.path, base), place.page) for place in passage.places)
    kept = passage.num_tokens if num_kept is None else num_kept  # too short a text to be cached is read in full
    return Source(first.path, first.page, score, passage.num_tokens, kept, passage.text, tuple(others))


def _base(paths: Sequence[Path]) -> str:
    """The folder to which files are named relative: the one given, or the lowest that holds all."""
    return os.path.commonpath([path_name(path if path.is_dir() else path.parent) for path in paths])
