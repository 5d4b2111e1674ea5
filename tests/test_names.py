"""Names of one class, site or group in one spelling, and names that look alike."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedst.names import alike_names, plain_name, respelled


@pytest.mark.parametrize(
    "text",
    ["Nävus", " Nävus", "Nävus\t", "Nävus\u00a0", "\ufeffNävus\u200b", unicodedata.normalize("NFD", "Nävus"), "N\u0061\u0308vus \n"],
)  # fmt: skip
def test_one_spelling(text) -> None:
    assert plain_name(text) == "N\u00e4vus"


def test_what_no_reader_takes_for_the_same_stays() -> None:
    for text in (
        "no DR",
        "a\u200db",
        "x-",
        "-1",
        "北京医院",
        "nan",
        "0",
        "M\u00fcller & S\u00f6hne",
        "\u5317\u0020\u4eac",
    ):
        assert plain_name(text) == text
    assert plain_name(7) == "7"
    assert plain_name(" \u200b ") == ""


@given(st.text(max_size=12))
def test_a_spelling_is_stable(text) -> None:
    assert plain_name(plain_name(text)) == plain_name(text) == plain_name(f" {text}\n")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["mel", "Mel", "nv"], [["Mel", "mel"]]),
        (["no DR", "no_dr", "NO-DR", "no  dr"], [["NO-DR", "no  dr", "no DR", "no_dr"]]),
        (["Straße", "STRASSE"], [["STRASSE", "Straße"]]),
        (["\uff21", "a", "b\u200db", "bb"], [["a", "\uff21"], ["bb", "b\u200db"]]),
        (["1", "01", "1.0", "10"], [["01", "1", "1.0"]]),
        (["HER2", "HER2-", "HER2+", "a", "b", "1", "-1", "1.5", "0"], []),
        (["Bonn", "Bonn"], []),
    ],
)
def test_alike(names, expected) -> None:
    assert alike_names(names) == expected


def test_respelled() -> None:
    assert respelled("class", {"a": ["a", "a "], "b": ["b", "b"]}) == ['class "a" (2 spellings)']
