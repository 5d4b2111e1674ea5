"""What is done once before training: what to get, a manifest, simulated sites, small copies."""
