"""FedAvg: everything trainable is shared."""

from pfedst.methods.interface import FederatedMethod


class FedAvg(FederatedMethod):
    """Federated averaging: one model for all clients.

    Why: it is the reference; a method that personalises should be better.
    Method: w = sum_k (n_k / n) w_k over the clients of a round (Algorithm 1).
    When to use: sites resemble each other, or have too few images for personal parts.
    Differs from the paper in: the encoder is frozen, so only the adapter is averaged; any optimiser; all clients weigh
        alike by default (`weighting`).
    """

    source = "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017"
    personalises = False
