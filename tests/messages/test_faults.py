"""Faults: what a client's error becomes, and which errors are no client's fault."""

import multiprocessing

import pytest

from pfedst.errors import ConfigurationError, DataError, NoAnswerError, NotFiniteError, StateError
from pfedst.messages.faults import Fault, FaultTexts


def raised(error):
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize("error", [StateError, NotFiniteError, DataError, NoAnswerError])
def test_an_error_with_a_remedy_keeps_its_words(error) -> None:
    fault = Fault.of(raised(error("remove this file")))
    assert (fault.kind, fault.text) == (error.__name__, "remove this file")
    assert "Traceback" not in fault.text
    with pytest.raises(error, match="remove this file"):
        fault.stop()


def test_a_defect_keeps_its_traceback() -> None:
    fault = Fault.of(raised(ZeroDivisionError("a defect")))
    assert fault.kind == "ZeroDivisionError"
    assert fault.text.startswith("Traceback")
    assert fault.text.endswith("ZeroDivisionError: a defect")
    assert fault.error is None
    with pytest.raises(RuntimeError, match="a defect"):
        fault.stop()


def test_the_kind_says_nothing_of_images() -> None:
    """Records keep the kind alone."""
    assert "4711" not in Fault.of(raised(ValueError("patient 4711"))).kind


def test_an_option_that_cannot_work_is_no_fault_of_a_client() -> None:
    with pytest.raises(ConfigurationError, match="--method.rank"):
        Fault.of(ConfigurationError("--method.rank"))


def test_a_fault_travels_between_processes() -> None:
    here, there = multiprocessing.Pipe()
    for error in (StateError("x"), ZeroDivisionError("y")):
        fault = Fault.of(raised(error))
        here.send(fault)
        back = there.recv()
        assert (back.kind, back.text, repr(back.error)) == (fault.kind, fault.text, repr(fault.error))


def test_a_text_is_logged_once_whichever_client_has_it() -> None:
    texts = FaultTexts()

    def of(name, error):
        return texts.text(name, Fault.of(raised(error)))

    assert of("a", StateError("client a: lower the rate")) == "client a: lower the rate"
    assert of("b", StateError("client b: lower the rate")) == "StateError, as at client a"
    assert of("b", StateError("client b: lower the rate")) == "StateError, as before"
    assert of("c", StateError("client c: another reason")) == "client c: another reason"
    assert of("d", DataError("client d: lower the rate")) == "client d: lower the rate"
