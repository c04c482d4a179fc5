"""Perceptual distances: what a network's activations say about how far apart two images look."""

__all__: list[str] = []
