"""The server holds no image and no personal tensor: all objects that it can reach in memory, and all its files."""

from collections import deque
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedper import FedPer
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from pfedst.cli import main
from pfedst.client.calibration_file import Calibration
from pfedst.client.client import Client
from pfedst.client.model import ClientModel
from pfedst.client.module import FederatedClient
from pfedst.client.predictions import Predictions
from pfedst.client.state import SiteState
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.messages.payload import raw_bytes
from pfedst.methods.pfedst import PFedST
from pfedst.server import coordinator as coordinator_module
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.rounds import RoundLoop
from pfedst.server.server import Server
from pfedst.testing.small import fit
from pfedst.transport.in_process import InProcess
from pfedst.transport.processes import Processes
from tests.server.reachable import Way, in_words, reachable

OF_A_CLIENT = (Client, LocalTrainer, SiteState, Predictions, Calibration)
OF_IMAGES = (FederatedDataModule, Dataset, DataLoader, Image.Image)
IMAGE_SIZE = 32
PROCESSES = {"transport": "processes", "workers": 2, "threads": 1}
IN_PROCESS = {"transport": "in_process"}


def tells_apart(tensor) -> bool:
    """True for a tensor that is equal to another one by no accident."""
    return tensor.numel() > 4 and tensor.unique().numel() > 1


def personal_state(run):
    """By their bytes the names of all tensors that the sites of a run have saved and have not sent.

    These are personal tensors, memos, the state of optimisers, and all that was fine-tuned. A twin of a shared tensor
    may equal it for some steps: it is not personal yet.
    """
    found = {}
    for file in (run / "sites").glob("*/after-*/client.safetensors"):
        message = file.with_name("message.safetensors")
        sent = {bytes(raw_bytes(tensor)) for tensor in load_file(message).values()} if message.exists() else ()
        for key, tensor in load_file(file).items():
            content = bytes(raw_bytes(tensor))
            if tells_apart(tensor) and content not in sent:
                found[content] = f"{file.parent.parent.name}: {key}"
    return found


class Watch:
    """Looks at everything that the server can reach, at every merge and after every round."""

    def __init__(self) -> None:
        self.looked = 0
        self.personal = {}
        self.found: list[str] = []
        self.tensors = 0

    def look(self, run, roots, transport) -> None:
        """Look at all that can be reached from `roots`, as far as the transport."""
        self.looked += 1
        self.personal |= personal_state(run)
        client = transport
        while not isinstance(client, Client):  # a transport may wrap another
            client = client.transport if hasattr(client, "transport") else client.client
        theirs = (client.module, client.model, client.generic)
        memory = {tensor.untyped_storage().data_ptr() for tensor in client.model.own_tensors().values()}

        def stops(found) -> bool:
            return isinstance(found, InProcess | Processes)

        for way, found in reachable(roots, stops):
            if isinstance(found, (*OF_A_CLIENT, *OF_IMAGES)) or any(found is one for one in theirs):
                self._report(type(found).__name__, way)
            if isinstance(found, FederatedClient) and found._trainer is not None:
                self._report("the module of a local fit", way)
            if isinstance(found, ClientModel) and (found.memo or found.received or found.optimizer_state):
                self._report("the state of a client", way)
            if isinstance(found, torch.Tensor):
                self._look_at(way, found.detach().cpu(), memory)

    def _look_at(self, way: Way, tensor, memory) -> None:
        self.tensors += 1
        if tensor.numel() and tensor.untyped_storage().data_ptr() in memory:
            self._report("memory of a client", way)
        if tensor.shape[-3:] == (3, IMAGE_SIZE, IMAGE_SIZE):
            self._report("an image", way)
        if name := self.personal.get(bytes(raw_bytes(tensor))):
            self._report(name, way)

    def _report(self, what: str, way: Way) -> None:
        self.found.append(f"{what} by {in_words(way)}")


