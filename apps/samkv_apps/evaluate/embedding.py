"""Sentence embeddings by all-MiniLM-L6-v2, from the Python package that carries it: for the demo and for a rival."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from samkv_apps.models import embedding_model

_WINDOW_TOKENS = 256
"""What the model was trained to read at once, in its own tokens."""


class Embedder:
    """Texts to unit vectors: mean over the last hidden states, as the model's card says.

    Raises:
        ModelNotFoundError: the package that carries the model is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        folder = embedding_model()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)

    @torch.inference_mode()
    def embed(self, text: str) -> torch.Tensor:
        """Vectors ``[windows, 384]`` of a text; more than one where it exceeds what the model reads."""
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
