"""From a prompt's text to its layout: chunks recognised, their caches opened, the rest tokenised."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from samkv_rag.chunk_cache import ChunkCache
from samkv_rag.ingestion.encoder import encode_beginning
from samkv_rag.ingestion.library import ChunkLibrary
from samkv_rag.ingestion.recognition import Match, TextSpan, split_prompt, text_digest
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.tokenization import PromptTokenizer, RenderedPrompt
from samkv_rag.prompt.history import History
from samkv_rag.prompt.labels import split_labels
from samkv_rag.prompt.layout import PromptLayout, Segment

_MAX_PREFIX_TOKENS = 4096
Run = Callable[[Callable[[], list[ChunkCache]]], list[ChunkCache]]
"""Runs a function on the thread that owns the model."""


@dataclass(frozen=True)
class SplitPrompt:
    """A prompt cut at its chunks."""

    spans: list[TextSpan]
    num_chunk_tokens: int
    literals: tuple[tuple[int, int], ...] = ()
    """Control tokens that a message spells out, see :class:`RenderedPrompt`."""
    question: str = ""
    """The user's last message, or the text after the last chunk in it, if any."""

    @property
    def chunk_texts(self) -> list[str]:
        """The texts of the chunks, in order."""
        return [span.text for span in self.spans if span.text_digest]

    @property
    def has_question(self) -> bool:
        """Whether text follows the last chunk."""
        return bool(self.spans) and self.spans[-1].text_digest is None


