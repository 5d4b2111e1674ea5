"""Flower's grid, whose SuperLink is a table: a reply above its limit is not read to its end."""

from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from pfedst.deployment import grid as grid_module
from pfedst.deployment.grid import LimitedGrid, _refuse_large_piece
from pfedst.transport.flower import Unread, packed, unpacked

PIECE = 1000


class Table:
    """The SuperLink's half: heads of replies, and their pieces by name."""

    def __init__(self, *replies) -> None:
        self.replies = replies
        self.pieces: dict[str, bytes] = {}
        for reply in replies:
            reply.metadata.__dict__["_message_id"] = reply.object_id
            self.pieces |= {name: piece.deflate() for name, piece in get_all_nested_objects(reply).items()}
        self.pulled: list[str] = []
        self.deleted: list[str] = []

    def PullMessages(self, request):  # noqa: N802  # as Flower names its calls
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in request.message_ids]
        return SimpleNamespace(
            messages_list=[message_to_proto(remove_content_from_message(reply)) for reply in found],
            message_object_trees=[get_object_tree(reply) for reply in found],
        )

    def PullObject(self, request):  # noqa: N802
        self.pulled.append(request.object_id)
        content = self.pieces.get(request.object_id)
        return SimpleNamespace(object_found=content is not None, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):  # noqa: N802
        self.deleted.append(request.message_object_id)


def reply(number, parts=30):
    """A reply of so many parts of a thousand bytes each."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    request = Message(packed({}, {}), dst_node_id=2, message_type="train")
    request.metadata.__dict__["_message_id"] = number
    content = packed({"number": number}, {f"part{i}": {} for i in range(parts)})
    for i, array in enumerate(content.array_records["parts"].values()):
        array.data = array.data + bytes([i]) * PIECE
    return Message(content, reply_to=request)


@pytest.fixture
def pull(monkeypatch):
    """A function that pulls replies from a table with a limit of bytes."""

    def pulled(table, most_bytes=10**6):
        made = LimitedGrid(token="t")
        monkeypatch.setattr(LimitedGrid, "_runtime_client", table)
        monkeypatch.setattr(LimitedGrid, "run", SimpleNamespace(run_id=1))
        numbers = [reply.metadata.reply_to_message_id for reply in table.replies]
        return dict(made.pull_replies(dict.fromkeys(numbers, most_bytes)))

    return pulled


def test_a_reply_within_its_limit_is_that_of_flower(pull) -> None:
    one, two = reply("one", 2), reply("two", 3)
    table = Table(one, two)
    found = pull(table)
    assert list(found) == ["one", "two"]
    assert found["one"].content["parts"].keys() == one.content["parts"].keys()
    assert found["two"].metadata.reply_to_message_id == "two"
    assert set(table.pulled) == set(table.pieces)
    assert set(table.deleted) == {one.object_id, two.object_id}
    assert unpacked(pull(Table(reply("none", 0)))["none"].content)[0] == {"number": "none"}


def test_a_reply_above_its_limit_is_not_read_to_its_end_and_deleted(pull) -> None:
    large = reply("large")
    table = Table(large)
    assert pull(table, most_bytes=5 * PIECE) == {"large": Unread.TOO_LARGE}
    # two pieces are pulled at once, so that a few more than five are on their way
    assert 5 <= len(table.pulled) < 20 < len(table.pieces)
    assert table.deleted == [large.object_id]


def test_a_reply_of_too_many_pieces_is_not_read(pull, monkeypatch) -> None:
    monkeypatch.setattr(grid_module, "MOST_PIECES", 10)
    table = Table(reply("many"))
    assert pull(table) == {"many": Unread.TOO_LARGE}
    assert table.pulled == []


def test_a_reply_without_all_its_pieces_is_incomplete(pull) -> None:
    table = Table(reply("half"))
    del table.pieces[next(iter(table.pieces))]
    assert pull(table) == {"half": Unread.INCOMPLETE}


def test_a_reply_whose_sender_is_slow_or_gone_keeps_no_other_waiting(monkeypatch) -> None:
    """Flower's own function waits for the last piece: of a hospital that was killed while it sent, for two hours."""
    slow, whole, gone = reply("slow", 0), reply("whole", 2), reply("gone", 1)
    table = Table(slow, whole, gone)
    table.replies = slow, whole
    made = LimitedGrid(token="t")
    monkeypatch.setattr(LimitedGrid, "_runtime_client", table)
    monkeypatch.setattr(LimitedGrid, "run", SimpleNamespace(run_id=1))
    on_its_way = {slow.object_id}
    pull = table.PullObject

    def pull_object(request):
        found = pull(request)
        found.object_available = request.object_id not in on_its_way
        return found

    table.PullObject = pull_object
    limits = {"slow": 10**6, "whole": 10**6}
    assert [number for number, _ in made.pull_replies(limits)] == ["whole"]
    assert table.deleted == [whole.object_id]
    table.replies = ()  # each is named once
    pulled = len(table.pulled)
    assert list(made.pull_replies({"slow": limits["slow"]})) == []
    assert len(table.pulled) == pulled + 1  # what is there is not pulled again
    on_its_way.clear()
    ((number, found),) = made.pull_replies({"slow": limits["slow"]})
    assert (number, unpacked(found.content)[0]) == ("slow", {"number": "slow"})
    # of a request that was given up nothing is pulled any more, and it is deleted
    table.replies = (gone,)
    on_its_way.add(gone.object_id)
    assert list(made.pull_replies({"gone": limits["slow"]})) == []
    assert list(made.pull_replies({})) == []
    assert table.deleted == [whole.object_id, slow.object_id, gone.object_id]


@pytest.mark.parametrize(("path", "refused"), [("/v1/runtime/pull-object", True), ("/v1/runtime/get-nodes", False)])
def test_a_piece_that_is_too_large_is_refused_before_its_body_is_read(path, refused) -> None:
    """By an HTTP client with the hook of the grid; the body says whether it was read."""
    read = []

    def body():
        read.append(True)
        yield b"x"

    def answer(request):
        return httpx.Response(200, headers={"content-length": str(grid_module.MOST_PIECE_BYTES + 1)}, content=body())

    client = httpx.Client(transport=httpx.MockTransport(answer))
    made = LimitedGrid(token="t")
    made._connect()
    assert _refuse_large_piece in made._runtime_client._client.event_hooks["response"]
    client.event_hooks = made._runtime_client._client.event_hooks
    made.close()
    if refused:
        with pytest.raises(grid_module._OversizedError):
            client.post(f"https://centre{path}")
    else:
        client.post(f"https://centre{path}")
    assert bool(read) is not refused
