"""Prototypes: nearest class means of the frozen embeddings."""

from pfedst_baselines.zero_shot import ZeroShot


class Prototypes(ZeroShot):
    """Predict the class whose mean embedding is nearest: labels are used, and nothing is trained.

    Why: it shows what labels give without training. If prototypes are the class anchors, other methods start from this
        model.
    Method: each site sends sums and counts of its unit embeddings by class, once; argmax over classes of cos(image
        embedding, mean of the class over all sites).
    When to use: as the first row of a table whose class anchors are prototypes. It uses labels, and the bytes sent
        before the first round are counted.
    Differs from the paper in: the class means are the classifier; no fine-tuning follows.
    """

    source = "Legate et al., Guiding the Last Layer in Federated Learning with Pre-Trained Models, NeurIPS 2023"
    requires_anchors = "prototypes"
