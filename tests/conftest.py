"""What holds for every test."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# the models of these tests are too small for two threads, which would spend their time waiting for each other
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # and so are those in processes that tests start

# hypothesis would fail an example for its seconds, which a busy machine decides
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")


@pytest.fixture(autouse=True, scope="session")
def cache_of_these_tests(tmp_path_factory) -> None:
    """No test reads or writes the user's tap cache."""
    os.environ["PFEDST_CACHE"] = str(tmp_path_factory.mktemp("tap_cache"))
