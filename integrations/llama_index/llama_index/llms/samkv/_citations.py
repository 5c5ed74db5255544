"""Tells a query's source nodes what its answer was read from.

The postprocessor knows the nodes but not the answer; the LLM knows the answer but not the nodes. They share a context
variable. Every query has its own, because LlamaIndex's threads and tasks copy the context.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from llama_index.core.schema import NodeWithScore
from llama_index.llms.samkv._nodes import node_text

if TYPE_CHECKING:
    from samkv_rag import Explanation

_KEY = "samkv_spans"
uncited: ContextVar[list[NodeWithScore]] = ContextVar("samkv_uncited")
"""The current query's nodes that no answer has cited yet."""


def cite(nodes: list[NodeWithScore], explanation: Explanation) -> None:
    """Write into the metadata of ``nodes`` what was retained of their text, and remove the cited ones from the list.

    A later answer in the same context then does not cite them again. Each item gets a copy of its node, because the
    index may hold the original. Prompts and embeddings never show the spans.
    """
    left = []
    for item, spans in zip(nodes, explanation.cite(map(node_text, nodes)), strict=True):
        if not spans:
            left.append(item)
            continue
        node = item.node
        hidden = {
            name: [*dict.fromkeys((*getattr(node, name), _KEY))]
            for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
        }
        shown = node.metadata | {_KEY: [span._asdict() for span in spans]}
        item.node = node.model_copy(update={"metadata": shown, **hidden})
    nodes[:] = left