@pytest.fixture
def watch(monkeypatch):
    """Watches every run of a test."""
    watching, running = Watch(), []
    run, merge, end_round = RoundLoop.run, Server.merge, RoundLoop._end_round
    fit_, finetune = FederatedCoordinator.fit, RoundLoop._finetune

    def look(messages=None) -> None:
        coordinator, loop = running
        parts = {"fits": loop.fits, "hooks": loop.hooks, "server": loop.server, "summary": loop.summary}
        roots = {"coordinator": coordinator, "messages": messages, **parts, "loop": loop}
        watching.look(loop.run_folder.path, roots, loop.transport)

    def watched_fit(self, *arguments, **options):
        running[:] = [self]
        return fit_(self, *arguments, **options)

    def watched_run(self):
        running.append(self)
        run(self)
        look()

    def watched_merge(self, messages):
        look(messages)
        merge(self, messages)

    def watched_round(self, *arguments):
        ended = end_round(self, *arguments)
        look()
        return ended

    def watched_finetuning(self):
        finetune(self)
        look()

    monkeypatch.setattr(FederatedCoordinator, "fit", watched_fit)
    monkeypatch.setattr(RoundLoop, "run", watched_run)
    monkeypatch.setattr(Server, "merge", watched_merge)
    monkeypatch.setattr(RoundLoop, "_end_round", watched_round)
    monkeypatch.setattr(RoundLoop, "_finetune", watched_finetuning)
    return watching


def check(watching, run) -> None:
    assert watching.looked >= 4
    assert watching.tensors > 100
    assert sorted(set(watching.found)) == []
    assert watching.personal, "nothing is personal: the test tests nothing"
    states = list((run / "state").rglob("*.safetensors"))
    assert {file.name for file in states} == {"server.safetensors"}
    for file in states:
        for key, tensor in load_file(file).items():
            assert not key.rsplit(".", 1)[-1].startswith("lora_"), key
            assert not tells_apart(tensor) or bytes(raw_bytes(tensor)) not in watching.personal, key


@pytest.mark.parametrize("transport", [IN_PROCESS, PROCESSES], ids=lambda options: options["transport"])
def test_of_a_run(tmp_path, watch, transport) -> None:
    options = {"optimizer_state": "keep", "held_out_sites": ["site_b"], **transport}
    fit(tmp_path, PFedST(finetune_epochs=1), **options)
    check(watch, tmp_path / "run")


@pytest.mark.parametrize("method", [Ditto, FedPer])
def test_of_a_run_of_other_methods(tmp_path, watch, method) -> None:
    fit(tmp_path, method())
    check(watch, tmp_path / "run")


def test_of_a_run_whose_fits_are_shown(tmp_path, watch) -> None:
    """A progress bar keeps the Trainer of the fit that it showed, and with it the client's module and images."""
    shown = {"callbacks": [TQDMProgressBar(), ModelSummary()], "enable_progress_bar": True}
    fit(tmp_path, PFedST(), trainer_options=shown | {"logger": CSVLogger(tmp_path / "csv")})
    check(watch, tmp_path / "run")


class Keeps(Callback):
    """Keeps all that callbacks get."""

    def __init__(self) -> None:
        self.found = []

    def on_validation_end(self, trainer, model) -> None:
        self.found.append((trainer, model, dict(model.state_dict())))


def test_of_what_callbacks_see(tmp_path, watch) -> None:
    keeps = Keeps()
    fit(tmp_path, PFedST(), trainer_options={"callbacks": [keeps]})
    assert keeps.found
    check(watch, tmp_path / "run")


# -- what is hidden is found -------------------------------------------------------------------------------------------


class Slots:
    __slots__ = ("value",)

    def __init__(self, value) -> None:
        self.value = value

    def method(self):
        return self.value


def closure(value):
    return lambda: value


def generator(value):
    yield value
    yield value


