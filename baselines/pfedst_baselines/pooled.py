"""Pooled: training on the images of all sites together."""

from pfedst.methods.interface import FederatedMethod


class Pooled(FederatedMethod):
    """One model trained on the images of all sites together, as if they were in one place.

    Why: it is the upper reference for a shared model: it shows the cost of having the images at separate sites.
    Method: min over w of sum_k (n_k / n) f_k(w) on mixed batches; a round is `max_epochs` passes over all images.
    When to use: in a study, and never if images may not leave a hospital. The bytes sent are those of one model,
        without the images that pooling moves. A personal model can be better if sites differ.
    """

    source = "reference row: centralised training"
    personalises = False
    pooled = True
    joins = False
