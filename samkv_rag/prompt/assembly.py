"""From a prompt's text to its layout: chunks recognised, their caches opened, the rest tokenised."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from samkv_rag.chunk_cache import ChunkCache, ChunkReader
from samkv_rag.forking import ProcessLock
from samkv_rag.ingestion.encoder import encode_beginning
from samkv_rag.ingestion.library import ChunkLibrary, Run
from samkv_rag.ingestion.recognition import Match, TextSpan, split_prompt, text_digest
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.tokenization import PromptTokenizer, RenderedPrompt
from samkv_rag.prompt.history import History, Seen
from samkv_rag.prompt.labels import split_labels
from samkv_rag.prompt.layout import PromptLayout, Segment

_MAX_PREFIX_TOKENS = 4096


@dataclass(frozen=True)
class SplitPrompt:
    """A prompt cut at its chunks."""

    spans: list[TextSpan]
    num_chunk_tokens: int
    literals: tuple[tuple[int, int], ...] = ()
    """Control tokens that a message spells out, see :class:`RenderedPrompt`."""
    question: str = ""
    """The user's last message, or the text after the last chunk in it, if any."""
    question_follows: bool = True
    """Whether a question follows the last chunk, and not only the chat template's end."""

    @property
    def chunk_texts(self) -> list[str]:
        return [span.text for span in self.spans if span.text_digest]


