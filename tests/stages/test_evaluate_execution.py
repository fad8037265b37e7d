"""`evaluate execution=... latency_ms=...`: protocol, summary, every kind on the checkpoint of an untrained policy, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.data.normalizer import Normalizer
from robot_rl.deploy.execution import ChunkRule, Execution
from robot_rl.deploy.noise import NoiseRule
from robot_rl.deploy.server import PolicyServer, ServerOptions
from robot_rl.deploy.serving import noise_of
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.checkpoint import load_policy, save_checkpoint
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages.evaluate import EvaluateConfig, run


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    torch.manual_seed(0)
    spec = PointReach(PointReachConfig(), num_envs=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    shape = DiffusionPolicyConfig(horizon=8, execute=4, hidden_width=16, level_embedding=8)
    policy = DiffusionPolicy(shape, spec, Normalizer.identity(sizes))
    node = {"_target_": "robot_rl.policies.diffusion.DiffusionPolicy", "config": shape.to_json()}
    documents = {"policy": node, "spec": spec.to_json(), "normalizer": policy.normalizer.to_json()}
    path = save_checkpoint(tmp_path, step=1, tensors={"policy": policy.state_dict()}, documents=documents)
    env = {"_target_": "robot_rl.envs.point_reach.make_env", "max_episode_steps": 20}
    return EvaluateConfig(policy=str(path), env=env, num_episodes=3, num_envs=1, run_root=str(tmp_path / "runs"))


def evaluate(config: EvaluateConfig, **changes: Any) -> dict[str, Any]:
    changed = replace(config, **changes)
    place = RunDirectory.create(
        changed.run_root, stage="evaluate", task="point", seed=0, config_yaml="", command=["test"]
    )
    return run(changed, place)


MEASURES = ("success_once", "total_reward_mean", "action_change_rms", "action_jerk_rms", "action_step_max", "env_steps")


def test_without_latency_it_is_the_plain_evaluation(config: EvaluateConfig) -> None:
    plain = evaluate(config)
    assert "chunk_execution" not in plain
    assert "execution" not in plain["protocol"]["policy"]
    assert plain["action_step_max"] > 0
    delayed = evaluate(config, execution=Execution.asynchronous)
    assert {key: delayed[key] for key in MEASURES} == {key: plain[key] for key in MEASURES}
    assert delayed["chunk_execution"] == {
        "questions": 15, "steps": 60, "held_steps": 0, "delay_steps": {"p50": 0.0, "p95": 0.0, "max": 0},
    }  # fmt: skip


def test_rti_starts_from_what_is_really_left(config: EvaluateConfig) -> None:
    """Without latency that is the plain evaluation; with it every kind plays something else, whatever num_envs is."""
    warm = WarmStart(level=21, max_jump=100.0)
    plain = evaluate(config, rti=warm)
    delayed = evaluate(config, rti=warm, execution=Execution.asynchronous)
    assert {key: delayed[key] for key in MEASURES} == {key: plain[key] for key in MEASURES}
    assert delayed["rti_decisions"] == plain["rti_decisions"] == {"warm": 12, "first": 3, "jump": 0, "full": 0}
    seen = set()
    for kind in (Execution.sync, Execution.naive, Execution.asynchronous, Execution.ensemble):
        late = evaluate(config, rti=warm, execution=kind, latency_ms=200.0)
        together = evaluate(config, rti=warm, execution=kind, latency_ms=200.0, num_envs=3)
        assert {key: late[key] for key in MEASURES} == {key: together[key] for key in MEASURES}
        questions = late["chunk_execution"]["questions"]
        assert late["rti_decisions"] == {"warm": questions - 3, "first": 3, "jump": 0, "full": 0}
        seen.add(late["action_jerk_rms"])
    assert len(seen) == 4


def test_each_kind_plays_something_else_under_latency(config: EvaluateConfig) -> None:
    seen = {}
    for kind in Execution:
        summary = evaluate(config, execution=kind, latency_ms=200.0)
        told = summary["protocol"]["policy"]["execution"]
        assert (told["kind"], told["latency_ms"]) == (kind.value, 200.0)
        assert summary["chunk_execution"]["delay_steps"] == {"p50": 2.0, "p95": 2.0, "max": 2}
        # sync holds 2 of every 6 steps: 4 + 2 + 4 + 2 + 4 + 2 + 2 are 20.
        assert summary["chunk_execution"]["held_steps"] == (18 if kind is Execution.sync else 0)
        seen[kind] = summary["action_jerk_rms"]
    assert len(set(seen.values())) == len(Execution)
    blended = evaluate(config, execution=Execution.asynchronous, latency_ms=200.0, chunks=ChunkRule(blend_steps=3))
    assert blended["action_jerk_rms"] < seen[Execution.asynchronous]
    again = evaluate(config, execution=Execution.rtc, latency_ms=200.0, num_envs=3)
    assert again["action_jerk_rms"] == seen[Execution.rtc]


def test_a_server_computes_the_same_evaluation(config: EvaluateConfig) -> None:
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    policy = load_policy(Path(config.policy))[0].eval()
    server = PolicyServer(policy, noise_of(policy), ServerOptions(port=0))
    server.start()
    uri = f"ws://127.0.0.1:{server.port}"
    plain, far = evaluate(config, num_envs=2), evaluate(config, num_envs=2, policy=uri)
    assert {key: far[key] for key in MEASURES} == {key: plain[key] for key in MEASURES}
    said = {key: far["protocol"]["policy"][key] for key in ("provider", "threads", "precision")}
    assert said == {"provider": f"server {uri}", "threads": None, "precision": None}  # it was told nothing
    late = {"execution": Execution.asynchronous, "latency_ms": 200.0, "num_envs": 2}
    here, there = evaluate(config, **late), evaluate(config, policy=uri, **late)
    assert {key: there[key] for key in MEASURES} == {key: here[key] for key in MEASURES}
    with pytest.raises(PolicyError, match="no mode, denoising_steps, rti or critic"):
        evaluate(config, policy=uri, mode=SamplingMode.mean)
    server.close()
    assert server.metrics.to_json()["errors"] == {}


def test_what_is_refused(config: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match="execution=sync, naive, async, ensemble or rtc with them"):
        evaluate(config, latency_ms=100.0)
    with pytest.raises(ConfigError, match="with them"):
        evaluate(config, chunks=ChunkRule(blend_steps=2))
    with pytest.raises(PolicyError, match="got WarmStartedPolicy"):
        evaluate(config, execution=Execution.rtc, rti=WarmStart(level=21))
    with pytest.raises(ConfigError, match="got an expert"):
        evaluate(config, policy="", execution=Execution.sync)
    with pytest.raises(ConfigError, match="a chunk has 8 actions and an answer takes 10 steps"):
        evaluate(config, execution=Execution.asynchronous, latency_ms=1000.0)


@pytest.mark.parametrize("given", [{"mode": SamplingMode.mean}, {"noise_seed": 3}, {"noise_rule": NoiseRule.fixed}])
def test_an_expert_has_neither_mode_nor_noise(config: EvaluateConfig, given: dict[str, Any]) -> None:
    expert = {"_target_": "robot_rl.envs.point_reach.PointReachExpert"}
    with pytest.raises(ConfigError, match=f"{next(iter(given))}.*an expert"):
        evaluate(config, policy="", expert=expert, **given)


def test_a_head_can_not_continue_a_chunk(config: EvaluateConfig, tmp_path: Path) -> None:
    head = load_policy(Path(config.policy))[0].one_step_student()
    node = {"_target_": "robot_rl.policies.onestep.OneStepPolicy", "config": head.config.to_json()}
    documents = {"policy": node, "spec": head.spec.to_json(), "normalizer": head.normalizer.to_json()}
    path = save_checkpoint(tmp_path, step=2, tensors={"policy": head.state_dict()}, documents=documents)
    with pytest.raises(PolicyError, match="Use execution=async"):
        evaluate(config, policy=str(path), execution=Execution.rtc)
