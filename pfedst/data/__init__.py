"""Data of several sites. They know nothing of methods."""

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.fed_isic import FedISIC2019
from pfedst.data.folder import FolderSites
from pfedst.data.manifest import ManifestSites
from pfedst.data.sites import Split
from pfedst.data.synthetic import SyntheticSites

__all__ = ["FedISIC2019", "FederatedDataModule", "FolderSites", "ManifestSites", "Split", "SyntheticSites"]
