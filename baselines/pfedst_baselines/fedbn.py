"""FedBN: normalisation layers are personal."""

from pfedst.errors import ConfigurationError
from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule, norm_keys


class FedBN(FederatedMethod):
    """Federated averaging without the normalisation layers, which are personal (found by type, LayerNorm included).

    Why: cameras and light shift the statistics of features, and a personal norm layer corrects such a shift.
    Method: FedAvg on all keys outside norm layers.
    When to use: sites have different devices.
    Differs from the paper in: LayerNorm and GroupNorm are personal too.
    """

    source = "Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021"

    def partition(self, client: LocalModel) -> list[Rule]:
        """Norm layers are personal."""
        if not (keys := norm_keys(client.adapter)):
            raise ConfigurationError(f"FedBN: {type(client.adapter).__name__} has no norm layer; that would be FedAvg")
        return [*((key, "personal") for key in keys), ("*", "shared")]
