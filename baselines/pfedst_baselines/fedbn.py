"""FedBN: normalisation layers stay at home."""

from pfedst.errors import ConfigurationError
from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule, norm_keys


class FedBN(FederatedMethod):
    """Federated averaging without the normalisation layers, which are personal (found by type, LayerNorm included).

    Why: cameras and light shift feature statistics, and a norm layer of one's own takes such a shift up.
    Method: FedAvg on all keys outside norm layers.
    When to use: sites that differ in their devices.
    Differs from the paper in: LayerNorm and GroupNorm count as well; weights n_k / n, not uniform.
    """

    source = "Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021"

    def partition(self, client: LocalModel) -> list[Rule]:
        """Norm layers are personal."""
        if not (keys := norm_keys(client.adapter)):
            raise ConfigurationError(f"FedBN: {type(client.adapter).__name__} has no norm layer; that would be FedAvg")
        return [*((key, "personal") for key in keys), ("*", "shared")]
