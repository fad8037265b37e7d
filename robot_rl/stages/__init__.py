"""The pipeline: one readable file a stage."""

STAGES = (
    "collect",
    "imitate",
    "offline",
    "online",
    "baseline",
    "success",
    "distill_onestep",
    "export",
    "evaluate",
    "deploy",
    "pipeline",
)
