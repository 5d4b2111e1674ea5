"""What becomes of a message that this process has taken from a SuperNode, whose interface is a table here."""

from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")

from flwr.common.constant import ErrorCode, SubStatus

from pfedst.deployment import runtime
from pfedst.deployment.bundle import bundle_digest


@pytest.fixture
def answer(monkeypatch):
    """A function that answers the one message of a SuperNode, which stores it after so many looks."""

    def answered(stored_after=0, digest=None, push=None, handle=lambda message: f"reply to {message}"):
        looks, sent, ended = [], [], []

        def pull_messages(request):
            looks.append(request)
            return SimpleNamespace(messages_list=["question"] if len(looks) > stored_after else [])

        client = SimpleNamespace(
            PullMessages=pull_messages, SendTaskHeartbeat=lambda request: None, close=lambda: ended.append("closed")
        )

        def pull_task_input(client):
            (message,) = client.PullMessages("request").messages_list or ["nothing"]
            return message, "context", SimpleNamespace(run_id=1), SimpleNamespace(hash_str=digest or bundle_digest())

        monkeypatch.setattr(runtime, "pull_task_input", pull_task_input)
        monkeypatch.setattr(runtime, "push_message", push or (lambda client, reply, context: sent.append(reply)))
        monkeypatch.setattr(runtime, "push_task_output", lambda client, context, status, text: ended.append(status))
        monkeypatch.setattr(runtime, "Message", lambda error, reply_to: error.code)
        monkeypatch.setattr(runtime, "POLL_SECONDS", 0.001)
        task = SimpleNamespace(HasField=lambda name: True, token="token", task=SimpleNamespace(run_id=1))
        node = SimpleNamespace(client=lambda *given: client)
        tasks = SimpleNamespace(AcquireTask=lambda request: task)
        assert runtime.answer_one(node, tasks, handle)
        return sent, ended, len(looks)

    return answered


def test_a_message_is_answered(answer) -> None:
    assert answer() == (["reply to question"], [SubStatus.COMPLETED, "closed"], 1)


def test_a_task_whose_message_is_not_stored_yet_is_waited_for(answer) -> None:
    """Flower creates the task first: whoever asks at once found no message, and the SuperNode waited for ever."""
    assert answer(stored_after=3) == (["reply to question"], [SubStatus.COMPLETED, "closed"], 4)


def test_another_bundle_is_refused_with_a_reply(answer) -> None:
    sent, ended, _ = answer(digest="another")
    assert sent == [ErrorCode.INVALID_FAB]
    assert ended == [SubStatus.FAILED, "closed"]


def test_a_reply_that_does_not_get_through_is_a_lost_message(answer) -> None:
    def push(client, reply, context):
        raise TimeoutError("too late")

    with pytest.raises(runtime.LostMessageError, match="TimeoutError: too late"):
        answer(push=push)


def test_no_task_is_no_message() -> None:
    tasks = SimpleNamespace(AcquireTask=lambda request: SimpleNamespace(HasField=lambda name: False))
    assert not runtime.answer_one(SimpleNamespace(), tasks, None)
