"""What holds for every test."""

import functools
import gc
import os
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings

# hypothesis would fail an example for its seconds, which a busy machine decides
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")

_variables: dict[str, str] = {}
"""Those with which the fork server was started."""


def pytest_configure(config: pytest.Config) -> None:
    """Import what tests need, and start the fork server; not in the process that only hands out tests to workers.

    With coverage that process imports too: it alone counts the lines that run at import.
    """
    hands_out_tests = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if hands_out_tests and not config.getoption("cov_source", None):
        return
    import torch
    from lightning.fabric.utilities import registry

    import pfedst.cli.federated  # noqa: F401  # all that a child needs
    from pfedst.child_processes import start_fork_server
    from pfedst.methods.registry import registered_methods

    # the models of these tests are too small for two threads, which would spend their time waiting for each other
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # and so are those in processes that tests start
    # Lightning reads the metadata of all installed packages for every Trainer
    registry.entry_points = functools.cache(registry.entry_points)
    registered_methods()  # imports them
    _variables.update(os.environ)
    start_fork_server()  # before anything is computed: what tests start as children needs no seconds of imports
    gc.freeze()  # the collector need not visit a million objects of imported modules again and again


@pytest.fixture(autouse=True, scope="session")
def no_loss_of_power() -> Iterator[None]:
    """No test waits until the disk has written: what is killed here is a process, and never the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def cache_of_these_tests(tmp_path_factory) -> None:
    """No test reads or writes the user's tap cache."""
    os.environ["PFEDST_CACHE"] = str(tmp_path_factory.mktemp("tap_cache"))


def pytest_collection_finish() -> None:
    """Take back the variables that libraries have set when test modules imported them (scikit-learn: `KMP_*`)."""
    if _variables:
        _restore(_variables)


@pytest.fixture(autouse=True)
def variables_as_before(cache_of_these_tests) -> Iterator[None]:
    """No test leaves environment variables behind: with others than the fork server's, children are not forked."""
    before = dict(os.environ)
    yield
    _restore(before)


def _restore(before: Mapping[str, str]) -> None:
    from pfedst.child_processes.environment import apply_changes, changes_between

    changes = changes_between(os.environ, before)
    changes.pop("PYTEST_CURRENT_TEST", None)  # pytest's own
    apply_changes(changes)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """Take back a variable that pytest changes from phase to phase: a child with other variables is not forked."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)
