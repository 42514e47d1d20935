"""Models that work in the latent space of a VAE: Stable Diffusion and its relatives."""
