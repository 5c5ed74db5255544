"""Prefill here, let vLLM decode: the KV is handed over in a file, and the tokens are streamed back."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from samkv_apps.serve.errors import ApiError
from samkv_rag import GenerationResult, Piece, SamKVEngine
from samkv_rag.engine import Prompt
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.threads import run_in_thread_shielded
from samkv_rag.handover import Handover, options_of_our_own
from samkv_rag.runtime.sampling import AnswerText, Sampling

logger = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(5, read=300)
"""Seconds. The read timeout is for one token while vLLM is busy with other requests."""
_CARRIED_OUT = ("temperature", "top_p", "top_k", "min_p", "seed")


class VllmDecoder:
    """A vLLM server with ``samkv_vllm``'s connector.

    Args:
        url: the server's address.
        folder: for handovers, the same as the connector's; created if missing.
        api_key: the server's key.
        transport: replaces the network, for tests.
    """

    def __init__(
        self, url: str, folder: Path, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        if httpx.URL(url).scheme not in ("http", "https"):
            raise ConfigurationError(f"decode-with is {url!r}; it must be a URL such as http://127.0.0.1:8000")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None)  # EngineBackend limits the handovers
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=_TIMEOUT, limits=limits, transport=transport
        )

    def carries_out(self, options: Mapping[str, Any]) -> bool:
        """Return whether vLLM supports these options. The engine decodes the other answers."""
        return not options_of_our_own(options, options["method"])

    async def decode(
        self, handover: Handover, max_tokens: int, options: Mapping[str, Any]
    ) -> AsyncGenerator[int, None]:
        """Yield the answer's further tokens, without the end token.

        Raises:
            ApiError: vLLM is unreachable, refused or failed; its log and ours have the reason.
        """
        body = {name: options.get(name, getattr(Sampling, name)) for name in _CARRIED_OUT} | {
            "prompt": handover.token_ids,
            "max_tokens": max_tokens,
            "repetition_penalty": 1,  # otherwise the server takes the model's default
            "stop_token_ids": sorted(handover.end_ids),
            "ignore_eos": True,  # stop_token_ids include it
            "stream": True,
            "return_token_ids": True,
            "kv_transfer_params": {"samkv_key": handover.key},
            "cache_salt": handover.key,
        }
        ended = None
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise _failed(f"status {response.status_code}, {(await response.aread())[:1000]!r}")
                async for line in _lines(response):
                    if line.startswith(b"data: {"):
                        event = json.loads(line.removeprefix(b"data: "))
                        if "error" in event:
                            raise _failed(event["error"])
                        for choice in event["choices"]:
                            ended = choice["finish_reason"]
                            for token_id in choice["token_ids"] or ():
                                if token_id not in handover.end_ids:
                                    yield token_id
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise _failed(repr(error)) from error
        if ended not in ("stop", "length"):
            raise _failed(f"the stream ended with {ended}")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    held = b""  # httpx's aiter_lines also splits at the line ends of Unicode, which JSON may contain
    async for part in response.aiter_bytes():
        *whole, held = (held + part).split(b"\n")
        for line in whole:
            yield line
    yield held


def _failed(reason: object) -> ApiError:
    logger.error("vLLM did not decode an answer: %s", reason)
    return ApiError(502, "the engine that decodes failed or is unreachable; try again later", kind="server_error")


class VllmStream:
    """The pieces of one answer, then its result, like the engine's own stream."""

    result: GenerationResult

    def __init__(self, decoder: VllmDecoder, engine: SamKVEngine, prompt: Prompt, options: Mapping[str, Any]) -> None:
        self._decoder, self._engine, self._prompt, self._options = decoder, engine, prompt, options
        self._pieces = self._answer()

    def __aiter__(self) -> VllmStream:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Stop the answer, and vLLM's work on it."""
        await self._pieces.aclose()

    async def _answer(self) -> AsyncGenerator[Piece, None]:
        started, decoder, engine = time.perf_counter(), self._decoder, self._engine
        prefilled = await engine.agenerate(self._prompt, handover=True, **self._options)
        handover, metrics = prefilled.handover, prefilled.metrics
        room = engine.context_window - metrics.prompt_tokens
        num_more = min(self._options["max_new_tokens"], room) - 1
        if handover is None or not num_more:
            if prefilled.text:
                yield Piece(prefilled.text, prefilled.token_ids)
            self.result = replace(prefilled, handover=None)
            return
        stop = self._options.get("stop") or ()
        answer = AnswerText(engine.tokenizer, (stop,) if isinstance(stop, str) else stop)
        token_ids, num_delivered = list(prefilled.token_ids), 0
        if text := answer.add(token_ids[0]):
            yield Piece(text, prefilled.token_ids)
            num_delivered = 1
        with ExitStack() as saved:
            await run_in_thread_shielded(saved.enter_context, handover.saved(decoder.folder))
            async with aclosing(decoder.decode(handover, num_more, self._options)) as decoded:
                async for token_id in decoded:
                    token_ids.append(token_id)
                    if text := answer.add(token_id):
                        yield Piece(text, tuple(token_ids[num_delivered:]))
                        num_delivered = len(token_ids)
                    if answer.stopped:
                        break
        if text := answer.finish():
            yield Piece(text, tuple(token_ids[num_delivered:]))
        total_s, num_tokens = time.perf_counter() - started, len(token_ids)
        speed = (num_tokens - 1) / (total_s - metrics.ttft_s)
        self.result = replace(
            prefilled,
            text=answer.text,
            token_ids=tuple(token_ids),
            finish_reason="stop" if answer.stopped or num_tokens <= num_more else "length",
            handover=None,
            metrics=replace(metrics, completion_tokens=num_tokens, decode_tokens_per_s=speed, total_s=total_s),
        )
