"""The defaults on skewed sites: real images once went from 45.4 to 18.4 % with the former ones, without a word."""

from functools import partial

import pytest
import torch

from pfedst.client.module import DEFAULT_LOSS
from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import data, fit, template

SITES = {"samples_per_site": [160, 120, 80], "test_samples_per_site": [12] * 3, "label_skew": 0.3}
FORMER = {"loss": None, "optimizer": partial(torch.optim.AdamW, lr=1e-3)}


def validation(folder, method, model, **coordinator):
    """Mean over sites of balanced accuracy on validation before the first round and after the last one; warnings."""
    made = template(method, **model)
    sites = data(**SITES, validation_fraction=0.3)
    summary = fit(folder, method, sites=sites, model=made, rounds=6, evaluate_every=6, **coordinator)
    first = summary["at_priors"]["first"]["validation"]["personal"]["balanced"]["mean"]["balanced_accuracy"]
    return first, summary["validation"]["personal"]["mean"]["balanced_accuracy"], summary["warnings"]


def test_the_defaults_are_better_than_no_training_where_the_former_ones_were_worse_and_say_so(tmp_path) -> None:
    start, after, warnings = validation(tmp_path / "now", PFedST(), {"loss": DEFAULT_LOSS})
    assert after > start + 0.05
    assert not [warning for warning in warnings if warning["site"] is None]
    method = PFedST(weighting="samples")
    same, former, warnings = validation(tmp_path / "former", method, FORMER, optimizer_state="reset")
    assert same == pytest.approx(start)
    assert former < start
    (of_the_mean,) = [w for w in warnings if w["site"] is None and w["what"] == "below_start"]
    assert (of_the_mean["start"], of_the_mean["now"]) == (pytest.approx(start), pytest.approx(former))
