"""Local: every client on its own."""

from __future__ import annotations

from collections.abc import Sequence

from pfedst.client import FederatedClient
from pfedst.method import FederatedMethod
from pfedst.partition import Rule


class Local(FederatedMethod):
    """No federation: each client trains all of its adapter on its own data, and nothing is sent."""

    source = "reference row: no communication"

    def partition(self, client: FederatedClient) -> Sequence[Rule]:
        """Everything is personal."""
        return [("*", "personal")]
