"""The apps of a stock SuperNode: what a hospital reads that starts one without its options."""

import pytest

pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")

from pfedst.cli.site_app import VARIABLE, hospital
from pfedst.errors import ConfigurationError


@pytest.mark.parametrize("options", [None, ""])
def test_without_options_it_says_which_variable_holds_them(monkeypatch, options) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if options is not None:
        monkeypatch.setenv(VARIABLE, options)
    with pytest.raises(ConfigurationError, match="set PFEDST_SITE to the options of pfedst site: --config"):
        hospital()
