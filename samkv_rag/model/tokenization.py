"""Texts to token ids and back, so that a chunk has the same ids alone and inside a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from samkv_rag.exceptions import ChatTemplateError, ToolsUnsupportedError

_SENTINEL = "\n"


class PromptTokenizer:
    """Tokenises the segments of a prompt one by one.

    Sentencepiece-like tokenizers put a space before every text they are given; inside a prompt that
    space is wrong. They are recognised once, here, and every segment but the first is then tokenised
    behind a line break that is cut off again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._sentinel_ids = self._encode(_SENTINEL)
        self._adds_space = self._sentinel_ids + self._encode("word") != self._encode(f"{_SENTINEL}word")
        self._bos_ids = self._leading_special_ids()

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def chunk_ids(self, text: str) -> list[int]:
        """Token ids of a chunk; special tokens spelled out in a document stay plain text."""
        return self._continuation(text, split_special_tokens=True)

    def chunk_offsets(self, text: str) -> list[tuple[int, int]]:
        """First character, and the one behind the last, of each of a chunk's tokens.

        Tokens that share a character (bytes of an emoji) split it: the first has it, the others are empty.
        """
        return _without_overlaps(self._continuation_offsets(text), len(text))

    def text_ids(self, text: str, starts_prompt: bool) -> list[int]:
        """Token ids of prompt text between chunks; the first text gets the BOS that the model expects."""
        if not starts_prompt:
            return self._continuation(text)
        ids = self._encode(text)
        return ids if ids[: len(self._bos_ids)] == self._bos_ids else self._bos_ids + ids

    @property
    def bos_ids(self) -> list[int]:
        """What the model expects before a prompt, often empty."""
        return list(self._bos_ids)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Messages to one string by the model's chat template, ready for the answer.

        ``tools`` are function schemas that the answer may call, as templates take them.

        Raises:
            ChatTemplateError: no template, or one that refuses these messages.
            ToolsUnsupportedError: there are tools, and the template leaves them out.
        """
        text = self._rendered(messages, tools)
        if tools and text == self._rendered(messages, ()):
            raise ToolsUnsupportedError(
                f"the chat template of {self.tokenizer.name_or_path or 'this model'} takes no tools, "
                f"{len(tools)} given; take a model made for tool calls, such as Qwen2.5-Instruct"
            )
        return text

    def _rendered(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        if not self.has_chat_template:
            raise ChatTemplateError("the tokenizer has no chat template; pass the prompt as one string")
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        if tools:
            options["tools"] = [dict(tool) for tool in tools]
        try:
            return str(self.tokenizer.apply_chat_template([dict(message) for message in messages], **options))
        except Exception as error:  # jinja2 errors and whatever a template raises itself
            raise ChatTemplateError(
                f"the model's chat template refused {len(messages)} message(s): {error}; "
                "check roles and their order, or pass the prompt as one string"
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids to text, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _encode(self, text: str, **options: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])

    def _continuation(self, text: str, **options: Any) -> list[int]:
        if not self._adds_space:
            return self._encode(text, **options)
        ids = self._encode(_SENTINEL + text, **options)
        cut = len(self._sentinel_ids)
        # A line break that merges with the text's own cannot be cut off; then the space stays.
        return ids[cut:] if ids[:cut] == self._sentinel_ids else self._encode(text, **options)

    def _continuation_offsets(self, text: str) -> list[tuple[int, int]]:
        """Offsets of the ids that :meth:`chunk_ids` gives."""
        if not self.tokenizer.is_fast:
            return self._decoded_offsets(self.chunk_ids(text))
        options = {"split_special_tokens": True, "return_offsets_mapping": True}
        num_ids = len(self.chunk_ids(text))
        for lead in (_SENTINEL, "") if self._adds_space else ("",):
            encoded = self.tokenizer(lead + text, add_special_tokens=False, verbose=False, **options)
            offsets = encoded["offset_mapping"][len(self._sentinel_ids) if lead else 0 :]
            if len(offsets) == num_ids:
                break
        return [(start - len(lead), stop - len(lead)) for start, stop in offsets]

    def _decoded_offsets(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """For tokenizers that cannot tell: by the length of the text that the ids so far make."""
        ends = [len(self.decode(token_ids[: i + 1])) for i in range(len(token_ids))]
        return list(pairwise([0, *ends]))

    def _leading_special_ids(self) -> list[int]:
        plain = self._encode("word")
        framed = list(self.tokenizer("word")["input_ids"])
        start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
        return framed[:start]


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
