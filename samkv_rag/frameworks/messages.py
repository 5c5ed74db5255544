"""Framework chat messages as the role/content pairs an engine takes, and as one prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
    """Return the role that chat templates know, for a framework's name of it; others stay as they are."""
    return _TEMPLATE_ROLES.get(role, role)


def join_system_messages(messages: Iterable[Message]) -> list[Message]:
    """Join neighbouring system messages: frameworks add their own, and most chat templates accept one only."""
    return _joined(messages, ("system",))


def join_same_roles(messages: Iterable[Message]) -> list[Message]:
    """Join neighbouring messages of one role; tool results and messages with tool calls stay apart."""
    return _joined(messages, ("system", "user", "assistant"))


def render(
    engine: SamKVEngine,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Mapping[str, str]] = (),
) -> RenderedPrompt:
    """Return ``messages`` as one prompt, adapted as far as the model's chat template needs it.

    Some templates want user and assistant to alternate: then messages of one role are joined. Some
    know no system role: then its text stands before the user's.

    Raises:
        ChatTemplateError: the template refuses the messages in every form.
        ToolsUnsupportedError: the template takes no tools.
    """
    plain = join_system_messages(messages)
    refusals: list[ChatTemplateError] = []
    for form in (plain, join_same_roles(plain), join_same_roles(_without_system_role(plain))):
        try:
            return engine.apply_chat_template(form, tools=tools, documents=documents)
        except ToolsUnsupportedError:
            raise
        except ChatTemplateError as config_error:
            refusals.append(config_error)
    raise refusals[0]


def with_json_instruction(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """Return ``messages`` with the wish for JSON behind the last one, as the user's."""
    wish = (
        "Answer with one JSON object and nothing else. It must fit this JSON schema:\n"
        f"{json.dumps(schema, ensure_ascii=False)}"
    )
    if messages and messages[-1]["role"] == "user":
        last = messages[-1]
        return [*messages[:-1], last | {"content": f"{last['content']}\n\n{wish}"}]
    return [*messages, {"role": "user", "content": wish}]


def _without_system_role(messages: Iterable[Message]) -> list[Message]:
    return [message | {"role": "user"} if message["role"] == "system" else message for message in messages]


def _joined(messages: Iterable[Message], roles: tuple[str, ...]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and message["role"] in roles and _can_join(joined[-1], message):
            joined[-1] = joined[-1] | {"content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _can_join(one: Message, other: Message) -> bool:
    return one["role"] == other["role"] and not ("tool_calls" in one or "tool_calls" in other)
