"""`pfedst data audit` with the options of `pfedst fit`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

import pfedst.data
from pfedst.cli.audit_options import AuditOptions
from pfedst.cli.federated import PFedSTCLI
from pfedst.cli.python_interface import check_data
from pfedst.client.module import FederatedClient
from pfedst.data import FederatedDataModule
from pfedst.data.audit import AuditReport, scan
from pfedst.data.audit import audit as all_checks
from pfedst.data.audit.html import page as html_page
from pfedst.data.audit.terminal import rendered
from pfedst.data.sets.recognise import recognise
from pfedst.encoders import Encoder
from pfedst.errors import DataError, WeightsError
from pfedst.reporting import console_of
from pfedst.state import write_atomically, write_json, writing


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
                reason = (
                    f"{str(error).splitlines()[0]} Give --model.encoder.weights FILE, or --audit.images_per_site 0 to "
                    f"leave the comparison out."
                )
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
        encoder = model.encoder if self.encoder_is_there else None
        report = audit(datamodule, images=options.images, encoder=encoder, images_per_site=options.images_per_site)
        console_of(160).print(rendered(report), highlight=False)
        _write(report, options.folder)
        if datamodule.audit == "strict":
            report.refuse_errors()


def audit(
    source: str | Path | FederatedDataModule,
    *,
    page: str | Path | None = None,
    images: bool = True,
    encoder: Encoder | None = None,
    images_per_site: int = 64,
) -> AuditReport:
    """Audit images: leaks between splits, duplicates, absent classes, damaged files, differences between sites.

    Args:
        source: a folder or a manifest, whose layout is recognised, or a data module.
        page: file to write as an HTML page with thumbnails; None for none.
        images: open every image; without, only the tables are read and no image needs to exist.
        encoder: measures how differently sites look; None leaves this check out.
        images_per_site: number of images of each site that the encoder sees.

    Returns:
        The findings, the most severe first (`findings`, `headline()`, `to_json()`).

    Raises:
        ConfigurationError: the source is an object of another kind.
        DataError: the images cannot be read, or their layout is not known.
        StateError: the page cannot be written.
    """
    if isinstance(source, str | Path):
        name, options = recognise(Path(source))
        module: FederatedDataModule = getattr(pfedst.data, name)(**options)
    else:
        check_data("source", source)
        module = source
    found = module.found(files=images)
    seen = scan(found, True, module.cache.folder) if images else None
    report = all_checks(found, module.described, seen, encoder, images_per_site)
    if page is not None:
        with writing(Path(page)):
            Path(page).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(page), _html(report))
    return report


def _html(report: AuditReport) -> bytes:
    return html_page(report).encode("utf-8", "backslashreplace")


def _write(report: AuditReport, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "audit.json", report.to_json())
        write_atomically(folder / "audit.html", _html(report))
    except OSError as error:
        raise DataError(f"--audit.folder {folder} cannot be written ({error.strerror}); give another") from error
    print(f"{folder / 'audit.html'}\n{folder / 'audit.json'}")
