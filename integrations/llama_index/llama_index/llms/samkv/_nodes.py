"""The text of LlamaIndex nodes, as it will stand in a prompt."""

from __future__ import annotations

from collections.abc import Iterable

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore


def chunk_texts(items: Iterable[BaseNode | NodeWithScore | str]) -> list[str]:
    """Return the text of each node as it will stand in a prompt; nodes without text are left out.

    Metadata is left out too: LlamaIndex writes it before the text, so the text alone arrives verbatim.
    """
    return [text for _, text in chunks_with_ids(items)]


def chunks_with_ids(items: Iterable[BaseNode | NodeWithScore | str]) -> list[tuple[str | None, str]]:
    """The same with the nodes' ids; plain text has none."""
    pairs = ((None, item) if isinstance(item, str) else _id_and_text(item) for item in items)
    return [(node_id, text) for node_id, text in pairs if text.strip()]


def node_text(item: BaseNode | NodeWithScore) -> str:
    """The text of one node; empty where it has none."""
    node = item.node if isinstance(item, NodeWithScore) else item
    return node.get_content(metadata_mode=MetadataMode.NONE)


def _id_and_text(item: BaseNode | NodeWithScore) -> tuple[str, str]:
    return (item.node if isinstance(item, NodeWithScore) else item).node_id, node_text(item)
