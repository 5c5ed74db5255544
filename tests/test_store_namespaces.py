"""Tenants in one store: none is served, or even looked at, on another's behalf."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import tiny
from samkv_rag import SamKVConfig, SamKVEngine
from samkv_rag.chunk_cache import ChunkReader, chunk_key
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prompt import text_digest
from samkv_rag.store import DiskStore, KVStore, MemoryStore
from samkv_rag.store.management.inventory import statistics
from samkv_rag.store.namespaces import scoped_fingerprint

CHUNKS = [tiny.text(seed) for seed in range(3)]
PROMPT = tiny.rag_prompt(CHUNKS)
Tenant = Callable[..., SamKVEngine]


@pytest.fixture
def tenant(tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Tenant:
    """A function: store, namespace and secret to an engine."""

    def make(store: KVStore, namespace: str = "", secret: str | bytes | None = None) -> SamKVEngine:
        return SamKVEngine.from_pretrained(
            tiny_model(),
            tokenizer=tiny_tokenizer,
            store=store,
            config=SamKVConfig(min_chunk_tokens=0, block_tokens=8),
            namespace=namespace,
            store_secret=secret,
        )

    return make


class WatchedStore(DiskStore):
    """Notes every key and fingerprint it is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys: set[str] = set()
        self.fingerprints: set[str] = set()

    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        self.keys.add(key)
        self.fingerprints.add(fingerprint)
        return super().open(key, fingerprint)

    def changes(self, fingerprint: str, since: int) -> Any:
        self.fingerprints.add(fingerprint)
        return super().changes(fingerprint, since)

    def prefetch(self, keys: Iterable[str], fingerprint: str) -> Any:
        wanted = list(keys)
        self.keys.update(wanted)
        return super().prefetch(wanted, fingerprint)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", None), ("b", None)),
        (("", None), ("a", None)),
        (("a", "one secret"), ("a", "another secret")),
        (("", None), ("", "a secret")),
    ],
    ids=["namespaces", "none and one", "secrets", "none and a secret"],
)
def test_a_tenants_chunks_are_not_there_for_another(
    tenant: Tenant, tmp_path: Path, first: tuple[str, str | None], second: tuple[str, str | None]
) -> None:
    mine, other = tenant(DiskStore(tmp_path), *first), tenant(DiskStore(tmp_path), *second)
    mine.add_chunks(CHUNKS, sources=["one", "two", "three"])
    assert not any(other.has_chunk(text) for text in CHUNKS)
    assert other.sources() == []
    assert other.generate(PROMPT, max_new_tokens=2).metrics.chunks_total == 0
    other.hint(CHUNKS)
    metrics = other.generate(PROMPT, max_new_tokens=2).metrics
    assert (metrics.chunks_hit, metrics.chunks_missed) == (0, 3)
    assert other.prune([]) == 3, "its own"
    assert other.remove_sources(["one"]) == 0
    assert all(mine.has_chunk(text) for text in CHUNKS)


def test_engines_of_one_namespace_and_secret_share(tenant: Tenant, tmp_path: Path) -> None:
    tenant(DiskStore(tmp_path), "a", "secret").add_chunks(CHUNKS)
    again = tenant(DiskStore(tmp_path), "a", b"secret")
    assert again.add_chunks(CHUNKS).num_reused == 3
    assert again.generate(PROMPT, max_new_tokens=2).metrics.chunks_hit == 3


def test_a_tenant_never_touches_anothers_keys(tenant: Tenant, tmp_path: Path) -> None:
    """So the time of an answer cannot depend on what another has stored."""
    mine, watched = tenant(DiskStore(tmp_path), "a"), WatchedStore(tmp_path)
    mine.add_chunks(CHUNKS)
    other = tenant(watched, "b")
    other.hint(CHUNKS)
    other.generate(PROMPT, max_new_tokens=2)
    of_others = {chunk_key(scoped_fingerprint(mine.fingerprint, "a"), text_digest(text)) for text in CHUNKS}
    assert watched.fingerprints == {scoped_fingerprint(mine.fingerprint, "b")}
    assert len(watched.keys) == 3 and not watched.keys & of_others


def test_with_a_secret_no_key_can_be_computed_without_it(tenant: Tenant, tmp_path: Path) -> None:
    engine = tenant(DiskStore(tmp_path), "a", "secret")
    engine.add_chunks(CHUNKS)
    found = {path.stem for path in tmp_path.rglob("*.safetensors")}
    scopes = [engine.fingerprint, scoped_fingerprint(engine.fingerprint, "a")]
    scopes += [scoped_fingerprint(engine.fingerprint, "a", wrong) for wrong in ("Secret", "a", b"\0")]
    guessed = {chunk_key(scope, text_digest(text)) for scope in scopes for text in CHUNKS}
    assert len(found) == 3 and not found & guessed
    scope = scoped_fingerprint(engine.fingerprint, "a", "secret")
    assert found == {chunk_key(scope, text_digest(text)) for text in CHUNKS}


def test_without_namespace_and_secret_nothing_changes(tenant: Tenant, tmp_path: Path) -> None:
    engine = tenant(DiskStore(tmp_path))
    engine.add_chunks(CHUNKS)
    keys = {chunk_key(engine.fingerprint, text_digest(text)) for text in CHUNKS}
    assert {path.stem for path in tmp_path.rglob("*.safetensors")} == keys


def test_a_store_says_whose_chunks_it_holds(tenant: Tenant, tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    for namespace, secret in (("a", None), ("b", "secret")):
        tenant(store, namespace, secret).add_chunks(CHUNKS)
    by_origin = statistics(store).by_origin
    assert {(origin.namespace, origin.model_name, amount.num_chunks) for origin, amount in by_origin.items()} == {
        ("a", "llama", 3),
        ("b", "llama", 3),
    }
    assert len({origin.model for origin in by_origin}) == 1


@pytest.mark.parametrize("namespace", ["a\nb", "x" * 129, None, 7, "\ud800"])
def test_a_namespace_that_is_no_name_is_refused(tenant: Tenant, namespace: Any) -> None:
    with pytest.raises(ConfigurationError, match="printable characters"):
        tenant(MemoryStore(), namespace)


@pytest.mark.parametrize("secret", ["", b""])
def test_an_empty_secret_is_refused(tenant: Tenant, secret: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="store_secret is empty"):
        tenant(MemoryStore(), "a", secret)
