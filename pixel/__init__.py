"""Diffusion models in pixel space, as in the paper."""
