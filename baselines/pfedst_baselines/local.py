"""Local: every client on its own."""

from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class Local(FederatedMethod):
    """No federation: each client trains all of its adapter on its own images.

    Why: what a hospital has without taking part; a federated method that is worse for a site harms it.
    Method: min over w_k of f_k(w_k); nothing is sent.
    When to use: as the lower reference of every table.
    """

    source = "reference row: no communication"
    has_generic = False
    joins = False

    def partition(self, client: LocalModel) -> list[Rule]:
        """Everything is personal."""
        return [("*", "personal")]
