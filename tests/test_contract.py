"""Every registered method keeps the contract."""

import pytest

from pfedst.registry import registered_methods
from pfedst.side_tuning import PFedST
from tests import contract

METHODS = registered_methods()
CASES = {**METHODS, "PFedST alternate": lambda: PFedST(schedule="alternate")}


def test_ours_are_registered() -> None:
    assert {"PFedST", "FedAvg", "Local", "ZeroShot"} <= set(METHODS)


@pytest.mark.parametrize("check", contract.ALONE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name, check) -> None:
    check(CASES[name]())


@pytest.mark.parametrize("check", contract.WITH_FOLDER, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract_of_a_run(name, check, tmp_path) -> None:
    check(CASES[name](), tmp_path)
