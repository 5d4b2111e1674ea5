"""Every registered method keeps the contract; so do the other forms of ours. Methods that break it are caught."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.facmic import FACMIC
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.feddpa import FedDPA
from pfedst_baselines.pfedme import PFedMe
from torch.optim import SGD, AdamW

from pfedst.adapters import AttentionAdapter, LinearHead, LoRATower
from pfedst.errors import ConfigurationError
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.pfedst import PFedST
from pfedst.methods.registry import registered_methods
from pfedst.testing import CHECKS, check_method, fit, template

PLAIN_SGD = {"optimizer": partial(SGD, lr=0.005)}
CASES = {
    **registered_methods(),
    "PFedST alternate": partial(PFedST, schedule="alternate"),
    "FedDPA alternate": partial(FedDPA, schedule="alternate"),
    "FedCLIP infonce": partial(FedCLIP, objective="infonce"),
    "FACMIC private statistics": partial(FACMIC, norm_statistics="private"),
}
MODELS = {"PFedMe": PLAIN_SGD}
CLASSIC = ("FedAvg", "FedProx", "FedPer", "FedRep", "Ditto", "APFL", "SCAFFOLD", "FedDyn", "Local", "Pooled", "PFedMe")
ADAPTERS = {
    # random embeddings lie close together, so that a head on them learns slowly
    "LinearHead": {"adapter": LinearHead, "optimizer": partial(AdamW, lr=0.05)},
    "LoRATower": {"adapter": LoRATower},
    "batch norm": {"adapter": partial(AttentionAdapter, batch_norm=True)},
}
ALL_IN_THE_HEAD = {("FedPer", "LinearHead"), ("FedRep", "LinearHead")}
EXEMPT = {
    ("FedDyn", "one_client_is_local_training"): "its server extrapolates: w = mean - h / alpha (Algorithm 1)",
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_contract(name, check) -> None:
    if (name, check) in EXEMPT:
        with pytest.raises(AssertionError):
            check_method(CASES[name], check, **MODELS.get(name, {}))
    else:
        check_method(CASES[name], check, **MODELS.get(name, {}))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", CLASSIC)
def test_classic_methods_run_on_any_adapter(name, adapter) -> None:
    """What differs between adapters: buffers, heads of their own, gradients through the tower."""
    make, model = CASES[name], ADAPTERS[adapter]
    if name == "PFedMe":
        make, model = partial(PFedMe, lam=1.0, inner_learning_rate=0.1), model | {"optimizer": partial(SGD, lr=0.05)}
    if name == "Ditto":  # its twin oscillates around the pull at a rate that suits the others
        model = model | {"optimizer": partial(AdamW, lr=3e-3)}
    for check in ("declared_is_sent", "buffers_keep_their_dtype", "state_round_trips", "it_learns"):
        if (name, adapter) in ALL_IN_THE_HEAD:
            with pytest.raises(ConfigurationError, match='rule "\\*" matches nothing'):
                check_method(make, check, **model)
        else:
            check_method(make, check, **model)


def test_the_twelve_and_the_reference_rows_are_registered() -> None:
    twelve = "FedAvg FedProx FedRep Ditto PromptFL FedCLIP FACMIC FedOTP FedPGP FedLoRA FFALoRA FedDPA"
    assert {*twelve.split(), "PFedST", "Local", "ZeroShot", "Prototypes", "Pooled"} <= set(registered_methods())


class TrainsNothing(FederatedMethod):
    """Whose learned anchors would stay random."""

    personalises = False

    def partition(self, client):
        return [("*", "frozen")]


def test_learned_anchors_of_a_method_that_trains_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="TrainsNothing trains nothing, so anchors: learned would stay random"):
        template(anchors="learned").build("abc", TrainsNothing(), 0)


class SharesNothing(FederatedMethod):
    """Whose generic model would stay at its start."""

    def partition(self, client):
        return [("*", "personal")]


class ForgetsTheBase(FederatedMethod):
    """An __init__ without super()."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (SharesNothing, "SharesNothing shares no tensor, and declares has_generic = True"),
        (ForgetsTheBase, r"ForgetsTheBase: its __init__ must call super\(\).__init__"),
    ],
)
def test_what_an_author_forgets_is_said_before_a_run(method, told) -> None:
    with pytest.raises(ConfigurationError, match=told):
        template().build("abc", method(), 0)


class LosesNothing(FedAvg):
    """A loss without return."""

    def loss(self, client, batch):
        super().loss(client, batch)


