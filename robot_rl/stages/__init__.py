"""The pipeline: one readable file a stage."""

STAGES = (
    "collect",
    "imitate",
    "offline",
    "online",
    "baseline",
    "refine_teacher",
    "success",
    "distill_onestep",
    "export",
    "evaluate",
    "deploy",
    "serve",
    "pipeline",
)
