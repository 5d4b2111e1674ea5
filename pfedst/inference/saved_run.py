"""A finished run, opened to use its models: no image and no Lightning is needed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import yaml
from torch import Tensor

from pfedst.client.calibration_file import load_calibration
from pfedst.client.exchange import start_maker
from pfedst.client.predictions import Predictions
from pfedst.client.restore import restore
from pfedst.client.state import SITES, SiteState
from pfedst.configuration.yaml_text import read_yaml
from pfedst.data.grey_scale import PixelRange
from pfedst.encoders import Encoder
from pfedst.errors import ConfigurationError, StateError, listed, nearest
from pfedst.inference.options import Options, options_of, with_weights
from pfedst.inference.rebuild import GENERIC, PERSONAL, Rebuilt
from pfedst.inference.site_model import Abstention, SiteModel
from pfedst.messages.requests import POOLED, Request
from pfedst.methods.priors import TRAINING, TargetPrior, uniform
from pfedst.reporting import RunFolder
from pfedst.server.merged import Merged
from pfedst.server.priors import FederationPriors
from pfedst.server.server import Server
from pfedst.state.round_choices import LAST
from pfedst.state.run_state import RunState
from pfedst.state.snapshot import Snapshot

Which = Literal["personal", "generic"]


class SavedRun:
    """A run and its models. `pfedst.Run`, which describes attributes and errors, adds what the commands do."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = RunFolder(self.folder)
        if not (self.folder / "config.yaml").is_file():
            raise ConfigurationError(
                f"{folder}: not a run, because it has no config.yaml; give a folder such as runs/NAME"
            )
        try:
            self.config: dict[str, Any] = read_yaml(self.folder / "config.yaml")
            data = self.config["data"].get("init_args") or {}
            given = data.get("pixel_range")
            self.pixel_range: PixelRange | None = None if given is None else (given[0], given[1])
            self._seed = int(self.config["seed_everything"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise StateError(f"{self.folder / 'config.yaml'} is damaged ({error!r}): restore a copy of it") from error
        self._identity = self._files.identity()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""
        return tuple(self._of_identity("classes"))

    @property
    def encoder_weights(self) -> str:
        """Hash of the encoder that it was trained with."""
        return str(self._of_identity("encoder_weights"))

    def _of_identity(self, key: str) -> Any:
        if "classes" not in self._identity or "encoder_weights" not in self._identity:
            raise StateError(
                f"{self.folder}: a run of an older version, whose state cannot be read; its configuration, summary and "
                f"tables can. To use its models, train it again with --config {self.folder / 'config.yaml'}"
            )
        return self._identity[key]

    @property
    def summary(self) -> dict[str, Any] | None:
        """Content of `summary.json`; None if the run is not finished.

        Raises:
            StateError: the file is damaged.
        """
        return self._files.summary()

    @property
    def sites(self) -> list[str]:
        """Names of its sites.

        Raises:
            StateError: no round is saved, or the saved rounds are damaged.
        """
        if "classes" not in self._identity and (summary := self.summary) is not None:  # an older version's
            return sorted(summary["protocol"]["samples"])
        return _sites(RunState(self._files.state).last_round())

    @property
    def protocol(self) -> dict[str, Any]:
        """How the numbers of the summary were obtained.

        Raises:
            StateError: the run is not finished, or the file is damaged.
        """
        found: dict[str, Any] = self._files.finished()["protocol"]
        return found

    def table(self) -> pd.DataFrame:
        """Return the metrics of the summary: one row a site and model.

        Returns:
            Columns `site`, `model` (`personal`, `generic`), `images` of the split, and the metrics, from 0 to 1 where
                they are shares; None where a metric is not defined.

        Raises:
            StateError: the run is not finished, or the file is damaged.
        """
        summary = self._files.finished()
        samples, split = summary["protocol"]["samples"], summary["protocol"]["split"]
        rows = [
            {"site": site, "model": which, "images": samples[site][split], **metrics}
            for which in (PERSONAL, GENERIC)
            if which in summary
            for site, metrics in summary[which]["clients"].items()
        ]
        found: pd.DataFrame = pd.DataFrame(rows)
        return found

    def model(
        self,
        site: str | None = None,
        which: Which = PERSONAL,
        round: str = LAST,  # as the option of the command line is called
        encoder_weights: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> SiteModel:
        """Return the model of a site, or without one the generic model.

        Args:
            site: name of the site.
            which: `personal`, the site's own model, or `generic`, the one that all sites share.
            round: `last`, `best` on validation, or the number of a round that is kept.
            encoder_weights: file or tag of the encoder's weights; default: those of the run.
            device: where to compute.

        Raises:
            ConfigurationError: an unknown site, a round that is not kept, or no generic model.
            StateError: the state is damaged or not here, or the encoder is another one.
        """
        return self.models([site if which == PERSONAL else None], round, encoder_weights, device)[0]

    def models(
        self,
        sites: list[str | None],
        round: str = LAST,  # see above
        encoder_weights: str | Path | None = None,
        device: str | torch.device = "cpu",
    ) -> list[SiteModel]:
        """Return several models that share one encoder: of a site each, or for None the generic model."""
        number, saved = RunState(self._files.state).chosen(round)
        options = options_of(self.config)
        built = Rebuilt.of(with_weights(options, encoder_weights), self.classes, self._seed)
        check_encoder(built.encoder, self.encoder_weights, f"run {self.name}")
        saved_model = _SavedRound(self, number, saved, built, options)
        return [saved_model.site_model(site).to(device) for site in sites]

    @property
    def prior(self) -> TargetPrior:
        """The prior of the run's predictions."""
        return TargetPrior(str(self.config["model"].get("prior") or TRAINING))

    @property
    def held_out(self) -> list[str]:
        """Names of the sites that never trained."""
        return list((self.config.get("coordinator") or {}).get("held_out_sites") or ())


def check_encoder(encoder: Encoder, expected: str, what: str) -> None:
    """Check that an encoder is the one that a model was trained with.

    Raises:
        StateError: its weights have another hash.
    """
    found = encoder.weights_hash
    if found != expected:
        raise StateError(
            f"{what} was trained with another encoder: its weights have the hash {expected[:16]}..., those of "
            f"{encoder.label} {found[:16]}...; name the file with --encoder_weights"
        )


class _SavedRound:
    """One saved round of a run, and the models into which its tensors are loaded."""

    def __init__(self, run: SavedRun, number: int, saved: Snapshot, built: Rebuilt, options: Options) -> None:
        self.run, self.number, self.saved, self.built, self.options = run, number, saved, built, options
        names = _sites(saved)
        held_out = [site for site in run.held_out if site in names]
        self.server = Server(built.method, dict.fromkeys(names, 1), start_maker(built.model), run._seed, held_out)
        frozen = self.server.load_state_parts(saved.parts)
        for model in (built.model, built.generic):
            model.adapter.load_state_dict(frozen, strict=False)
        self.merged = Merged.from_about(saved.about, self.server.members)
        self.priors = FederationPriors.from_about(saved.about, len(run.classes))

    def site_model(self, site: str | None) -> SiteModel:
        """Return the model of a site, or for None the generic one. Its tensors are copies."""
        run, built = self.run, self.built
        which = GENERIC if site is None else PERSONAL
        if site is not None and site not in self.server.sites:
            raise ConfigurationError(
                f'{run.folder} has no site "{site}".{nearest(site, self.server.sites)} There are: '
                f"{listed(self.server.sites)}"
            )
        name = site or self.server.sites[0]
        after = self.merged.after[name] if site else 0
        state = SiteState(run.folder / SITES, name)
        if after and not state.path(after).is_dir():
            raise StateError(
                f"{state.path(after)} is missing: the personal part of site {name} is not in this folder. Give the "
                f"folder at that site, or use the generic model (--generic)"
            )
        built.model.name = name
        parts = self.server.parts_to_evaluate(name, self.merged.any)
        request = Request("evaluate", run.name, self.number, after, parts=parts)
        restore(built.model, built.generic, built.method, built.first, state, request)
        effective, site_prior = self._priors(which, state)
        calibration = None
        if site is not None:
            finetuned = RunState.is_finetuned(self.saved.name)
            calibration = load_calibration(state.folder, self.number, finetuned)
        return SiteModel(
            encoder=built.encoder,
            adapter=copy.deepcopy(built.adapter(which)),
            class_names=run.classes,
            which=which,
            site=site,
            effective=effective,
            site_prior=site_prior,
            temperature=1.0 if calibration is None else calibration.temperature,
            abstention=None
            if calibration is None or not calibration.thresholds
            else Abstention(calibration.coverage, calibration.thresholds),
            prior=run.prior,
            pixel_range=run.pixel_range,
            options=self.options,
            source={"run": run.name, "round": self.number},
        )

    def _priors(self, which: str, state: SiteState) -> tuple[Tensor | None, Tensor | None]:
        """Return the class frequencies that a model has learned, and those of the site; None for unknown ones."""
        merged = self.priors.merged
        if not self.server.trains or not self.merged.any:
            merged = uniform(len(self.run.classes))
        if which == GENERIC:
            return merged, None
        effective = None if self.built.method.has_own_prior else merged
        kept = _kept_predictions(state.folder)
        if kept is None:
            return effective, None
        found = kept.effective(which)
        return effective if found is None else found, kept.site_prior


def _kept_predictions(folder: Path) -> Predictions | None:
    """Return the predictions that a site has kept, of validation or test; None if there are none."""
    for split in ("validation", "test"):
        if (folder / "predictions" / f"{split}.safetensors").is_file():
            try:
                return Predictions.load(folder, split, None)
            except StateError as error:
                logging.getLogger("pfedst").warning("%s; the class frequencies of the site are not known", error)
    return None


def _sites(saved: Snapshot) -> list[str]:
    """Return the names of the sites of a saved round."""
    after: Mapping[str, Any] = saved.about.get("after", {})
    return sorted(name for name in after if name != POOLED)
