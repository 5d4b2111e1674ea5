"""When a hospital starts its SuperNode again, and when it ends with the reason."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")

from pfedst.deployment import runner
from pfedst.errors import ConfigurationError, NoAnswerError

REFUSED = "Failed to activate SuperNode. [code: 2004]"
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a hospital whose SuperNodes end as given: (seconds, whether any was answered, log)."""

    def of(*ends):
        now, left = [0.0], list(ends)

        @contextmanager
        def supernode(node, superlink, root_certificates, key, log):
            log.write_text(left[0][2])
            yield None

        def answer(hospital, node, process):
            seconds, answered, _ = left.pop(0)
            now[0] += seconds
            return answered

        monkeypatch.setattr(runner, "_supernode", supernode)
        monkeypatch.setattr(runner, "_answer", answer)
        monkeypatch.setattr(
            runner,
            "time",
            SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s)),
        )
        hospital = SimpleNamespace(folder=tmp_path, site="site_a")
        try:
            runner.run_hospital(hospital, "centre:443", tmp_path / "ca.crt", tmp_path / "key")
        except IndexError:  # all have ended, and another was started
            return None
        except (ConfigurationError, NoAnswerError) as error:
            return f"{type(error).__name__}: {error}", len(left)

    return of


def test_a_supernode_that_is_killed_is_started_again(run, capsys) -> None:
    """Its key is refused for a minute, as Flower has not noticed yet."""
    refused = [(5, False, REFUSED)] * 6
    assert run((500, True, "killed"), *refused, (1000, False, "killed"), *refused) is None
    said = capsys.readouterr().out
    assert said.count("Flower's SuperNode has ended; it is started again in 5 s") == 2
    assert said.count("the centre refuses the key for now; it is started again in 5 s") == 12


def test_one_that_has_never_worked_ends_with_the_reason(run) -> None:
    text, left = run((1, False, "no such port"), (1, False, ""))
    assert text.startswith("NoAnswerError: Flower's SuperNode has ended")
    assert left == 1
    text, left = run((1, False, UNTRUSTED), (1, False, ""))
    assert text.startswith("ConfigurationError: the certificate of the centre")
    assert left == 1


def test_one_that_works_no_more_ends_after_a_while(run) -> None:
    text, left = run((500, True, "killed"), *[(1, False, "no such port")] * 20)
    assert text.startswith("NoAnswerError")
    assert 0 < left < 20
    text, left = run(*[(1, False, REFUSED)] * 20)
    assert "KEY.pub" in text
    assert 0 < left < 20


def test_a_lost_message_ends_the_supernode_that_waits_for_its_reply(monkeypatch, caplog) -> None:
    """The next SuperNode gets the message again."""
    ends = [True, False, runner.LostMessageError("TimeoutError: too late"), True]

    def answer_one(node, tasks, handle):
        if isinstance(end := ends.pop(0), Exception):
            raise end
        return end

    monkeypatch.setattr(runner, "answer_one", answer_one)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    node, process = SimpleNamespace(tasks=lambda kind: None), SimpleNamespace(poll=lambda: None)
    assert runner._answer(SimpleNamespace(handle=None), node, process)
    assert ends == [True]
    assert "a message was lost: TimeoutError: too late" in caplog.text
