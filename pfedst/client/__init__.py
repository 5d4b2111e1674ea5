"""The client's half of a run: its model, local fits, evaluations and personal state."""
