"""Personalised federated side-tuning of CLIP for medical images (pFedST, MICCAI 2025)."""

from importlib import import_module
from typing import TYPE_CHECKING

from pfedst.renamed import install
from pfedst.version import __version__

if TYPE_CHECKING:
    from pfedst.inference.artefact import load_model
    from pfedst.inference.run import Run, load
    from pfedst.inference.site_model import SiteModel
else:
    MODULES = {
        "Run": "inference.run",
        "SiteModel": "inference.site_model",
        "load": "inference.run",
        "load_model": "inference.artefact",
    }

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562): `import pfedst` loads no torch."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


__all__ = ["Run", "SiteModel", "__version__", "load", "load_model"]

install()
del install
