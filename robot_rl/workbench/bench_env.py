"""`bench env`: env steps per second through our adapter against ManiSkill's own `gymnasium.make` environment.

All play the same random actions, episodes to the time limit, resets included, on CPU physics. What the adapter adds:
history, seeds, checks for finite numbers, copies, proprio beside state, and a new physics scene per episode.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from robot_rl.errors import RobotRlError
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build
from robot_rl.types import ActionChunk
from robot_rl.workbench.bench_timing import BenchError, Comparison, Contender, Options, Report, interleave

TARGET = 0.95
RAW = "raw ManiSkill"
# (envs, chunk)
SHAPES = ((1, 1), (1, 8), (4, 8))


def run(options: Options) -> Report:
    """Measure the raw environment, ours in several shapes, and ours with the fast CPU path where the task has one.

    Raises:
        BenchError: `--env` is no ManiSkill task with states, or the two do not start alike.
        ConfigError: unknown `--env`.
        EnvError: the environment can't be built.
    """
    torch.set_num_threads(options.threads)
    node = compose_config([f"env={options.env}"], name="evaluate")["env"]
    if not str(node.get("_target_", "")).endswith(".maniskill.make_env") or node.get("obs_mode", "state") != "state":
        raise BenchError(
            f"--env {options.env}", expected="a ManiSkill task with obs_mode state", got=str(node.get("_target_")),
            hint="Only ManiSkill has a raw environment to compare with.",
        )  # fmt: skip
    node |= {"terminate_on_success": False, "reward_mode": "sparse", "sim_backend": "physx_cpu"}
    envs, contenders = [], []
    for fast, (num_envs, chunk) in [(False, shape) for shape in SHAPES] + _fast_shapes(node):
        env = build(node | ({"fast_cpu": True} if fast else {}), num_envs=num_envs, history=1)
        envs.append(env)
        name = f"{'fast_cpu' if fast else 'ours'}, N={num_envs} chunk {chunk}"
        contenders.append(our_contender(env, name, chunk=chunk))
    raw = _raw_env(node, rendering=envs[0].protocol()["rendering"])
    facts = {"task": node["task"], "max_episode_steps": envs[0].spec.max_episode_steps, "threads": options.threads}
    facts |= {"versions": envs[0].protocol()["versions"], "first_states_equal": _start_alike(envs[0], raw)}
    for env in envs:
        env.reset(itertools.count(0))
    contenders.insert(0, _raw_contender(raw, envs[0].spec))
    measured = interleave(contenders, rounds=options.rounds)
    for env in (*envs, raw):
        env.close()
    comparisons = tuple(Comparison(contender.name, RAW, TARGET) for contender in contenders[1:])
    return Report(measured, comparisons, facts)


def _fast_shapes(node: dict[str, Any]) -> list[tuple[bool, tuple[int, int]]]:
    """One shape with the fast path, if this version and task have it."""
    try:
        build(node | {"fast_cpu": True}, num_envs=1, history=1).close()
    except RobotRlError:  # no such field, or a task whose parity is not tested
        return []
    return [(True, (1, 8))]


def _raw_env(node: dict[str, Any], *, rendering: str) -> Any:
    """What a user of ManiSkill gets from `gymnasium.make`, with the same options."""
    import gymnasium
    import mani_skill.envs  # noqa: F401  (fills the registry)

    extra = {"render_backend": "none"} if rendering.startswith("none") else {}
    return gymnasium.make(
        node["task"], num_envs=1, obs_mode="state", reward_mode="sparse", sim_backend="physx_cpu",
        control_mode=node["control_mode"], **extra,
    )  # fmt: skip


def _start_alike(ours: Any, raw: Any) -> bool:
    """Whether both show the same first state of seed 0.

    Raises:
        BenchError: they do not; they would then play different tasks.
    """
    state = ours.reset([0]).state[0, -1].cpu()
    other = raw.reset(seed=0)[0][0].cpu()
    if not torch.allclose(state, other, atol=1e-5):
        raise BenchError(
            "bench env", expected="the same first state of seed 0", got=f"states {(state - other).abs().max():.3g} apart",
            hint="Is the environment that of ManiSkill's registry?",
        )  # fmt: skip
    return True


def random_actions(count: int, size: int) -> torch.Tensor:
    """Uniform actions in [-1, 1], float32 (count, size), seed 0."""
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (count, size)).astype(np.float32))


def our_contender(env: Any, name: str, *, chunk: int) -> Contender:
    """One whole episode in each env; HistoryEnv resets at its end. `env.reset` comes before the first call."""
    limit = env.spec.max_episode_steps
    actions = random_actions(limit, env.spec.action.size)
    chunks = []
    for begin in range(0, limit, chunk):
        part = actions[begin : begin + chunk].repeat(env.num_envs, 1, 1)
        chunks.append(ActionChunk(actions=part, execute=part.shape[1]))

    def episode() -> None:
        for part in chunks:
            result = env.step(part)
        assert bool((result.terminated | result.truncated).all())

    return Contender(name, episode, limit * env.num_envs, "env steps")


def _raw_contender(raw: Any, spec: Any) -> Contender:
    actions = random_actions(spec.max_episode_steps, spec.action.size)
    seeds = itertools.count(0)

    def episode() -> None:
        for action in actions:
            raw.step(action)
        raw.reset(seed=next(seeds))

    return Contender(RAW, episode, len(actions), "env steps")
