"""Hospitals in this process behind a grid that is none of Flower's: its messages are Flower's own."""

import itertools
from functools import partial
from types import SimpleNamespace

from flwr.app import Message
from flwr.app.error import Error
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from torch.optim import SGD

from pfedst.client.training import LocalTrainer
from pfedst.deployment.agreement import agreement
from pfedst.deployment.hospital import Hospital
from pfedst.simulation import make_client
from pfedst.testing import small
from pfedst.transport.flower import Unread

SITES = ("site_a", "site_b", "site_c")
CLASSES = ["nevus", "melanoma", "keratosis"]


class FakeGrid:
    """A SuperLink without a network: nodes by name, and replies that are there at the next look."""

    def __init__(self, handlers) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.handlers = dict(handlers)
        self.nodes = {
            name: SimpleNamespace(name=name, node_id=number, last_activated_at="1")
            for number, name in enumerate(self.handlers, start=2)
        }
        self.online = set(self.handlers)
        self.replies: dict[str, Message | Unread] = {}
        self.sent: list[tuple[str, str]] = []
        self.lost: list[tuple[str, str]] = []
        """(site, type of message): the next such message is lost, and Flower says so."""
        self.half: list[tuple[str, str]] = []
        """(site, type of message): the site goes away while it sends its next such reply."""
        self.swallowed: list[tuple[str, str]] = []
        """(site, type of message): the next such message is lost without a word; its node comes online anew."""
        self._numbers = itertools.count()

    def get_nodes(self):
        return [SimpleNamespace(**vars(node)) for name, node in self.nodes.items() if name in self.online]

    def push_messages(self, messages):
        (message,) = messages
        name = next(name for name, node in self.nodes.items() if node.node_id == message.metadata.dst_node_id)
        kind, number = message.metadata.message_type, f"m{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = number
        self.sent.append((name, kind))
        if (name, kind) in self.swallowed:
            self.swallowed.remove((name, kind))
            self.nodes[name].last_activated_at += "1"
        elif (name, kind) in self.lost:
            self.lost.remove((name, kind))
            self.replies[number] = Message(Error(5, "away"), reply_to=message)
        elif (name, kind) in self.half:
            self.half.remove((name, kind))
            self.replies[number] = Unread.INCOMPLETE
        else:
            self.replies[number] = self.handlers[name](message)
        return [number]

    def pull_replies(self, limits):
        for number in [number for number in limits if number in self.replies]:
            reply = self.replies.pop(number)
            if not isinstance(reply, Unread):
                pieces = get_all_nested_objects(reply).values()
                if sum(len(piece.deflate()) for piece in pieces) > limits[number]:
                    reply = Unread.TOO_LARGE
            yield number, reply


def client_at(site, method, folder, run_seed=0):
    """A client that has the images of one site alone."""
    data = small.data()
    data.use_sites([site])
    local = LocalTrainer(small.trainer(max_epochs=method.fewest_local_epochs))
    # PFedMe refuses other optimisers
    sgd = {"optimizer": partial(SGD, lr=0.01)} if type(method).__name__ == "PFedMe" else {}
    return make_client(small.template(method, **sgd), data, method, run_seed, local, None)


def hospital(site, method, folder, study=None):
    client = client_at(site, method, folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Hospital(client, site, folder, agreement(client.module, CLASSES, study or {}))
