"""Build the messages for a question and its chunks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from samkv_rag.exceptions import ConfigurationError

Template = Literal["llama_index", "langchain", "plain"]
_PLACEHOLDER = re.compile(r"\{passages\}|\{question\}")
_INSTRUCTION = "Answer the question using only the passages. Reply with the short answer only, no explanation."
LANGCHAIN_SYSTEM = (  # from its tutorials; a chain appends the chunks
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the "
    "question. If you don't know the answer, say that you don't know. Use three sentences maximum and keep the answer "
    "concise."
)


def require_placeholders(prompt: str) -> None:
    """Check that a prompt has ``{passages}`` and ``{question}`` once each.

    Raises:
        ConfigurationError: it does not.
    """
    for name in ("{passages}", "{question}"):
        if (count := prompt.count(name)) != 1:
            raise ConfigurationError(f"prompt has {name} {count} times; it must have it once")


def build_messages(
    question: str, texts: Sequence[str], prompt: str | None = None, template: Template | None = None
) -> list[dict[str, str]]:
    """Return the chat messages that ask ``question`` over ``texts``.

    ``prompt`` is your own text; ``template`` is a framework's, or ``"plain"`` for chunks and question alone. The
    default prompt asks for a short answer.
    """
    passages = "\n\n".join(texts)
    if prompt is not None:
        filled = {"{passages}": passages, "{question}": question}
        return [_user(_PLACEHOLDER.sub(lambda found: filled[found[0]], prompt))]
    if template == "llama_index":  # its default for chat models
        from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT  # late: it takes seconds

        messages = CHAT_TEXT_QA_PROMPT.format_messages(context_str=passages, query_str=question)
        return [{"role": message.role.value, "content": message.content or ""} for message in messages]
    if template == "langchain":
        return [_system(f"{LANGCHAIN_SYSTEM}\n\n{passages}"), _user(question)]
    if template == "plain":
        return [_user(f"{passages}\n\n{question}")]
    asked = f"{_INSTRUCTION}\n\nPassages:\n\n{passages}\n\nQuestion: {question}\nReply with the short answer only."
    return [_system("You are a helpful assistant."), _user(asked)]


def _system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
