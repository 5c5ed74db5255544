"""A transformers decoder run layer by layer, with our own attention at each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from samkv_rag.forking import cached_property
from samkv_rag.model import attention
from samkv_rag.model.attention import Attend, LayerSpec, Visibility, causal_attention
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.model.packing import pack_linears
from samkv_rag.model.rotary import Rope


class Decoder:
    """Runs the layers of a ``transformers`` causal language model one by one; only attention is ours.

    So a pass can read cached KV one layer at a time, start above the bottom, and drop what it does not retain.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        attention.use_in(model)
        self.config = model.config
        self._base = base_of(model)
        self._head = model.get_output_embeddings()
        self._embedding_scale = float(getattr(self.config, "embedding_multiplier", 1.0))  # Granite
        self._logits_scale = float(getattr(self.config, "logits_scaling", 1.0))  # Granite
        self._logits_scale /= float(getattr(self.config, "logit_scale", None) or 1.0)  # Cohere
        self._logits_softcap = getattr(self.config, "final_logit_softcapping", None)  # Gemma 2

        self.num_layers = len(self._base.layers)
        self.num_heads = int(self.config.num_attention_heads)
        self.num_kv_heads = int(getattr(self.config, "num_key_value_heads", None) or self.num_heads)
        self.head_dim = int(self._base.layers[0].self_attn.head_dim)
        self.dtype: torch.dtype = model.dtype  # packed weights have another one
        self.device: torch.device = model.device
        self.between_layers: Callable[[], None] = lambda: None
        """Called after every layer of :meth:`run_layers`, so that a long pass can make way for others."""

    @cached_property
    def context_window(self) -> int:
        """How many positions are used."""
        limits = [self.config.max_position_embeddings]
        # Llama 4: up to here its attention is not cut into chunks, and queries are not scaled by their position.
        if "chunked_attention" in (getattr(self.config, "layer_types", None) or ()):
            limits.append(self.config.attention_chunk_size)
        if getattr(self.config, "attn_temperature_tuning", False):
            limits.append(self.config.floor_scale - 1)
        return int(min(limits))

    def pack_weights(self) -> None:
        """Pack the model's weights for the processor, in place."""
        pack_linears(self.model)
        self._head = self.model.get_output_embeddings()

    def kv_bytes(self, num_tokens: int) -> int:
        """Return the bytes of keys and values that decoding after ``num_tokens`` reads."""
        held = sum(num_tokens if window is None else min(num_tokens, window - 1) for window in self.windows)
        return 2 * held * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @cached_property
    def widest_layers(self) -> list[int]:
        """The layers with the widest window; all of them if none has a window."""
        widths = [self.context_window if window is None else window for window in self.windows]
        return [layer for layer, width in enumerate(widths) if width == max(widths)]

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Turn ``[batch, tokens]`` into hidden states ``[batch, tokens, hidden]`` for layer 0."""
        hidden: torch.Tensor = self._base.embed_tokens(token_ids.to(self.device))
        return hidden * self._embedding_scale if self._embedding_scale != 1.0 else hidden

    def run_layers(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, attend: Attend, layers: Iterable[int] | None = None
    ) -> torch.Tensor:
        """Run ``hidden`` ``[batch, tokens, hidden]`` through ``layers`` (None: all).

        ``position_ids`` is ``[tokens]`` or ``[batch, tokens]``; ``attend`` computes each layer's attention.
        """
        position_ids = position_ids.to(self.device)
        position_ids = position_ids[None] if position_ids.dim() == 1 else position_ids
        rotations: dict[str, Any] = {}
        for layer in range(self.num_layers) if layers is None else layers:
            if (kind := self._rope_kinds[layer]) not in rotations:
                rotations[kind] = self._base.rotary_emb(hidden, position_ids, *([kind] if kind else []))
            output = self._base.layers[layer](
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                use_cache=False,
                position_embeddings=rotations[kind],
                attend=attend,
            )
            hidden = output[0] if isinstance(output, tuple) else output
            self.between_layers()
        return hidden

    def project(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that ``layer`` computes from ``hidden``, after RoPE.

        Each is ``[batch, kv_heads, tokens, head_dim]``. The layer runs up to its attention and no further, which
        works however a family normalises, projects and rotates.
        """
        left = self._leave(hidden, position_ids, layer)
        return left.key, left.value

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn the last layer's hidden states ``[batch, tokens, hidden]`` into logits ``[batch, tokens, vocab]``."""
        logits: torch.Tensor = self._head(self._base.norm(hidden))
        logits = logits / self._logits_scale if self._logits_scale != 1.0 else logits
        return logits if self._logits_softcap is None else self._logits_softcap * (logits / self._logits_softcap).tanh()

    def rotation_by(self, offsets: torch.Tensor) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return for each layer a function that moves cached keys by ``offsets`` ``[tokens]`` positions."""
        rotary, offsets = self._base.rotary_emb, offsets.to(self.device)
        made = {rope: rope.by(rotary, offsets, self.dtype) for rope in set(self._ropes) if rope}
        return [made[rope] if rope else lambda keys: keys for rope in self._ropes]

    @cached_property
    def _rope_kinds(self) -> list[str]:
        """Each layer's argument of the rotary module; empty if the module serves all layers alike."""
        alike = "rope_type" in self.config.rope_parameters
        return [""] * self.num_layers if alike else list(self.config.layer_types)

    @cached_property
    def windows(self) -> list[int | None]:
        """How many positions a token sees in each layer; None: all before it."""
        windows = [self._probe(layer, 0).spec.window for layer in range(self.num_layers)]
        return [window if window is not None and window < self.context_window else None for window in windows]

    @cached_property
    def _ropes(self) -> list[Rope | None]:
        return [self._find_rope(layer) for layer in range(self.num_layers)]

    def _find_rope(self, layer: int) -> Rope | None:
        """Return how a layer rotates; None: not at all."""
        # Measured on a token's key at two positions: no configuration says which dimensions a family pairs.
        here, there = (self._probe(layer, position).key.float() for position in (0, 1))
        if torch.equal(here, there):
            return None
        name, one = f"{self._rope_kinds[layer]}_inv_freq".lstrip("_"), torch.ones(1, device=self.device)
        ropes = [Rope(name, of_neighbours) for of_neighbours in (False, True)]
        moved = {rope: rope.by(self._base.rotary_emb, one, here.dtype)(here) for rope in ropes}
        return min(ropes, key=lambda rope: float((moved[rope] - there).norm()))

    @torch.inference_mode()
    def _probe(self, layer: int, position: int) -> _LeftError:
        """Return what a random token at ``position`` passes to a layer's attention."""
        hidden = torch.randn(1, 1, self.config.hidden_size, generator=torch.Generator().manual_seed(0))
        return self._leave(hidden.to(self.device, self.dtype), torch.tensor([position]), layer)

    def _leave(self, hidden: torch.Tensor, position_ids: torch.Tensor, layer: int) -> _LeftError:
        def leave(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec) -> Any:
            raise _LeftError(key, value, spec)

        try:
            self.run_layers(hidden, position_ids, leave, [layer])
        except _LeftError as left:
            return left.with_traceback(None)  # whose frames would hold the prompt's KV until Python collects cycles
        raise AssertionError("a decoder layer without attention")


