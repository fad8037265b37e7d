"""The deploy stage: in this process with the simulated arm, and over real DDS against its node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mani_skill")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from robot_rl.algorithms.statistics import proportion
from robot_rl.deploy.loop_policy import policy_file
from robot_rl.deploy.onnx_policy import FORMAT
from robot_rl.errors import ConfigError, DeployError, PolicyError
from robot_rl.hardware import sim_robot
from robot_rl.runs.directory import RunDirectory
from robot_rl.specs import EnvSpec
from robot_rl.stages import deploy
from robot_rl.stages.deploy import DeployConfig, StoppedError

HORIZON, EXECUTE = 8, 4
SIM = {"robot": {"_target_": "robot_rl.hardware.sim_robot.SimRobot", "options": {"fast_cpu": True}}}
DOMAIN = 85 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 5
START_S = 90
# The trained policy of the acceptance run; see docs.
TRAINED = os.environ.get("ROBOT_RL_PICK_CUBE_ONNX", "")


@pytest.fixture(scope="module")
def scene() -> Iterator[Any]:
    scene = sim_robot.live_scene("pick_cube", {"fast_cpu": True})
    yield scene
    scene.close()


@pytest.fixture
def same_scene(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scene for all robots of this file: making one takes seconds."""

    class Kept:
        def __getattr__(self, name: str) -> Any:
            return (lambda: None) if name == "close" else getattr(scene, name)

    monkeypatch.setattr(sim_robot, "live_scene", lambda env, options: Kept())


