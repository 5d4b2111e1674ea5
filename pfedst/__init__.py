"""Personalised federated side-tuning of CLIP for medical images (pFedST, MICCAI 2025)."""

from importlib import import_module
from typing import TYPE_CHECKING

from pfedst.renamed import install
from pfedst.version import __version__

if TYPE_CHECKING:
    from pfedst.cli.audit import audit
    from pfedst.cli.compare import compare
    from pfedst.cli.fit import fit
    from pfedst.cli.report import report
    from pfedst.cli.run import Run, load
    from pfedst.data.datamodule import FederatedDataModule
    from pfedst.data.sets.objects import DatasetSites
    from pfedst.inference.artefact import load_model
    from pfedst.inference.site_model import SiteModel
    from pfedst.methods.interface import FederatedMethod
    from pfedst.methods.registry import get_method, list_methods
    from pfedst.server.coordinator import FederatedCoordinator
else:
    MODULES = {
        "DatasetSites": "data.sets.objects",
        "FederatedCoordinator": "server.coordinator",
        "FederatedDataModule": "data.datamodule",
        "FederatedMethod": "methods.interface",
        "Run": "cli.run",
        "SiteModel": "inference.site_model",
        "audit": "cli.audit",
        "compare": "cli.compare",
        "fit": "cli.fit",
        "get_method": "methods.registry",
        "list_methods": "methods.registry",
        "load": "cli.run",
        "load_model": "inference.artefact",
        "report": "cli.report",
    }

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562): `import pfedst` loads no torch."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


__all__ = [
    "DatasetSites",
    "FederatedCoordinator",
    "FederatedDataModule",
    "FederatedMethod",
    "Run",
    "SiteModel",
    "__version__",
    "audit",
    "compare",
    "fit",
    "get_method",
    "list_methods",
    "load",
    "load_model",
    "report",
]

install()
del install
