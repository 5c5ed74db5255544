"""The engine: chunks in, prompts in, answers out."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import PurePath
from typing import Any

import torch

from samkv_rag.assembly import PromptAssembler
from samkv_rag.config import SamKVConfig, refuse_unknown
from samkv_rag.decoding import Sampling
from samkv_rag.exceptions import ConfigurationError, EmptyPromptError
from samkv_rag.generation import Generation, GenerationResult, StreamPiece, gather, stream_answer
from samkv_rag.ingestion.hints import Hint
from samkv_rag.ingestion.library import ChunkLibrary
from samkv_rag.metrics import IngestionReport
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.fingerprint import fingerprint
from samkv_rag.model.loading import load
from samkv_rag.model.support import check_config, self_test
from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.store import KVStore, Origin, open_store
from samkv_rag.store.format.encoding import stored_dtype
from samkv_rag.store.namespaces import scoped_fingerprint

Prompt = str | Sequence[Mapping[str, Any]]
# What chunks are summarised by at ingestion belongs to the engine, not to a single call.
_FIXED_OPTIONS = ("initial_tokens", "local_tokens", "block_tokens", "resume_layer", "kv_dtype")


class SamKVEngine:
    """Answers prompts from the cached KV of the chunks that stand in them.

    Build one with :meth:`from_pretrained`. Calls are thread-safe; prompts are read one at a time.

    Raises:
        UnsupportedModelError: the model's cached keys cannot be moved exactly.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        store: KVStore | str | PathLike[str] = ":memory:",
        config: SamKVConfig | None = None,
        model_name: str | None = None,
        namespace: str = "",
        store_secret: str | bytes | None = None,
    ) -> None:
        check_config(model)
        self.config = config or SamKVConfig()
        self.tokenizer = PromptTokenizer(tokenizer)
        self.decoder = Decoder(model)
        stored_dtype(self.config.kv_dtype, self.decoder.dtype)  # refuses one that the model cannot have
        self_test(self.decoder)
        self.model_name = model_name or str(getattr(model, "name_or_path", "") or model.config.model_type)
        self.store = open_store(store)
        self.fingerprint = fingerprint(model, tokenizer)
        self.namespace = namespace
        scope = scoped_fingerprint(self.fingerprint, namespace, store_secret)
        origin = Origin(namespace, self.fingerprint, PurePath(self.model_name).name)
        self._library = ChunkLibrary(self.decoder, self.tokenizer, self.store, self.config, scope, origin)
        self._assembler = PromptAssembler(self.decoder, self.tokenizer, self._library)
        self._end_ids = _end_of_text_ids(model, tokenizer)
        # One prompt is read at a time: two at once would hold twice the memory and finish no sooner.
        self._model_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        *,
        tokenizer: Any = None,
        store: KVStore | str | PathLike[str] = ":memory:",
        config: SamKVConfig | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        namespace: str = "",
        store_secret: str | bytes | None = None,
    ) -> SamKVEngine:
        """Load a model and open a store.

        ``model`` is a hub id, a folder, a ``.gguf`` file, or a model object (then ``tokenizer`` too).
        ``store`` is what ``open_store`` takes, or a store. ``dtype=None`` takes bfloat16 where the
        processor computes in it, else float32. Engines of one ``namespace`` (a tenant, say) share
        their chunks and never see another's; with ``store_secret``, nobody without it can tell from
        a store's keys whether a text is in it.

        Raises:
            ModelNotFoundError: nothing loadable at ``model``.
            UnsupportedModelError: the model's cached keys cannot be moved exactly.
            StoreFormatError: ``store`` is a folder of something else.
            ConfigurationError: an option is out of range.
        """
        if isinstance(model, (str, PathLike)):
            loaded, own_tokenizer = load(model, device, dtype, gguf_file, trust_remote_code)
            return cls(loaded, tokenizer or own_tokenizer, store, config, str(model), namespace, store_secret)
        if tokenizer is None:
            raise ConfigurationError("a model object needs its tokenizer: pass tokenizer=...")
        if device is not None or dtype is not None or gguf_file is not None:
            raise ConfigurationError("device, dtype and gguf_file apply to a model given by name; move the object")
        return cls(model, tokenizer, store, config, namespace=namespace, store_secret=store_secret)

    # -- chunks ----------------------------------------------------------------------------------

    def add_chunks(
        self, texts: Iterable[str], *, sources: Sequence[str | None] | None = None, show_progress: bool | None = None
    ) -> IngestionReport:
        """Compute and store the caches of chunk texts that are not stored yet.

        White space around a text is not part of the chunk. ``sources`` are names of what the texts come
        from, such as document ids, one or None for each: a chunk stays until :meth:`remove_sources`, or a
        new text under the same name, takes its last. ``show_progress=None`` shows a bar on a terminal only.

        Raises:
            ConfigurationError, EmptyChunkError, ChunkTooLongError: nothing was computed.
            StoreFullError: the chunks stored until then stay; sources are as before.
        """
        return self._library.add([texts] if isinstance(texts, str) else texts, show_progress, sources)

    def remove_sources(self, sources: Iterable[str], *, keep_texts: Iterable[str] = ()) -> int:
        """Forget sources, delete the chunks that have none left, and return how many those were.

        Chunks of ``keep_texts`` stay: their sources are kept where no other refers to them.
        """
        return self._library.release([sources] if isinstance(sources, str) else sources, keep_texts)

    def sources(self) -> list[str]:
        """Every source given to :meth:`add_chunks` and not removed since."""
        return self._library.sources()

    def has_chunk(self, text: str) -> bool:
        """Whether the chunk is stored for this model."""
        return self._library.has(text)

    def remove_chunks(self, texts: Iterable[str]) -> int:
        """Delete chunks and return how many were there."""
        return self._library.remove([texts] if isinstance(texts, str) else texts)

    def prune(self, keep_texts: Iterable[str], *, unreferenced_only: bool = False) -> int:
        """Delete this model's chunks that are not among ``keep_texts``; return how many.

        ``unreferenced_only`` spares those that any source refers to.
        """
        return self._library.prune(keep_texts, unreferenced_only)

    def hint(self, texts: Iterable[str]) -> Hint:
        """Announce the chunks of a coming prompt.

        Their KV starts to be read while the prompt is still being built; one that is not stored will
        be recognised all the same, computed on the spot and stored. Reading ahead ends with the prompt;
        where none will come, cancel what is returned.
        """
        return self._library.hint(texts)

    # -- answers ---------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        **policy: Any,
    ) -> GenerationResult:
        """Answer a prompt: one string, used as it is, or messages, rendered by the chat template.

        ``temperature=0`` takes the likeliest token; ``stop`` is a text or texts that end the answer.
        ``policy`` changes :class:`SamKVConfig` for this call alone (``sequence_ratio``, ``method``,
        ``recompute_view`` ...), save what is fixed at ingestion.

        Raises:
            EmptyPromptError, PromptTooLongError, ChatTemplateError: the prompt cannot be answered.
            ConfigurationError: an option is unknown or out of range.
        """
        sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        return gather(self.stream(prompt, stop=stop, seed=seed, **sampling, **policy))

    def generate_scored(
        self,
        prompt: Prompt,
        reference: str,
        *,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] | None = None,
        **policy: Any,
    ) -> tuple[GenerationResult, float]:
        """Answer greedily, and say how likely ``reference`` was as the answer; one prefill serves both.

        The second value is the mean negative log-likelihood of the reference's tokens, in nats, each
        given the prompt's KV and the reference's tokens before it.

        Raises:
            ConfigurationError: the reference has no tokens; else as :meth:`generate`.
        """
        if not (reference_ids := self.tokenize(reference)):
            raise ConfigurationError(f"reference is {reference!r}; it must be text of at least one token")
        generation = self._generation(prompt, policy)
        sampling = Sampling(max_new_tokens, stop=_as_stops(stop))
        result = gather(self._stream(generation, sampling))
        return result, generation.nll(reference_ids)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        **policy: Any,
    ) -> Generator[StreamPiece, None, None]:
        """Like :meth:`generate`, piece by piece. Closing the iterator stops the generation at once."""
        sampling = Sampling(max_new_tokens, temperature, top_p, _as_stops(stop), seed)
        return self._stream(self._generation(prompt, policy), sampling)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Messages as the one string that :meth:`generate` would use.

        ``tools`` are function schemas that the answer may call; its calls are text, in the model's own way.

        Raises:
            ChatTemplateError: no template, or one that refuses these messages.
            ToolsUnsupportedError: there are tools, and the template leaves them out.
        """
        return self.tokenizer.render(messages, tools)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return self.tokenizer.chunk_ids(text)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokenize(text))

    @property
    def context_window(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.decoder.context_window

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be given."""
        return self.tokenizer.has_chat_template

    # -- options ---------------------------------------------------------------------------------

    def _generation(self, prompt: Prompt, policy: dict[str, Any]) -> Generation:
        config = self._with_policy(policy)
        return Generation(self.decoder, self._assembler, self._model_lock, config, self._as_text(prompt))

    def _stream(self, generation: Generation, sampling: Sampling) -> Generator[StreamPiece, None, None]:
        return stream_answer(generation, self.tokenizer, sampling, self._end_ids, self.model_name)

    def _with_policy(self, policy: dict[str, Any]) -> SamKVConfig:
        names = [f.name for f in fields(SamKVConfig) if f.name not in _FIXED_OPTIONS]
        refuse_unknown(policy, [*names, *(f.name for f in fields(Sampling))])
        return self.config.with_options(**{name: value for name, value in policy.items() if value is not None})

    def _as_text(self, prompt: Prompt) -> str:
        text = prompt if isinstance(prompt, str) else self.tokenizer.render(prompt) if prompt else ""
        if not text.strip():
            raise EmptyPromptError(f"the prompt is {text!r}; it must be text that is not only white space")
        return text


def _as_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _end_of_text_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token id that ends an answer, as model and tokenizer declare them."""
    generation = getattr(model, "generation_config", None)
    declared = [getattr(generation, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)]
    ids = [i for one in declared for i in (one if isinstance(one, list) else [one])]
    return frozenset(i for i in ids if i is not None)