HIDING_PLACES = {
    "closure": closure,
    "default": lambda value: lambda x=value: x,
    "slot": Slots,
    "bound method": lambda value: Slots(value).method,
    "partial": lambda value: partial(print, value),
    "deque": lambda value: deque([value]),
    "key": lambda value: {(1, value): 2},
    "generator": lambda value: (found := generator(value), next(found)) and found,
    "attribute of a tensor": lambda value: setattr(found := torch.ones(1), "note", value) or found,
    "hook": lambda value: (found := torch.nn.Linear(1, 1)).register_forward_hook(closure(value)) and found,
    "exception": lambda value: ValueError(value),
}


@pytest.mark.parametrize("hide", HIDING_PLACES.values(), ids=HIDING_PLACES)
def test_the_walk_finds_what_is_hidden(hide) -> None:
    secret = Slots(1)
    place = [{"a": hide(secret)}]
    assert any(found is secret for _, found in reachable({"root": place}, lambda found: False))
    assert not any(found is secret for _, found in reachable({"root": place}, lambda found: isinstance(found, dict)))


class KeepsPersonalTensors(PFedST):
    """Of a client, on the server's side: a method serves both, and may keep nothing."""

    def upload(self, client):
        self.kept = {key: client.adapter.state_dict()[key].clone() for key in client.partition.keys("personal")}
        return super().upload(client)


class KeepsAClient(PFedST):
    def upload(self, client):
        self.kept = closure(client)
        return super().upload(client)


class KeepsImages(PFedST):
    def loss(self, client, batch):
        self.kept = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
        return super().loss(client, batch)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (KeepsPersonalTensors, "lora_A by "),
        (KeepsAClient, "ClientModel by "),
        (KeepsImages, "an image by "),
    ],
)
def test_what_a_method_keeps_is_found(tmp_path, watch, method, words) -> None:
    fit(tmp_path, method(), rounds=1)
    assert any(words in found for found in watch.found)


# -- by the command: what a configuration makes may refer to all that was made with it ---------------------------------

COMMAND = [
    "fit",
    "--method=PFedST",
    "--model.encoder.model=vit-nano",
    "--model.encoder.weights=random",
    f"--model.encoder.image_size={IMAGE_SIZE}",
    "--model.anchors=prototypes",
    "--model.adapter=SideNetwork",
    "--model.optimizer=AdamW",
    "--model.optimizer.lr=0.01",
    "--data=SyntheticSites",
    "--data.sites=2",
    "--data.samples_per_site=[12,10]",
    "--data.test_samples_per_site=[8,8]",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=true",
    "--trainer.logger=CSVLogger",
    "--coordinator.rounds=2",
    "--name=run",
]


@pytest.mark.parametrize("transport", ["in_process", "processes"])
def test_of_a_run_by_the_command(tmp_path, watch, transport) -> None:
    workers = ["--coordinator.workers=1"] if transport == "processes" else []
    options = [f"--runs_dir={tmp_path}", f"--coordinator.transport={transport}", *workers]
    assert main([*COMMAND, *options]) == 0
    check(watch, tmp_path / "run")
    if not workers:
        assert main([*COMMAND, *options, "--coordinator.rounds=3", "--resume"]) == 0
        check(watch, tmp_path / "run")


def test_of_an_evaluation_by_the_command(tmp_path, watch, monkeypatch) -> None:
    assert main([*COMMAND, f"--runs_dir={tmp_path}"]) == 0
    made, evaluate = [], coordinator_module.evaluate_all
    make = FederatedCoordinator._server

    def remembered(self, *arguments):
        made[:] = [self, make(self, *arguments)]
        return made[1]

    def watched(transport, *arguments):
        looked = evaluate(transport, *arguments)
        watch.look(tmp_path / "run", {"coordinator": made[0], "server": made[1], "evaluation": looked}, transport)
        return looked

    monkeypatch.setattr(FederatedCoordinator, "_server", remembered)
    monkeypatch.setattr(coordinator_module, "evaluate_all", watched)
    before = watch.looked
    config = str(tmp_path / "run/config.yaml")
    assert main(["test", "--config", config, f"--ckpt_path={tmp_path / 'run'}"]) == 0
    assert watch.looked == before + 1
    check(watch, tmp_path / "run")