@dataclass
class PromptAssembler:
    """Turns prompts into layouts for one model and one chunk library."""

    decoder: Decoder
    tokenizer: PromptTokenizer
    library: ChunkLibrary
    history: History
    run: Run

    def __post_init__(self) -> None:
        self._lock = ProcessLock()
        self._prefixes: OrderedDict[tuple[int, ...], ChunkCache] = OrderedDict()
        """Exact KV of recent prefixes (system prompt and beginning of the template), by their token ids."""

    def split(self, prompt: RenderedPrompt | str) -> SplitPrompt:
        """Recognise the chunks in ``prompt``.

        No chunk covers a control token that the chat template wrote. Otherwise a document that reads like the
        template could replace the chat's structure.
        """
        rendered = RenderedPrompt(prompt) if isinstance(prompt, str) else prompt
        matches, position = [], 0
        for start, stop in (*rendered.structure, (len(rendered.text), len(rendered.text))):
            found = self.library.find(rendered.text[position:start])
            matches += [Match(position + m.start, position + m.stop, m.text_digest) for m in found]
            position = stop
        spans = split_labels(split_prompt(rendered.text, matches))
        counts = [self.library.num_tokens(span.text_digest, span.text) for span in spans if span.text_digest]
        question, follows = _question(rendered, matches), _question_follows(rendered, matches)
        return SplitPrompt(spans, sum(counts), rendered.literals, question, follows)

    def without_cache(self, prompt: SplitPrompt) -> PromptLayout:
        """Return a layout in which nothing is cached; its token ids are those of :meth:`with_cache`."""
        return PromptLayout([self._segment(prompt, span) for span in prompt.spans], self.decoder.device)

    def with_cache(
        self, prompt: SplitPrompt, with_history: bool = False, whole: bool = True, in_memory: bool = False
    ) -> PromptLayout:
        """Return a layout with the caches of all chunks and of the exact prefix; missing ones are computed.

        With ``with_history``, former turns have their KV, too. Unless ``whole``, only what ``Scout`` selects by will be
        read of the chunks. ``in_memory`` loads all of them at once, so that they may be evicted meanwhile.
        """
        opened = iter(self.library.read(prompt.chunk_texts, whole, in_memory))
        segments = [self._segment(prompt, span, next(opened) if span.text_digest else None) for span in prompt.spans]
        segments = self._with_prefix(segments)
        if with_history:
            seen = Seen.of(segments)
            segments = [part for segment in segments for part in self._with_history(segment, seen)]
        return PromptLayout(segments, self.decoder.device)

    def of_question(self, texts: Sequence[str], question: str) -> PromptLayout:
        """Return a layout of the chunks of ``texts``, as :meth:`with_cache`, then a question as plain text."""
        spans = [TextSpan(0, text, text_digest(text)) for text in texts]
        with torch.inference_mode():
            return self.with_cache(SplitPrompt([*spans, TextSpan(0, question, None)], 0, ((0, len(question)),)))

    def _segment(self, prompt: SplitPrompt, span: TextSpan, opened: tuple[ChunkReader, bool] | None = None) -> Segment:
        """Return a span with its token ids; ``opened`` are a chunk's reader and whether the store had it."""
        is_first, start, stop = span is prompt.spans[0], span.start_char, span.start_char + len(span.text)
        if span.text_digest is None:
            first = bisect_right(prompt.literals, start, key=lambda literal: literal[1])
            literals = prompt.literals[first : bisect_left(prompt.literals, (stop,))]
            inside = [(max(a - start, 0), min(b, stop) - start) for a, b in literals]
            ids = self.tokenizer.text_ids(span.text, is_first, inside)
            segment = Segment("text", torch.tensor(ids, dtype=torch.int64), start_char=start, text=span.text)
            return replace(segment, is_label=span.is_label, is_structure=self.tokenizer.has_control(ids))
        if opened is None:
            ids = (self.tokenizer.bos_ids if is_first else []) + self.tokenizer.chunk_ids(span.text)
            segment = Segment("chunk", torch.tensor(ids, dtype=torch.int64), hit=self.library.knows(span.text_digest))
        else:
            reader, hit = opened
            ends = torch.tensor(self.tokenizer.sentence_ends(reader.token_ids.tolist()))
            segment = Segment("chunk", reader.token_ids, reader=reader, hit=hit, sentence_ends=ends)
        at = self.library.first_position
        return replace(segment, digest=span.text_digest, start_char=start, text=span.text, computed_at=at)

    def _with_prefix(self, segments: list[Segment]) -> list[Segment]:
        """Cache the text before the first chunk exactly, or only a BOS if a chunk begins the prompt."""
        first, *others = segments
        if first.kind == "chunk":
            first, others = Segment("text", torch.tensor(self.tokenizer.bos_ids, dtype=torch.int64)), segments
        if not 0 < first.num_tokens <= _MAX_PREFIX_TOKENS:
            return segments
        key = tuple(first.token_ids.tolist())
        with self._lock:
            known = self._prefixes.get(key)
        (cache,) = [known] if known else self.run(lambda: [encode_beginning(self.decoder, key)])
        with self._lock:
            self._prefixes[key] = cache
            self._prefixes.move_to_end(key)
            while sum(map(len, self._prefixes)) > _MAX_PREFIX_TOKENS:
                self._prefixes.popitem(last=False)
        return [replace(first, kind="prefix", reader=cache, hit=known is not None), *others]

    def _with_history(self, segment: Segment, seen: Seen) -> list[Segment]:
        """Split a text of the prompt that begins with a former turn into the turn, with its KV, and the rest."""
        turn = self.history.find(segment.token_ids, seen) if segment.kind == "text" else None
        if turn is None:
            return [segment]
        said, new = segment.token_ids[: turn.cache.num_tokens], segment.token_ids[turn.cache.num_tokens :]
        cached = replace(segment, kind="history", token_ids=said, reader=turn.cache, computed_at=turn.start, text="")
        return [cached, replace(segment, token_ids=new)]


def _question(rendered: RenderedPrompt, matches: list[Match]) -> str:
    asked = rendered.user_text or rendered.text
    if matches and rendered.text[matches[-1].start : (behind := matches[-1].stop)] in asked:
        end = next((start for start, _ in rendered.structure if start >= behind), len(rendered.text))
        if question := rendered.text[behind:end].strip():
            return question
    question = rendered.user_text
    for text in dict.fromkeys(rendered.text[match.start : match.stop] for match in matches):
        question = question.replace(text, "")
    return question.strip()


def _question_follows(rendered: RenderedPrompt, matches: list[Match]) -> bool:
    """Return whether the last chunk's message goes on behind it, or the user's last message comes later."""
    if not matches:
        return True
    last, asked = matches[-1], rendered.user_text.strip() or rendered.text
    _, is_in_it, behind = asked.rpartition(rendered.text[last.start : last.stop])
    if is_in_it:
        return any(map(str.isalnum, behind))
    return asked in rendered.text[last.stop :] or asked not in rendered.text[: last.start]