def policy(folder: Path, spec: EnvSpec, action: list[float]) -> Path:
    """An exported policy that always says the same."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = len(action)
    chunk = np.broadcast_to(np.float32(action), (1, HORIZON, size)).copy()
    nodes = [
        helper.make_node("Squeeze", ["noise", "axis"], ["plain"]),
        helper.make_node("Mul", ["plain", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["state", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["none"]),
        helper.make_node("Add", ["nothing", "none"], ["both"]),
        helper.make_node("Add", ["both", "chunk"], ["actions"]),
    ]
    constants = {"axis": np.array([1]), "axes": np.array([1, 2]), "zero": np.float32(0), "chunk": chunk}
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    shapes = {"state": ["b", 1, 42], "noise": ["b", 1, HORIZON, size], "actions": ["b", HORIZON, size]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "constant", [values["state"], values["noise"]], [values["actions"]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    metadata = {
        "spec": spec.to_json(), "sampling": "constant", "noise": {"rule": "fixed", "seed": 0, "shape": [1, HORIZON, size]},
        "config": {"observation_keys": ["state"], "history": 1, "horizon": HORIZON, "execute": EXECUTE},
    }  # fmt: skip
    helper.set_model_props(model, {"format": FORMAT} | {key: json.dumps(value) for key, value in metadata.items()})
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, str(folder / "policy.onnx"))
    return folder / "policy.onnx"


def play(folder: Path, file: Path, **changes: Any) -> tuple[dict[str, Any], RunDirectory]:
    config = DeployConfig(policy=str(file), driver=SIM, num_episodes=2, max_steps=6, settle_s=0.05, black_box=False)
    run = RunDirectory.create(folder, stage="deploy", task="test", seed=0, config_yaml="", command=["test"])
    return deploy.run(replace(config, **changes), run), run


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("same_scene")
def test_plays_its_episodes_and_writes_what_happened(tmp_path: Path, scene: Any) -> None:
    file = policy(tmp_path / "export", scene.spec, [0.0, 0.3, -0.3, 1.0])
    summary, run = play(tmp_path, tmp_path)  # the run directory of an export
    assert summary["policy"] == str(file)
    assert [row["seed"] for row in rows(run)] == [900_000, 900_001]
    for row in rows(run):
        assert (row["ended_by"], row["success"], row["steps"], row["reasons"]) == ("time_limit", False, 6, [])
        assert row["requests"] >= 2, "one for every 4 actions"
        assert row["clamps"].keys() <= {"policy_late", "stale"}, "the card's limits bend nothing that the env allows"
    assert (summary["success"]["k"], summary["success"]["n"]) == (0, 2)
    latency = summary["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p100"]
    assert summary["slots"] >= 12
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert run.read_json("summary.json") == summary


@pytest.mark.usefixtures("same_scene")
def test_nan_stops_with_exit_code_3_and_the_robot_holds(tmp_path: Path, scene: Any) -> None:
    file = policy(tmp_path / "export", scene.spec, [0.0, 0.0, float("nan"), 1.0])
    with pytest.raises(StoppedError, match="not_finite") as caught:
        play(tmp_path, file, black_box=True)
    assert caught.value.exit_code == 3
    (folder,) = tmp_path.glob("*_deploy_*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stops"] == {"not_finite": 1}
    assert (summary["episodes"], summary["success"]["k"]) == (1, 0)
    assert list((folder / "black_box").glob("*.mcap"))
    # The arm is told to stay where it is.
    np.testing.assert_allclose(scene.driven[:7], scene.joints()[:7], atol=0.02)
    both, _ = play(tmp_path, file, release_stops=True)
    assert both["stops"] == {"not_finite": 2}


@pytest.mark.usefixtures("same_scene")
@pytest.mark.parametrize(
    ("changes", "meaning", "says"),
    [
        ({"robot": "ur5e"}, {}, "ur5e"),
        ({}, {"frame": "joint"}, "frame"),
        ({}, {"control_mode": "pd_ee_target_delta_pos"}, "differs"),
    ],
)
def test_wrong_pair_is_refused_with_both_declarations(
    tmp_path: Path, scene: Any, changes: dict[str, Any], meaning: dict[str, Any], says: str
) -> None:
    spec = replace(scene.spec, action_semantics=replace(scene.spec.action_semantics, **meaning), **changes)
    before = scene.driven
    with pytest.raises((PolicyError, DeployError)) as caught:
        play(tmp_path, policy(tmp_path / "export", spec, [0.0, 0.3, 0.0, 1.0]))
    assert says in str(caught.value)
    assert "panda" in str(caught.value)
    np.testing.assert_array_equal(scene.driven, before)
    assert not list(tmp_path.glob("*_deploy_*/episodes.jsonl"))


def test_policy_that_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="robot-rl export"):
        play(tmp_path, tmp_path)
    with pytest.raises(PolicyError, match="none"):
        policy_file("")


@pytest.mark.usefixtures("same_scene")
def test_nobody_who_resets(tmp_path: Path, scene: Any) -> None:
    file = policy(tmp_path / "export", scene.spec, [0.0, 0.0, 0.0, 1.0])
    with pytest.raises(ConfigError, match=r"driver\.robot"):
        play(tmp_path, file, driver={})
    with pytest.raises(ConfigError, match="num_episodes"):
        play(tmp_path, file, num_episodes=0)


def node_and_deploy(folder: Path, file: Path, *words: str, episodes: int) -> tuple[RunDirectory, dict[str, Any]]:
    """`deploy` in a process of its own against the simulated robot in another, 20 ms of latency between them."""
    env = os.environ | {"ROS_DOMAIN_ID": str(DOMAIN), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    node = subprocess.Popen(
        [sys.executable, "-m", "robot_rl.hardware.sim_robot_node", "--options", '{"fast_cpu": true}',
         "--latency-s", "0.02", "--jitter-s", "0.005", "--command-latency-s", "0", "--command-jitter-s", "0"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        command = [sys.executable, "-m", "robot_rl", "deploy", "--json", "--track", "none", f"policy={file}"]
        command += [f"num_episodes={episodes}", f"run_root={folder}", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=START_S + 20 * episodes)
        assert done.returncode == 0, done.stderr
        node.send_signal(signal.SIGINT)
        out, err = node.communicate(timeout=60)
        assert node.returncode == 0, err
    finally:
        node.kill()
    run = RunDirectory.open(json.loads(done.stdout)["run"])
    return run, json.loads(out.strip().splitlines()[-1])


def test_over_real_dds(tmp_path: Path, scene: Any) -> None:
    pytest.importorskip("rclpy")
    file = policy(tmp_path / "export", scene.spec, [0.0, 0.3, -0.3, 1.0])
    run, facts = node_and_deploy(tmp_path, file, "max_steps=8", episodes=2)
    assert [row["ended_by"] for row in rows(run)] == ["time_limit"] * 2
    assert facts["resets"] == 2
    latency = run.read_json("summary.json")["latency_ms"]
    assert latency["p50"] > 15, "the injected latency is in it"


@pytest.mark.slow
@pytest.mark.skipif(not TRAINED, reason="needs a trained policy: ROBOT_RL_PICK_CUBE_ONNX=<policy.onnx>")
def test_closed_loop_over_real_dds_keeps_the_success_of_the_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    from robot_rl.stages import evaluate

    env = {"_target_": "robot_rl.envs.maniskill.make_env", "task": "PickCube-v1", "fast_cpu": True}
    wanted = evaluate.EvaluateConfig(policy=TRAINED, env=env, num_episodes=200, first_seed=900_000)
    run = RunDirectory.create(tmp_path, stage="evaluate", task="test", seed=0, config_yaml="", command=["test"])
    in_process = evaluate.run(wanted, run)["success_once"]
    closed, _ = node_and_deploy(tmp_path, Path(TRAINED), episodes=200)
    success = closed.read_json("summary.json")["success"]
    assert success["n"] == 200
    assert success["high"] >= in_process["low"], f"{success} against {in_process}"
    assert proportion(success["k"], 200).to_json() == success
