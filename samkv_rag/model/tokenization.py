"""Texts to token ids and back; a chunk has the same ids alone and inside a prompt.

Control tokens (``<|im_end|>`` and the like) are a chat's structure. Only the chat template may write them:
spelled out in a document or a message, they stay text.
"""

from __future__ import annotations

import copy
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import PurePath
from typing import Any

from tokenizers import Tokenizer

from samkv_rag.exceptions import ChatTemplateError, ToolsUnsupportedError, UnsupportedModelError
from samkv_rag.forking import cached_property

_SENTINEL = "\n"
_PRIVATE_USE = range(0xE000, 0xF900)
_PREAMBLE = "Answer the question from these passages of a document.\n\n"
_SENTENCE_END = re.compile(r"[.!?\n。！？।؟]")
_THOUGHTS = ("<think>", "</think>")
"""Around what a model thinks before it answers. Only its own messages may have them."""


@dataclass(frozen=True)
class RenderedPrompt:
    """Messages as one text, with the places of its control tokens.

    ``prompt + text`` appends the caller's text, such as the beginning of the answer.
    """

    text: str
    literals: tuple[tuple[int, int], ...] = ()
    """Start and stop, in characters, of every control token that a message spells out."""
    structure: tuple[tuple[int, int], ...] = ()
    """The same for the control tokens written by the template. No chunk is recognised across one."""
    user_text: str = ""
    """The user's last message."""

    def __add__(self, text: str) -> RenderedPrompt:
        return replace(self, text=self.text + text)

    def __str__(self) -> str:
        return self.text


