"""`pfedst join` with the options of `pfedst fit`."""

from __future__ import annotations

import re
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from pfedst.cli.federated import PFedSTCLI
from pfedst.cli.parser import Parser
from pfedst.cli.resume import resumable
from pfedst.cli.study import study_options
from pfedst.client.joining import MOST_PASSES, Outcome
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.errors import ConfigurationError, DataError
from pfedst.joining import ROUND, Join, Source
from pfedst.reporting import RunFolder
from pfedst.reporting.formats import rich_table
from pfedst.reporting.join_table import join_tables, join_text
from pfedst.reporting.tables import console_of

REFUSED = ("--resume", "--dry_run", "--init", "--ckpt_path")


class JoinCLI(PFedSTCLI):
    """`pfedst fit` of one site, which begins with the model of a finished run and changes no shared tensor."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a join."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--site", type=str | None, default=None, help="name of the new hospital in the data")
        parser.add_argument(
            "--epochs", type=int, default=MOST_PASSES, help="maximum number of passes over its training images"
        )

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **_: Any) -> None:
        """Join, print the table and leave a folder like that of a run."""
        given = [argument.partition("=")[0] for argument in Parser.arguments]
        for option in REFUSED:
            if given.count(option) > (option == "--init"):
                raise ConfigurationError(f"pfedst join {option}: it has no such option; leave it out")
        site, epochs, text = (self._get(self.config, name) for name in ("site", "epochs", "init"))
        if site is None:
            raise ConfigurationError("pfedst join: give --site, the name of the new hospital in the data")
        self._site = site
        if epochs < 1:
            raise ConfigurationError(f"--epochs {epochs}: must be 1 or more")
        source = Source.of(text)
        name = self._get(self.config, "name") or re.sub(r"[^\w.\-]+", "-", f"{source.start.about['name']}-{site}")
        RunFolder.check_new(self._runs_dir, name)
        study = study_options(self._configuration(name), self.defaults())
        coordinator, method = self._get(self.config_init, "coordinator"), self._get(self.config_init, "method")
        with resumable("nothing was written yet. Give the same command again"):
            local = LocalTrainer(self.trainer)
            try:
                join = Join(source, model, datamodule, method, local, coordinator, self._seed(), site, study)
            except DataError as error:
                if any(name.startswith("--data") for name in given):
                    raise
                raise DataError(
                    f"{error}; these are the data of the run: name those of the new hospital with --data"
                ) from error
        folder = RunFolder.create(self._runs_dir, name, name)
        folder.write_config(self._configuration(name))
        with resumable("the site has not joined yet. Give the same command again"):
            self.summary = join.run(folder, epochs, lambda outcome: self._configuration(name, outcome))
        console = console_of(120)
        for table in join_tables(self.summary):
            console.print(rich_table(table), highlight=False)
        print(join_text(self.summary))
        print(folder.path / "summary.json")

    def _configuration(self, name: str, outcome: Outcome | None = None) -> str:
        """Return the configuration of the folder as YAML: of `fit`, with what the site has trained."""
        config = self.config["fit"]
        for key in ("site", "epochs"):
            config.pop(key, None)
        config["name"] = name
        alone = {"rounds": ROUND, "held_out_sites": [], "lr_schedule": "constant", "warmup_rounds": 0}
        for key, value in alone.items():
            config["coordinator"][key] = value
        config["data"]["init_args"]["only_sites"] = [self._site]
        if outcome is not None and outcome.joined and outcome.trained == "copy":
            config["method"]["init_args"]["finetune_epochs"] = outcome.passes
        return self._resolved()
