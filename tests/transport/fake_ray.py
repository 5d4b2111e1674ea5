"""Ray as a module in this process: actors answer at once, on machines of a table."""

import copy
from types import ModuleType, SimpleNamespace


class RayError(Exception):
    """Of `ray.exceptions`."""


class EndedError(RayError):
    """The process of an actor has ended."""


class FakeRay(ModuleType):
    """What `RayCluster` uses of Ray.

    Args:
        processors: of each machine.
        dies: called with the name of each request; True ends the worker in it.
    """

    def __init__(self, processors, dies=lambda name: False) -> None:
        super().__init__("ray")
        self.machines = [{"Alive": True, "Resources": {"CPU": float(number)}} for number in processors]
        self.dies = dies
        self.address = None
        self.killed: list[object] = []
        self.exceptions = SimpleNamespace(RayError=RayError)

    def is_initialized(self) -> bool:
        return self.address is not None

    def init(self, address, **_) -> None:
        self.address = address

    def shutdown(self) -> None:
        self.address = None

    def nodes(self):
        return self.machines

    def put(self, value):
        return SimpleNamespace(value=value)

    def get(self, reference):
        if isinstance(reference.value, RayError):
            raise reference.value
        return copy.deepcopy(reference.value)

    def wait(self, references, timeout=None):
        return references[:1], []

    def kill(self, actor) -> None:
        self.killed.append(actor)

    def remote(self, **needs):
        def made(kind):
            return SimpleNamespace(remote=lambda: self._actor(kind()))

        return made

    def _actor(self, actor):
        def called(method):
            def remote(*values):
                if method == "answer" and self.dies(values[0]):
                    return SimpleNamespace(value=EndedError("it has ended"))
                return SimpleNamespace(value=getattr(actor, method)(*values))

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(receive=called("receive"), answer=called("answer"))
