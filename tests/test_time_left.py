import pytest

from pfedst.time_left import time_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 0 s left"),
        (119.0, "about 119 s left"),
        (130.0, "about 2 min left"),
        (7199.0, "about 120 min left"),
        (9000.0, "about 2.5 h left"),
    ],
)
def test_the_unit_suits_the_time(seconds, words) -> None:
    assert time_left(seconds) == words
