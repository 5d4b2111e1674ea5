"""A client of three synthetic sites, and a server that sends it requests: for tests of single requests."""

from functools import partial

import torch

from pfedst.client.training import LocalTrainer
from pfedst.messages.requests import PROTOTYPES, Request
from pfedst.server.server import Server
from pfedst.simulation import make_client, start_maker
from pfedst.testing import small

SPLITS = ("validation", "test")


def client_of(method, sites, seed=0, data=None, study=None, held_out=(), **trainer):
    """A client with the state of its sites in the folder `sites`."""
    sgd = {"optimizer": partial(torch.optim.SGD, lr=0.01)} if type(method).__name__ == "PFedMe" else {}
    local = LocalTrainer(small.trainer(**({"max_epochs": method.fewest_local_epochs} | trainer)))
    template = small.template(method, **sgd)
    return make_client(template, data or small.prepared(), method, seed, local, sites, held_out, study)


def server_of(client):
    """A server whose prototypes, if it needs any, are merged."""
    samples = {site: client.data.samples(site, "train") for site in client.data.sites}
    server = Server(client.method, samples, start_maker(client.model), client.run_seed, client.held_out)
    if server.needs_prototypes:
        parts = [client.answer(site, Request("prototypes", "run")).parts[PROTOTYPES] for site in server.training_sites]
        server.merge_prototypes([part["sums"] for part in parts], [part["counts"] for part in parts])
    server.begin()
    return server


def fit_request(server, name, number, after=0, **fields):
    """The request for the fit of a round."""
    return Request("fit", "run", number, after, parts=server.parts_for(name), **fields)


def same(one, other) -> bool:
    """Nested dicts and lists with tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def without_times(record):
    return {key: value for key, value in record.items() if key not in ("fit_seconds", "peak_memory_bytes")}