def base_of(model: Any) -> Any:
    """Return the part of ``model`` that has the layers."""
    found = model.get_decoder()
    return found if hasattr(found, "layers") else getattr(found, "model", found)  # Llama 4's text model is its own


class CausalPass:
    """Attention of tokens that see everything in the buffer and, causally, each other.

    Appends the KV it computes to ``buffer``, at ``position_ids`` ``[tokens]`` on the host.
    """

    def __init__(self, buffer: KVBuffer, position_ids: torch.Tensor) -> None:
        self._buffer = buffer
        buffer.positions = torch.cat((buffer.positions, position_ids))
        self._visibility = Visibility(position_ids, buffer.positions)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        keys, values = self._buffer.append(layer, key, value)
        return causal_attention(query, keys, values, spec, self._visibility)


class Rows(NamedTuple):
    """Tokens that run in one pass, and their attention."""

    token_ids: torch.Tensor
    """``[rows]``, on the host"""
    position_ids: torch.Tensor
    """``[rows]``, on the host"""
    attend: Attend


def causal_rows(buffer: KVBuffer, token_ids: Sequence[int], first_position: int) -> Rows:
    """Return tokens that follow what ``buffer`` holds, see it and each other, and are added to it."""
    position_ids = first_position + torch.arange(len(token_ids))
    return Rows(torch.tensor(token_ids), position_ids, CausalPass(buffer, position_ids))


def side_by_side(parts: Sequence[Rows]) -> Rows:
    """Return all parts for one pass, in which one after the other attends by itself."""
    if len(parts) == 1:
        return parts[0]
    lengths = [len(part.token_ids) for part in parts]

    def attend(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        states = zip(parts, *(torch.split(state, lengths, dim=2) for state in (query, key, value)), strict=True)
        return torch.cat([part.attend(layer, q, k, v, spec) for part, q, k, v in states], dim=2)

    token_ids = torch.cat([part.token_ids for part in parts])
    return Rows(token_ids, torch.cat([part.position_ids for part in parts]), attend)


class _LeftError(Exception):
    """Leaves a decoder layer just before its attention, with its keys and values."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec) -> None:
        self.key, self.value, self.spec = key, value, spec
