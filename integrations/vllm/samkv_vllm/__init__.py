"""vLLM connector of samkv_rag: vLLM decodes from the retained KV."""
