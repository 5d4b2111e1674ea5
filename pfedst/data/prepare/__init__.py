"""Preparation before training: what to download, a manifest, simulated sites, small copies of images."""
