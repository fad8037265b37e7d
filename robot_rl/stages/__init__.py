"""The pipeline: one readable file a stage."""
