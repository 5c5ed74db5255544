"""A library is updated, and answers come from the given files only."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import MockEmbedding, Settings
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from samkv_apps.ask import library
from samkv_apps.ask.library import Library
from samkv_rag.exceptions import ConfigurationError, StoreFullError
from support import tiny

Open = Callable[..., Library]


@pytest.fixture
def open_library(make_engine: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """A function that opens the same library again. All texts are equally near to a question."""
    monkeypatch.setattr(library, "HuggingFaceEmbedding", lambda model_name: MockEmbedding(embed_dim=4))

    def opened(**options: Any) -> Library:
        engine = make_engine(store=tmp_path / "store" / "kv", **options)
        return Library(engine, tmp_path / "store", "mock", max_tokens=4)

    yield opened
    Settings._llm = Settings._embed_model = Settings._tokenizer = None


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{number}.txt" for number in range(3)]
    for number, file in enumerate(made):
        file.write_text(tiny.text(number))
    return made


def read_from(opened: Library, files: Sequence[Path]) -> set[str]:
    return {node.text for node in opened.ask("Which tide?", files, top_k=20).source_nodes}


def test_only_what_changed_is_read_again(open_library: Open, files: list[Path]) -> None:
    assert open_library().update(files) == 3
    assert open_library().update(files) == 0
    files[1].write_text(tiny.text(7))
    opened = open_library()
    assert opened.update(files) == 1
    assert read_from(opened, files) == {tiny.text(0), tiny.text(7), tiny.text(2)}
    assert not opened.llm.engine.has_chunk(tiny.text(1)), "its KV went with its document"


def test_a_shortened_file_loses_what_it_lost(
    open_library: Open, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samkv_apps.ask.reading._MAX_CHARS", 600)
    opened = open_library()
    files[0].write_text(f"{tiny.text(0)}\n{tiny.text(8)}")
    opened.update(files)
    whole = read_from(opened, files[:1])
    files[0].write_text(tiny.text(0)[:300])
    opened.update(files)
    assert read_from(opened, files[:1]) == {tiny.text(0)[:300].strip()}
    assert len(whole) > 1
    assert not any(opened.llm.engine.has_chunk(text) for text in whole)


def test_answers_come_from_the_files_given(open_library: Open, files: list[Path]) -> None:
    opened = open_library()
    opened.update(files)
    files[2].unlink()
    assert opened.update(files[:2]) == 0
    response = opened.ask("Which tide?", files[:1], top_k=20)
    assert [node.text for node in response.source_nodes] == [tiny.text(0)]
    "".join(response.response_gen)
    metrics = opened.llm.last_metrics
    assert metrics is not None
    assert (metrics.chunks_hit, metrics.chunks_missed) == (1, 0)


def test_a_deleted_file_is_forgotten_with_those_beside_it(open_library: Open, files: list[Path]) -> None:
    open_library().update(files)
    files[2].unlink()
    opened = open_library()
    assert opened.update(files[:1]) == 0
    assert [opened.llm.engine.has_chunk(tiny.text(number)) for number in range(3)] == [True, True, False]


def test_kv_that_an_engine_lacks_is_computed(open_library: Open, files: list[Path]) -> None:
    open_library().update(files)
    opened = open_library()
    opened.llm.engine.remove_chunks([tiny.text(1)])
    assert opened.update(files) == 1
    other = open_library(namespace="b")
    assert other.update(files[:1]) == 1
    assert read_from(other, files) == {tiny.text(0)}, "it knows the documents of its own namespace only"
    assert read_from(open_library(), files) == {tiny.text(number) for number in range(3)}


def test_a_deleted_folder_is_forgotten(open_library: Open, files: list[Path], tmp_path: Path) -> None:
    files.append(tmp_path / "sub" / "deep" / "3.txt")
    files[3].parent.mkdir(parents=True)
    files[3].write_text(tiny.text(3))
    open_library().update(files)
    shutil.rmtree(tmp_path / "sub")
    opened = open_library()
    opened.update(files[:3])
    assert opened.llm.engine.has_chunk(tiny.text(3)), "its folder was not given"
    opened.update(files[:3], folders=[tmp_path])
    assert not opened.llm.engine.has_chunk(tiny.text(3))


def test_more_chunks_than_chroma_takes_at_once(
    open_library: Open, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chromadb.api.client.Client.get_max_batch_size", lambda _: 2)
    sizes: list[int] = []
    add = ChromaVectorStore.add
    monkeypatch.setattr(
        ChromaVectorStore, "add", lambda self, nodes, **given: sizes.append(len(nodes)) or add(self, nodes, **given)
    )
    monkeypatch.setattr(library, "_MOST_FILES", 2)
    opened = open_library()
    assert opened.update(files) == 3
    assert sizes == [2, 1]
    assert opened.update(files) == 0
    assert read_from(opened, files) == {tiny.text(number) for number in range(3)}


@pytest.mark.parametrize("name", ["documents.json", "unfinished.json"])
def test_a_damaged_list_of_documents_is_made_again(open_library: Open, files: list[Path], name: str) -> None:
    open_library().update(files)
    (library_folder := files[0].parent / "store").joinpath(name).write_text("")
    with pytest.warns(UserWarning, match="list of documents .* is damaged; it is made again"):
        open_library().update(files)
    (library_folder / "documents.json").unlink()
    opened = open_library()
    opened.update(files)
    assert len(opened.ask("Which tide?", files, top_k=20).source_nodes) == 3, "nothing is there twice"


def test_an_unchanged_library_writes_nothing(
    open_library: Open, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files[0].write_text("# Tides")  # too short to be cached
    assert open_library().update(files) == 3
    opened = open_library()
    monkeypatch.setattr(library, "_write_json", lambda *_: pytest.fail("a full disk would refuse this"))
    assert opened.update(files) == 0


def test_others_cannot_read_the_texts(open_library: Open, files: list[Path]) -> None:
    open_library().update(files)
    assert stat.S_IMODE((files[0].parent / "store" / "chroma").stat().st_mode) == 0o700


@pytest.mark.parametrize("place", [(SimpleDocumentStore, "to_dict"), (ChromaVectorStore, "delete")], ids=str)
def test_an_interrupted_update_leaves_nothing_old_and_nothing_twice(
    open_library: Open, files: list[Path], place: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_library().update(files[:2])
    files[1].write_text(tiny.text(7))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_library().update(files)
    opened = open_library()
    opened.update(files)
    found = [node.text for node in opened.ask("Which tide?", files, top_k=20).source_nodes]
    assert sorted(found) == sorted([tiny.text(0), tiny.text(7), tiny.text(2)])
    assert opened.update(files) == 0


def test_a_kill_between_the_vectors_and_their_list_doubles_nothing(
    open_library: Open, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Library, "_persist", killed)
        with pytest.raises(KeyboardInterrupt):
            open_library().update(files)
    opened = open_library()
    assert opened.update(files) == 3
    assert len(opened.ask("Which tide?", files, top_k=20).source_nodes) == 3


def test_embeddings_of_another_model_are_refused(
    open_library: Open, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_library().update(files)
    for other in (MockEmbedding(embed_dim=5), OppositeEmbedding(embed_dim=4)):
        monkeypatch.setattr(library, "HuggingFaceEmbedding", lambda model_name, other=other: other)
        with pytest.raises(ConfigurationError, match="made with mock"):
            open_library()


class OppositeEmbedding(MockEmbedding):
    def _get_vector(self) -> list[float]:
        return [-0.5] * self.embed_dim


def test_a_refused_update_loses_no_document(open_library: Open, files: list[Path]) -> None:
    opened = open_library()
    opened.update(files)
    files[1].write_text(tiny.text(7))
    with pytest.raises(StoreFullError):
        opened.update(files, "1KB")
    files[1].write_text(tiny.text(1))
    opened.update(files)
    assert read_from(opened, files) == {tiny.text(number) for number in range(3)}