class LosesAVector(FedAvg):
    """A loss an image."""

    def loss(self, client, batch):
        return client.adapter(batch.taps)[:, 0]


class LosesAConstant(FedAvg):
    """A loss that nothing changes."""

    def loss(self, client, batch):
        return super().loss(client, batch).detach()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (LosesNothing, "it returns a NoneType"),
        (LosesAVector, r"it returns a tensor \(\d+,\)"),
        (LosesAConstant, "no parameter that is trained changes what it returns"),
    ],
)
def test_a_loss_that_is_no_scalar_ends_the_run_with_one_error(tmp_path, method, told) -> None:
    with pytest.raises(ConfigurationError, match=f"{method.__name__}: loss must return a scalar.*{told}"):
        fit(tmp_path, method(), rounds=1)


# -- methods that break it ---------------------------------------------------------------------------------------


class ReceiveWritesTheMemo(FedAvg):
    """Keeps what it received first, as pFedMe once did: its personal model stayed there for ever."""

    def receive(self, client, payload) -> None:
        super().receive(client, payload)
        client.memo.setdefault("first", payload["net"])


class ReceiveOverwritesTheTwin(Ditto):
    """Starts the personal model anew from each message."""

    def receive(self, client, payload) -> None:
        super().receive(client, payload)
        client.twin.load_state_dict(client.adapter.state_dict())


class PersonalModelMovesWeights(FedAvg):
    """Writes what predicts into the client's own adapter, each time the same."""

    def personal_model(self, client):
        with torch.no_grad():
            for parameter in client.adapter.parameters():
                parameter.clamp_(-0.01, 0.01)
        return client.adapter


class PersonalModelWritesTheMemo(FedAvg):
    """Counts evaluations, so that a client that was evaluated more often is another one."""

    def personal_model(self, client):
        client.memo["evaluations"] = client.memo.get("evaluations", torch.zeros(())) + 1
        return client.adapter


class PersonalModelIsNeverTheSame(FedAvg):
    """Predicts with noise."""

    def personal_model(self, client):
        noisy = copy.deepcopy(client.adapter)
        with torch.no_grad():
            for parameter in noisy.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return noisy


class SendsPersonalTensors(PFedST):
    """Takes them around the declared shared part, by a message of another name."""

    extra_messages = ("more",)
    stored = False

    def upload(self, client):
        state = client.adapter.state_dict()
        return super().upload(client) | {"more": {key: state[key] for key in client.partition.keys("personal")}}

    def merge(self, server, uploads, weights) -> None:
        super().merge(server, uploads, weights)
        if self.stored:
            server["more"] = next(iter(uploads.values()))["more"]


class StoresPersonalTensors(SendsPersonalTensors):
    """And the server keeps them."""

    stored = True


class ServerHoldsATensorOfAClient(FedAvg):
    """Keeps a client's own tensor, which goes on changing at that client."""

    kept: list[torch.Tensor]

    def receive(self, client, payload) -> None:
        super().receive(client, payload)
        type(self).kept = [next(iter(client.shared_tensors().values()))]

    def merge(self, server, uploads, weights) -> None:
        super().merge(server, uploads, weights)
        server["kept"] = {"first": type(self).kept[0]}


class StepsThatIgnoreTheSchedule(PFedMe):
    """Takes inner steps at the same rate in every round."""

    def loss(self, client, batch):
        client.lr_factor, factor = 1.0, client.lr_factor
        try:
            return super().loss(client, batch)
        finally:
            client.lr_factor = factor

    def edit_gradients(self, client) -> None:
        """Any optimiser."""


class MessagesOfTheirOwn(FederatedMethod):
    """Each client gets a mixture of the mean and what it sent, as in FedAMP: no tensor is personal."""

    own = 0.9

    def broadcast(self, server, name):
        return {"net": server.get(name, server["net"])}

    def merge(self, server, uploads, weights) -> None:
        super().merge(server, uploads, weights)
        for name, upload in uploads.items():
            server[name] = {key: mean.lerp(upload["net"][key], self.own) for key, mean in server["net"].items()}


class DoesNotDeclareItsMessages(MessagesOfTheirOwn):
    """Its generic column would be a copy of the personal one."""

    personalises = False


class DoesNotDeclareItsTensors(FedAvg):
    """Inherits that it does not personalise."""

    def partition(self, client):
        return [("side.up.*", "personal"), ("*", "shared")]


