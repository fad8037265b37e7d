"""What a run leaves behind: configuration, directory, checkpoints, metrics, provenance."""
