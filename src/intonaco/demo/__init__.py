"""The embedded example: a real text-to-image latent diffusion model of handwritten digits."""
