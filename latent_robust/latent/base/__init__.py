"""Pretrained models: their families, their components, and loading them."""
