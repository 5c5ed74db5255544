"""`samkv serve`."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from samkv_apps import terminal
from samkv_rag.exceptions import ConfigurationError, ModelNotFoundError

_PACKAGES = {"fastapi": "fastapi", "httpx": "httpx", "prometheus_client": "prometheus-client", "uvicorn": "uvicorn"}
_DRAIN_S = 30
"""How long answers that are being written may take when the server is told to end."""


def serve(
    model: Annotated[str, typer.Option(help="Hub id, folder or .gguf file; 'demo' needs no hub.")],
    store: Annotated[str, typer.Option(help="Folder or URL for chunk KV, or ':memory:'.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="SAMKV_API_KEY", help="What clients must send.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:1.", show_default="CUDA, else cpu")] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16.", show_default="by processor")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")] = None,
    model_kwargs: Annotated[
        str, typer.Option(metavar="JSON", help="What else transformers takes, such as quantization_config.")
    ] = "{}",
    namespace: Annotated[str, typer.Option(help=f"Tenant to keep apart; ${terminal.SECRET} is its secret.")] = "",
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused at once.")] = 256,
    max_running: Annotated[int, typer.Option(min=1, help="Answers that are written together.")] = 16,
    decode_with: Annotated[str | None, typer.Option(help="URL of a vLLM that decodes; it has samkv-vllm.")] = None,
    handover: Annotated[Path | None, typer.Option(help="Folder that both reach, best in memory.")] = None,
    decode_key: Annotated[str | None, typer.Option(envvar="VLLM_API_KEY", help="What that vLLM wants sent.")] = None,
) -> None:
    """Serve a model to OpenAI's clients, over the chunk KV in a store."""
    terminal.require_packages(_PACKAGES, "samkv serve", "serve")
    if api_key is not None and not api_key.strip():
        raise ConfigurationError("the API key is empty; give it some random text, or leave it out to let everybody in")
    if (decode_with is None) != (handover is None):
        raise ConfigurationError(
            "--decode-with URL goes with --handover FOLDER, the one of vLLM's connector; give both"
        )
    secret = terminal.store_secret()
    terminal.quieten_libraries(bars=False)
    import uvicorn

    from samkv_apps.serve.app import create_app
    from samkv_apps.serve.decoding import VllmDecoder
    from samkv_rag import SamKVEngine
    from samkv_rag.handover import require_dense

    _log_as_json()
    try:
        engine = SamKVEngine.from_pretrained(
            terminal.language_model_path(model, lambda message: typer.echo(message, err=True)),
            store=store,
            device=device,
            dtype=dtype,
            revision=revision,
            model_kwargs=_as_object(model_kwargs),
            namespace=namespace,
            store_secret=secret,
            max_running=max_running,
            max_waiting=max_queue,
        )
    except ModelNotFoundError as error:
        raise terminal.with_hub_hint(error) from error
    name = Path(model).name if Path(model).exists() else model  # where it lies on this machine concerns no client
    decoder = None
    if decode_with is not None and handover is not None:
        require_dense(engine.decoder)
        decoder = VllmDecoder(decode_with, handover, decode_key)
    app = create_app(engine, name, api_key=api_key, max_queue=max_queue, decoder=decoder)
    # On SIGTERM it takes no more connections, lets answers be written to their end, then closes the engine.
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=_DRAIN_S, **quiet)


def _as_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"--model-kwargs is {text!r}; it must be a JSON object, "
            """such as '{"quantization_config": {"load_in_8bit": true}}'"""
        )
    return value


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)  # a damaged chunk, a store out of reach
