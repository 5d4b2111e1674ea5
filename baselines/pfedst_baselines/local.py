"""Local: every client trains alone."""

from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class Local(FederatedMethod):
    """No federation: each client trains all of its adapter on its own images.

    Why: it shows what a hospital reaches without the federation; a federated method that is worse at a site harms it.
    Method: min over w_k of f_k(w_k); nothing is sent.
    When to use: as the lower reference in every table.
    """

    source = "reference row: no communication"
    has_generic = False
    joins = False

    def partition(self, client: LocalModel) -> list[Rule]:
        """Everything is personal."""
        return [("*", "personal")]
