"""Give cases chunks that a retriever finds in a corpus, or reorder their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from samkv_apps.evaluate.datasets import Case
from samkv_apps.evaluate.options import EvaluationOptions
from samkv_apps.evaluate.retrieval import in_order, open_retriever


def arranged(cases: Sequence[Case], every: Sequence[Case], options: EvaluationOptions) -> list[Case]:
    """Return ``cases`` with the chunks and the order that ``options`` ask for.

    With ``options.corpus`` each question gets the nearest of all chunks of ``every`` case. Otherwise ``every`` is
    ``cases``, and each case keeps its chunks in the new order.
    """
    order = options.chunk_order
    if order == "file":
        return list(cases)
    if not options.corpus and order == "random":
        return [replace(case, chunks=tuple(in_order(case.chunks, order, options.seed_of(case)))) for case in cases]
    texts = list(dict.fromkeys(chunk for case in every for chunk in case.chunks))
    names = {text: own for case in every for text, own in zip(case.chunks, case.names, strict=False)}
    retriever = open_retriever(options.retriever, texts)
    found = []
    for case in cases:
        ranked = [texts[i] for i in retriever.nearest(case.question, len(texts))]
        if not options.corpus:
            ranked = [text for text in ranked if text in case.chunks]
            found.append(replace(case, chunks=tuple(in_order(ranked, order, options.seed_of(case)))))
        else:
            found.append(_from_corpus(case, ranked, names, options))
    return found


def _from_corpus(
    case: Case, ranked: Sequence[str], names: Mapping[str, frozenset[str]], options: EvaluationOptions
) -> Case:
    best = ranked[: options.top_k]
    # Other cases' chunks may have the same title, so they count only if the case has no own.
    supporting = case.supporting or frozenset(text for text in ranked if names.get(text, frozenset()) & case.wanted)
    share = len(supporting & set(best)) / len(supporting) if supporting else 0.0
    return replace(
        case,
        chunks=tuple(in_order(best, options.chunk_order, options.seed_of(case))),
        more=tuple(ranked[: options.more_top_k]) if options.retrieves_more else (),
        supporting=supporting or None,
        retrieved=share if supporting or case.wanted else None,
    )
