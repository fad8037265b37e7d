"""The pipeline: one readable file a stage."""

STAGES = ("collect", "imitate", "distill_onestep", "export", "evaluate", "pipeline")
