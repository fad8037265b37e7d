"""Baselines of libraries: SB3's conventions against hand numbers, and the stage from training to evaluation."""

from __future__ import annotations

import itertools
import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.returns import generalized_advantage
from robot_rl.data.normalizer import unit_actions
from robot_rl.envs.history import Frame, HistoryEnv
from robot_rl.errors import ConfigError
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import config_to_yaml, load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import read_metrics
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages import baseline, evaluate
from robot_rl.types import ActionChunk, Observation

needs_sb3 = pytest.mark.skipif(
    find_spec("stable_baselines3") is None, reason="stable-baselines3 is not installed (extra baselines)"
)

SPEC = EnvSpec(
    env_id="Scripted",
    observation={"proprio": ArraySpec("proprio", (1,)), "state": ArraySpec("state", (1,))},
    action=ArraySpec("action", (1,), low=(-2.0,), high=(2.0,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "script"),
    joint_names=("j",),
    robot="script",
    control_hz=4.0,
    max_episode_steps=3,
)
# Episode seed -> V of every frame (the first one at reset), reward of every step. Seed 0 fails at step 2 and so
# terminates; seed 1 runs into the time limit of 3; seeds 2 and 3 are under way when the roll-out of 4 steps ends.
VALUES = {0: [0.5, 1.0, 1.5], 1: [0.1, 0.2, 0.3, 1.0], 2: [0.2, 0.4, 0.8], 3: [0.6, 0.7]}
REWARDS = {0: [0.0, 2.0], 1: [0.0, 0.0, 0.5], 2: [0.3, 0.1], 3: [0.2]}
GAMMA = TRACE = 0.5
# Env 0: seed 0, then seed 2; env 1: seed 1, then seed 3. delta = r + 0.5 V' (1 - terminated) - V, carry 0.25.
#   env 0: 0 + 0.5 - 0.5 = 0;  2 + 0 - 1 = 1;  0.3 + 0.2 - 0.2 = 0.3;  0.1 + 0.4 - 0.4 = 0.1
#   env 1: 0 + 0.1 - 0.1 = 0;  0 + 0.15 - 0.2 = -0.05;  0.5 + 0.5 - 0.3 = 0.7;  0.2 + 0.35 - 0.6 = -0.05
ADVANTAGES = [[0.25, 0.03125], [1.0, 0.125], [0.325, 0.7], [0.1, -0.05]]


class Scripted:
    """Plays VALUES and REWARDS whatever the action; a frame is x with 2 tanh(x) = V, so that a critic can say V."""

    def __init__(self) -> None:
        self.spec, self.num_envs, self.device = SPEC, 2, torch.device("cpu")
        self.seed, self.count = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
        self.actions: list[list[float]] = []

    def reset_envs(self, mask: np.ndarray, seeds: np.ndarray) -> Frame:
        self.seed[mask], self.count[mask] = seeds[mask], 0
        return self._frame([0.0, 0.0])

    def step_envs(self, action: torch.Tensor, active: np.ndarray) -> Frame:
        self.actions.append(action[:, 0].tolist())
        self.count += active
        return self._frame([REWARDS[int(s)][int(c) - 1] for s, c in zip(self.seed, self.count, strict=True)])

    def _frame(self, rewards: list[float]) -> Frame:
        values = [VALUES[int(s)][int(c)] for s, c in zip(self.seed, self.count, strict=True)]
        x = torch.tensor([[math.atanh(v / 2)] for v in values])
        fail = torch.from_numpy((self.seed == 0) & (self.count == 2))
        return Frame({"proprio": x, "state": x.clone()}, torch.tensor(rewards), torch.zeros(2, dtype=torch.bool), fail)

    def protocol(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def scripted() -> HistoryEnv:
    return HistoryEnv(Scripted(), history=1, terminate_on_success=False)


def vec_env(env: HistoryEnv) -> Any:
    from robot_rl.policies.baseline_vec_env import as_vec_env

    normalizer = unit_actions(SPEC, ("state",))
    return as_vec_env(env, keys=("state",), history=1, normalizer=normalizer, seeds=itertools.count(0))


def test_the_hand_numbers_are_those_of_our_own_gae() -> None:
    env = scripted()
    first = env.reset(itertools.count(0))
    rows: dict[str, list[torch.Tensor]] = {
        k: [] for k in ("reward", "v", "next_v", "executed", "terminated", "truncated")
    }

    def value(observation: Observation) -> torch.Tensor:
        assert observation.state is not None
        return 2 * torch.tanh(observation.state[:, -1, 0])

    for _ in range(4):
        rows["v"].append(value(first))
        result = env.step(ActionChunk(actions=torch.zeros(2, 1, 1), execute=1))
        rows["reward"].append(result.rewards[:, 0])
        rows["next_v"].append(value(result.final_observation))
        for name in ("executed", "terminated", "truncated"):
            rows[name].append(getattr(result, name))
        first = result.observation
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    assert stacked["terminated"].nonzero().tolist() == [[1, 0]]
    assert stacked["truncated"].nonzero().tolist() == [[2, 1]]
    advantage, _ = generalized_advantage(
        stacked["reward"], stacked["v"], stacked["next_v"], executed=stacked["executed"],
        terminated=stacked["terminated"], truncated=stacked["truncated"], gamma=GAMMA, trace=TRACE,
    )  # fmt: skip
    torch.testing.assert_close(advantage, torch.tensor(ADVANTAGES))


@needs_sb3
def test_ppo_of_sb3_sees_the_same_advantages_through_our_adapter() -> None:
    from stable_baselines3.common.callbacks import ConvertCallback

    from robot_rl.policies.baseline_sb3 import PpoConfig, Sb3Learner

    config = PpoConfig(hidden=(1,), n_steps=4, batch_size=8, gamma=GAMMA, gae_lambda=TRACE)
    model = Sb3Learner(config).build(vec_env(scripted()), seed=0)
    with torch.no_grad():  # V = 2 tanh(x)
        hidden, last = model.policy.mlp_extractor.value_net[0], model.policy.value_net
        for layer, weight in ((hidden, 1.0), (last, 2.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    model._setup_learn(8)
    callback = ConvertCallback(lambda _local, _global: True)
    callback.init_callback(model)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=4)
    np.testing.assert_allclose(model.rollout_buffer.advantages, ADVANTAGES, atol=1e-6)
    values = [[0.5, 0.1], [1.0, 0.2], [0.2, 0.3], [0.4, 0.6]]
    np.testing.assert_allclose(model.rollout_buffer.returns, np.add(ADVANTAGES, values), atol=1e-6)


@needs_sb3
def test_sac_of_sb3_keeps_the_target_at_a_time_limit_and_drops_it_at_a_termination() -> None:
    from robot_rl.policies.baseline_sb3 import SacConfig, Sb3Learner

    model = Sb3Learner(SacConfig(hidden=(4,), learning_starts=100, buffer_size=20)).build(vec_env(scripted()), seed=0)
    model.learn(8)
    buffer = model.replay_buffer
    shown = 2 * np.tanh(buffer.next_observations[:4, :, 0])
    np.testing.assert_allclose(shown, [[1.0, 0.2], [1.5, 0.3], [0.4, 1.0], [0.8, 0.7]], atol=1e-6)
    np.testing.assert_array_equal(buffer.dones[:4], [[0, 0], [1, 0], [0, 1], [0, 0]])
    has_no_future = buffer.dones[:4] * (1 - buffer.timeouts[:4])
    np.testing.assert_array_equal(has_no_future, [[0, 0], [1, 0], [0, 0], [0, 0]])


@needs_sb3
def test_actions_of_sb3_reach_the_environment_in_its_own_unit() -> None:
    env = scripted()
    adapted = vec_env(env)
    adapted.reset()
    adapted.step(np.array([[0.5], [-1.0]], dtype=np.float32))
    assert env._env.actions == [[1.0, -2.0]]  # type: ignore[attr-defined]
    assert (adapted.action_space.low, adapted.action_space.high) == (-1.0, 1.0)


@needs_sb3
@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_the_policy_says_what_the_library_says(algo: str) -> None:
    from robot_rl.policies.baseline_sb3 import PpoConfig, SacConfig, Sb3Learner

    config = PpoConfig(hidden=(8, 8)) if algo == "ppo" else SacConfig(hidden=(8, 8), buffer_size=10)
    learner = Sb3Learner(config)
    model = learner.build(vec_env(scripted()), seed=3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # SB3 draws PPO's last layer near zero, where every actor says the same
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    policy = learner.policy(model, SPEC, unit_actions(SPEC, ("state",)))
    state = torch.linspace(-2, 2, 9)[:, None]
    observation = Observation(proprio=state[:, None], state=state[:, None])
    theirs, _ = model.predict(state.numpy(), deterministic=True)
    ours = policy.act(observation, torch.zeros(9, 0, 1, 1)).actions[:, 0].numpy()
    np.testing.assert_allclose(ours, 2 * theirs, atol=1e-5)
    assert theirs.std() > 0.05
    # Drawn: the same noise e through SB3's own distribution. atanh undoes SAC's tanh, PPO's clip is not met.
    stochastic = policy.with_mode(SamplingMode.eta1)
    noise = 0.1 * torch.ones(9, 1, 1, 1)
    with torch.no_grad():
        if algo == "ppo":
            normal = model.policy.get_distribution(state).distribution
            expected = (normal.mean + 0.1 * normal.stddev).clamp(-1, 1)
        else:
            mean, log_std, _ = model.actor.get_action_dist_params(state)
            expected = torch.tanh(mean + 0.1 * log_std.exp())
    np.testing.assert_allclose(stochastic.act(observation, noise).actions[:, 0], 2 * expected, atol=1e-5)


def start(stage: Any, name: str, folder: Path, *overrides: str) -> tuple[RunDirectory, dict[str, Any]]:
    """Compose the configuration as the command line does and call the stage."""
    config = load_config(stage.CONFIG, overrides, name=name)
    run = RunDirectory.create(
        folder, stage=name, task="point", seed=config.seed, config_yaml=config_to_yaml(config), command=[name]
    )
    return run, stage.run(config, run)


SHORT = ["env=point_reach", "env.reward_mode=dense", "env.max_episode_steps=10", "num_envs=2", "rollout_episodes=2"]


@needs_sb3
@pytest.mark.parametrize(
    "words",
    [
        ["algo=sb3_ppo", "algo.hidden=[16]", "algo.n_steps=64", "algo.batch_size=32", "num_steps=256"],
        ["algo=sb3_sac", "algo.hidden=[16]", "algo.learning_starts=40", "algo.batch_size=16", "num_steps=100"],
    ],
    ids=["ppo", "sac"],
)
def test_train_keep_and_evaluate(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, summary = start(baseline, "baseline", tmp_path / "a", *SHORT, *words, "evaluate_every_steps=100")
    steps = [line["step"] for line in read_metrics(run.path / "metrics.jsonl")]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    assert steps[-1] == summary["env_steps"] == int(words[-1].partition("=")[2])
    assert summary["to_target"][0]["target"] == 0.8
    again, _ = start(baseline, "baseline", tmp_path / "b", *SHORT, *words, "evaluate_every_steps=100")
    curves = [
        [line["baseline/total_reward_mean"] for line in read_metrics(each.path / "metrics.jsonl")]
        for each in (run, again)
    ]
    assert curves[0] == curves[1]  # same seed, same numbers
    assert curves[0][0] != curves[0][-1]  # it did learn something
    assert {path.suffix for path in (run.path / "checkpoints").rglob("*") if path.is_file()} == {
        ".json",
        ".safetensors",
    }
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # from here on there is no library
    policy, spec, _ = load_policy(run.path)
    assert spec.env_id == "PointReach"
    assert policy.sampling.endswith("deterministic")
    played, result = start(
        evaluate, "evaluate", tmp_path / "e", *SHORT[:-2], f"policy={run.path}", "num_episodes=2", "first_seed=50000",
    )  # fmt: skip
    table = [json.loads(line) for line in (played.path / "episodes.jsonl").read_text().splitlines()]
    assert np.mean([row["total_reward"] for row in table]) == pytest.approx(curves[0][-1], abs=1e-5)
    assert result["success_once"]["k"] == summary["success_once_deterministic"]["k"]


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robot_rl.policies import baseline_sb3

    monkeypatch.setattr(baseline_sb3, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'robot-rl\[baselines\]'"):
        start(baseline, "baseline", tmp_path, *SHORT)


def test_refuses_to_resume_and_to_run_without_steps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="replay buffer"):
        start(baseline, "baseline", tmp_path, *SHORT, "resume=runs/x")
    with pytest.raises(ConfigError, match="num_steps"):
        start(baseline, "baseline", tmp_path, *SHORT, "num_steps=0")
