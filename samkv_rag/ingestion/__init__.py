"""From chunk texts to stored chunk caches."""
