"""`samkv store`: what is stored, checked, pruned and copied."""
