"""FedAvg: everything trainable is shared."""

from pfedst.methods.interface import FederatedMethod


class FedAvg(FederatedMethod):
    """Federated averaging: one model for all clients.

    Why: the reference; whatever personalises must beat it.
    Method: w = sum_k (n_k / n) w_k over the clients of a round (Algorithm 1).
    When to use: sites that resemble each other, or no site with enough images to keep anything for itself.
    Differs from the paper in: a frozen encoder, so that only the adapter is averaged; any optimiser.
    """

    source = "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017"
    personalises = False
