"""Diffusion-based adversarial purification and the honest evaluation of it."""
