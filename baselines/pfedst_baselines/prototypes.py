"""Prototypes: nearest class means of the frozen embeddings."""

from pfedst_baselines.zero_shot import ZeroShot


class Prototypes(ZeroShot):
    """The nearest class mean of frozen embeddings: labels are used, and no gradient.

    Why: what the labels of all sites are worth without training; where prototypes are the class anchors, the others
        start from it.
    Method: each site sends sums and counts of its unit embeddings by class, once; argmax over classes of cos(image
        embedding, mean of the class over all sites).
    When to use: as the first row of a table whose class anchors are prototypes. It is supervised, and what is sent
        before the first round is counted.
    Differs from the paper in: the mean is the classifier; no fine-tuning follows.
    """

    source = "Legate et al., Guiding the Last Layer in Federated Learning with Pre-Trained Models, NeurIPS 2023"
    requires_anchors = "prototypes"
