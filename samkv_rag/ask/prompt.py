"""Passages and a question to the prompt that the model reads."""

from __future__ import annotations

from collections.abc import Sequence

from samkv_rag.evaluation.retrieval import best_outside

# The question stands last: what follows the chunks steers which of their tokens are kept.
_TEMPLATE = (
    "Use these passages to answer.\n\n{passages}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {question}"
)


def make_prompt(best_first: Sequence[str], question: str) -> list[dict[str, str]]:
    """Messages of a chat model; every passage stands in them byte for byte."""
    passages = "\n\n".join(best_outside(best_first))
    return [{"role": "user", "content": _TEMPLATE.format(passages=passages, question=question.strip())}]
