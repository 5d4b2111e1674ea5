"""What child processes of these tests do."""

import os
import sys
import time
from pathlib import Path


def say(parent, names):
    """What a child is: its process, folder, and some of its environment variables."""
    parent.send(
        {"pid": os.getpid(), "folder": str(Path.cwd()), "variables": {name: os.environ.get(name) for name in names}}
    )
    sys.exit(parent.receive())


def compute(parent, threads=None):
    """Operators of torch with several threads."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    product = torch.randn(512, 512) @ torch.randn(512, 512)
    capability = torch.backends.cpu.get_cpu_capability()
    parent.send([capability, torch.get_num_threads(), float(product.exp().tanh().sum())])


def sleep(parent):
    parent.send(os.getpid())
    time.sleep(3600)


def fail(parent, file):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)
    raise RuntimeError("a defect")


def stop(parent, file):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)
    sys.exit("no more")


def echo(parent):
    """Sends back what it is sent, or the kind of error that it meets."""
    while True:
        try:
            parent.send(parent.receive())
        except LookupError as error:
            parent.send(type(error).__name__)


def start_another(parent):
    """A child with a child of its own, from a fork server of its own."""
    from pfedst.child_processes import start_child, start_fork_server

    start_fork_server()
    child = start_child(sleep)
    parent.send((os.getpid(), child.connection.recv(), type(child.process).__name__))
    time.sleep(3600)


def grow(parent, size):
    """The peak memory before and after this process uses so many bytes."""
    import torch

    from pfedst.tracking import peak_memory_bytes

    before = peak_memory_bytes(torch.device("cpu"))
    used = b"x" * size
    parent.send((before, peak_memory_bytes(torch.device("cpu")), len(used)))
