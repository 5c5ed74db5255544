"""Texts to token ids and back, so that a chunk has the same ids alone and inside a prompt.

Control tokens (``<|im_end|>`` and the like) are the model's structure. Only the chat template may
write them: spelled out in a document or a message they stay text.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from samkv_rag.exceptions import ChatTemplateError, ToolsUnsupportedError

_SENTINEL = "\n"
_PRIVATE_USE = range(0xE000, 0xF900)
_PREAMBLE = "Answer the question from these passages of a document.\n\n"
_SENTENCE_END = re.compile(r"[.!?\n。！？।؟]")


@dataclass(frozen=True)
class RenderedPrompt:
    """Messages as one text, which remembers what in it the chat template did not write.

    ``prompt + text`` adds text of the caller's own, such as how the answer is to begin.
    """

    text: str
    literals: tuple[tuple[int, int], ...] = ()
    """First character, and the one behind the last, of every control token that a message spells out."""
    structure: tuple[tuple[int, int], ...] = ()
    """The same of every control token that the template wrote. No chunk is recognised across one."""
    user_text: str = ""
    """The last message of the user's."""

    def __add__(self, text: str) -> RenderedPrompt:
        return replace(self, text=self.text + text)

    def __str__(self) -> str:
        return self.text


class PromptTokenizer:
    """Tokenises the segments of a prompt one by one. Thread-safe: it works on copies of the tokenizer.

    Tokenizers that put a space before every text, as Sentencepiece does, would put one into the middle of a prompt:
    they get every segment but the first behind a line break, which is cut off again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)  # rendering only; nobody else changes its options
        self._control = _control_tokens(tokenizer)
        self._control_ids = frozenset(self._control.values())
        self._control_pattern = _pattern(self._control)
        self._parsing = _encoder(tokenizer, without=frozenset())
        self._plain = _encoder(tokenizer, without=frozenset(self._control))
        self._sentinel_ids = self._plain.ids(_SENTINEL)
        self._adds_space = self._sentinel_ids + self._plain.ids("word") != self._plain.ids(f"{_SENTINEL}word")
        self.bos_ids = self._leading_special_ids()
        """What the model expects before a prompt, often empty."""
        self._signs: dict[int, tuple[bool, bool]] = {}
        """Of each token met so far: whether it can end a sentence, and whether it begins with a letter or digit."""

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def takes_tools(self) -> bool:
        """Whether messages can be rendered with tools."""
        function = {"name": "f", "description": "", "parameters": {"type": "object"}}
        return self._renders(tools=[{"type": "function", "function": function}])

    @cached_property
    def takes_documents(self) -> bool:
        """Whether messages can be rendered with documents."""
        return self._renders(documents=[{"title": "", "text": "A text."}])

    def _renders(self, **given: Any) -> bool:
        try:
            self.render([{"role": "user", "content": "?"}], **given)
        except (ChatTemplateError, ToolsUnsupportedError):
            return False
        return True

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return len(self.tokenizer)

    def has_control(self, token_ids: Sequence[int]) -> bool:
        """Whether a control token is among ``token_ids``."""
        return not self._control_ids.isdisjoint(token_ids)

    def chunk_ids(self, text: str) -> list[int]:
        """Token ids of a chunk, without any control token."""
        return self._continuation(self._text_only, text)

    def preamble_ids(self, text: str | None) -> list[int]:
        """Token ids of what stands before a chunk while it is computed; None: as a prompt may well begin."""
        return self.text_ids(self._message_head() or _PREAMBLE if text is None else text, starts_prompt=True)

    def _message_head(self) -> str:
        """How the chat template begins a user's message; empty without one, and of one that writes the date."""
        if not self.has_chat_template or "strftime" in str(self.tokenizer.chat_template):
            return ""
        mark = self._unused_mark("")
        try:
            head, found, _ = self._rendered([{"role": "user", "content": mark}], [], []).partition(mark)
        except ChatTemplateError:
            return ""
        return head if found else ""

    def chunk_offsets(self, text: str) -> list[tuple[int, int]]:
        """First character, and the one behind the last, of each of a chunk's tokens.

        Tokens that share a character (bytes of an emoji) split it: the first has it, the others are empty.
        """
        return _without_overlaps(self._continuation_offsets(text), len(text))

    def text_ids(self, text: str, starts_prompt: bool, literals: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Token ids of prompt text between chunks; the first text gets the BOS that the model expects.

        Control tokens are parsed, but for those at ``literals``, ranges of characters, which stay text.
        """
        if literals:
            ids = self._ids_beside(literals, text, starts_prompt)
        else:
            ids = self._parsing.ids(text) if starts_prompt else self._continuation(self._parsing.ids, text)
        is_complete = not starts_prompt or ids[: len(self.bos_ids)] == self.bos_ids
        return ids if is_complete else self.bos_ids + ids

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        documents: Sequence[Mapping[str, str]] = (),
    ) -> RenderedPrompt:
        """Messages as one text by the model's chat template, ready for the answer.

        ``tools`` are function schemas, ``documents`` have ``title`` and ``text`` each; both as templates take them.

        Raises:
            ChatTemplateError: no template, or one that refuses these messages, or leaves out or rewrites a document.
            ToolsUnsupportedError: there are tools, and the template leaves them out.
        """
        given = [[*map(dict, messages)], [*map(dict, tools)], [*map(dict, documents)]]
        mark = self._unused_mark(given)
        marked_messages, marked_tools, marked_documents = self._marked(given, mark)
        text = self._rendered(marked_messages, marked_tools, marked_documents)
        if tools and text == self._rendered(marked_messages, [], marked_documents):
            raise ToolsUnsupportedError(
                f"the chat template of {self.tokenizer.name_or_path or 'this model'} takes no tools, "
                f"{len(tools)} given; take a model made for tool calls, such as Qwen2.5-Instruct"
            )
        if num_lost := sum(document["text"] not in text for document in marked_documents):
            raise ChatTemplateError(
                f"the chat template leaves out or rewrites {num_lost} of {len(documents)} documents; "
                "put them into a message"
            )
        asked = [message.get("content") for message in messages if message.get("role") == "user"]
        user_text = asked[-1] if asked and isinstance(asked[-1], str) else ""
        return replace(self._unmarked(text, mark), user_text=user_text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids to text, without special tokens."""
        return self._parsing.text(list(token_ids))

    def sentence_ends(self, token_ids: Sequence[int]) -> list[bool]:
        """Which of a text's tokens end a sentence or a line: signs alone, and no letter or digit behind them."""
        for token_id in {*token_ids} - self._signs.keys():
            text = self.token_text(token_id)
            is_end = bool(_SENTENCE_END.search(text)) and not any(map(str.isalnum, text))
            self._signs[token_id] = is_end, text[:1].isalnum()
        signs = [*(self._signs[token_id] for token_id in token_ids), (False, False)]
        return [is_end and not continues for (is_end, _), (_, continues) in pairwise(signs)]

    def token_text(self, token_id: int) -> str:
        """The text of a token that stands behind another."""
        lead = self._sentinel_ids if self._adds_space else []
        return self.decode([*lead, token_id])[len(self.decode(lead)) :]

    # Control tokens in messages: marked before the template runs, found by their marks afterwards

    def _unused_mark(self, given: Any) -> str:
        everything = json.dumps(given, ensure_ascii=False, default=str) + str(self.tokenizer.chat_template)
        return next(chr(code) for code in _PRIVATE_USE if chr(code) not in everything)

    def _marked(self, value: Any, mark: str) -> Any:
        """A copy in which every control token spelled out in any text is broken by ``mark``."""
        if isinstance(value, str):
            return self._control_pattern.sub(lambda found: found[0][0] + mark + found[0][1:], value)
        if isinstance(value, Mapping):
            return {key: self._marked(item, mark) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(item, mark) for item in value]
        return value

    def _unmarked(self, text: str, mark: str) -> RenderedPrompt:
        # A template that writes JSON may have escaped the mark.
        parts = re.split(f"{mark}|{re.escape(json.dumps(mark)[1:-1])}", text)
        at_mark, position = set(), 0
        for part in parts[:-1]:
            position += len(part)
            at_mark.add(position - 1)  # where the broken token begins
        text = "".join(parts)
        spans = [found.span() for found in self._control_pattern.finditer(text)]
        literals = tuple(span for span in spans if span[0] in at_mark)
        return RenderedPrompt(text, literals, tuple(span for span in spans if span[0] not in at_mark))

    def _rendered(self, messages: list[Any], tools: list[Any], documents: list[Any]) -> str:
        if not self.has_chat_template:
            raise ChatTemplateError("the tokenizer has no chat template; pass the prompt as one string")
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        options |= {name: given for name, given in (("tools", tools), ("documents", documents)) if given}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except Exception as error:  # jinja2 errors and whatever a template raises itself
            raise ChatTemplateError(
                f"the model's chat template refused {len(messages)} message(s): {error}; "
                "check roles and their order, or pass the prompt as one string"
            ) from error

    def _ids_beside(self, literals: Sequence[tuple[int, int]], text: str, starts_prompt: bool) -> list[int]:
        """Ids of ``text`` in which the control tokens outside of ``literals`` are parsed, and all else is text."""
        ids: list[int] = []
        position = 0
        for found in self._control_pattern.finditer(text):
            if any(start < found.end() and found.start() < stop for start, stop in literals):
                continue
            ids += self._plain_ids(text[position : found.start()], starts_prompt and position == 0)
            ids.append(self._control[found[0]])
            position = found.end()
        return ids + self._plain_ids(text[position:], starts_prompt and position == 0)

    def _plain_ids(self, text: str, starts_prompt: bool) -> list[int]:
        return self._text_only(text) if starts_prompt else self.chunk_ids(text)

    def _text_only(self, text: str) -> list[int]:
        """Ids of ``text`` with no control token among them."""
        ids = self._plain.ids(text)
        if not self.has_control(ids):
            return ids
        # A vocabulary that lists control tokens as words: none is left once each is cut in two.
        halves = self._control_pattern.sub(lambda found: f"{found[0][0]}\0{found[0][1:]}", text).split("\0")
        return [token_id for half in halves for token_id in self._plain.ids(half)]

    # Texts that continue another

    def _continuation(self, encode: Callable[[str], list[int]], text: str) -> list[int]:
        if not self._adds_space or not text:
            return encode(text)
        ids = encode(_SENTINEL + text)
        cut = len(self._sentinel_ids)
        # A line break that merges with the text's own cannot be cut off; then the space stays.
        return ids[cut:] if ids[:cut] == self._sentinel_ids else encode(text)

    def _continuation_offsets(self, text: str) -> list[tuple[int, int]]:
        """Offsets of the ids that :meth:`chunk_ids` gives."""
        ids = self.chunk_ids(text)
        for lead in (_SENTINEL, "") if self._adds_space else ("",):
            offsets = self._plain.offsets(lead + text)
            if offsets is None:
                return self._decoded_offsets(ids)
            offsets = offsets[len(self._sentinel_ids) if lead else 0 :]
            if len(offsets) == len(ids):
                return [(start - len(lead), stop - len(lead)) for start, stop in offsets]
        return self._decoded_offsets(ids)

    def _decoded_offsets(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """For tokenizers that cannot tell: by the length of the text that the ids so far make."""
        ends = [len(self.decode(token_ids[: i + 1])) for i in range(len(token_ids))]
        return list(pairwise([0, *ends]))

    def _leading_special_ids(self) -> list[int]:
        plain = self._plain.ids("word")
        framed = list(self.tokenizer("word")["input_ids"])
        start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
        return framed[:start]


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Text and id of every special token, and of every added token that the chat template writes."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    template = str(getattr(tokenizer, "chat_template", None) or "")
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    return {
        str(token): token_id
        for token_id, token in added.items()
        if str(token).strip() and (getattr(token, "special", False) or str(token) in special or str(token) in template)
    }


def _pattern(tokens: Mapping[str, int]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _encoder(tokenizer: Any, without: frozenset[str]) -> _FastEncoder | _SlowEncoder:
    """An encoder of our own that does not know the control tokens ``without``."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _SlowEncoder(copy.deepcopy(tokenizer), bool(without))
    description = json.loads(backend.to_str())
    description["truncation"] = description["padding"] = None
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] not in without]
    return _FastEncoder(Tokenizer.from_str(json.dumps(description)))


class _FastEncoder:
    """A ``tokenizers`` tokenizer that nobody changes, so any number of threads may use it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def offsets(self, text: str) -> list[tuple[int, int]] | None:
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def text(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


class _SlowEncoder:
    """A tokenizer in Python, one call at a time: nothing says that it bears more."""

    def __init__(self, tokenizer: Any, split_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._options = {"add_special_tokens": False, "split_special_tokens": split_special_tokens}
        self._lock = threading.Lock()

    def ids(self, text: str) -> list[int]:
        with self._lock:
            return list(self._tokenizer(text, verbose=False, **self._options)["input_ids"])

    def offsets(self, text: str) -> list[tuple[int, int]] | None:
        return None

    def text(self, token_ids: list[int]) -> str:
        with self._lock:
            options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
            return str(self._tokenizer.decode(token_ids, **options))


def _without_overlaps(offsets: Sequence[tuple[int, int]], num_chars: int) -> list[tuple[int, int]]:
    """Offsets that never go back and stay within a text of ``num_chars`` characters."""
    ordered, position = [], 0
    for start, stop in offsets:
        start = min(max(start, position), num_chars)
        position = min(max(stop, start), num_chars)
        ordered.append((start, position))
    return ordered


def printable(text: str, limit: int = 60) -> str:
    """Shorten ``text`` to one line for an error message."""
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
