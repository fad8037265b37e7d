"""Episodes on disk, windows in memory, normalisation."""
