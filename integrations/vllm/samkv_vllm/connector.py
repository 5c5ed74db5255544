"""The connector: vLLM's scheduler counts handed-over tokens as computed, and its workers load their KV."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from samkv_vllm.handover import Load, heads

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)


@dataclass
class Loads(KVConnectorMetadata):  # type: ignore[misc]  # vLLM is not installed when types are checked
    """What the scheduler tells the workers to load before the next step."""

    loads: list[Load] = field(default_factory=list)


class SamKVConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Loads KV that samkv_rag handed over into the blocks of the requests that name it.

    A request names it with ``kv_transfer_params={"samkv_key": key}`` and gives the same key as its ``cache_salt``. The
    KV of its whole prompt except the last token is loaded. A request whose KV cannot be loaded fails; it is never
    answered without that KV. Requests without a key are not affected.

    ``folder`` in ``kv_connector_extra_config`` is where handovers are saved.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer, self._parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
        specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
        windows = [getattr(spec, name, None) for spec in specs for name in ("sliding_window", "attention_chunk_size")]
        context_ranks = getattr(self._parallel, "decode_context_parallel_size", 1)
        policy, folder = transfer.kv_load_failure_policy, transfer.get_from_extra_config("folder", None)
        reason = ""
        if len(specs) != 1 or any(windows):
            reason = "layers see a window, and vLLM counts it without the gaps of what was dropped; take another model"
        elif context_ranks != 1:
            reason = f"decode_context_parallel_size is {context_ranks}; it must be 1"
        elif policy != "fail":
            reason = f"kv_load_failure_policy is {policy!r}, which would answer without the KV; it must be 'fail'"
        elif not folder:
            reason = "kv_connector_extra_config has no 'folder'; give the one of `samkv serve`"
        if reason:
            raise ValueError(f"SamKVConnector: {reason}")
        self._folder = Path(folder)
        self._block_size: int = vllm_config.cache_config.block_size
        self._dtype: torch.dtype = vllm_config.model_config.dtype
        self._num_layers = vllm_config.model_config.get_total_num_hidden_layers()
        self._loads: list[Load] = []
        self._failed: set[int] = set()

    # Called by the scheduler

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens after the computed ones will be loaded, and False: loading ends before the step.

        The number is not rounded to blocks. vLLM would compute the rest from token ids, without the dropped tokens.
        """
        if "samkv_key" not in (request.kv_transfer_params or {}):
            return 0, False
        return max(0, request.num_prompt_tokens - 1 - num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Note what to load into the request's blocks."""
        params = request.kv_transfer_params or {}
        if "samkv_key" not in params:
            return
        key, token_ids = params["samkv_key"], list(request.prompt_token_ids or ())
        is_salted = request.cache_salt == key
        # Without the salt, what vLLM has cached of the prompt was computed from its tokens: loading fails, as it must.
        if num_external_tokens or not is_salted:
            start = request.num_prompt_tokens - 1 - num_external_tokens
            (block_ids,) = blocks.get_block_ids()
            self._loads.append(Load(key, is_salted, token_ids, block_ids, start))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """Return what the workers load before this step."""
        loads, self._loads = self._loads, []
        return Loads(loads)

    # Called by a worker

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Load the KV of the step's requests; report the blocks of a request that fails."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        layers = forward_context.no_compile_layers
        attentions = {name: one for name, one in layers.items() if getattr(one, "kv_cache", None) is not None}
        for load in metadata.loads:
            try:
                self._load(load, attentions)
            except Exception as error:  # one request's error must not end the engine
                logger.error("SamKVConnector: a request fails, its KV cannot be loaded: %s", error)
                self._failed |= set(load.block_ids[load.start // self._block_size :])

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks of requests that must fail."""
        failed, self._failed = self._failed, set()
        return failed

    def _load(self, load: Load, attentions: dict[str, Any]) -> None:
        size, first = self._parallel.tensor_parallel_size, next(iter(attentions.values())).impl
        keys, values = load.read(self._folder, self._num_layers, first.head_size)
        mine = heads(keys.shape[2], first.num_kv_heads, self._parallel.rank % size, size)
        slots = load.slots(self._block_size)
        for name, attention in attentions.items():  # such as "model.layers.7.self_attn.attn"
            cache, number = attention.kv_cache, next(int(part) for part in name.split(".") if part.isdigit())
            key, value = (
                states[number, :, mine].to(cache.device, self._dtype).contiguous() for states in (keys, values)
            )
            # Only the backend knows its block layout.
            attention.impl.do_kv_cache_update(attention, key, value, cache, slots.to(cache.device))

    # Nothing is saved, and loading ends before the step starts

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...
