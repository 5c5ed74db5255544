"""A transformers decoder run layer by layer, with our own attention at each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from samkv_rag.model.attention import ATTENTION_NAME, Attend, attention, register_attention
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.model.rotary import Rotation, rotation_by


class Decoder:
    """Wraps a ``transformers`` causal language model.

    The decoder layers are transformers' own modules, called one by one; only attention is ours.
    Layer by layer is what lets a pass read one layer of cached KV at a time, start above the
    bottom, and let go of what it does not keep.
    """

    def __init__(self, model: Any) -> None:
        register_attention()
        model.eval()
        # Models whose class refuses attention backends are refused by the checks before this runs.
        model.set_attn_implementation(ATTENTION_NAME)
        self.model = model
        self.config = model.config
        self._base = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._embedding_scale = float(getattr(self.config, "embedding_multiplier", 1.0))  # Granite
        self._logits_scale = float(getattr(self.config, "logits_scaling", 1.0))  # Granite

        attention_module = self._base.layers[0].self_attn
        self.num_layers = len(self._base.layers)
        self.num_heads = int(self.config.num_attention_heads)
        self.num_kv_heads = int(getattr(self.config, "num_key_value_heads", None) or self.num_heads)
        self.head_dim = int(attention_module.head_dim)
        self.context_window = int(self.config.max_position_embeddings)
        parameter = next(model.parameters())
        self.dtype: torch.dtype = parameter.dtype
        self.device: torch.device = parameter.device
        self.between_layers: Callable[[], None] = lambda: None
        """Called after every layer of :meth:`run_layers`: where a long pass makes way for others."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens]`` to hidden states ``[batch, tokens, hidden]`` entering layer 0."""
        hidden: torch.Tensor = self._base.embed_tokens(token_ids.to(self.device))
        return hidden * self._embedding_scale if self._embedding_scale != 1.0 else hidden

    def run_layers(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        attend: Attend,
        layers: Iterable[int] | None = None,
    ) -> torch.Tensor:
        """Run ``hidden`` ``[batch, tokens, hidden]`` through ``layers`` (default all).

        ``position_ids`` is ``[tokens]`` or ``[batch, tokens]``; ``attend`` gives each layer's attention.
        """
        position_ids = position_ids.to(self.device)
        position_ids = position_ids[None] if position_ids.dim() == 1 else position_ids
        rotation = self._base.rotary_emb(hidden, position_ids)
        for layer in range(self.num_layers) if layers is None else layers:
            output = self._base.layers[layer](
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                use_cache=False,
                position_embeddings=rotation,
                attend=attend,
            )
            hidden = output[0] if isinstance(output, tuple) else output
            self.between_layers()
        return hidden

    def project(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, ``[batch, kv_heads, tokens, head_dim]``, of ``hidden`` entering ``layer``, after RoPE.

        Families norm, project and rotate differently; leaving the layer half way serves them all, and
        spares its attention and feed-forward part.
        """
        try:
            self.run_layers(hidden, position_ids, _leave, [layer])
        except _ProjectedError as projected:
            return projected.key, projected.value
        raise AssertionError("a decoder layer without attention")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last layer's hidden states ``[batch, tokens, hidden]`` to logits ``[batch, tokens, vocab]``."""
        logits: torch.Tensor = self._head(self._base.norm(hidden))
        return logits / self._logits_scale if self._logits_scale != 1.0 else logits

    def rotation_by(self, offsets: torch.Tensor) -> Rotation:
        """Rotation that moves cached keys by ``offsets`` ``[tokens]`` positions."""
        return rotation_by(self._base.rotary_emb, offsets.to(self.device))


class CausalPass:
    """Every token attends to the tokens held before this pass and, causally, to one another.

    Appends what it computes to ``buffer``. Right-padded batches need no mask: padding comes after
    the real tokens, which therefore never see it.
    """

    def __init__(self, buffer: KVBuffer) -> None:
        self._buffer = buffer

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        keys, values = self._buffer.append(layer, key, value)
        return attention(query, keys, values, scaling, is_causal=query.shape[2] > 1)


class _ProjectedError(Exception):
    """Leaves a decoder layer with its keys and values, before attention."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.key, self.value = key, value


def _leave(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    raise _ProjectedError(key, value)
