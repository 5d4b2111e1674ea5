"""Methods that stop a run in the middle of a fit, a client that fails in one round, and forged snapshots."""

import shutil
from contextlib import contextmanager

import pytest
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pfedst.server.server import Server
from pfedst.state.snapshot import name_snapshot, read_snapshot, write_snapshot

BAD = ("site_b", 2)
"""The client that fails, and the round in which it fails."""


def is_bad(client) -> bool:
    return (client.name, client.round) == BAD


class StopError(BaseException):
    """No error of a client: what a kill or a signal is to a run."""


class Steps:
    """Counts the steps of the current fit; to be mixed into a method. A class attribute is no option of the method."""

    _fit = None
    _steps = 0

    def step(self, client) -> int:
        """Return the number of the step whose loss is being computed, from 0. Call it once a step."""
        own = type(self)
        if own._fit is not client.optimizer:
            own._fit, own._steps = client.optimizer, 0
        own._steps += 1
        return own._steps - 1


def dying(base, round_number, name):
    """Return a method that stops the run in the middle of one fit until `alive` is set, and notes all fits."""

    class Dying(Steps, base):
        fitted: tuple = ()
        alive = False

        def loss(self, client, batch):
            counting = _get_current_dispatch_mode() is not None  # FLOPs, on a copy: no fit
            if not counting and self.step(client) == 0 and client.local_epoch == 0:
                type(self).fitted += ((client.round, client.name, client.finetuning),)
            if not self.alive and (client.round, client.name) == (round_number, name):
                raise StopError
            return super().loss(client, batch)

    return Dying


def forge(folder, change) -> None:
    """Change a snapshot and make its checksums right again."""
    found = read_snapshot(folder)
    change(found)
    name_snapshot(write_snapshot(folder, found.about, found.parts), folder)


def copies_of_one_round(make_folder, fit):
    """Return a function that leaves a run of a method after its first round in a folder: run once, and copied.

    Args:
        make_folder: makes an empty folder.
        fit: folder, method and options -> makes a run.
    """
    done = {}

    def copy(folder, make):
        if make not in done:
            done[make] = make_folder("one_round")
            fit(done[make], make(), rounds=1)
        shutil.copytree(done[make], folder, dirs_exist_ok=True)

    return copy


@contextmanager
def without_the_bad():
    """Within this block the bad client is not drawn in its round: the reference for a client that is left out."""
    draw = Server.draw

    def without(self, round_number, participation):
        return [name for name in draw(self, round_number, participation) if (name, round_number) != BAD]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "draw", without)
        yield
