"""LlamaIndex chat messages as the role/content pairs an engine takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from samkv_rag.exceptions import PromptError

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}
_SILENT_BLOCKS = ("cache", "thinking")  # carry nothing the model should read again


def engine_messages(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Return ``messages`` as role and content, neighbouring system messages joined.

    LlamaIndex puts an LLM's ``system_prompt`` before a prompt's own system message, and most chat
    templates accept one only.

    Raises:
        PromptError: a message holds something other than text.
    """
    refuse_non_text(messages)
    joined: list[dict[str, str]] = []
    for message in messages:
        role, content = _role(message.role), message.content or ""
        if role == "system" and joined and joined[-1]["role"] == "system":
            joined[-1]["content"] += f"\n\n{content}"
        else:
            joined.append({"role": role, "content": content})
    return joined


def refuse_non_text(messages: Iterable[ChatMessage]) -> None:
    """Raise PromptError when a message holds an image, a document or the like."""
    for message in messages:
        for block in message.blocks:
            if block.block_type != "text" and block.block_type not in _SILENT_BLOCKS:
                raise PromptError(f"a {message.role.value} message holds a {block.block_type} block; send text only")


def _role(role: MessageRole) -> str:
    return _ROLES.get(role, role.value)
