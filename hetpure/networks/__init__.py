"""Diffusion networks that diffusers has no class for."""

from hetpure.networks.song_unet import SongUNet

__all__ = ["SongUNet"]
