"""From the answer back to the nodes that it was read from.

The postprocessor has the nodes and no answer, the LLM an answer and no nodes. Both run in one context, a query's own
also where queries run at the same time: threads and tasks that LlamaIndex starts take it along.
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
"""What the query at hand retrieved and no answer has been read from yet."""


def cite(nodes: list[NodeWithScore], explanation: Explanation) -> None:
    """Write into the metadata of ``nodes`` what was retained of their text; take those of which anything was off them.

    So an answer that comes later in the same context says nothing of them. Each gets a node of its own, since the index
    may hold the one that it had. Prompts and embeddings never show the spans.
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
