"""The whole way in one command: collect, imitate, offline, online, distil to one step, export; all on the same seeds.

Each stage is a child run under `stages/`; pipeline.json says which are finished. `resume=<run>` skips those and
continues the one that was running at the step where it was.

`with_offline` and `with_online` say whether the two RL stages take part. The offline stage learns from the demonstrations
and from roll-outs of the imitation policy, which are played first.

Output: summary.json, {"stages": [{"name", "success_once": {"k", "n", "rate", "low", "high"}, "env_steps", "episodes",
"seconds", "run"}, ...], ...}. success_once of collect is the expert's; of every later stage it is the evaluation of
its policy on the held-out seeds of `evaluate`; the last entry is the exported one-step policy, run by onnxruntime.
env_steps and episodes count what the stage played to make training data; seconds include its evaluation.

Metrics: those of the stages, in their own run directories.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.errors import RunError
from robot_rl.runs.config import config_to_yaml
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.provenance import collect as collect_provenance
from robot_rl.stages import collect, distill_onestep, evaluate, export, imitate, offline, online
from robot_rl.stages.collect import CollectConfig
from robot_rl.stages.distill_onestep import DistillConfig
from robot_rl.stages.evaluate import EvaluateConfig
from robot_rl.stages.export import ExportConfig
from robot_rl.stages.imitate import ImitateConfig
from robot_rl.stages.offline import OfflineConfig
from robot_rl.stages.online import OnlineConfig

log = logging.getLogger(__name__)

SUCCESS_FIELDS = ("k", "n", "rate", "low", "high")


@dataclass(frozen=True)
class PipelineConfig:
    """Configuration of `robot-rl pipeline`. Stages inherit env, expert, policy and seed from here.

    Attributes:
        task: short name, for directories and tables.
        env, expert, policy, critic, dynamics: components, as in the stages.
        dataset: of the demonstrations; empty: demonstrations.zarr in the pipeline's own run directory.
        with_offline, with_online: whether these stages take part.
        rollouts: of the imitation policy, for the offline stage.
        collect, imitate, offline, online, distill_onestep, export, evaluate: configuration of the stages; what joins them
            (env, dataset, policy paths) is filled in here. evaluate.mode is that of the diffusion policies.
        seed: of every stage.
        run_root: folder of run directories.
        resume: pipeline run to continue, or null.
    """

    task: str = "task"
    env: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    critic: dict[str, Any] = field(default_factory=dict)
    dynamics: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""
    with_offline: bool = False
    with_online: bool = False
    collect: CollectConfig = field(default_factory=CollectConfig)
    imitate: ImitateConfig = field(default_factory=ImitateConfig)
    rollouts: CollectConfig = field(default_factory=lambda: CollectConfig(num_episodes=200, first_seed=20_000))
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    distill_onestep: DistillConfig = field(default_factory=DistillConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = PipelineConfig


def run(config: PipelineConfig, run: RunDirectory) -> dict[str, Any]:
    """Run the stages that are not finished and write summary.json."""
    chain = _Chain(config, run)
    dataset = config.dataset or str(run.path / "demonstrations.zarr")
    shared: dict[str, Any] = {"env": config.env, "seed": config.seed}

    demos = chain.stage(
        "collect", collect.run, replace(config.collect, dataset=dataset, expert=config.expert, **shared)
    )
    chain.entry("collect", demos["success_once"], data=demos, parts=("collect",))

    chain.stage("imitate", imitate.run, replace(config.imitate, dataset=dataset, policy=config.policy, **shared))
    teacher = chain.path("imitate")
    chain.evaluated("imitate", teacher, data={"env_steps": 0, "episodes": 0})

    stores = [dataset]
    if config.with_offline:
        stores.append(str(run.path / "rollouts.zarr"))
        played = chain.stage(
            "rollouts", collect.run,
            replace(config.rollouts, dataset=stores[1], policy=teacher, mode=SamplingMode.eta1, **shared),
        )  # fmt: skip
        judged = replace(config.offline, critic=config.critic, dynamics=config.dynamics)
        chain.stage("offline", offline.run, replace(judged, datasets=stores, policy=teacher, **shared))
        teacher = chain.path("offline")
        chain.evaluated("offline", teacher, data=played, parts=("rollouts",))

    if config.with_online:
        settings = replace(config.online, policy=teacher, critic=config.critic, demonstrations=stores)
        improved = chain.stage("online", online.run, replace(settings, **shared))
        teacher = chain.path("online")
        chain.evaluated("online", teacher, data=improved)

    distilled = chain.stage(
        "distill_onestep",
        distill_onestep.run,
        replace(config.distill_onestep, dataset=dataset, teacher=teacher, **shared),
    )
    student = chain.path("distill_onestep")
    chain.evaluated("distill_onestep", student, data=distilled, is_diffusion=False)

    exported = chain.stage(
        "export", export.run, replace(config.export, policy=student, dataset=dataset, seed=config.seed)
    )
    chain.evaluated("export", exported["onnx"], data={"env_steps": 0, "episodes": 0}, is_diffusion=False)

    last_seed = config.evaluate.first_seed + config.evaluate.num_episodes - 1
    summary = {
        "task": config.task,
        "seeds": f"training {config.seed}; evaluation {config.evaluate.first_seed}-{last_seed}",
        "stages": chain.entries,
        "seconds": sum(entry["seconds"] for entry in chain.entries),
        "onnx": exported["onnx"],
        "parity_max_error": exported["parity_max_error"],
        "latency": exported["latency"],
        "provenance": collect_provenance(),
        "run": str(run.path),
    }
    run.write_json("summary.json", summary)
    return summary


class _Chain:
    """Runs child stages once each, remembers what is finished, and builds the table."""

    def __init__(self, config: PipelineConfig, run: RunDirectory) -> None:
        self.config, self.run = config, run
        begun = (run.path / "pipeline.json").exists()
        self.children: dict[str, dict[str, Any]] = run.read_json("pipeline.json") if begun else {}
        self.entries: list[dict[str, Any]] = []

    def stage(self, name: str, function: Callable[..., dict[str, Any]], config: Any) -> dict[str, Any]:
        """The summary of child `name`: from its run when finished, by running or continuing it otherwise."""
        known = self.children.get(name)
        if known is not None and known["state"] == "finished":
            log.info("%s is finished already: %s", name, known["run"])
            return dict(known["summary"])
        if known is None:
            child = RunDirectory.create(
                self.run.path / "stages",
                stage=name,
                task=self.config.task,
                seed=self.config.seed,
                config_yaml=config_to_yaml(config),
                command=["robot-rl", name, f"(of {self.run.path})"],
            )
        else:
            child = RunDirectory.open(known["run"])
        began = time.monotonic()
        earlier = 0.0 if known is None else known["seconds"]
        self._remember(name, state="running", run=str(child.path), seconds=earlier)
        log.info("%s: %s", name, child.path)
        try:
            with child.running():
                summary = function(config, child)
        except BaseException:
            # Whatever ends a stage (Ctrl-C too), its time and its state are kept for the resume.
            self._remember(name, state="stopped", run=str(child.path), seconds=earlier + time.monotonic() - began)
            raise
        seconds = earlier + time.monotonic() - began
        self._remember(name, state="finished", run=str(child.path), seconds=seconds, summary=summary)
        return summary

    def path(self, name: str) -> str:
        """Run directory of a child."""
        if name not in self.children:
            raise RunError(name, expected="a stage that has run", got="none", hint="Run the pipeline from its start.")
        return str(self.children[name]["run"])

    def evaluated(
        self, name: str, policy: str, *, data: dict[str, Any], parts: tuple[str, ...] = (), is_diffusion: bool = True
    ) -> None:
        """Evaluate the policy of stage `name` on the held-out seeds and add its line to the table.

        Args:
            name: of the stage.
            policy: what it made.
            data: has "env_steps" and "episodes" that were played for it.
            parts: further children whose seconds are its own.
            is_diffusion: whether the policy has sampling modes.
        """
        settings = replace(self.config.evaluate, policy=policy, env=self.config.env, seed=self.config.seed)
        settings = settings if is_diffusion else replace(settings, mode=None)
        part = f"evaluate_{name}"
        result = self.stage(part, evaluate.run, settings)
        self.entry(name, result["success_once"], data=data, parts=(*parts, name, part))

    def entry(self, name: str, success: dict[str, Any], *, data: dict[str, Any], parts: tuple[str, ...]) -> None:
        """Add one line of the table; `parts` are the children whose seconds it counts."""
        self.entries.append(
            {
                "name": name,
                "success_once": {key: success[key] for key in SUCCESS_FIELDS},
                "env_steps": data["env_steps"],
                "episodes": data["episodes"],
                "seconds": sum(self.children[part]["seconds"] for part in parts),
                "run": self.path(name),
            }
        )

    def _remember(self, name: str, **facts: Any) -> None:
        self.children[name] = facts
        self.run.write_json("pipeline.json", self.children)


def table(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the result table that the command line prints: heading first."""
    rows: list[tuple[str, ...]] = [("stage", "success once", "Wilson 95 %", "episodes", "env steps", "seconds")]
    for entry in summary["stages"]:
        success = entry["success_once"]
        interval = f"{success['low']:.1%} to {success['high']:.1%}"
        share = f"{success['k']}/{success['n']} = {success['rate']:.1%}"
        rows.append(
            (entry["name"], share, interval, str(entry["episodes"]), str(entry["env_steps"]), f"{entry['seconds']:.0f}")
        )
    return rows
