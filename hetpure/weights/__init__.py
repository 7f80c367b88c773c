"""Weights on disk: safetensors only, in diffusers' folder layout; nothing is ever unpickled."""

from hetpure.weights.classifier import load_classifier, save_classifier
from hetpure.weights.diffusion import load_denoiser, save_diffusion
from hetpure.weights.folders import ASSETS, folder_hash, resolve

__all__ = [
    "ASSETS",
    "folder_hash",
    "load_classifier",
    "load_denoiser",
    "resolve",
    "save_classifier",
    "save_diffusion",
]
