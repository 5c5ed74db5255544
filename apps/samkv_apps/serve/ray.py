"""Several engines behind one server: a Ray Serve application over a shared store."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from anyio import to_thread
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from samkv_apps import cluster, terminal
from samkv_apps.serve.backend import Asked, Backend, EngineBackend
from samkv_apps.serve.errors import ApiError, queue_full
from samkv_apps.serve.routing import balanced, ranked
from samkv_apps.serve.schema import Document
from samkv_rag import GenerationResult, IngestionReport, Piece
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store import open_store

APPLICATION = "samkv"
_MEMORY_BYTES = 1 << 30
"""Default size of the KV that a replica keeps in memory. Without it, routing by documents would have no use."""


@dataclass(frozen=True)
class Answered:
    """The end of an answer."""

    result: GenerationResult
    replica: str
    num_evicted: int
    """Chunks that the replica has evicted so far."""


class DocumentRouter(RequestRouter):  # type: ignore[misc]  # mypy skips Ray's types
    """Sends a request to the replica that its documents belong to, or to the next if that has too much to do."""

    queue_len_response_deadline_s = 1.0
    """Seconds to wait for a replica to tell whether it is busy; a computing replica answers slowly."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # if all are busy, wait before the next try
        texts = _texts(*pending_request.args[:1])
        if not texts:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in by_name.items()}
        return [[by_name[name]] for name in balanced(ranked(texts, list(by_name)), loads)]


def _texts(asked: Asked | list[Document] | str = "") -> list[str]:
    """Return the documents in a replica's first argument."""
    documents = getattr(asked, "documents", asked)
    return [one.text for one in documents if isinstance(one, Document)]


class Replica:
    """One engine in its own process."""

    def __init__(self, model: str, store: str, budgets: dict[str, int], **options: Any) -> None:
        opened = open_store(store, **({"memory_bytes": _MEMORY_BYTES} | budgets))
        self._backend = EngineBackend(terminal.open_engine(model, opened, **options))

    async def answer(self, request: Asked, max_tokens: int) -> AsyncGenerator[Piece | Answered, None]:
        async with aclosing(self._backend.answer(request, max_tokens)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Piece):
                    yield piece
                else:
                    name = serve.get_replica_context().replica_id.unique_id
                    yield Answered(_portable(piece), name, self._backend.num_evicted())

    async def ingest(self, documents: list[Document]) -> IngestionReport:
        return await self._backend.ingest(documents)

    async def forget(self, document_id: str) -> int:
        return await self._backend.forget(document_id)

    def __del__(self) -> None:  # called by Serve; closing flushes pending writes to the store
        self._backend.engine.close()


def _portable(result: GenerationResult) -> GenerationResult:
    """Return a result whose explanation needs no tokenizer."""
    offsets = {use.text: tuple(result.offsets(use.text)) for use in result.chunks}.__getitem__
    return replace(result, offsets=offsets, others=tuple(replace(one, offsets=offsets) for one in result.others))


class RayBackend(Backend):
    """Calls the replicas through Ray Serve's router.

    Args:
        handle: the handle of the deployment of :class:`Replica`.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._num_evicted: dict[str, int] = {}

    async def answer(self, request: Asked, max_tokens: int) -> AsyncGenerator[Piece | GenerationResult, None]:
        with _own_errors():
            pieces = self._handle.options(stream=True).answer.remote(request, max_tokens)
            try:
                async for piece in pieces:
                    if isinstance(piece, Answered):
                        self._num_evicted[piece.replica] = piece.num_evicted
                    yield piece.result if isinstance(piece, Answered) else piece
            finally:
                pieces.cancel()

    async def ingest(self, documents: Sequence[Document]) -> IngestionReport:
        with _own_errors():
            report: IngestionReport = await self._handle.ingest.remote(list(documents))
            return report

    async def forget(self, document_id: str) -> int:
        with _own_errors():
            num_deleted: int = await self._handle.forget.remote(document_id)
            return num_deleted

    def num_evicted(self) -> int:
        return sum(self._num_evicted.values())

    async def close(self) -> None:
        await to_thread.run_sync(stop)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise a replica's errors as it raised them, and Ray's errors as ``ApiError``."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except BackPressureError as error:
        raise queue_full(f"{error.args[1]} requests are waiting, which is the limit; try again later") from None
    except (RayError, RayServeException) as error:
        message = "the process for this answer has ended; send the request again"
        raise ApiError(503, message, kind="server_error") from error


def deploy(
    model: str,
    store: str,
    *,
    num_replicas: int,
    max_replicas: int | None = None,
    max_running: int = 16,
    max_queue: int = 256,
    budgets: dict[str, int] | None = None,
    **options: Any,
) -> RayBackend:
    """Start replicas, and return a backend that calls them.

    Args:
        model: hub id, folder or .gguf file that every machine can reach, or ``demo``.
        store: folder or URL that every replica can reach.
        num_replicas: the number of replicas, or the smallest number if ``max_replicas`` is given.
        max_replicas: the largest number; Ray adds replicas under load.
        max_running: answers that one replica decodes together; at this number it is busy.
        max_queue: requests that may wait for a replica.
        budgets: ``memory_bytes`` and ``disk_bytes`` of ``open_store``.
        options: options of :meth:`SamKVEngine.from_pretrained`.

    Raises:
        ConfigurationError: the store is in memory, or the replicas do not start.
    """
    if store == ":memory:":
        raise ConfigurationError("store is ':memory:', which replicas cannot share; give a folder or a URL")
    resources = cluster.start(max_replicas or num_replicas)
    serve.start(proxy_location="Disabled")
    scaling: dict[str, Any] = {"num_replicas": num_replicas}
    if max_replicas is not None:
        bounds = {"min_replicas": num_replicas, "max_replicas": max_replicas}
        scaling = {"autoscaling_config": bounds | {"target_ongoing_requests": max(1, max_running // 2)}}
    deployment = serve.deployment(
        Replica,
        ray_actor_options=resources,
        max_ongoing_requests=max_running,
        max_queued_requests=max_queue,
        request_router_config={"request_router_class": DocumentRouter},
        **scaling,
    )
    place = store if "://" in store else os.path.abspath(store)
    options |= {"max_running": max_running}
    application = deployment.bind(cluster.model_for_all(model), place, budgets or {}, **options)
    try:
        return RayBackend(serve.run(application, name=APPLICATION, route_prefix=None))
    except RuntimeError as error:
        told = serve.status().applications[APPLICATION].deployments[Replica.__name__].message
        stop()
        reason = told.strip().rpartition("\n")[2].partition(": ")[2]  # the last line of a traceback
        raise ConfigurationError(f"the replicas do not start: {reason or error}") from error


def stop() -> None:
    """Stop the replicas, and Ray if this process started it."""
    serve.delete(APPLICATION)
    if "RAY_ADDRESS" not in os.environ:
        serve.shutdown()
        ray.shutdown()
