"""Sentence embeddings by all-MiniLM-L6-v2, from a Python package that contains the model."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from samkv_apps.models import embedding_model

_WINDOW_TOKENS = 256
"""The model was trained on inputs of this length, in its own tokens."""


class Embedder:
    """Turns texts into unit vectors: the mean of the last hidden states, as in the model card.

    Raises:
        ModelNotFoundError: the package with the model is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        folder = embedding_model()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)

    @torch.inference_mode()
    def embed(self, text: str) -> torch.Tensor:
        """Return the vectors of a text, ``[windows, 384]``; a text longer than the model's input has several."""
        windows = self._tokenizer(
            text,
            truncation=True,
            max_length=_WINDOW_TOKENS,
            return_overflowing_tokens=True,
            padding=True,
            return_tensors="pt",
        ).to(self._model.device)
        mask = windows["attention_mask"]
        hidden = self._model(input_ids=windows["input_ids"], attention_mask=mask).last_hidden_state
        return normalize((hidden * mask[..., None]).sum(dim=1), dim=1)
