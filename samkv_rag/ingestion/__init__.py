"""Turns chunk texts into stored chunk caches."""
