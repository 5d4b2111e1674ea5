"""Personalised federated side-tuning of CLIP for medical images (pFedST, MICCAI 2025)."""

from pfedst.renamed import install
from pfedst.version import __version__

__all__ = ["__version__"]

install()
del install
