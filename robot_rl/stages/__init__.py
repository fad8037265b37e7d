"""The pipeline: one readable file a stage."""

STAGES = ("collect", "imitate", "offline", "online", "distill_onestep", "export", "evaluate", "pipeline")
