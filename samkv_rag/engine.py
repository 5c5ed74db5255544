"""The engine: ingests chunks and answers prompts."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import PurePath
from types import NoneType
from typing import Any, TypedDict, TypeGuard, Unpack

from samkv_rag.checks import refuse_unknown, require_bool, require_integer, require_unicode
from samkv_rag.chunk_cache import SummarySpec
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError, EmptyPromptError, PromptError
from samkv_rag.generation_result import GenerationResult
from samkv_rag.grammar import Grammar
from samkv_rag.handover import options_of_our_own, require_dense
from samkv_rag.ingestion.library import Announcement, ChunkLibrary, clean_texts
from samkv_rag.ingestion.namespaces import scoped_fingerprint
from samkv_rag.ingestion.recognition import describe, text_digest
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.fingerprint import fingerprint
from samkv_rag.model.loading import LoadingOptions, load
from samkv_rag.model.support import check_config, self_test
from samkv_rag.model.tokenization import PromptTokenizer, RenderedPrompt
from samkv_rag.prefill import PrefillMethod, Scout, resolve_method
from samkv_rag.prefill.scout import rank_chunks
from samkv_rag.prompt.assembly import PromptAssembler
from samkv_rag.prompt.history import History
from samkv_rag.results import IngestionEstimate, IngestionReport
from samkv_rag.runtime.guiding import Guide
from samkv_rag.runtime.prefilling import prefill, read_prompt
from samkv_rag.runtime.result import result
from samkv_rag.runtime.sampling import Sampling
from samkv_rag.runtime.sequence import Choose, ReadPrompt, Request
from samkv_rag.runtime.sequence import Sequence as RunningSequence
from samkv_rag.runtime.stream import AnswerStream, AsyncAnswerStream
from samkv_rag.runtime.worker import Runtime
from samkv_rag.store import Store, open_store
from samkv_rag.store.codec import FORMAT_VERSION, ChunkIdentity, stored_dtype

Prompt = str | RenderedPrompt | Sequence[Mapping[str, Any]]
Method = PrefillMethod | str | Mapping[str, Any]


class AnswerOptions(TypedDict, total=False):
    """Options of one answer."""

    method: Method | None
    """Replaces the engine's method."""
    max_new_tokens: int
    """The default is 256."""
    temperature: float
    """0, the default, takes the likeliest token."""
    top_p: float
    top_k: int
    """0, the default, keeps all tokens."""
    min_p: float
    repetition_penalty: float
    """Above 1 makes tokens of the prompt and of the answer less likely. The sampling options are as in transformers."""
    stop: str | Sequence[str] | None
    """Text or texts that end the answer; they are not part of it."""
    seed: int | None
    n: int
    """Number of answers from one prefill. ``result.others`` has all but the first; each uses the next seed."""
    logprobs: bool
    """Report the log probability of each token."""
    top_logprobs: int
    """Report also the likeliest tokens at each place, up to 20."""
    grammar: Grammar | None
    """The form that the answer must have."""
    choose: Choose | None
    """Replaces sampling: maps logits ``[1, vocab]`` to the next token's id, on the worker thread."""
    handover: bool
    """End the answer after its first token; ``result.handover`` lets another engine decode the rest. Excludes the
    options that other engines lack: ``n``, ``logprobs``, ``repetition_penalty``, ``grammar``, ``choose``, refreshes."""


