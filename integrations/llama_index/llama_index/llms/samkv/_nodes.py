"""The text of LlamaIndex nodes as it appears in a prompt."""

from __future__ import annotations

from collections.abc import Iterable

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore


def chunks_with_ids(items: Iterable[BaseNode | NodeWithScore | str]) -> list[tuple[str | None, str]]:
    """Return the id and text of each node; nodes without text are left out, and plain texts have no id."""
    pairs = [(None, item) if isinstance(item, str) else (item.node_id, node_text(item)) for item in items]
    return [(node_id, text) for node_id, text in pairs if text.strip()]


def node_text(item: BaseNode | NodeWithScore) -> str:
    """Return the text of a node, or "" if it has none.

    Metadata is left out: LlamaIndex writes it before the text, so a prompt contains the text alone verbatim.
    """
    return item.get_content(metadata_mode=MetadataMode.NONE)
