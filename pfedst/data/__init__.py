"""Data of several sites. They know nothing of methods."""

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.fed_drg import FedDRG
from pfedst.data.fed_isic import FedISIC2019
from pfedst.data.folder import FolderSites
from pfedst.data.hugging_face import HuggingFaceSites
from pfedst.data.manifest import ManifestSites
from pfedst.data.sites import Split
from pfedst.data.synthetic import SyntheticSites

__all__ = [
    "FedDRG",
    "FedISIC2019",
    "FederatedDataModule",
    "FolderSites",
    "HuggingFaceSites",
    "ManifestSites",
    "Split",
    "SyntheticSites",
]
