"""A success classifier from labelled episodes, which can stand in for the simulator's reward (`online success=<run>`).

Input: an EpisodeStore with successes and failures, labelled step by step. Output: a checkpoint with weights and calibrated
thresholds. The figures are of held-out episodes that neither weights nor thresholds have seen.

Metrics (metrics.jsonl, one line):
    success/auc                       area under the curve over frames; left out when the test holds one kind only
    success/false_positive_share      held-out failures that it would have rewarded
    success/false_positive_share_high upper end of the Wilson 95 % interval
    success/detected_share            held-out successes that it saw
    success/early_share               held-out successes that it rewarded before they were one
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError
from robot_rl.runs.checkpoint import save_checkpoint
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter

log = logging.getLogger(__name__)
# At 0 false rewards in this many failures the upper end of the interval is 5 %.
ENOUGH_FAILURES = 73


@dataclass(frozen=True)
class SuccessStageConfig:
    """Configuration of `robot-rl success`.

    Attributes:
        dataset: an EpisodeStore with successes and failures.
        fitter: component: what sees the frames, and how it is trained.
        threads: of torch on the CPU.
        seed: of split, weights and batches.
        run_root, resume: as in every stage; a run of seconds has nothing to resume.
    """

    dataset: str = "datasets/demonstrations.zarr"
    fitter: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = SuccessStageConfig
CAN_RESUME = False


def run(config: SuccessStageConfig, run: RunDirectory) -> dict[str, Any]:
    """Train, calibrate, test and save; returns the figures."""
    if config.resume:
        raise ConfigError(
            "resume", expected="a new run", got=config.resume, hint="Start it again without resume: it takes seconds."
        )
    torch.set_num_threads(config.threads)
    began, fitter = time.monotonic(), build(config.fitter)
    with EpisodeStore.open(config.dataset, mode="r") as store:
        classifier, report = fitter(store, seed=config.seed)
        content = store.content_hash()
    false = report["false_positives"]
    if false["n"] < ENOUGH_FAILURES:
        log.warning(
            "only %d held-out failures: even %d false rewards among them leave up to %.0f %% possible; record more failures",
            false["n"], false["k"], 100 * false["high"],
        )  # fmt: skip
    save_checkpoint(run.path, step=1, tensors={"policy": classifier.state_dict()}, documents=classifier.documents())
    values = {
        "success/false_positive_share": false["rate"],
        "success/false_positive_share_high": false["high"],
        "success/detected_share": report["detected"]["rate"],
        "success/early_share": report["early"]["rate"],
    } | ({"success/auc": report["auc"]} if report["auc"] is not None else {})  # fmt: skip
    with MetricsWriter(run.path / "metrics.jsonl") as metrics:
        metrics.write(1, values)
    summary: dict[str, Any] = report | {
        "dataset": config.dataset,
        "content_hash": content,
        "seconds": time.monotonic() - began,
    }
    run.write_json("summary.json", summary)
    return summary