class SamKVEngine:
    """Answers prompts from the cached KV of the chunks in them.

    Build one with :meth:`from_pretrained`. Any number of threads and event loops may call it at once:
    one worker thread owns the model and decodes their answers together.

    Raises:
        UnsupportedModelError: the model's cached keys cannot be moved exactly.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        store: Store | str | PathLike[str] = ":memory:",
        config: EngineConfig | None = None,
        method: Method | None = None,
        model_name: str | None = None,
        namespace: str = "",
        store_secret: str | bytes | None = None,
        max_running: int = 16,
        max_waiting: int = 256,
        history_tokens: int = 8192,
    ) -> None:
        require_integer("max_running", max_running, 1)
        require_integer("max_waiting", max_waiting, 1)
        require_integer("history_tokens", history_tokens, 0)
        if not isinstance(config, (EngineConfig, NoneType)):
            raise ConfigurationError(f"config is {config!r}; it must be an EngineConfig")
        check_config(model)
        self.config = config = config or EngineConfig()
        self.method = Scout() if method is None else resolve_method(method)
        self.tokenizer = PromptTokenizer(tokenizer)
        self.decoder = Decoder(model)
        stored_dtype(config.kv_dtype, self.decoder.dtype, config.storage)  # refuses a dtype that the model cannot have
        # Before the first run, which repacks the weights of some formats.
        self.fingerprint = fingerprint(model, tokenizer)
        self_test(self.decoder)
        self.method.require(config.storage, self.decoder)
        self.model_name = model_name or str(getattr(model, "name_or_path", "") or model.config.model_type)
        self.store = open_store(store)
        self.namespace = namespace
        self._spec = SummarySpec(config.initial_tokens, config.local_tokens, config.block_tokens, config.storage)
        self._runtime = Runtime(self.decoder, self._read, self._prefill, self._finish, max_running, max_waiting)
        run = self._runtime.call
        preamble_ids = self.tokenizer.preamble_ids(config.preamble)
        computed_as = f"{self.fingerprint}\n{FORMAT_VERSION}\n{self._spec}\n{text_digest(str(preamble_ids))}"
        scope = scoped_fingerprint(computed_as, namespace, store_secret)
        blank = ChunkIdentity(scope, *describe(""), namespace, self.fingerprint, PurePath(self.model_name).name)
        self._library = ChunkLibrary(
            self.decoder, self.tokenizer, self.store, blank, self._spec, preamble_ids, config, run
        )
        self._history = History(history_tokens)
        self._assembler = PromptAssembler(self.decoder, self.tokenizer, self._library, self._history, run)
        self._end_ids = _end_of_text_ids(model, tokenizer)
        self._guide = Guide(self.tokenizer, self._end_ids)
        self._max_running = max_running

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        *,
        tokenizer: Any = None,
        store: Store | str | PathLike[str] = ":memory:",
        config: EngineConfig | None = None,
        method: Method | None = None,
        namespace: str = "",
        store_secret: str | bytes | None = None,
        max_running: int = 16,
        max_waiting: int = 256,
        history_tokens: int = 8192,
        **loading: Unpack[LoadingOptions],
    ) -> SamKVEngine:
        """Load a model and open a store.

        Nothing in a model folder is executed: there is no ``trust_remote_code``.

        Args:
            model: a hub id, a folder, a ``.gguf`` file, or a model object (then also pass ``tokenizer``). Quantised
                weights stay quantised, except those of GGUF files and compressed-tensors, which are unpacked.
            store: a location for ``open_store``, or a store.
            config: options of ingestion.
            method: how prompts are answered by default: a method, its name, or a mapping of its name and options.
                None: ``Scout()``.
            namespace: engines of one namespace (such as a tenant) share their chunks and never see those of others.
            store_secret: without it, nobody can tell from a store's keys whether a text is in it.
            max_running: number of answers that are decoded together.
            max_waiting: number of requests that may wait; more are refused at once.
            history_tokens: KV of earlier chat turns that is kept in memory for the next turns, in tokens.
            loading: how a model given by name is loaded.

        Raises:
            ModelNotFoundError: ``model`` has nothing that can be loaded.
            ModelError: the model cannot be loaded on this machine.
            UnsupportedModelError: the model's cached keys cannot be moved exactly.
            StoreFormatError: the folder ``store`` contains other files.
            ConfigurationError: an option is unknown or out of range.
        """
        refuse_unknown(loading, [*LoadingOptions.__annotations__, *(cls.from_pretrained.__kwdefaults__ or ())])
        model_name = None
        if isinstance(model, (str, PathLike)):
            model_name = str(model)
            model, own_tokenizer = load(model, loading)
            tokenizer = tokenizer or own_tokenizer
        elif tokenizer is None:
            raise ConfigurationError("a model object needs its tokenizer: pass tokenizer=...")
        elif given := [name for name, value in loading.items() if value is not None]:
            raise ConfigurationError(f"{', '.join(given)}: for a model given by name; an object is as it is")
        engine = cls(
            model,
            tokenizer,
            store=store,
            config=config,
            method=method,
            model_name=model_name,
            namespace=namespace,
            store_secret=store_secret,
            max_running=max_running,
            max_waiting=max_waiting,
            history_tokens=history_tokens,
        )
        if model_name is not None:  # a model object is the caller's, and stays as it is
            engine.decoder.pack_weights()
        return engine

    def close(self) -> None:
        """Cancel running answers, end the threads and close the store."""
        self._runtime.close()
        self._library.close()
        self.store.close()

    def __enter__(self) -> SamKVEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Chunks

    def estimate_chunks(self, texts: Iterable[str]) -> IngestionEstimate:
        """Count the texts that are not stored yet, and estimate what :meth:`add_chunks` would store.

        Raises:
            EmptyChunkError, ChunkTooLongError: a text cannot be a chunk.
        """
        return self._library.estimate(_as_texts(texts))

    def add_chunks(
        self,
        texts: Iterable[str],
        *,
        sources: Sequence[str | None] | None = None,
        show_progress: bool | None = None,
        max_bytes: int | None = None,
    ) -> IngestionReport:
        """Compute and store the caches of chunk texts that are not stored yet.

        White space around a text is not part of the chunk. ``sources`` names the origin of each text, such as a
        document id, or None. A chunk is deleted when :meth:`remove_sources`, or a new text under the same name,
        removes its last source. ``show_progress=None`` shows a bar on a terminal only. If the new chunks would take
        more than ``max_bytes`` together, all are refused before any is computed.

        Raises:
            ConfigurationError, EmptyChunkError, ChunkTooLongError: nothing was computed.
            StoreFullError: more than ``max_bytes``, or no room left. Chunks stored so far stay; sources do not change.
        """
        return self._library.add(_as_texts(texts), show_progress, sources, max_bytes)

    def remove_sources(self, sources: Iterable[str], *, keep_texts: Iterable[str] = ()) -> int:
        """Forget sources, delete the chunks that have no source left, and return how many were deleted.

        Chunks of ``keep_texts`` stay, and keep these sources if they have no other.
        """
        return self._library.release(_as_texts(sources), _as_texts(keep_texts))

    def sources(self) -> list[str]:
        """Return the sources that were given to :meth:`add_chunks` and not removed."""
        return list(self._library.references())

    def has_chunk(self, text: str) -> bool:
        """Whether the chunk is stored for this model."""
        return self._library.has(text)

    def remove_chunks(self, texts: Iterable[str]) -> int:
        """Delete chunks and return how many existed."""
        return self._library.remove(_as_texts(texts))

    def prune(self, keep_texts: Iterable[str], *, unreferenced_only: bool = False) -> int:
        """Delete this model's chunks that are not in ``keep_texts``; return how many.

        ``unreferenced_only`` keeps those that have a source.
        """
        return self._library.prune(_as_texts(keep_texts), unreferenced_only)

    def announce(self, texts: Iterable[str]) -> Announcement:
        """Announce the chunks of a coming prompt.

        Their KV is prefetched while the prompt is still being built. A chunk that is not stored is recognised too,
        computed on the spot and stored, unless a stored chunk makes up at least half of it. Prefetching ends with the
        prompt; cancel the result if no prompt follows.
        """
        return self._library.announce(_as_texts(texts))

    def rank(self, question: str, texts: Iterable[str]) -> list[float]:
        """Return how well each of ``texts`` matches a question, by its cached KV; at least 0, higher is better.

        Compare matches within one call only. The order of texts does not matter. Chunks that are not stored are
        computed and stored. See ``samkv_rag.prefill.scout.rank_chunks``.

        Raises:
            EmptyPromptError: the question is empty.
            EmptyChunkError: one of ``texts`` is not text.
            ChunkTooLongError: a text is longer than the model's context window.
        """
        question, chunks = self._rendered(question).text, [*clean_texts(_as_texts(texts), empty_too=True)]
        if not (unique := [*dict.fromkeys(filter(None, chunks))]):
            return [0.0] * len(chunks)
        for attempts_left in (2, 1, 0):
            layout = self._assembler.of_question(unique, question)
            try:
                found = self._runtime.call(partial(rank_chunks, self.decoder, layout)).tolist()
                break
            except DamagedChunkError:  # the next reading finds and replaces the chunk, as for answers
                if not attempts_left:
                    raise
                self._library.distrust(unique)
        match = dict(zip(unique, found, strict=True))
        return [match.get(text, 0.0) for text in chunks]

    # Answers

    def generate(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> GenerationResult:
        """Answer a prompt: a string, which is used as it is, or messages, which the chat template renders.

        Raises:
            EmptyPromptError, PromptTooLongError, ChatTemplateError: the prompt cannot be answered.
            ConfigurationError: an option is unknown or out of range.
            QueueFullError: too many requests are waiting.
        """
        return self._drained(self._sequence(prompt, options))

    def stream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> AnswerStream:
        """Like :meth:`generate`, piece by piece; the stream's ``result`` has the metrics.

        Work starts when the first piece is requested. Closing the stream ends it at once.
        """
        return AnswerStream(self._sequence(prompt, options), self._runtime.submit)

    async def agenerate(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> GenerationResult:
        """:meth:`generate` for an event loop; does not block it."""
        async with self.astream(prompt, **options) as stream:
            async for _ in stream:
                pass
            return stream.result

    def astream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> AsyncAnswerStream:
        """:meth:`stream` for an event loop; does not block it."""
        return AsyncAnswerStream(self._sequence(prompt, options), self._runtime.submit)

    def generate_scored(self, prompt: Prompt, reference: str, **options: Unpack[AnswerOptions]) -> GenerationResult:
        """Answer, and score ``reference`` as the answer, with one prefill.

        The result's ``reference_nll`` is the mean negative log-likelihood of the reference's tokens, in
        nats, each given the prompt's KV and the reference's tokens before it.

        Raises:
            ConfigurationError: the reference has no tokens. Other errors are those of :meth:`generate`.
        """
        if not (reference_ids := self.tokenize(reference)):
            raise ConfigurationError(f"reference is {reference!r}; it must be text of at least one token")
        return self._drained(self._sequence(prompt, options, tuple(reference_ids)))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        documents: Sequence[Mapping[str, str]] = (),
    ) -> RenderedPrompt:
        """Render messages as the one text that :meth:`generate` would use.

        Pass the result on as it is: it records which control tokens the template wrote. In a plain string, every
        control token outside recognised chunks counts as one, whoever wrote it.

        ``tools`` are function schemas that the answer may call; calls are text, in the model's own format.
        ``documents``, with ``title`` and ``text``, go where the template places documents.

        Raises:
            ChatTemplateError: there is no template, it refuses these messages, or it omits or rewrites a document.
            ToolsUnsupportedError: the template omits the tools.
        """
        if not _is_messages(messages):
            raise PromptError(f"the messages are {reprlib.repr(messages)}; they must be a list of mappings")
        return self.tokenizer.render(messages, tools, documents)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens.

        Raises:
            PromptError: it is not text, or not valid Unicode.
        """
        return self.tokenizer.chunk_ids(_require_unicode(text))

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text."""
        return len(self.tokenize(text))

    @property
    def context_window(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        return self.decoder.context_window

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts may be messages."""
        return self.tokenizer.has_chat_template

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template takes tools."""
        return self.tokenizer.takes_tools

    @property
    def takes_documents(self) -> bool:
        """Whether the chat template takes documents."""
        return self.tokenizer.takes_documents

    # Requests, sequences and results

    def _sequence(self, prompt: Prompt, options: AnswerOptions, reference_ids: tuple[int, ...] = ()) -> RunningSequence:
        refuse_unknown(options, AnswerOptions.__annotations__)
        given: dict[str, Any] = {**options}
        method, stop, choose = (given.pop(name, None) for name in ("method", "stop", "choose"))
        handover = given.pop("handover", False)
        sampling = Sampling(stop=tuple(_as_texts(() if stop is None else stop)), **given)
        if choose is not None and not callable(choose):
            raise ConfigurationError(f"choose is {choose!r}; it must be a function of logits")
        if choose and sampling.grammar:
            raise ConfigurationError("choose and grammar are both given, and choose picks the tokens; leave one out")
        if sampling.n > self._max_running:
            raise ConfigurationError(
                f"n is {sampling.n} and {self._max_running} answers are decoded together; ask for fewer, or open the "
                "engine with a larger max_running"
            )
        chosen = self.method if method is None else resolve_method(method)
        chosen.require(self.config.storage, self.decoder)
        require_bool("handover", handover)
        if handover:
            require_dense(self.decoder)
            if own := options_of_our_own(options, chosen):
                raise ConfigurationError(
                    f"handover is True, and another engine cannot carry out {', '.join(own)}; leave it out, or handover"
                )
        request = Request(self._rendered(prompt), chosen, sampling, reference_ids, choose, handover)
        return RunningSequence(request, self.tokenizer, self._end_ids)

    def _drained(self, sequence: RunningSequence) -> GenerationResult:
        with AnswerStream(sequence, self._runtime.submit) as stream:
            for _ in stream:
                pass
            return stream.result

    def _read(self, sequence: RunningSequence) -> ReadPrompt:
        if sequence.read is not None:  # a second read: one of its chunks was damaged
            self._library.distrust(sequence.read.prompt.chunk_texts)
        grammar = sequence.request.sampling.grammar
        matcher = self._guide.matcher(grammar) if grammar else None  # before reading, so that errors are cheap
        return read_prompt(self._assembler, sequence, matcher, self.context_window)

    def _prefill(self, sequence: RunningSequence) -> list[RunningSequence]:
        return prefill(self.decoder, sequence, self._spec)

    def _finish(self, sequence: RunningSequence) -> GenerationResult:
        refresher = sequence.state and sequence.state.refresher
        if sequence.read and refresher and isinstance(refresher.error, DamagedChunkError):
            self._library.distrust(sequence.read.prompt.chunk_texts)
        is_chat = bool(sequence.request.prompt.structure)  # rendered from messages, so more turns may follow
        if is_chat and sequence.read and sequence.state and sequence.read.method.needs:
            self._history.remember(sequence.read.layout, sequence.token_ids, sequence.state.buffer)
        return result(sequence, self.decoder, self.tokenizer, self.model_name)

    def _rendered(self, prompt: Prompt) -> RenderedPrompt:
        if isinstance(prompt, str):
            rendered = RenderedPrompt(prompt, user_text=prompt)
        elif isinstance(prompt, RenderedPrompt):
            rendered = prompt
        elif _is_messages(prompt):
            rendered = self.tokenizer.render(prompt) if prompt else RenderedPrompt("")
        else:
            raise PromptError(f"the prompt is a {type(prompt).__name__}; it must be text or a list of messages")
        if not rendered.text.strip():
            raise EmptyPromptError(f"the prompt is {rendered.text!r}; it must be text that is not only white space")
        _require_unicode(rendered.text)
        return rendered


def _require_unicode(text: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"the text is a {type(text).__name__}; it must be a string")
    require_unicode("the text", text, PromptError)
    return text


def _is_messages(prompt: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt)


def _as_texts(texts: Iterable[str]) -> list[str]:
    """Return a list of texts; a single text becomes a list of one."""
    if isinstance(texts, str):
        return [texts]
    try:
        return list(texts)
    except TypeError:
        raise ConfigurationError(f"{texts!r} is not a list of texts") from None


def _end_of_text_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the token ids that end an answer, as model and tokenizer declare them."""
    generation = getattr(model, "generation_config", None)
    declared = [getattr(generation, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)]
    ids = [i for one in declared for i in (one if isinstance(one, list) else [one])]
    return frozenset(i for i in ids if i is not None)
