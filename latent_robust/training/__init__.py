"""One training loop for pixel and latent models."""
