"""What becomes of messages that this process takes from a SuperNode, whose interface is a table here."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from pfedst.deployment import runtime
from pfedst.deployment.bundle import bundle_digest
from pfedst.transport.flower import packed, unpacked


@dataclass
class Task:
    """A task of a SuperNode: its message is named after so many looks, its last piece is there after so many pulls."""

    question: str
    named_after: int = 0
    whole_after: float = 0
    digest: str = field(default_factory=bundle_digest)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.message = Message(packed({"question": self.question}, {}), dst_node_id=1, message_type="train")
        self.message.metadata.__dict__["_message_id"] = self.message.object_id
        self.pieces = {name: piece.deflate() for name, piece in get_all_nested_objects(self.message).items()}
        self.looks = self.pulls = 0
        self.ended: list[str] = []

    def PullTaskInput(self, request):  # noqa: N802  # as Flower names its calls
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}, series_id=1)
        return SimpleNamespace(
            task_id=1,
            run=SimpleNamespace(run_id=1),
            fab=SimpleNamespace(hash_str=self.digest),
            context=context_to_proto(context),
        )

    def PullMessages(self, request):  # noqa: N802
        self.looks += 1
        there = self.looks > self.named_after
        return SimpleNamespace(
            messages_list=["head"] if there else [], message_object_trees=[get_object_tree(self.message)]
        )

    def PullObject(self, request):  # noqa: N802
        self.pulls += 1
        there = request.object_id != self.message.object_id or self.pulls > self.whole_after
        content = self.pieces[request.object_id]
        return SimpleNamespace(object_found=True, object_available=there, object_content=content)

    def SendTaskHeartbeat(self, request):  # noqa: N802
        pass

    def close(self) -> None:
        self.ended.append("closed")


@pytest.fixture
def answer(monkeypatch):
    """A function that takes the tasks of a SuperNode until there are none; returns what was sent."""

    def answered(*tasks, push=None):
        waiting, sent, current = list(tasks), [], []

        def acquire(request):
            if not waiting:
                return SimpleNamespace(HasField=lambda name: False)
            current.append(waiting.pop(0))
            return SimpleNamespace(HasField=lambda name: True, task="task", token=str(len(current) - 1))

        def client(kind, component, interceptor):
            return current[-1]

        def handle(message):
            return Message(packed({"answer to": unpacked(message.content)[0]["question"]}, {}), reply_to=message)

        monkeypatch.setattr(runtime, "push_message", push or (lambda client, reply, context: sent.append(reply)))
        monkeypatch.setattr(
            runtime, "push_task_output", lambda client, context, status, text: client.ended.append(status)
        )
        monkeypatch.setattr(runtime, "POLL_SECONDS", 0.001)
        node, found = SimpleNamespace(client=client), SimpleNamespace(AcquireTask=acquire)
        while runtime.answer_one(node, found, handle):
            pass
        return [reply.error.code if reply.has_error() else unpacked(reply.content)[0]["answer to"] for reply in sent]

    return answered


def test_messages_are_answered(answer) -> None:
    tasks = Task("one"), Task("two")
    assert answer(*tasks) == ["one", "two"]
    assert [task.ended for task in tasks] == [[SubStatus.COMPLETED, "closed"]] * 2
    assert answer() == []


def test_a_task_whose_message_is_not_stored_yet_is_waited_for(answer) -> None:
    """Flower makes the task first: whoever asked at once found no message, and the SuperNode waited for ever."""
    late = Task("late", named_after=3)
    assert answer(late) == ["late"]
    assert late.looks == 4


def test_pieces_that_come_later_are_waited_for(answer) -> None:
    slow = Task("slow", whole_after=20)
    assert answer(slow) == ["slow"]
    assert slow.pulls >= 20


@pytest.mark.parametrize("given_up", [{"named_after": 10**9}, {"whole_after": float("inf")}])
def test_a_message_whose_centre_was_killed_is_given_up_for_the_next_one(answer, given_up) -> None:
    """Flower's own functions would have waited for its pieces for two hours."""
    dead = Task("dead", **given_up)
    assert answer(dead, Task("next"), Task("another")) == ["next", "another"]
    assert dead.ended == [SubStatus.FAILED, "closed"]


def test_another_bundle_is_refused_with_a_reply(answer) -> None:
    task = Task("one", digest="another")
    assert answer(task) == [ErrorCode.INVALID_FAB]
    assert task.ended == [SubStatus.FAILED, "closed"]


def test_a_reply_that_does_not_get_through_is_a_lost_message(answer) -> None:
    def push(client, reply, context):
        raise TimeoutError("too late")

    with pytest.raises(runtime.LostMessageError, match="TimeoutError: too late"):
        answer(Task("one"), push=push)
