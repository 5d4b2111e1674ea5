"""`pfedst data audit` with the options of `pfedst fit`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pfedst.cli.audit_options import AuditOptions
from pfedst.cli.federated import PFedSTCLI
from pfedst.client.module import FederatedClient
from pfedst.data import FederatedDataModule
from pfedst.data.audit import AuditReport, audit, scan
from pfedst.data.audit.html import page
from pfedst.data.audit.terminal import rendered
from pfedst.errors import DataError, WeightsError
from pfedst.reporting import console_of
from pfedst.state import write_atomically, write_json


class AuditCLI(PFedSTCLI):
    """`pfedst fit`, but it ends after an audit of the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of fit, without a required method, and those of the audit."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(AuditOptions, "audit")
        parser.set_defaults({"method": {"class_path": "pfedst.methods.pfedst.PFedST"}})

    def instantiate_classes(self) -> None:
        """Build the classes of the configuration. If the encoder cannot be loaded, the audit continues without it."""
        options = self.config["fit"]["audit"]
        self.encoder_is_there = bool(options.images and options.images_per_site)
        if self.encoder_is_there:
            try:
                super().instantiate_classes()
                encoder = self._get(self.config_init, "model").encoder
                if "pooled" in encoder.offers:
                    return
                reason = f"{type(encoder).__name__} has no embedding; give --model.encoder FrozenCLIP for it"
            except WeightsError as error:
                reason = str(error)
            logging.getLogger("pfedst").warning("the comparison of sites by the encoder is skipped: %s", reason)
            self.encoder_is_there = False
        self.config["fit"]["model"]["encoder"] = Namespace(  # type: ignore[no-untyped-call]
            class_path="pfedst.encoders.encoder.Pixels"
        )
        super().instantiate_classes()

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **_: Any) -> None:
        """Audit the data, print the report and write it."""
        self.refuse_dry_run()
        options: AuditOptions = self._get(self.config_init, "audit")
        found = datamodule.found(files=options.images)
        seen = scan(found, True, datamodule.cache.folder) if options.images else None
        encoder = model.encoder if self.encoder_is_there else None
        report = audit(found, datamodule.described, seen, encoder, options.images_per_site)
        console_of(160).print(rendered(report), highlight=False)
        _write(report, options.folder)
        if datamodule.audit == "strict":
            report.refuse_errors()


def _write(report: AuditReport, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "audit.json", report.to_json())
        write_atomically(folder / "audit.html", page(report).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DataError(f"--audit.folder {folder} cannot be written ({error.strerror}); give another") from error
    print(f"{folder / 'audit.html'}\n{folder / 'audit.json'}")
