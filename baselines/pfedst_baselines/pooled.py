"""Pooled: all images in one place."""

from pfedst.methods.interface import FederatedMethod


class Pooled(FederatedMethod):
    """One model trained on the images of all sites together, as if they could be brought to one place.

    Why: the upper reference of a shared model: what the distribution of the images over sites costs.
    Method: min over w of sum_k (n_k / n) f_k(w) on mixed batches; a round is `max_epochs` passes over all images.
    When to use: in a study, never where images may not leave a hospital. What it counts as sent is one model, not
        the images that pooling moves. A personal model can beat it where sites differ.
    """

    source = "reference row: centralised training"
    personalises = False
    pooled = True
    joins = False
