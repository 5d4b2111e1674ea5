"""`pfedst site` with the options of `pfedst fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a hospital."""
        super().add_arguments_to_parser(parser)
        for name in OWN:
            parser.add_argument(f"--{name}", type=str | None, default=None, help="see pfedst site --help")

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **_: Any) -> None:
        """Check everything, print what leaves this hospital, and answer the centre."""
        given = [argument.partition("=")[0] for argument in Parser.arguments]
        for option in REFUSED:
            if option in given:
                raise ConfigurationError(f"pfedst site {option}: it has no such option; leave it out")
        own = self._own()
        site = plain_name(own["site"])
        text = self._resolved()
        coordinator, method = self._get(self.config_init, "coordinator"), self._get(self.config_init, "method")
        shared = shared_study(study_options(text, self.defaults()))
        datamodule.use_sites([site])
        with own_folder(Path(own["state"])) as folder, resumable("give the same command again"):
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
            files = Path(own["root-certificates"]), Path(own["key"])
            run_hospital(Hospital(client, site, folder, agreed), own["superlink"], *files)

    def _own(self) -> dict[str, str]:
        """Take the options of a hospital out of the configuration.

        Raises:
            ConfigurationError: one is missing, or names no file.
        """
        config = self.config["fit"]
        found = {name: config.pop(name.replace("-", "_"), None) for name in OWN}
        if missing := [f"--{name}" for name, value in found.items() if value is None]:
            raise ConfigurationError(f"pfedst site: give {', '.join(missing)} (see pfedst site --help)")
        for name in ("root-certificates", "key"):
            if not Path(found[name]).is_file():
                raise ConfigurationError(f"--{name} {found[name]}: there is no such file")
        return found
