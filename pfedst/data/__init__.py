"""Data of several sites. The data modules do not depend on the federated methods."""

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.sets.fed_drg import FedDRG
from pfedst.data.sets.fed_isic import FedISIC2019
from pfedst.data.sets.folder import FolderSites
from pfedst.data.sets.hugging_face import HuggingFaceSites
from pfedst.data.sets.manifest import ManifestSites
from pfedst.data.sets.synthetic import SyntheticSites
from pfedst.data.sites import Split

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