class PromptAssembler:
    """Turns prompts into layouts for one model and one chunk library."""

    def __init__(
        self, decoder: Decoder, tokenizer: PromptTokenizer, library: ChunkLibrary, history: History, run: Run
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._library = library
        self._history = history
        self._prefixes = PrefixCache(decoder, run)

    def split(self, prompt: RenderedPrompt | str) -> SplitPrompt:
        """Recognise the chunks in ``prompt``.

        No chunk covers a control token that the chat template wrote. Otherwise a document that reads like the
        template could replace the chat's structure.
        """
        rendered = RenderedPrompt(prompt) if isinstance(prompt, str) else prompt
        matches, position = [], 0
        for start, stop in (*rendered.structure, (len(rendered.text), len(rendered.text))):
            found = self._library.find(rendered.text[position:start])
            matches += [Match(position + m.start, position + m.stop, m.text_digest) for m in found]
            position = stop
        spans = split_labels(split_prompt(rendered.text, matches))
        counts = [self._library.num_tokens(span.text_digest, span.text) for span in spans if span.text_digest]
        return SplitPrompt(spans, sum(counts), rendered.literals, _question(rendered, matches))

    def end_announcements(self, prompt: SplitPrompt) -> None:
        """Stop prefetching what was announced for ``prompt``."""
        self._library.end_announcements(span.text_digest for span in prompt.spans if span.text_digest)

    def distrust(self, prompt: SplitPrompt) -> None:
        """Verify the prompt's chunks again at their next read."""
        self._library.distrust(prompt.chunk_texts)

    def without_cache(self, prompt: SplitPrompt) -> PromptLayout:
        """Return a layout in which nothing is cached; its token ids are those of :meth:`with_cache`."""
        segments = []
        for i, span in enumerate(prompt.spans):
            segment = self._segment(span, self._token_ids(prompt, span, first=i == 0))
            segments.append(replace(segment, hit=self._library.knows(segment.digest)))
        return PromptLayout(segments, self._decoder.device)

    def with_cache(self, prompt: SplitPrompt, with_history: bool = False, whole: bool = True) -> PromptLayout:
        """Return a layout with the caches of all chunks and of the exact prefix; missing ones are computed.

        With ``with_history``, former turns have their KV, too. Unless ``whole``, only what ``Scout`` selects by will be
        read of the chunks.
        """
        opened = iter(self._library.read(prompt.chunk_texts, whole))
        segments = []
        for i, span in enumerate(prompt.spans):
            if span.text_digest:
                reader, hit = next(opened)
                ends = torch.tensor(self._tokenizer.sentence_ends(reader.token_ids.tolist()))
                chunk = self._segment(span, reader.token_ids)
                at = self._library.first_position
                segments.append(replace(chunk, reader=reader, hit=hit, sentence_ends=ends, computed_at=at))
            else:
                segments.append(self._segment(span, self._token_ids(prompt, span, first=i == 0)))
        segments = self._with_prefix(segments)
        if with_history:
            digests = frozenset(segment.digest for segment in segments if segment.kind == "chunk")
            segments = [part for segment in segments for part in self._with_history(segment, digests)]
        return PromptLayout(segments, self._decoder.device)

    def of_question(self, texts: Sequence[str], question: str) -> PromptLayout:
        """Return a layout of the chunks of ``texts``, as :meth:`with_cache`, then a question as plain text."""
        spans = [TextSpan(0, text, text_digest(text)) for text in texts]
        with torch.inference_mode():
            return self.with_cache(SplitPrompt([*spans, TextSpan(0, question, None)], 0, ((0, len(question)),)))

    def _segment(self, span: TextSpan, ids: torch.Tensor) -> Segment:
        segment = Segment("text", ids, start_char=span.start_char, text=span.text, is_label=span.is_label)
        if span.text_digest:
            return replace(segment, kind="chunk", digest=span.text_digest)
        return replace(segment, is_structure=self._tokenizer.has_control(ids.tolist()))

    def _with_prefix(self, segments: list[Segment]) -> list[Segment]:
        """Cache the text before the first chunk exactly, or only a BOS if a chunk begins the prompt."""
        first, *others = segments
        if first.kind == "chunk":
            first, others = Segment("text", torch.tensor(self._tokenizer.bos_ids, dtype=torch.int64)), segments
        if not 0 < first.num_tokens <= _MAX_PREFIX_TOKENS:
            return segments
        reader, hit = self._prefixes.get(first.token_ids)
        return [replace(first, kind="prefix", reader=reader, hit=hit), *others]

    def _with_history(self, segment: Segment, digests: frozenset[str]) -> list[Segment]:
        """Split a text that begins with a former turn into the turn, with its KV, and the rest."""
        turn = self._history.find(segment.token_ids, digests) if segment.kind == "text" else None
        if turn is None:
            return [segment]
        said, new = segment.token_ids[: turn.cache.num_tokens], segment.token_ids[turn.cache.num_tokens :]
        cached = replace(segment, kind="history", token_ids=said, reader=turn.cache, computed_at=turn.start, text="")
        return [cached, replace(segment, token_ids=new)]

    def _token_ids(self, prompt: SplitPrompt, span: TextSpan, first: bool) -> torch.Tensor:
        if span.text_digest:
            ids = (self._tokenizer.bos_ids if first else []) + self._tokenizer.chunk_ids(span.text)
        else:
            at, end = span.start_char, span.start_char + len(span.text)
            inside = [(max(a, at) - at, min(b, end) - at) for a, b in prompt.literals if a < end and b > at]
            ids = self._tokenizer.text_ids(span.text, first, inside)
        return torch.tensor(ids, dtype=torch.int64)


def _question(rendered: RenderedPrompt, matches: list[Match]) -> str:
    asked = rendered.user_text or rendered.text
    if matches and rendered.text[matches[-1].start : (behind := matches[-1].stop)] in asked:
        end = next((start for start, _ in rendered.structure if start >= behind), len(rendered.text))
        if question := rendered.text[behind:end].strip():
            return question
    question = rendered.user_text
    for match in matches:
        question = question.replace(rendered.text[match.start : match.stop], "")
    return question.strip()


class PrefixCache:
    """Exact KV of recent prefixes (system prompt and beginning of the template), by their token ids."""

    def __init__(self, decoder: Decoder, run: Run) -> None:
        self._decoder = decoder
        self._run = run
        self._lock = threading.Lock()
        self._caches: OrderedDict[tuple[int, ...], ChunkCache] = OrderedDict()

    def get(self, token_ids: torch.Tensor) -> tuple[ChunkCache, bool]:
        """Return the cache of ``token_ids`` ``[tokens]``, and whether it was already there."""
        key = tuple(token_ids.tolist())
        with self._lock:
            if key in self._caches:
                self._caches.move_to_end(key)
                return self._caches[key], True
        (cache,) = self._run(lambda: [encode_beginning(self._decoder, key)])
        with self._lock:
            self._caches[key] = cache
            while sum(map(len, self._caches)) > _MAX_PREFIX_TOKENS:
                self._caches.popitem(last=False)
        return cache, False
