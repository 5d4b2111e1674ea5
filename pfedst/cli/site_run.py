"""`pfedst site` with the options of `pfedst fit`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.cli import LightningArgumentParser

from pfedst.cli.federated import PFedSTCLI
from pfedst.cli.parser import Parser
from pfedst.cli.resume import resumable
from pfedst.cli.study import local_options, study_options
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.deployment.agreement import agreement, check_method, shared_study
from pfedst.deployment.hospital import Hospital
from pfedst.deployment.runner import own_folder, run_hospital
from pfedst.deployment.statement import statement
from pfedst.errors import ConfigurationError
from pfedst.names import plain_name
from pfedst.simulation import check_local_epochs, make_client

OWN = ("site", "superlink", "root-certificates", "key", "state")
REFUSED = ("--resume", "--dry_run", "--init", "--ckpt_path", "--name", "--runs_dir")


class SiteCLI(PFedSTCLI):
    """`pfedst fit` of one site, whose rounds are those of a centre."""

    needed: ClassVar[tuple[str, ...]] = OWN

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a hospital."""
        super().add_arguments_to_parser(parser)
        for name in OWN:
            parser.add_argument(f"--{name}", type=str | None, default=None, help="see pfedst site --help")

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **_: Any) -> None:
        """Check everything, print what leaves this hospital, and answer the centre."""
        own = self._own()
        with own_folder(Path(own["state"])) as folder, resumable("give the same command again"):
            hospital = self._hospital(model, datamodule, plain_name(own["site"]), folder)
            files = Path(own["root-certificates"]), Path(own["key"])
            run_hospital(hospital, own["superlink"], *files)

    def _hospital(self, model: FederatedClient, datamodule: FederatedDataModule, site: str, folder: Path) -> Hospital:
        text = self._resolved()
        coordinator, method = self._get(self.config_init, "coordinator"), self._get(self.config_init, "method")
        shared = shared_study(study_options(text, self.defaults()))
        datamodule.use_sites([site])
        local = LocalTrainer(self.trainer)
        check_local_epochs(local, method)
        held_out, shares = coordinator.held_out_sites, coordinator.share_class_counts
        client = make_client(
            model, datamodule, method, self._seed(), local, None, held_out, shared, shares_class_counts=shares
        )
        check_method(method, client.model, [site])
        client.threads = coordinator.threads or client.threads
        if datamodule.report is not None:
            print(datamodule.report.headline() + "; for the full report run pfedst data audit")
        print(statement(client, site, local_options(text, self.defaults())), flush=True)
        agreed = agreement(client.module, list(datamodule.class_names), shared)
        return Hospital(client, site, folder, agreed)

    def _own(self) -> dict[str, str]:
        """Take the options of a hospital out of the configuration.

        Raises:
            ConfigurationError: one is missing, names no file, or is none of a hospital.
        """
        given = [argument.partition("=")[0] for argument in Parser.arguments]
        for option in REFUSED:
            if option in given:
                raise ConfigurationError(f"pfedst site {option}: it has no such option; leave it out")
        config = self.config["fit"]
        found = {name: config.pop(name.replace("-", "_"), None) for name in OWN}
        if missing := [f"--{name}" for name in self.needed if found[name] is None]:
            raise ConfigurationError(f"pfedst site: give {', '.join(missing)} (see pfedst site --help)")
        for name in ("root-certificates", "key"):
            if name in self.needed and not Path(found[name]).is_file():
                raise ConfigurationError(f"--{name} {found[name]}: there is no such file")
        return found


class StockSiteCLI(SiteCLI):
    """Builds the hospital for a process that Flower has started; the SuperNode is connected already."""

    needed = ("site", "state")
    made: ClassVar[Hospital | None] = None

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **_: Any) -> None:
        """Build the hospital."""
        own = self._own()
        folder = Path(own["state"])
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.umask(0o077)
        StockSiteCLI.made = self._hospital(model, datamodule, plain_name(own["site"]), folder)
