"""Evaluate a policy on a fixed list of seeds: success once, at end and at reset, with intervals and the protocol.

Inputs: a run directory, a checkpoint, an exported .onnx file, or an expert; an environment.
Outputs: episodes.jsonl (one line an episode) and summary.json in the run directory.
Each seed is played exactly once, whatever `num_envs` is, and the noise of a decision depends only on (noise seed,
episode seed, decision): the table is the same for 1 env and for 16, and for torch and ONNX up to their parity. A run
that was killed continues with the seeds that are missing.
Beside success there are RL-100's other measures (arXiv 2510.14830): successes an hour, the longest run of successes in
the order of the seeds, and success under pushes and from shifted starts, both part of the protocol.

Metrics (metrics.jsonl, step = episodes played):
    eval/success_once        share of the episodes so far
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.algorithms.view_shift import ViewShift
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.data.same_cameras import require_same_cameras
from robot_rl.data.same_spec import observing, require_same_actions
from robot_rl.deploy.client import open_client
from robot_rl.deploy.engine_cache import Precision
from robot_rl.deploy.execution import ChunkRule, Execution
from robot_rl.deploy.noise import NoiseRule
from robot_rl.deploy.onnx_policy import exported_file
from robot_rl.deploy.point_cloud import require_same_points
from robot_rl.deploy.runtime_options import PolicyKind, RuntimeOptions, require_read
from robot_rl.deploy.tensorrt_policy import DEFAULT_CACHE, EngineOptions, Runtime, open_policy
from robot_rl.engines.tasks import EngineKind, PlayerPlan, blocks, grid_size, open_engine
from robot_rl.errors import ConfigError, EnvError, PolicyError
from robot_rl.rollout import EpisodeRecord, read_records, summarize
from robot_rl.runs.config import config_to_json, validate_component
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.measures import pushed_share, throughput
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.specs import EnvSpec
from robot_rl.stages.sampling import refuse_of_a_file, sampled


@dataclass(frozen=True)
class EvaluateConfig:
    """Configuration of `robot-rl evaluate`.

    Attributes:
        policy: run directory (that of `export` too), checkpoint directory, .onnx file, or ws://host:port of
            `robot-rl serve`; empty to evaluate the expert.
        env: component: which environment.
        expert: component: who acts when `policy` is empty.
        num_episodes: how many seeds, from first_seed on.
        first_seed: held-out seeds start here by default; demonstrations start at 0, training roll-outs at 50000.
        num_envs: environments stepped side by side; does not change the result.
        mode: sampling mode of a diffusion policy (eta0, eta1, mean), or null for the policy's own.
        denoising_steps: of a diffusion policy, spread evenly over the range of its own levels (docs/rti.md); null: its own.
        rti: start each decision of a diffusion policy from its last chunk (algorithms/warm_start.py; level, steps, start,
            discrete_at, discrete_scale, max_jump); null: full denoising, or what an rti.onnx of `export` brings.
        execution: play as a robot does, whose policy answers late (docs/chunks.md): sync, naive, async, ensemble or rtc; null:
            every answer is there at once.
        latency_ms: of every answer, for execution; null: the time that this machine takes.
        chunks: every, blend_steps, decay and guidance of execution (deploy/execution.py).
        best_of: chunks that a diffusion policy draws at every decision; the one that `critic` likes best is played.
        critic: run or checkpoint directory of `offline` whose critic chooses; empty without best_of.
        noise_rule: fixed or seeded, or null for the policy's own (an export states it; a checkpoint is seeded).
        noise_seed: of the noise, or null for the policy's own (0 for a checkpoint).
        runtime: what runs an .onnx file: onnx (ONNX Runtime with `provider`), openvino, tensorrt, or auto: the fastest of them
            here, measured for 2 s and remembered (docs/infer.md).
        provider: onnxruntime execution provider of an .onnx file.
        allow_cpu: accept the CPU when `provider` does not load; runtime=tensorrt never does.
        engine_cache: folder of the engines that TensorRT builds, itself or as onnxruntime's provider, and of auto's choices.
        precision: fp32, or fp16 inside a TensorRT engine, or bf16 inside OpenVINO.
        threads: of onnxruntime, OpenVINO or torch; runtime=auto finds its own.
        push: a push in every episode (algorithms/disturbance.py; body, impulse_n_s, action_offset, steps, first_step,
            last_step, seed), in place of the env's own; null for none. Refused by an env that can't be pushed.
        shift: starts away from those of training (xy_m, scale, bodies), likewise.
        view_shift: other cameras, lights and colours (camera_deg, camera_m, light_stops, light_deg, hue_deg, brightness,
            seed; algorithms/view_shift.py), likewise; `robot-rl robustness` plays several strengths.
        reset_s: seconds that a reset between two episodes takes, for successes an hour.
        engine, engine_workers, engine_address: local, or ray with that many worker processes, on this machine or on the Ray at
            that address (docs/scale.md).
        task_episodes: seeds of a task, the same rows on every engine; null: all at once on local, 2 num_envs on ray.
        seed, run_root, resume: as in every stage.
    """

    policy: str = ""
    env: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)
    num_episodes: int = 100
    first_seed: int = 100_000
    num_envs: int = 8
    mode: SamplingMode | None = None
    denoising_steps: int | None = None
    rti: WarmStart | None = None
    execution: Execution | None = None
    latency_ms: float | None = 0.0
    chunks: ChunkRule = field(default_factory=ChunkRule)
    best_of: int = 1
    critic: str = ""
    noise_rule: NoiseRule | None = None
    noise_seed: int | None = None
    runtime: Runtime = Runtime.onnx
    provider: str = "CPUExecutionProvider"
    allow_cpu: bool = False
    engine_cache: str = DEFAULT_CACHE
    precision: Precision = Precision.fp32
    threads: int = 1
    push: Push | None = None
    shift: Shift | None = None
    view_shift: ViewShift | None = None
    reset_s: float = 0.0
    engine: EngineKind = EngineKind.local
    engine_workers: int = 1
    engine_address: str = ""
    task_episodes: int | None = None
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = EvaluateConfig


def run(config: EvaluateConfig, run: RunDirectory) -> dict[str, Any]:
    """Play the missing seeds and write the summary."""
    if config.num_episodes < 1 or config.num_envs < 1 or config.reset_s < 0:
        raise ConfigError(
            "evaluate", expected="num_episodes and num_envs of at least 1, reset_s of 0 or more",
            got=f"{config.num_episodes}, {config.num_envs} and {config.reset_s}", hint="Correct them.",
        )  # fmt: skip
    _check_best_of(config)
    _check_execution(config)
    size = grid_size(config.task_episodes, config.engine, num_envs=config.num_envs)
    _node, push = disturbed_env(config)
    began = time.monotonic()
    table = run.path / "episodes.jsonl"
    records = read_records(table)
    played = {record.seed for record in records}
    plan = PlayerPlan("robot_rl.stages.evaluate_play.make_player", config_to_json(config))
    with (
        open_engine(config.engine, plan, workers=config.engine_workers, address=config.engine_address) as engine,
        open(table, "a", encoding="utf-8") as file,
        MetricsWriter(run.path / "metrics.jsonl") as metrics,
        interruptible() as stop,
        Progress("evaluate", total=config.num_episodes) as progress,
    ):
        progress.advance(len(records))

        def is_stopped() -> bool:
            if stop.requested:
                raise KeyboardInterrupt
            return False

        def on_episode(record: EpisodeRecord, _episode: object) -> None:
            if record.seed in played:  # a block that was cut in two by a kill is played whole
                return
            records.append(record)
            file.write(json.dumps(record.to_json()) + "\n")
            file.flush()
            wins = sum(r.success_once for r in records)
            metrics.write(len(records), {"eval/success_once": wins / len(records)})
            progress.advance(1, f"{wins}/{len(records)} succeeded")
            is_stopped()

        wanted = range(config.first_seed, config.first_seed + config.num_episodes)
        grid = [wanted] if size is None else blocks(config.first_seed, config.num_episodes, size)
        tasks = (
            seeds if size else [s for s in seeds if s not in played] for seeds in grid if not played.issuperset(seeds)
        )
        engine.play(tasks, on_episode, is_done=is_stopped)
        player, used = engine.describe(), engine.summary()
    protocol = player["protocol"] | {
        "first_seed": config.first_seed,
        "num_episodes": config.num_episodes,
        "num_envs": player["num_envs"],
        "policy": player["policy"],
    }
    protocol |= {} if size is None else {"task_episodes": size}
    records.sort(key=lambda record: record.seed)
    summary = summarize(records) | throughput(records, control_hz=player["control_hz"], reset_s=config.reset_s)
    summary |= {} if push is None else {"push": pushed_share(records, push)}
    summary |= player["counts"] | used | {"protocol": protocol, "seconds": time.monotonic() - began}
    run.write_json("summary.json", summary)
    return summary


def disturbed_env(config: EvaluateConfig) -> tuple[dict[str, Any], Push | None]:
    """The env component with `push`, `shift` and `view_shift` of this evaluation in it, and the push it has then.

    Raises:
        EnvError: the environment has no such option.
        ConfigError: a wrong component.
    """
    asked = {"push": config.push, "shift": config.shift, "view_shift": config.view_shift}
    node = dict(config.env)
    known = {item.name for item in fields(validate_component(node, where="env")[1])}
    for name, wish in asked.items():
        if wish is not None and name not in known:
            raise EnvError(
                f"{name} with {node['_target_']}", expected=f"an environment that has the option `{name}`", got="none",
                hint=f"Leave {name} out, or give your environment a field `{name}` (robot_rl/algorithms/disturbance.py).",
            )  # fmt: skip
        node |= {} if wish is None else {name: config_to_json(wish)}
    push = getattr(validate_component(node, where="env")[1], "push", None)
    return node, push if isinstance(push, Push) else None


def load_any_policy(config: EvaluateConfig) -> Any:
    """A policy from an .onnx file, a run directory, a checkpoint or a server.

    Raises:
        RobotRlError: it can't be loaded, or an option that it does not read was given.
    """
    is_served, exported = config.policy.startswith(("ws://", "wss://")), exported_file(config.policy)
    kind = PolicyKind.served if is_served else PolicyKind.checkpoint if exported is None else PolicyKind.file
    options = RuntimeOptions(config.runtime, config.precision, config.provider, config.allow_cpu, config.threads)
    require_read(config.policy, kind, options)
    if is_served:
        if config.critic or any(word is not None for word in (config.mode, config.denoising_steps, config.rti)):
            raise PolicyError(
                config.policy, expected="no mode, denoising_steps, rti or critic for a policy that a server computes",
                got="one of them", hint="Give `robot-rl serve` mode and denoising_steps.",
            )  # fmt: skip
        return open_client({"uri": config.policy})
    if exported is not None:
        refuse_of_a_file(mode=config.mode, denoising_steps=config.denoising_steps, where=config.policy)
        # At least 16, so that one engine serves most numbers of envs.
        max_batch = max(EngineOptions().max_batch, config.num_envs)
        return open_policy(
            exported, runtime=config.runtime, provider=config.provider, allow_cpu=config.allow_cpu, threads=config.threads,
            options=EngineOptions(cache=config.engine_cache, precision=config.precision, max_batch=max_batch),
        )  # fmt: skip
    import torch

    from robot_rl.runs.checkpoint import load_policy

    torch.set_num_threads(config.threads)
    policy, _spec, _checkpoint = load_policy(Path(config.policy))
    policy.eval()
    policy = sampled(policy, mode=config.mode, denoising_steps=config.denoising_steps, where=config.policy)
    if not config.critic:
        return policy
    from robot_rl.fitting.best_of import BestOfPolicy, load_critic

    return BestOfPolicy(policy, load_critic(config.critic, policy), config.best_of)


def _check_best_of(config: EvaluateConfig) -> None:
    if config.best_of < 1 or (config.best_of > 1 and not config.critic):
        raise ConfigError(
            "evaluate", expected="best_of=1, or best_of=<more> with critic=<run directory of `robot-rl offline`>",
            got=f"best_of={config.best_of} critic={config.critic!r}", hint="The critic chooses among the chunks.",
        )  # fmt: skip
    if config.critic and (not config.policy or exported_file(config.policy) is not None):
        raise PolicyError(
            config.policy or "expert", expected="a run or checkpoint directory of a diffusion policy for best_of and critic",
            got="an .onnx file" if config.policy else "no policy", hint="Give the run that was exported.",
        )  # fmt: skip


def _check_execution(config: EvaluateConfig) -> None:
    if config.execution is None and (config.latency_ms != 0 or config.chunks != ChunkRule()):
        raise ConfigError(
            "latency_ms and chunks", expected="execution=sync, naive, async, ensemble or rtc with them", got="none",
            hint="It says what is played while the policy computes (docs/chunks.md).",
        )  # fmt: skip
    if config.engine is EngineKind.ray and (config.execution is not None or config.rti is not None):
        raise ConfigError(
            "engine=ray", expected="no rti and no execution", got="one of them",
            hint="What they count isn't gathered from several processes: use engine=local.",
        )  # fmt: skip
    unread = [
        name for name in ("mode", "denoising_steps", "noise_rule", "noise_seed") if getattr(config, name) is not None
    ]
    if unread and not config.policy:
        raise ConfigError(
            unread[0], expected="a policy with it", got="an expert", hint="Leave it out, or name the policy: policy=<run>.",
        )  # fmt: skip
    if config.execution is not None and not config.policy:
        raise ConfigError(
            f"execution={config.execution.value}", expected="a policy", got="an expert", hint="An expert is never late."
        )


def check_policy_spec(policy: Any, given: EnvSpec, *, where: str) -> None:
    """check_spec of a policy, which needs no more of an environment than what it observes.

    Raises:
        PolicyError: see check_spec.
    """
    trained: EnvSpec = policy.spec
    keys = getattr(policy.config, "observation_keys", tuple(trained.observation))
    check_spec(observing(trained, keys), given, where=where)


def check_spec(trained: EnvSpec, given: EnvSpec, *, where: str) -> None:
    """Refuse a policy on an environment whose actions or observations mean something else.

    Raises:
        PolicyError: naming the first difference.
    """
    # First: another control mode often has another size too, and the size alone doesn't say what is wrong.
    hint = "Use the environment configuration the policy was trained with."
    actions = (trained.action_semantics, given.action_semantics)
    require_same_actions(*actions, where=where, taker=given.env_id, hint=hint)
    pairs = [
        ("action size", trained.action.size, given.action.size),
        ("control_hz", trained.control_hz, given.control_hz),
        ("joint_names", trained.joint_names, given.joint_names),
    ]
    pairs += [
        (f"observation {key!r}", spec.shape, given.observation[key].shape if key in given.observation else None)
        for key, spec in trained.observation.items()
    ]
    for name, expected, got in pairs:
        if expected != got:
            raise PolicyError(
                f"{where}: {name}", expected=f"{expected} (what it was trained with)",
                got=f"{got} (what {given.env_id} offers)", hint=hint,
            )  # fmt: skip
    require_same_cameras(trained, given, where=where)
    require_same_points(trained, given, where=where)
