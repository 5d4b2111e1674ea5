"""FedAvg: everything trainable is shared."""

from pfedst.method import FederatedMethod


class FedAvg(FederatedMethod):
    """Federated averaging: w = sum_k (n_k / n) w_k over the clients of a round (the paper's Algorithm 1).

    Differs from the paper in: an encoder that is frozen, so that only the adapter is averaged; any optimiser.
    """

    source = "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017"
