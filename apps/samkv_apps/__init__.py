"""Applications of samkv_rag: `samkv demo`, `samkv ask`, `samkv ingest`, `samkv serve`, `samkv evaluate`."""
