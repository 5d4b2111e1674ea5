"""Every registered method keeps the contract; so do the other forms of ours."""

from functools import partial

import pytest
from pfedst_baselines.facmic import FACMIC
from pfedst_baselines.fedclip import FedCLIP
from pfedst_baselines.feddpa import FedDPA
from pfedst_baselines.pfedme import PFedMe
from torch.optim import SGD, AdamW

from pfedst.adapters import AttentionAdapter, LinearHead, LoRATower
from pfedst.errors import ConfigurationError
from pfedst.methods.pfedst import PFedST
from pfedst.methods.registry import registered_methods
from pfedst.testing import CHECKS, check_method

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
    for check in ("declared_is_sent", "buffers_keep_their_dtype", "state_round_trips", "it_learns"):
        if (name, adapter) in ALL_IN_THE_HEAD:
            with pytest.raises(ConfigurationError, match='rule "\\*" matches nothing'):
                check_method(make, check, **model)
        else:
            check_method(make, check, **model)


def test_the_twelve_and_the_reference_rows_are_registered() -> None:
    twelve = "FedAvg FedProx FedRep Ditto PromptFL FedCLIP FACMIC FedOTP FedPGP FedLoRA FFALoRA FedDPA"
    assert {*twelve.split(), "PFedST", "Local", "ZeroShot", "Pooled"} <= set(registered_methods())
