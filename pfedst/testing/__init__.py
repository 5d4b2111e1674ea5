"""For the tests of methods, ours and those of other wheels: the contract, and a federation small enough for it."""

from pfedst.testing.contract import CHECKS, check_method
from pfedst.testing.small import data, encoder, federation, fit, prepared, template, train, trainer

__all__ = ["CHECKS", "check_method", "data", "encoder", "federation", "fit", "prepared", "template", "train", "trainer"]
