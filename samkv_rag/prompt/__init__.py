"""A prompt as text, then as tokens: chunks recognised, caches opened, segments laid out."""
