"""A library stays in step with its files, and never computes anything twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pdfs
from support import tiny
from asking import WordCounts
from samkv_rag import SamKVEngine
from samkv_rag.ask import library as library_module
from samkv_rag.ask.index import Place
from samkv_rag.ask.library import Library, Update, path_name
from samkv_rag.exceptions import ChunkError, StoreFullError

UpdateFrom = Callable[[Path], Update]


@pytest.fixture
def computed(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts whose KV is computed from now on."""
    texts: list[str] = []
    encoded = engine._library._encoded

    def note(pending: list[object]) -> Iterator[object]:
        texts.extend(item.text for item in pending)  # type: ignore[attr-defined]
        return encoded(pending)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._library, "_encoded", note)
    return texts


def counts(update: Update) -> tuple[int, int, int, int]:
    return update.num_read, update.num_embedded, update.num_computed, update.num_removed


def test_everything_is_read_once(update: UpdateFrom, handbook: Path, embed: WordCounts, computed: list[str]) -> None:
    first = update(handbook)
    assert (first.num_files, first.num_passages) == (3, 4)
    assert counts(first) == (3, 4, 4, 0)
    assert sorted(computed) == sorted(embed.embedded)
    assert len(computed) == 4
    again = update(handbook)
    assert (again.num_files, again.num_passages) == (3, 4)
    assert counts(again) == (0, 0, 0, 0)
    assert len(computed) == len(embed.embedded) == 4


def test_an_unchanged_pdf_is_not_even_parsed(
    update: UpdateFrom, handbook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(handbook)
    monkeypatch.setattr(library_module, "parse", lambda file, data: pytest.fail(f"{file} parsed"))
    (handbook / "one.md").touch()
    assert update(handbook).num_read == 0


def test_of_a_changed_file_only_the_new_passages_are_computed(
    update: UpdateFrom, library: Library, handbook: Path, engine: SamKVEngine, embed: WordCounts
) -> None:
    update(handbook)
    old = tiny.text(4)
    (handbook / "three.pdf").write_bytes(pdfs.pdf([tiny.text(3), "", tiny.text(5)]))
    embed.embedded.clear()
    assert counts(update(handbook)) == (1, 1, 1, 1)
    assert embed.embedded == [tiny.text(5)]
    assert not engine.has_chunk(old)
    assert engine.has_chunk(tiny.text(5)) and engine.has_chunk(tiny.text(3))
    assert old not in [passage.text for passage, _ in library.search(old, 99)]


def test_what_is_deleted_leaves_retrieval_and_the_store(
    update: UpdateFrom, library: Library, handbook: Path, engine: SamKVEngine
) -> None:
    update(handbook)
    (handbook / "three.pdf").unlink()
    gone = update(handbook)
    assert (gone.num_passages, gone.num_removed) == (2, 2)
    assert not engine.has_chunk(tiny.text(3))
    assert len(engine.sources()) == 2
    assert len(library.search("anything", 99)) == 2


def test_the_same_text_in_two_files_is_one_passage_until_both_are_gone(
    update: UpdateFrom, library: Library, handbook: Path, engine: SamKVEngine
) -> None:
    (handbook / "copy.txt").write_text(tiny.text(2))
    first = update(handbook)
    assert (first.num_files, first.num_passages, first.num_computed) == (4, 4, 4)
    (best, score), *_ = library.search(tiny.text(2), 3)
    assert score == pytest.approx(1.0, abs=1e-5)
    paths = [path_name(handbook / name) for name in ("copy.txt", "more/two.txt")]
    assert best.places == tuple(map(Place, paths))
    (handbook / "more" / "two.txt").unlink()
    assert update(handbook).num_removed == 0
    assert engine.has_chunk(tiny.text(2))
    (handbook / "copy.txt").unlink()
    assert update(handbook).num_removed == 1


def test_a_renamed_file_costs_nothing(update: UpdateFrom, library: Library, handbook: Path) -> None:
    update(handbook)
    (handbook / "three.pdf").rename(handbook / "third.pdf")
    assert counts(update(handbook)) == (1, 0, 0, 0)
    (best, _), *_ = library.search(tiny.text(4), 1)
    assert best.places == (Place(path_name(handbook / "third.pdf"), page=3),)


def test_what_cannot_be_read_is_told_and_leaves(update: UpdateFrom, handbook: Path) -> None:
    update(handbook)
    (handbook / "three.pdf").write_bytes(b"%PDF-1.7 damaged")
    changed = update(handbook)
    assert (changed.num_files, changed.num_passages, changed.num_removed) == (2, 2, 2)
    (problem,) = changed.problems
    assert "three.pdf is damaged" in problem


def test_when_nothing_can_be_read_nothing_is_lost(
    update: UpdateFrom, library: Library, handbook: Path, engine: SamKVEngine
) -> None:
    update(handbook)
    for file in handbook.rglob("*.*"):
        file.write_bytes(b"\0")
    with pytest.raises(ChunkError, match="none of 3 files can be read"):
        update(handbook)
    assert len(library.search("anything", 99)) == len(engine.sources()) == 4


@pytest.mark.parametrize("cut_short_in", ["embedding", "computing"])
def test_a_run_cut_short_goes_on_where_it_was(
    update: UpdateFrom,
    handbook: Path,
    embed: WordCounts,
    engine: SamKVEngine,
    monkeypatch: pytest.MonkeyPatch,
    cut_short_in: str,
) -> None:
    monkeypatch.setattr(library_module, "_EMBEDDED_AT_ONCE", 1)
    monkeypatch.setattr(library_module, "_COMPUTED_AT_ONCE", 1)
    working = WordCounts.__call__, SamKVEngine.add_chunks

    def twice_then_stop(*arguments: object, **options: object) -> object:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return working[cut_short_in == "computing"](*arguments, **options)  # type: ignore[operator]

    left = 2
    where = (WordCounts, "__call__") if cut_short_in == "embedding" else (SamKVEngine, "add_chunks")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*where, twice_then_stop)
        update(handbook)
    num_read, num_embedded, num_computed, _ = counts(update(handbook))
    assert num_read == 0
    assert (num_embedded, num_computed) == ((2, 4) if cut_short_in == "embedding" else (0, 2))
    assert len(engine.sources()) == 4


