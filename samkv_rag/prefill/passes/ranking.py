"""Chunks ranked by how well they match the question, word by word, in the model's own states.

Source: late interaction, as in ColBERT (Khattab and Zaharia 2020, arXiv 2004.12832, section 3.2), over hidden
states in place of trained embeddings. They are stored for recomputation anyway, so ranking costs no more than the
question's tokens in the layers below them.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from samkv_rag.model.decoder import Decoder
from samkv_rag.prefill.passes.plan import make_plan
from samkv_rag.prefill.passes.planned_pass import PlannedPass
from samkv_rag.prompt.layout import PromptLayout, Segment

_MAX_QUESTION_TOKENS = 64
"""Of a long tail (a chat history) only the last tokens rank."""
_INITIAL_TOKENS = 4
"""A chunk's first tokens have like states whatever they say: all others attend to them."""


def rank_chunks(decoder: Decoder, layout: PromptLayout, layer: int) -> torch.Tensor:
    """How much better each chunk matches the question than the chunks do on average, ``[chunks]``, at least 0.

    Each token of the question is compared with the most similar one of each chunk, by the hidden states that
    enter ``layer``: the chunk's are the stored ones, or at layer 0 the embeddings. A word of the prompt's
    template matches all chunks alike, and counts nothing. The chunks' order plays no part.
    """
    question = _question_hidden(decoder, layout, layer)
    chunks = [_chunk_hidden(decoder, chunk, layer) for chunk in layout.chunks]
    every = torch.cat(chunks)
    # A few channels are large in every token, and would hide all others.
    mean, scale = every.mean(0), every.std(0).clamp(min=1e-6)
    question = normalize((question - mean) / scale, dim=-1)
    similarity = torch.stack([(question @ normalize((c - mean) / scale, dim=-1).T).amax(1) for c in chunks])
    match: torch.Tensor = (similarity - similarity.mean(0)).clamp(min=0).norm(dim=1)
    return match


def _question_hidden(decoder: Decoder, layout: PromptLayout, layer: int) -> torch.Tensor:
    """Of the tail behind the text before the first chunk, ``[tokens, hidden]``."""
    question = layout.without_chunks()
    plan = make_plan(question, retained=torch.ones_like(question.is_text))
    hidden = decoder.embed(question.token_ids[plan.row_positions][None])
    hidden = decoder.run_layers(hidden, plan.row_positions, PlannedPass(decoder, plan), range(layer))
    num_tokens = min(layout.tail.stop - layout.tail.start, _MAX_QUESTION_TOKENS)
    return hidden[0, -num_tokens:].float()


def _chunk_hidden(decoder: Decoder, chunk: Segment, layer: int) -> torch.Tensor:
    """Of a chunk read alone, without its first tokens, ``[tokens, hidden]``."""
    assert chunk.reader is not None
    hidden = chunk.reader.resume_hidden().to(decoder.device) if layer else decoder.embed(chunk.token_ids[None])[0]
    return (hidden[_INITIAL_TOKENS:] if len(hidden) > _INITIAL_TOKENS else hidden).float()