class PromptTokenizer:
    """Tokenises the segments of a prompt one by one. Thread-safe: it works on copies of the tokenizer.

    Some tokenizers, such as Sentencepiece, put a space before every text. To keep it out of the middle of a prompt,
    all segments but the first are tokenised after a line break, which is then cut off.

    Raises:
        UnsupportedModelError: the tokenizer is not one of the ``tokenizers`` library.
    """

    def __init__(self, tokenizer: Any) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedModelError(
                f"the tokenizer is a {type(tokenizer).__name__}; give one that has a tokenizer.json, as "
                "transformers.PreTrainedTokenizerFast"
            )
        self.tokenizer = copy.deepcopy(tokenizer)  # for rendering only; a copy, because callers change its options
        self._control = _control_tokens(tokenizer)
        self._control_ids = frozenset(self._control.values())
        self._structure_ids = self._control_ids - {_id_of_the_unknown(tokenizer)}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._parsing = _Encoder(tokenizer, without=())
        self._plain = _Encoder(tokenizer, without=self._control)
        self._sentinel_ids = self._plain.ids(_SENTINEL)
        self._adds_space = self._sentinel_ids + self._plain.ids("word") != self._plain.ids(f"{_SENTINEL}word")
        self.bos_ids = self._leading_special_ids()
        """Ids that the model expects before a prompt, often none."""
        self._signs: dict[int, tuple[bool, bool]] = {}
        """For each token seen so far: whether it can end a sentence, and whether it begins with a letter or digit."""

    @property
    def template(self) -> str:
        """The chat template; empty if there is none."""
        return str(getattr(self.tokenizer, "chat_template", None) or "")

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self.template)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether messages can be rendered with tools."""
        function = {"name": "f", "description": "", "parameters": {"type": "object"}}
        return self._renders(tools=[{"type": "function", "function": function}])

    def as_text(self, text: str) -> RenderedPrompt:
        """Return a text in which no control token is one."""
        return RenderedPrompt(text, tuple(found.span() for found in self._control_pattern.finditer(text)))

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

    def has_control(self, token_ids: Sequence[int]) -> bool:
        """Whether a control token is among ``token_ids``."""
        return not self._control_ids.isdisjoint(token_ids)

    def chunk_ids(self, text: str) -> list[int]:
        """Return a chunk's token ids, no control token among them."""
        return self._continuation(self._text_only, text)

    def preamble_ids(self, text: str | None) -> list[int]:
        """Return the token ids before a chunk while its KV is computed; None: a usual beginning of a prompt."""
        return self.text_ids(self._message_head() or _PREAMBLE if text is None else text, starts_prompt=True)

    def _message_head(self) -> str:
        """Return the chat template's text before a user's message; empty if there is none or it contains the date."""
        if not self.has_chat_template or "strftime" in self.template:
            return ""
        mark = self._unused_mark("")
        try:
            head, found, _ = self._rendered([{"role": "user", "content": mark}], [], []).partition(mark)
        except ChatTemplateError:
            return ""
        return head if found else ""

    def chunk_offsets(self, text: str) -> list[tuple[int, int]]:
        """Return start and stop, in characters, of each of a chunk's tokens.

        If tokens share a character (bytes of an emoji), the first one has it and the others are empty.
        """
        ids = self.chunk_ids(text)
        for lead in (_SENTINEL, "") if self._adds_space else ("",):
            found = self._plain.offsets(lead + text)[len(self._sentinel_ids) if lead else 0 :]
            if len(found) == len(ids):
                break
        else:  # of other tokens, where one was cut in two: the length of the text so far tells where each ends
            lead, found = "", list(pairwise([0, *(len(self.decode(ids[: i + 1])) for i in range(len(ids)))]))
        ordered, position = [], 0
        for start, stop in found:
            start = min(max(start - len(lead), position), len(text))
            position = min(max(stop - len(lead), start), len(text))
            ordered.append((start, position))
        return ordered

    def text_ids(self, text: str, starts_prompt: bool, literals: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Return the token ids of prompt text between chunks; the first text gets the BOS that the model expects.

        Control tokens are parsed, except those at ``literals``, ranges of characters, which stay text.
        """
        ids: list[int] = []
        if not literals:
            ids = self._parsing.ids(text) if starts_prompt else self._continuation(self._parsing.ids, text)
        # The vocabulary may have control tokens as words, also of text that is normalised to one.
        if literals or sum(map(self._structure_ids.__contains__, ids)) > len(self._control_pattern.findall(text)):
            ids = self._ids_beside(literals, text, starts_prompt)
        is_complete = not starts_prompt or ids[: len(self.bos_ids)] == self.bos_ids
        return ids if is_complete else self.bos_ids + ids

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        documents: Sequence[Mapping[str, str]] = (),
    ) -> RenderedPrompt:
        """Render messages as one text with the model's chat template, ready for the answer.

        ``tools`` are function schemas, ``documents`` have a ``title`` and a ``text`` each, as templates take them.

        Raises:
            ChatTemplateError: there is no template, it refuses these messages, or it leaves out or rewrites a document.
            ToolsUnsupportedError: there are tools, and the template leaves them out.
        """
        given = [[*map(dict, messages)], [*map(dict, tools)], [*map(dict, documents)]]
        mark = self._unused_mark(given)
        marked_messages, marked_tools, marked_documents = self._marked(given, mark)
        for message, marked in zip(messages, marked_messages, strict=True):
            if message.get("role") == "assistant" and isinstance(said := message.get("content"), str):
                marked["content"] = self._marked(said, mark, _THOUGHTS)  # templates drop former turns' thoughts
        text = self._rendered(marked_messages, marked_tools, marked_documents)
        if tools and text == self._rendered(marked_messages, [], marked_documents):
            raise ToolsUnsupportedError(
                f"the chat template of {PurePath(self.tokenizer.name_or_path).name or 'this model'} takes no tools, "
                f"{len(tools)} given; take a model made for tool calls, such as Qwen2.5-Instruct"
            )
        if num_lost := sum(document["text"] not in text for document in marked_documents):
            raise ChatTemplateError(
                f"the chat template leaves out or rewrites {num_lost} of {len(documents)} documents; "
                "put them into a message"
            )
        said = next((one.get("content") for one in reversed(messages) if one.get("role") == "user"), None) or ""
        parts = [said] if isinstance(said, str) else [part.get("text") or "" for part in said]
        user_text = "".join(map(str, parts))
        return replace(self._unmarked(text, mark), user_text=user_text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self._parsing.text(list(token_ids))

    def sentence_ends(self, token_ids: Sequence[int]) -> list[bool]:
        """Return which of a text's tokens end a sentence or a line: punctuation that no letter or digit follows."""
        for token_id in token_ids:
            if token_id not in self._signs:
                text = self.token_text(token_id)
                is_end = bool(_SENTENCE_END.search(text)) and not any(map(str.isalnum, text))
                self._signs[token_id] = is_end, text[:1].isalnum()
        signs = [*(self._signs[token_id] for token_id in token_ids), (False, False)]
        return [is_end and not continues for (is_end, _), (_, continues) in pairwise(signs)]

    def token_text(self, token_id: int) -> str:
        """Return the text of a token that follows another."""
        lead = self._sentinel_ids if self._adds_space else []
        return self.decode([*lead, token_id])[len(self.decode(lead)) :]

    # Control tokens in messages are marked before the template runs, and found by their marks afterwards.

    def _unused_mark(self, given: Any) -> str:
        everything = (json.dumps(given, ensure_ascii=False, default=str) + self.template).lower()
        for mark in map(chr, _PRIVATE_USE):
            if mark not in everything and json.dumps(mark)[1:-1] not in everything:
                return mark
        raise ChatTemplateError("the messages hold every private-use character; leave one out")

    def _marked(self, value: Any, mark: str, but: Sequence[str] = ()) -> Any:
        """Return a copy in which ``mark`` breaks every control token that a text spells out, ``but`` for some."""
        if isinstance(value, str):
            return self._control_pattern.sub(
                lambda found: found[0] if found[0] in but else found[0][0] + mark + found[0][1:], value
            )
        if isinstance(value, Mapping):
            return {self._marked(key, mark): self._marked(item, mark) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(item, mark) for item in value]
        return value

    def _unmarked(self, text: str, mark: str) -> RenderedPrompt:
        # A template that writes JSON may escape the mark.
        parts = re.split(f"{mark}|{re.escape(json.dumps(mark)[1:-1])}", text)
        at_mark = {end - 1 for end in accumulate(map(len, parts[:-1]))}  # where broken tokens begin
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
        except Exception as error:  # jinja2's errors and those that the template raises
            raise ChatTemplateError(
                f"the model's chat template refused {len(messages)} message(s): {error}; "
                "check roles and their order, or pass the prompt as one string"
            ) from error

    def _ids_beside(self, literals: Sequence[tuple[int, int]], text: str, starts_prompt: bool) -> list[int]:
        """Return the ids of ``text``, with control tokens parsed outside of ``literals`` and nowhere else."""
        ids: list[int] = []
        position, encode = 0, self._text_only if starts_prompt else self.chunk_ids
        for found in self._control_pattern.finditer(text):
            number = bisect_left(literals, (found.end(),))  # of those that begin before its end, the last ends last
            if number and literals[number - 1][1] > found.start():
                continue
            ids += [*encode(text[position : found.start()]), self._control[found[0]]]
            position, encode = found.end(), self.chunk_ids
        return ids + encode(text[position:])

    def _text_only(self, text: str) -> list[int]:
        """Return the ids of ``text``, no control token among them."""
        ids = self._plain.ids(text)
        if self._structure_ids.isdisjoint(ids):
            return ids
        # The vocabulary has control tokens as words, too, also of text that is normalised to one. Cut in two, none is
        # found.
        places = zip(ids, self._plain.offsets(text), strict=True)
        cuts = {start + 1 for one, (start, stop) in places if one in self._structure_ids and stop - start > 1}
        if not cuts:  # of a single character
            return [one for one in ids if one not in self._structure_ids]
        parts = pairwise([0, *sorted(cuts), len(text)])
        return [token_id for start, stop in parts for token_id in self._text_only(text[start:stop])]

    def _continuation(self, encode: Callable[[str], list[int]], text: str) -> list[int]:
        if not self._adds_space or not text:
            return encode(text)
        ids = encode(_SENTINEL + text)
        cut = len(self._sentinel_ids)
        # A line break that merges with the text's own cannot be cut off; then the space stays.
        return ids[cut:] if ids[:cut] == self._sentinel_ids else encode(text)

    def _leading_special_ids(self) -> list[int]:
        plain = self._plain.ids("word")
        framed = list(self.tokenizer("word")["input_ids"])
        start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
        return framed[:start]


def _id_of_the_unknown(tokenizer: Any) -> int | None:
    """Return the id that the vocabulary gives to unknown text, if any. It is no structure."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    unknown: int | None = model.get("unk_id")
    return model["vocab"].get(model["unk_token"]) if model.get("unk_token") else unknown


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the text and id of every special token, and of every added token in the chat template."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    template = str(getattr(tokenizer, "chat_template", None) or "")
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    return {
        str(token): token_id
        for token_id, token in added.items()
        if str(token).strip() and (getattr(token, "special", False) or str(token) in special or str(token) in template)
    }


class _Encoder:
    """A ``tokenizers`` tokenizer that does not know the control tokens ``without``. Nobody changes it."""

    def __init__(self, tokenizer: Any, without: Collection[str]) -> None:
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        description["truncation"] = description["padding"] = None
        description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] not in without]
        self._tokenizer = Tokenizer.from_str(json.dumps(description))

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def text(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
