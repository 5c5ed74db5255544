"""Turns the chat messages of frameworks into messages for an engine, and into one prompt."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samkv_rag.exceptions import ChatTemplateError, ToolsUnsupportedError

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine
    from samkv_rag.model.tokenization import RenderedPrompt

Message = dict[str, Any]

_TEMPLATE_ROLES = {
    "ai": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "human": "user",
    "developer": "system",
    "function": "tool",
}


def template_role(role: str) -> str:
    """Return the name that chat templates use for a framework's role; other names stay as they are."""
    return _TEMPLATE_ROLES.get(role, role)


def render(
    engine: SamKVEngine,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, str]] = (),
) -> RenderedPrompt:
    """Return ``messages`` as one prompt, adapted to the model's chat template if necessary.

    Adjacent system messages are joined: frameworks add their own, and most templates accept only one. Some templates
    require that user and assistant alternate: messages of one role are then joined. Some have no system role: its text
    then goes before the user's.
    """
    plain = join_adjacent(messages, ["system"])
    without_system = [one | {"role": "user"} if one["role"] == "system" else one for one in plain]
    for form in (plain, join_adjacent(plain), join_adjacent(without_system)):
        try:
            return engine.apply_chat_template(form, tools=tools, documents=documents)
        except ToolsUnsupportedError:
            raise
        except ChatTemplateError:
            pass
    return engine.apply_chat_template(plain, tools=tools, documents=documents)  # raises its refusal


def with_json_instruction(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """Return ``messages`` with a request for JSON at the end of the last user message, or as a new one."""
    wish = (
        "Answer with one JSON object and nothing else. It must fit this JSON schema:\n"
        f"{json.dumps(schema, ensure_ascii=False)}"
    )
    return [*messages[:-1], *join_adjacent([*messages[-1:], {"role": "user", "content": wish}])]


def join_adjacent(
    messages: Iterable[Message], roles: Collection[str] = ("system", "user", "assistant")
) -> list[Message]:
    """Join adjacent messages of one of the ``roles``, except messages with tool calls."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else {"role": None}
        has_calls = "tool_calls" in last or "tool_calls" in message
        if message["role"] == last["role"] and message["role"] in roles and not has_calls:
            joined[-1] = last | {"content": f"{last['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined
