"""Data of several sites. The data modules do not depend on the federated methods.

The names of this package are imported on first use (PEP 562), since they need torch and Lightning, which the commands
that prepare data do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfedst.data.datamodule import FederatedDataModule
    from pfedst.data.sets.fed_drg import FedDRG
    from pfedst.data.sets.fed_isic import FedISIC2019
    from pfedst.data.sets.folder import FolderSites
    from pfedst.data.sets.hugging_face import HuggingFaceSites
    from pfedst.data.sets.manifest import ManifestSites
    from pfedst.data.sets.objects import DatasetSites
    from pfedst.data.sets.remote import RemoteSites
    from pfedst.data.sets.synthetic import SyntheticSites
    from pfedst.data.sites import Split
else:
    MODULES = {
        "DatasetSites": "sets.objects",
        "FedDRG": "sets.fed_drg",
        "FedISIC2019": "sets.fed_isic",
        "FederatedDataModule": "datamodule",
        "FolderSites": "sets.folder",
        "HuggingFaceSites": "sets.hugging_face",
        "ManifestSites": "sets.manifest",
        "RemoteSites": "sets.remote",
        "Split": "sites",
        "SyntheticSites": "sets.synthetic",
    }

    def __getattr__(name: str) -> object:
        """Import all names on first use of one: the command line knows the short name of imported classes only."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = {name: getattr(import_module(f"{__name__}.{module}"), name) for name, module in MODULES.items()}
        globals().update(found)
        return found[name]


__all__ = [
    "DatasetSites",
    "FedDRG",
    "FedISIC2019",
    "FederatedDataModule",
    "FolderSites",
    "HuggingFaceSites",
    "ManifestSites",
    "RemoteSites",
    "Split",
    "SyntheticSites",
]