def test_kv_that_went_is_computed_again(update: UpdateFrom, handbook: Path, engine: SamKVEngine) -> None:
    update(handbook)
    engine.remove_chunks([tiny.text(2)])
    assert counts(update(handbook)) == (0, 0, 1, 0)
    assert engine.has_chunk(tiny.text(2))


def test_other_chunks_of_a_store_are_left_alone(
    update: UpdateFrom, library: Library, handbook: Path, engine: SamKVEngine
) -> None:
    engine.add_chunks([tiny.text(2), tiny.text(50), tiny.text(51)], sources=["other", "another", None])
    assert update(handbook).num_computed == 3
    for file in ("one.md", "more/two.txt"):
        (handbook / file).unlink()
    assert update(handbook).num_removed == 1
    assert all(engine.has_chunk(tiny.text(seed)) for seed in (2, 50, 51))
    assert {"other", "another"} < set(engine.sources())


def test_too_little_room_is_said_before_anything_is_computed(
    update: UpdateFrom, handbook: Path, engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(library_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(StoreFullError, match=r"the KV of 4 new passages \(.* tokens\) takes .* GB; ask about fewer"):
        update(handbook)
    assert engine.sources() == []


def test_names_that_are_no_utf_8_are_taken(update: UpdateFrom, library: Library, handbook: Path) -> None:
    (handbook / os.fsdecode(b"caf\xe9.md")).write_text(tiny.text(9))
    assert update(handbook).num_files == 4
    (best, _), *_ = library.search(tiny.text(9), 1)
    assert best.places[0].path.endswith("caf\\xe9.md")
    assert update(handbook).num_read == 0


def test_short_texts_are_found_though_they_are_not_cached(update: UpdateFrom, library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    (folder / "a.txt").write_text("Tide: 4 m")
    assert counts(update(folder)) == (1, 1, 0, 0)
    assert counts(update(folder)) == (0, 0, 0, 0)
    assert library.search("tide", 1)[0][0].text == "Tide: 4 m"
