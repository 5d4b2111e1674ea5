"""Personalised federated side-tuning of CLIP for medical images (pFedST, MICCAI 2025)."""

from pfedst.version import __version__

__all__ = ["__version__"]
