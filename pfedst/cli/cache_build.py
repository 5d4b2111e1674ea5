"""`pfedst cache build` with the options of `pfedst fit`."""

from __future__ import annotations

from typing import Any

from pfedst.cli.federated import PFedSTCLI
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.errors import ConfigurationError, counted
from pfedst.reporting import bytes_text
from pfedst.simulation import make_client


class BuildCLI(PFedSTCLI):
    """`pfedst fit`, but it ends when the cache is complete."""

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **_: Any) -> None:
        """Complete the cache and print its location."""
        self.refuse_dry_run()
        if datamodule.cache.kind == "none":
            raise ConfigurationError("--data.cache none: nothing to build; give --data.cache auto")
        method = self._get(self.config_init, "method")
        make_client(model, datamodule, method, self._seed(), LocalTrainer(self.trainer), sites=None)
        if datamodule.store is None:
            raise ConfigurationError(
                f"nothing was cached for method {type(method).__name__}: the cache would exceed --data.cache_max_bytes "
                f"{datamodule.cache.max_bytes}, or fill the disk"
            )
        store = datamodule.store
        print(f"{store.folder}: {counted(store.images, 'image')}, {bytes_text(store.bytes)}")
