"""The data of a run between hospitals, as its centre sees them: no images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.sites import Sites
from pfedst.errors import DataError
from pfedst.names import plain_names


class RemoteSites(FederatedDataModule):
    """Images at hospitals, for the centre of a run with `--coordinator.transport flower`: it has none.

    Args:
        class_names: the classes in the order of their indices; every hospital must have these.
        options: options of FederatedDataModule that are part of the study. Those of one machine, such as
            `cache_folder`, belong to the command of each hospital.

    Raises:
        ConfigurationError: an option that needs images.
    """

    label = "images at hospitals"

    def __init__(self, class_names: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.subgroups.check_read((), "the centre, which has no images,")
        self.class_names = tuple(plain_names(class_names))

    def read(self) -> Sites:
        """Refuse: nothing can be read here.

        Raises:
            DataError: always.
        """
        raise DataError(
            "--data RemoteSites has no images: at the centre add --coordinator.transport flower; at a hospital, and "
            "for a run on one machine, name the data, such as --data FolderSites --data.root FOLDER"
        )
