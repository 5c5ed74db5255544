"""vLLM decodes from the KV that samkv_rag retained."""
