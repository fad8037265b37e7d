"""The pipeline: one readable file a stage."""

STAGES = ("collect", "imitate", "offline", "distill_onestep", "export", "evaluate", "pipeline")