class DoesNotDeclareItsTwin(Ditto):
    """Says that all clients predict alike."""

    personalises = False


class DeclaresWhatItDoesNot(FedAvg):
    """Would be evaluated twice."""

    personalises = True


class NobodysModel(FedAvg):
    """Merges nothing."""

    def merge(self, server, uploads, weights) -> None:
        pass


class NoGenericModel(FedAvg):
    """Merges a model and shows none."""

    has_generic = False


class HasALossOfItsOwn(FedAvg):
    """Ignores --model.loss."""

    def loss(self, client, batch):
        return F.cross_entropy(client.adapter(batch.taps), batch.targets)


class HasATermOfItsOwn(Ditto):
    """Ignores --model.loss in the term of its twin, as Ditto once did."""

    def loss(self, client, batch):
        return FedAvg.loss(self, client, batch) + F.cross_entropy(client.twin(batch.taps), batch.targets)


class SaysItHasALossOfItsOwn(FedAvg):
    """Would refuse --model.loss."""

    uses_criterion = False


BROKEN = {
    StepsThatIgnoreTheSchedule: ("the_schedule_scales_every_step", "takes steps of its own"),
    HasALossOfItsOwn: ("classification_uses_the_criterion", "the loss ignores client.criterion"),
    HasATermOfItsOwn: ("classification_uses_the_criterion", "a term of the loss is a cross-entropy of its own"),
    SaysItHasALossOfItsOwn: ("classification_uses_the_criterion", "uses_criterion = False, and its loss calls"),
    DoesNotDeclareItsMessages: ("models_are_as_declared", "declares personalises = False, and .*site_a.* of their own"),
    DeclaresWhatItDoesNot: ("models_are_as_declared", "declares personalises = True, and all clients predict alike"),
    NobodysModel: ("models_are_as_declared", "has_generic = True, and the server's model is that of the start"),
    NoGenericModel: ("models_are_as_declared", "has_generic = False, and the server's model is a merged one"),
    ReceiveWritesTheMemo: ("receive_changes_nothing_that_is_kept", "receive changes the memo"),
    ReceiveOverwritesTheTwin: ("receive_changes_nothing_that_is_kept", "receive changes personal tensors"),
    PersonalModelMovesWeights: ("personal_model_changes_nothing", "personal_model changes tensors"),
    PersonalModelWritesTheMemo: ("personal_model_changes_nothing", "personal_model changes the memo"),
    PersonalModelIsNeverTheSame: ("personal_model_changes_nothing", "two predictions"),
    SendsPersonalTensors: ("server_knows_no_personal_tensor", "a message holds a personal key"),
    StoresPersonalTensors: ("server_knows_no_personal_tensor", "the server holds a personal key"),
    ServerHoldsATensorOfAClient: ("server_knows_no_personal_tensor", "the server holds a tensor of a client"),
}


def test_a_method_that_personalises_by_messages_keeps_the_contract() -> None:
    for check in ("models_are_as_declared", "server_knows_no_personal_tensor", "state_round_trips"):
        check_method(MessagesOfTheirOwn, check)


def test_a_method_that_personalises_by_messages_has_the_merged_model_as_its_generic_one(tmp_path) -> None:
    """Of one round from the same start: the merged model is that of FedAvg, and each site has its own beside it."""
    own, one = fit(tmp_path / "own", MessagesOfTheirOwn(), rounds=1), fit(tmp_path / "one", FedAvg(), rounds=1)
    assert own["generic"] == one["generic"] == one["personal"]
    assert own["personal"] != own["generic"]


def test_a_run_of_a_method_that_does_not_declare_its_messages_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="client site_a predicts with another model.*personalises = True"):
        fit(tmp_path, DoesNotDeclareItsMessages(), rounds=1)


@pytest.mark.parametrize("method", [DoesNotDeclareItsTensors, DoesNotDeclareItsTwin])
def test_a_method_that_does_not_declare_its_tensors_is_refused_before_a_run(method) -> None:
    with pytest.raises(ConfigurationError, match="keeps tensors at clients: declare personalises = True"):
        template().build("abc", method(), 0)


@pytest.mark.parametrize("method", BROKEN, ids=lambda method: method.__name__)
def test_a_method_that_breaks_the_contract_is_caught(method) -> None:
    check, words = BROKEN[method]
    with pytest.raises(AssertionError, match=words):
        check_method(method, check)
