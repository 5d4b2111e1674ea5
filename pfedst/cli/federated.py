"""`fit`, `validate` and `test` by LightningCLI's conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from pfedst.child_processes import start_fork_server
from pfedst.cli.dry_run import DryRun
from pfedst.cli.parser import Parser
from pfedst.cli.resume import check_same_configuration, is_unused, resumable
from pfedst.cli.study import local_options, study_options
from pfedst.client.lightning_options import check_callback, check_trainer, explain_trainer
from pfedst.client.module import FederatedClient
from pfedst.client.state import site_folder
from pfedst.client.training import LEAN_TRAINER, LocalTrainer
from pfedst.configuration.renamed_options import CONFIG_FORMAT
from pfedst.data import FederatedDataModule, Split
from pfedst.deployment.options import NEED_IMAGES, FlowerOptions, check_centre
from pfedst.deployment.requirement import check_flower
from pfedst.errors import ConfigurationError, PfedstError, WeightsError
from pfedst.inference.artefact_files import is_model
from pfedst.joining import evaluate_model
from pfedst.methods.interface import FederatedMethod
from pfedst.reporting import RunFolder, print_summary
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.warm_start import WarmStart
from pfedst.simulation import Simulation, evaluate
from pfedst.state import write_json, writing
from pfedst.state.round_choices import LAST
from pfedst.state.run_state import RunState
from pfedst.version import __version__

if TYPE_CHECKING:
    from pfedst.deployment.centre import Centre

ENVIRONMENT = "PFEDST"
"""Prefix of environment variables that set options."""
KNOWN_CAUSES = (PfedstError, ModuleNotFoundError, MisconfigurationException)
"""Errors of a class of the configuration that name their remedy."""


class PFedSTCLI(LightningCLI):
    """The command line: `method`, `model`, `data`, `coordinator`, `trainer`, `seed_everything`.

    Lightning calls this class's `fit`, `validate` and `test` in place of the Trainer's. The Trainer runs the local
    fits; `trainer.max_epochs` is the number of local epochs a round.

    Attributes:
        summary: what the command has computed.
        folder: of the run that `fit` wrote; None without one.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.summary: dict[str, Any] = {}
        self.folder: Path | None = None
        self.command = arguments[0]
        # Lightning would write the whole configuration once more, for hyper-parameters that nothing here reads
        self.config_dump: dict[str, Any] = {}
        super().__init__(
            FederatedClient,
            FederatedDataModule,
            subclass_mode_data=True,
            trainer_defaults=dict(LEAN_TRAINER),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_class=Parser,
            parser_kwargs={"default_env": True, "env_prefix": ENVIRONMENT},
            args=list(arguments),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # of an object: for the command it runs
        """Return the command, with the arguments of the Trainer's method of that name that are no options here.

        Parsers of the other commands would take half a second to build.
        """
        loaders = {"model", "dataloaders", "datamodule", "verbose", "weights_only"}
        fit = {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"}
        return {self.command: fit if self.command == "fit" else loaders}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups that LightningCLI does not know."""
        parser.add_subclass_arguments(FederatedMethod, "method", required=True)
        parser.add_class_arguments(FederatedCoordinator, "coordinator")
        parser.add_class_arguments(FlowerOptions, "flower")
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="name of the run folder; it must not exist, except with --resume",
        )
        parser.add_argument(
            "--init",
            type=str | None,
            default=None,
            help="start from the shared tensors and class anchors of another run: RUN, its last round; RUN@best, "
            "its best round on validation",
        )
        parser.add_argument(
            "--resume",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="continue the run of this name, if it exists; the results are those of a run without interruption",
        )
        parser.add_argument(
            "--dry_run",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="do all checks and a few steps without writing a run; print bytes, disk, memory and time of the run",
        )
        if self.command != "fit":
            parser.add_argument(
                "--round",
                type=str,
                default=LAST,
                help="round to evaluate: last, best (on validation), or the number of a saved round",
            )
            parser.add_argument(
                "--site",
                type=str | None,
                default=None,
                help="evaluate only this site; images of the others need not be on disk",
            )
        parser.add_argument(
            "--pfedst_version", type=str | None, default=None, help="written by pfedst: version that wrote the file"
        )
        parser.add_argument(
            "--config_format", type=int | None, default=None, help="written by pfedst: format of the file"
        )
        parser.add_argument(
            "--runs_dir", type=Path, default=Path("runs"), help="folder in which run folders are created"
        )
        what = "--config NAME|FILE" if self.command == "fit" else "RUN|MODEL"
        parser.usage = f"pfedst {self.command} {what} [--KEY VALUE ...]"
        parser.description = getattr(type(self), self.command).__doc__
        # few options of the Trainer matter to a federated run: they come last
        parser._action_groups = sorted(
            parser._action_groups, key=lambda of: any(action.dest == "trainer" for action in of._group_actions)
        )
        parser.set_defaults(
            {
                "model.encoder": {"class_path": "pfedst.encoders.FrozenCLIP"},
                # as a class with options, and not as a function, --model.optimizer.lr alone changes it
                "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-4}},
                "model.loss": {"class_path": "pfedst.methods.criteria.BalancedSoftmax"},
            }
        )

    def _set_seed(self) -> None:
        """Set the seed of the global generators.

        Raises:
            ConfigurationError: the seed is no seed of numpy.
        """
        try:
            super()._set_seed()
        except ValueError as error:
            raise ConfigurationError(f"--seed_everything: {error}") from error

    def instantiate_classes(self) -> None:
        """Build the objects of the configuration; errors of their classes are raised unchanged."""
        if self._get(self.config, "coordinator").transport == "processes":
            start_fork_server()  # now: all is imported, and nothing is computed yet
        try:
            super().instantiate_classes()
        except WeightsError:
            if not self._is_centre:
                self._check_tables()
            raise
        except ValueError as error:  # the parser's, which lists every branch of a union, with a class's error as cause
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, KNOWN_CAUSES):
                cause = cause.__cause__
            if cause is None:
                raise
            if isinstance(cause, ModuleNotFoundError):  # of a logger: what pfedst itself needs is there by now
                extras = "pip install 'pfedst[wandb]' or 'pfedst[tensorboard]'"
                raise ConfigurationError(f"{cause}; loggers come with {extras}") from error
            if isinstance(cause, MisconfigurationException):  # of a callback
                raise ConfigurationError(f"--trainer.callbacks: {cause}") from error
            raise cause from None

    def _check_tables(self) -> None:
        """Read the tables of the images: a wrong path can be mended without the weights that an encoder lacks."""
        data = Namespace(data=self._get(self.config, "data"))  # type: ignore[no-untyped-call]
        self._parser(self.command).instantiate_classes(data, instantiate_groups=False).data.found()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer.

        Raises:
            ConfigurationError: it cannot be built from these options.
        """
        callbacks = self._get(self.config_init, "trainer").get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        for callback in callbacks:
            check_callback(callback)  # before the Trainer, which refuses a checkpoint for its own reasons
        if any(isinstance(callback, ProgressBar) for callback in callbacks):
            kwargs["enable_progress_bar"] = True
        try:
            made = super().instantiate_trainer(**kwargs)
        except PfedstError:
            raise
        except Exception as error:  # options that do not go together, or no such device: Lightning raises many kinds
            options = self._get(self.config, "trainer")
            given = {name: value for name, value in vars(options).items() if value != self._lean().get(name)}
            raise explain_trainer(error, given) from error
        precision = str(self._get(self.config, "trainer").precision)
        if precision in ("16", "16-mixed") and made.precision == "bf16-mixed":  # Lightning's choice on a CPU
            raise ConfigurationError(f"--trainer.precision {precision}: it needs a GPU; use bf16-mixed on a CPU")
        return made

    def _lean(self) -> dict[str, Any]:
        """Return the Trainer's options if nothing is said of it."""
        return {key.removeprefix("trainer."): value for key, value in self.defaults().items()}

    def say(self, text: str) -> None:
        """Tell the user a line."""
        print(text)

    def show(self, summary: Mapping[str, Any]) -> None:
        """Show the table of a run."""
        print_summary(summary)

    # -- commands ----------------------------------------------------------------------------------------------

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **options: Any) -> None:
        """Train, print the table and leave a run folder."""
        if self._is_centre:
            check_centre({name: self._get(self.config, name) for name in NEED_IMAGES})
        else:
            self._get(self.config_init, "flower").check_unused()
        ckpt_path = options.get("ckpt_path")
        if ckpt_path not in (None, "last"):
            raise ConfigurationError(f"--ckpt_path {ckpt_path}: fit continues `last`, of the run named by --name")
        resume = ckpt_path == "last" or self._get(self.config, "resume")
        text = self._resolved()
        run = self._run_to_continue(text) if resume else None
        finished = None if run is None else run.summary()
        if run is None:
            RunFolder.check_new(self._runs_dir, self._get(self.config, "name"))
        if run is not None and finished is not None and self._has_all_rounds(finished):
            self.summary = finished
            self.folder = run.path
            self.show(finished)
            self.say(f"{run.path} is finished; with more --coordinator.rounds it would continue")
            return
        with ExitStack() as stack:
            with resumable("nothing was trained yet, and what is cached is kept. Give the same command again"):
                made = self._checked(model, datamodule, text, self._warm_start(run), stack)
            if self._get(self.config, "dry_run"):
                assert isinstance(made, Simulation)
                print(DryRun(made, self._runs_dir).text())
                return
            # made when all is checked, so that a mistake leaves no folder behind
            continued, name = run is not None, self._get(self.config, "name")
            run = run or RunFolder.create(self._runs_dir, name, self._default_name(datamodule))
            self.folder = run.path
            run.write_config(text)
            with resumable(
                f"what had ended is saved. To continue, give the same command with --name {run.path.name} --resume true"
            ):
                self.summary = made.fit(run, continued)
        self.show(self.summary)
        self.say(f"{run.path / 'summary.json'}")

    @property
    def _is_centre(self) -> bool:
        """True for a run between hospitals, whose images are not on this machine."""
        return bool(self._get(self.config, "coordinator").transport == "flower")

    def _warm_start(self, run: RunFolder | None) -> WarmStart | None:
        """Return the run that `--init` names; a run that has saved a round reads it no more."""
        text = self._get(self.config, "init")
        if text is None:
            return None
        if run is not None and RunState(run.state).rounds():
            return WarmStart.continued(run.identity())
        return WarmStart.of_run(text)

    def _checked(
        self,
        model: FederatedClient,
        datamodule: FederatedDataModule,
        text: str,
        warm_start: WarmStart | None,
        stack: ExitStack,
    ) -> Simulation | Centre:
        """Return the run, built and checked; print the findings of the audit. `stack` closes a centre."""
        if self._is_centre:
            return stack.enter_context(self._centre(model, datamodule, text))
        if warm_start is not None:
            datamodule.use_classes(warm_start.classes, all_of_them=True)
        check_trainer(self.trainer)  # before the images are read
        datamodule.prepare(model.encoder.preprocessing)
        if datamodule.report is not None:
            self.say(datamodule.report.headline() + "; for the full report run pfedst data audit with the same options")
        coordinator, method = self._get(self.config_init, "coordinator"), self._get(self.config_init, "method")
        study, fills_cache = study_options(text, self.defaults()), not self._get(self.config, "dry_run")
        given = coordinator, model, datamodule, method, self.trainer, self._seed()
        return Simulation(*given, study, fills_cache, warm_start)

    def _centre(self, model: FederatedClient, datamodule: FederatedDataModule, text: str) -> Centre:
        """Return the centre of a run between hospitals; not connected."""
        check_flower()
        from pfedst.deployment.centre import Centre

        coordinator, method = self._get(self.config_init, "coordinator"), self._get(self.config_init, "method")
        given = coordinator, self._get(self.config_init, "flower"), model, datamodule, method, self.trainer
        defaults = self.defaults()
        study, local = study_options(text, defaults), local_options(text, defaults, "data.init_args.")
        return Centre(*given, self._seed(), study, local)

    def _has_all_rounds(self, finished: Mapping[str, Any]) -> bool:
        rounds: int = self._get(self.config_init, "coordinator").options.rounds
        return bool(finished["protocol"]["rounds"] >= rounds)

    def _default_name(self, datamodule: FederatedDataModule) -> str:
        method = self._get(self.config_init, "method")
        return f"{type(method).__name__}-{type(datamodule).__name__}-seed{self._seed()}"

    @property
    def _runs_dir(self) -> Path:
        return Path(self._get(self.config, "runs_dir"))

    def _resolved(self) -> str:
        """Return the resolved configuration as YAML, with the versions that wrote it."""
        config = self.config["fit"]
        config["pfedst_version"], config["config_format"] = __version__, CONFIG_FORMAT
        text: str = self._parser("fit").dump(config, skip_unset=False)
        return text

    def defaults(self) -> dict[str, Any]:
        """Return the defaults of all options of `fit` that belong to no class of the configuration."""
        return dict(self._parser("fit").get_defaults().items(nested=True))

    def _run_to_continue(self, text: str) -> RunFolder | None:
        """Return the run that has the given name, if it can be continued; None if there is none."""
        name = self._get(self.config, "name")
        if name is None:
            raise ConfigurationError("--resume: give the --name of the run to continue")
        folder = self._runs_dir / name
        if is_unused(folder) or not (folder / "config.yaml").is_file():
            return None
        check_same_configuration(folder, text, self.defaults())
        return RunFolder(folder)

    def validate(self, model: FederatedClient, datamodule: FederatedDataModule, **options: Any) -> None:
        """Evaluate a finished run on the validation split."""
        self._evaluate(model, datamodule, options.get("ckpt_path"), "validation")

    def test(self, model: FederatedClient, datamodule: FederatedDataModule, **options: Any) -> None:
        """Evaluate a finished run on the test split."""
        self._evaluate(model, datamodule, options.get("ckpt_path"), "test")

    def _evaluate(self, model: FederatedClient, datamodule: FederatedDataModule, ckpt_path: Any, split: Split) -> None:
        self.refuse_dry_run()
        if any(argument.partition("=")[0] == "--init" for argument in Parser.arguments):
            raise ConfigurationError("--init: only pfedst fit has a warm start; leave it out")
        if ckpt_path is None or not Path(str(ckpt_path)).is_dir():
            raise ConfigurationError(f"--ckpt_path {ckpt_path}: give the folder of a run, such as runs/NAME")
        coordinator: FederatedCoordinator = self._get(self.config_init, "coordinator")
        method, folder = self._get(self.config_init, "method"), Path(str(ckpt_path))
        seed, choice, site = self._seed(), str(self._get(self.config, "round")), self._get(self.config, "site")
        parts = [split, *([] if choice == LAST else [choice]), *([] if site is None else [site_folder(site)])]
        if is_model(folder):
            if choice != LAST:
                raise ConfigurationError(f"--round {choice}: {folder} is an exported model; leave the option out")
            local = LocalTrainer(self.trainer)
            self.summary = evaluate_model(coordinator, model, datamodule, method, local, folder, split, seed, site)
            # here: the folder of a model is what was exported
            file = Path(f"{folder.resolve().name}-{'-'.join(parts)}.json")
        else:
            given = coordinator, model, datamodule, method, self.trainer, folder, split, seed
            self.summary = evaluate(*given, choice, site)
            file = folder / f"{'-'.join(parts)}.json"
        with writing(file):
            write_json(file, self.summary)
        self.show(self.summary)
        self.say(str(file))

    def refuse_dry_run(self) -> None:
        """Refuse the option where it would have no effect."""
        if self._get(self.config, "dry_run"):
            raise ConfigurationError("--dry_run: only pfedst fit has a dry run; leave it out")

    def _seed(self) -> int:
        seed = self._get(self.config, "seed_everything")
        if seed is None or seed is False:  # `true` has been replaced by a number by now
            raise ConfigurationError("--seed_everything: give a number; results must be repeatable")
        return int(seed)
