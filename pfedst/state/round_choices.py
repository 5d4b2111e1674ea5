"""Choices of a saved round beside its number; without torch, for reports."""

LAST = "last"
"""The last round."""
BEST = "best"
"""The best round on validation."""
UNDAMAGED = "undamaged"
"""In place of the last round where its state is damaged: the newest round that is whole."""
