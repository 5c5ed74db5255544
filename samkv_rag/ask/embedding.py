"""Texts to unit vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from samkv_rag.ask.nearest import Vectors

Embed = Callable[[str], Vectors]
"""A text to unit vectors ``[windows, dimensions]``: more than one where it exceeds what the model reads at once."""


def load_embedder(device: torch.device) -> Embed:
    """all-MiniLM-L6-v2, from the Python package that carries it.

    Raises:
        ModelNotFoundError: the package is not installed.
    """
    from samkv_rag.evaluation.embedding import Embedder

    embedder = Embedder(device)
    return lambda text: embedder.embed(text).cpu().numpy()


def embed_query(embed: Embed, question: str) -> Vectors:
    """One unit vector ``[dimensions]`` for a question, however long."""
    mean = embed(question).mean(axis=0)
    unit: Vectors = (mean / np.linalg.norm(mean)).astype(np.float32)
    return unit
