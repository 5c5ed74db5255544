"""Archives made to do harm: too large, sparse, no files at all, entries that lie."""

from __future__ import annotations

import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag.exceptions import StoreFormatError
from samkv_rag.store import DiskStore
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.format.encoding import encode_chunk
from samkv_rag.store.management.archive import import_chunks
from samkv_rag.store.management.inventory import list_chunks

ENTRY = make_entry("a text of some length")
CHUNK = EncodedChunk.of(ENTRY, make_cache()).data
LARGE = 256 << 20
NAME = "a.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with DiskStore(tmp_path / "store") as store:
        yield store


def write_tar(path: Path, content: bytes, size: int | None = None, **pax: str) -> None:
    """One member of ``size`` bytes, which are ``content`` and then a hole in the file."""
    member = tarfile.TarInfo(NAME)
    member.size, member.pax_headers = size or len(content), pax
    head = member.tobuf(tarfile.PAX_FORMAT)
    with path.open("wb") as file:
        file.write(head + content)
        file.truncate(len(head) + -(-member.size // 512) * 512 + 1024)


def peak_bytes(store: DiskStore, source: Path) -> tuple[int, Any]:
    tracemalloc.start()
    try:
        done = import_chunks(store, source)
        return tracemalloc.get_traced_memory()[1], done
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, CHUNK], ids=["a hole", "no header", "a chunk and a hole"])
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_what_is_no_chunk_is_not_read(store: DiskStore, tmp_path: Path, kind: str, content: bytes) -> None:
    if kind == "tar":
        write_tar(tmp_path / "a.tar", content, LARGE)
    else:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / NAME).write_bytes(content)
        os.truncate(tmp_path / "folder" / NAME, LARGE)
    peak, done = peak_bytes(store, tmp_path / ("a.tar" if kind == "tar" else "folder"))
    assert [refused.name for refused in done.refused] == [NAME] and done.num_added == 0
    assert peak < 4 << 20


def test_a_large_chunk_is_taken_in_piece_by_piece(store: DiskStore, tmp_path: Path) -> None:
    data = EncodedChunk.of(ENTRY, make_cache(num_tokens=100_000)).data
    write_tar(tmp_path / "a.tar", data)
    for _ in range(2):
        peak, done = peak_bytes(store, tmp_path / "a.tar")
        assert not done.refused
        assert peak < len(data) / 2
    assert (done.num_added, done.num_present) == (0, 1)
    fetched = store.fetch(ENTRY.key, FINGERPRINT)
    assert fetched is not None and fetched.data == data


def test_a_sparse_member_is_refused(store: DiskStore, tmp_path: Path) -> None:
    pax = {"GNU.sparse.map": f"0,{len(CHUNK)}", "GNU.sparse.size": str(len(CHUNK)), "GNU.sparse.name": NAME}
    write_tar(tmp_path / "a.tar", CHUNK, **pax)
    (refused,) = import_chunks(store, tmp_path / "a.tar").refused
    assert refused.name == NAME and "sparse" in refused.problem
    write_tar(tmp_path / "b.tar", b"x" * 512, **pax | {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(LARGE)})
    peak, done = peak_bytes(store, tmp_path / "b.tar")
    assert "sparse" in done.refused[0].problem and peak < 4 << 20


def test_a_member_past_the_limit_says_the_limit(store: DiskStore, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", CHUNK, 5 << 30)
    (refused,) = import_chunks(store, tmp_path / "a.tar").refused
    assert "5,368,709,120 bytes" in refused.problem and "4,294,967,296" in refused.problem


def test_an_archive_cut_short_is_said_to_be(store: DiskStore, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", CHUNK)
    os.truncate(tmp_path / "a.tar", (tmp_path / "a.tar").stat().st_size - 4096)
    with pytest.raises(StoreFormatError, match="is not a tar file of chunks, or not a whole one"):
        import_chunks(store, tmp_path / "a.tar")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_what_is_no_file_is_refused(store: DiskStore, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    (folder / "deep.safetensors").mkdir()
    (folder / NAME).write_bytes(CHUNK)
    done = import_chunks(store, folder)
    assert done.num_added == 1
    assert sorted(refused.name.partition(".")[0] for refused in done.refused) == ["deep", "gone", "pipe", "zero"]


LIES: list[dict[str, Any]] = [
    {"num_chars": "many"},
    {"num_chars": None},
    {"num_tokens": 2**70},
    {"num_tokens": -1},
    {"num_tokens": True},
    {"prefix": 5},
    {"suffix": ["x"]},
    {"origin": {"namespace": 3}},
    {"layout": {"initial_tokens": "4", "local_tokens": 4, "block_tokens": 8}},
    {"layout": []},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_an_entry_that_lies_is_refused_and_spoils_nothing(
    store: DiskStore, tmp_path: Path, lie: dict[str, Any]
) -> None:
    store.put(make_entry("another text of some length"), make_cache())
    text = json.dumps({**asdict(ENTRY), **lie})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / NAME).write_bytes(encode_chunk(make_cache(), ENTRY.text_digest, None, {"entry": text}))
    done = import_chunks(store, tmp_path / "folder")
    assert done.num_added == 0 and "its entry is unreadable" in done.refused[0].problem
    assert len(list_chunks(store)) == 1
