"""LlamaIndex chat messages as the role/content pairs an engine takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_index.core.base.llms.types import ChatMessage

from samkv_rag.exceptions import PromptError
from samkv_rag.frameworks.messages import join_system_messages, template_role

_SILENT_BLOCKS = ("cache", "thinking")  # carry nothing the model should read again


def engine_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Return ``messages`` as role and content, neighbouring system messages joined.

    LlamaIndex puts an LLM's ``system_prompt`` before a prompt's own system message.

    Raises:
        PromptError: a message holds something other than text.
    """
    refuse_non_text(messages)
    return join_system_messages(
        {"role": template_role(message.role.value), "content": message.content or ""} for message in messages
    )


def refuse_non_text(messages: Iterable[ChatMessage]) -> None:
    """Raise PromptError when a message holds an image, a document or the like."""
    for message in messages:
        for block in message.blocks:
            if block.block_type != "text" and block.block_type not in _SILENT_BLOCKS:
                raise PromptError(f"a {message.role.value} message holds a {block.block_type} block; send text only")
