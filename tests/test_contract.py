"""Every registered method keeps the contract; so do the other forms of ours."""

from functools import partial

import pytest
from torch.optim import SGD

from pfedst.adapters import AttentionAdapter, LinearHead, LoRATower
from pfedst.baselines.facmic import FACMIC
from pfedst.baselines.fedclip import FedCLIP
from pfedst.baselines.feddpa import FedDPA
from pfedst.registry import registered_methods
from pfedst.side_tuning import PFedST
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
ADAPTERS = {"LinearHead": LinearHead, "LoRATower": LoRATower, "batch norm": partial(AttentionAdapter, batch_norm=True)}
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
    model = MODELS.get(name, {}) | {"adapter": ADAPTERS[adapter]}
    for check in ("declared_is_sent", "buffers_keep_their_dtype", "state_round_trips", "it_learns"):
        if (name, adapter) == ("FedPer", "LinearHead") or (name, adapter) == ("FedRep", "LinearHead"):
            continue
        check_method(CASES[name], check, **model)


def test_the_twelve_and_the_reference_rows_are_registered() -> None:
    twelve = "FedAvg FedProx FedRep Ditto PromptFL FedCLIP FACMIC FedOTP FedPGP FedLoRA FFALoRA FedDPA"
    assert {*twelve.split(), "PFedST", "Local", "ZeroShot", "Pooled"} <= set(registered_methods())
