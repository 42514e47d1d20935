"""Fine-tuning of latent diffusion models: Stable Diffusion 1 to 3.5, SDXL and FLUX."""
