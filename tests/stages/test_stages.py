"""The stages through the command line, on the point task: what people type, with the real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

POINT = ["env=point_reach"]
needs_maniskill = pytest.mark.skipif(find_spec("mani_skill") is None, reason="ManiSkill is not installed (extra sim)")
TRAIN = ["train.batch_size=32", "train.threads=1", "train.warmup_steps=5", "train.log_every_steps=10"]
OTHER_NET = ["policy=transformer", "policy.prediction=v"]


def robot_rl(*words: str, cwd: Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run `robot-rl` as a user would and compare its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", *words], cwd=cwd, capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if check is not None:
        assert done.returncode == check, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 100 demonstrations of the point task."""
    folder = tmp_path_factory.mktemp("work")
    robot_rl("collect", *POINT, "expert=point_reach", "num_episodes=100", "dataset=demos.zarr", cwd=folder)
    return folder


def only_run(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(f"runs/*{pattern}*")
    return found


def test_collect_does_not_depend_on_num_envs_and_continues(place: Path, tmp_path: Path) -> None:
    words = ["collect", *POINT, "expert=point_reach", "dataset=demos.zarr"]
    robot_rl(*words, "num_episodes=11", "num_envs=3", cwd=tmp_path)
    robot_rl(*words, "num_episodes=100", "num_envs=1", cwd=tmp_path)
    from robot_rl.data.store import EpisodeStore

    with (
        EpisodeStore.open(str(tmp_path / "demos.zarr"), mode="r") as here,
        EpisodeStore.open(str(place / "demos.zarr"), mode="r") as there,
    ):
        assert here.content_hash() == there.content_hash()
        assert here.seeds.tolist() == list(range(100))
        assert here.success.all()


def test_imitate_survives_sigkill_bit_equal(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "demos.zarr", tmp_path / "demos.zarr")
    words = ["imitate", *POINT, "dataset=demos.zarr", "policy.hidden_width=32", *TRAIN]
    words += ["train.num_steps=120", "train.checkpoint_every_steps=20", "rollout_episodes=2", "num_envs=2"]
    robot_rl(*words, "run_root=runs/whole", cwd=tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-m", "robot_rl", *words, "run_root=runs/killed"], cwd=tmp_path, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("runs/killed/*/checkpoints/step_000040")):
        assert time.monotonic() < deadline
        assert child.poll() is None, "finished before it could be killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (killed,) = (tmp_path / "runs/killed").iterdir()
    assert not (killed / "checkpoints/step_000120").exists()
    robot_rl("imitate", f"resume={killed}", cwd=tmp_path)
    (whole,) = (tmp_path / "runs/whole").iterdir()
    for name in ("policy", "raw", "optimizer", "random"):
        first = load_file(whole / f"checkpoints/step_000120/{name}.safetensors")
        second = load_file(killed / f"checkpoints/step_000120/{name}.safetensors")
        assert first.keys() == second.keys()
        for key in first:
            assert np.array_equal(first[key], second[key]), f"{name} {key} differs after the resume"
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_the_chain_learns_and_every_form_of_the_policy_agrees(place: Path) -> None:
    """Imitate, distil, export, evaluate: high success, and the same table for torch and ONNX, 1 env and 5."""
    robot_rl(
        "imitate", *POINT, "dataset=demos.zarr", "policy.hidden_width=128", *TRAIN, "train.batch_size=128",
        "train.num_steps=1500", "train.checkpoint_every_steps=1500", cwd=place,
    )  # fmt: skip
    teacher = only_run(place, "_imitate_")
    robot_rl(
        "distill_onestep", *POINT, "dataset=demos.zarr", f"teacher={teacher}", *TRAIN, "train.num_steps=1500",
        "train.checkpoint_every_steps=1500", "train.batch_size=128", "rollout_episodes=5", cwd=place,
    )  # fmt: skip
    student = only_run(place, "_distill_onestep_")
    robot_rl("export", f"policy={student}", "dataset=demos.zarr", "latency_calls=20", cwd=place)
    onnx = only_run(place, "_export_") / "export/policy.onnx"
    tables = {}
    for name, policy, num_envs in (
        ("torch", student, 5),
        ("onnx", onnx, 5),
        ("onnx_1", onnx, 1),
        ("teacher", teacher, 5),
    ):
        robot_rl(
            "evaluate", *POINT, f"policy={policy}", "num_episodes=20", f"num_envs={num_envs}", f"run_root=runs_{name}",
            cwd=place,
        )  # fmt: skip
        (run,) = (place / f"runs_{name}").iterdir()
        tables[name] = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
        summary = json.loads((run / "summary.json").read_text())
        assert [row["seed"] for row in tables[name]] == list(range(100_000, 100_020))
        assert summary["success_once"]["k"] >= 17, f"{name}: {summary['success_once']}"
    for first, second in zip(tables["onnx"], tables["onnx_1"], strict=True):
        assert first == second
    for first, second in zip(tables["torch"], tables["onnx"], strict=True):
        assert first["length"] == second["length"]
        assert first["action_change_rms"] == pytest.approx(second["action_change_rms"], abs=1e-4)


def test_another_net_and_prediction_pass_through_every_stage(place: Path) -> None:
    """A few steps each. The export proves its parity itself; torch and ONNX are told apart and can be compared."""
    folder, root = place / "runs_other", "run_root=runs_other"
    short = [*TRAIN, "train.num_steps=10", "rollout_episodes=2", root]
    robot_rl("imitate", *POINT, "dataset=demos.zarr", *OTHER_NET, "policy.hidden_width=32", *short, cwd=place)
    (teacher,) = folder.glob("*_imitate_*")
    config = json.loads((teacher / "checkpoints/step_000010/policy.json").read_text())["config"]
    assert (config["denoiser"], config["prediction"]) == ("transformer", "v")
    robot_rl("distill_onestep", *POINT, "dataset=demos.zarr", f"teacher={teacher}", *short, cwd=place)
    (student,) = folder.glob("*_distill_onestep_*")
    robot_rl("export", f"policy={student}", "dataset=demos.zarr", "latency_calls=5", root, cwd=place)
    (exported,) = folder.glob("*_export_*")
    parity = json.loads((exported / "export/parity.json").read_text())
    assert parity["max_error"] <= 1e-4
    assert parity["passes"]["applied"] == []
    assert max(parity["passes"]["max_error_torch"].values()) == 0.0
    runs = []
    for provider, policy in (("torch cpu", student), ("CPUExecutionProvider", exported / "export/policy.onnx")):
        words = [*POINT, f"policy={policy}", "num_episodes=3", f"{root}/{len(runs)}"]
        robot_rl("evaluate", *words, cwd=place)
        (run,) = (folder / str(len(runs))).iterdir()
        described = json.loads((run / "summary.json").read_text())["protocol"]["policy"]
        assert (described["provider"], described["precision"]) == (provider, "fp32")
        runs.append(str(run))
    done = robot_rl("compare", *runs, "--json", cwd=place)
    pairs = json.loads(done.stdout)["pairs"]
    assert pairs["only_a"] == pairs["only_b"] == 0


def test_a_stage_killed_between_its_last_step_and_its_summary_continues(place: Path) -> None:
    """Nothing is left to play or train then; every stage must still end with the summary of the whole run."""
    words = ["rollout_episodes=2", *TRAIN, "train.num_steps=20"]
    robot_rl("imitate", *POINT, "dataset=demos.zarr", *words, "run_root=done/imitate", cwd=place)
    (teacher,) = (place / "done/imitate").iterdir()
    words = [*POINT, "dataset=demos.zarr", f"teacher={teacher}", *words, "run_root=done/distill_onestep"]
    robot_rl("distill_onestep", *words, cwd=place)
    words = [*POINT, f"policy={teacher}", "num_episodes=3", "run_root=done/evaluate"]
    robot_rl("evaluate", *words, cwd=place)
    words = [*POINT, "expert=point_reach", "num_episodes=3", "dataset=done/demos.zarr", "run_root=done/collect"]
    robot_rl("collect", *words, cwd=place)
    for stage in ("imitate", "distill_onestep", "evaluate", "collect"):
        (run,) = (place / "done" / stage).iterdir()
        before = json.loads((run / "summary.json").read_text())
        (run / "summary.json").unlink()
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps(status | {"state": "running"}))
        robot_rl(stage, f"resume={run}", cwd=place)
        after = json.loads((run / "summary.json").read_text())
        assert after | {"seconds": 0} == before | {"seconds": 0}, stage
        assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_disk_without_room_is_one_clear_error_and_loses_no_checkpoint(place: Path, tmp_path: Path) -> None:
    """The kernel refuses files over a size limit, as it does on a full disk; then there is room again."""
    words = [
        "imitate",
        *POINT,
        f"dataset={place / 'demos.zarr'}",
        "policy.hidden_width=64",
        *TRAIN,
        "train.num_steps=40",
    ]
    words += ["train.checkpoint_every_steps=20", f"run_root={tmp_path}/runs"]
    limited = (
        "import resource, sys, robot_rl.runs.checkpoint as c\n"
        "save = c.save_checkpoint\n"
        "def late(*a, **k):\n"
        "    if k['step'] == 40: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "    return save(*a, **k)\n"
        "import robot_rl.runs.training as t; t.save_checkpoint = late\n"
        "from robot_rl.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *words, "--track", "none"], cwd=tmp_path, capture_output=True, text=True,
        timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "no room to write" in done.stderr
    assert "Traceback" not in done.stderr
    run = only_run(tmp_path, "_imitate_")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last", "step_000020"]
    assert not list(run.glob(".*"))
    robot_rl("imitate", f"resume={run}", cwd=tmp_path)
    assert (run / "checkpoints/step_000040").is_dir()


def test_untrained_weights_fail(place: Path) -> None:
    """Control: the same way without training does not reach the goal."""
    words = ["imitate", *POINT, "dataset=demos.zarr", *TRAIN, "train.num_steps=1", "run_root=runs_untrained"]
    robot_rl(*words, cwd=place)
    (run,) = (place / "runs_untrained").iterdir()
    robot_rl("evaluate", *POINT, f"policy={run}", "num_episodes=20", "run_root=runs_control", cwd=place)
    (control,) = (place / "runs_control").iterdir()
    assert json.loads((control / "summary.json").read_text())["success_once"]["k"] <= 4


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["imitate", "train.num_stepz=5"], 2, ["num_stepz", "num_steps"]),
        (["imitate", "policy.prediction=epsilom"], 2, ["epsilom", "epsilon"]),
        (["imitate", "env=pick_cub"], 2, ["pick_cub", "pick_cube"]),
        pytest.param(["evaluate", "env.task=PickCub-v1"], 1, ["PickCub-v1", "PickCube-v1"], marks=needs_maniskill),
        (["imitate", "dataset=nowhere.zarr"], 1, ["nowhere.zarr", "collect"]),
        (["imitate", *POINT, "dataset=demos.zarr", "train.device=cuda:7"], 2, ["cuda:7", "cpu"]),
        (["evaluate", *POINT, "policy=nothing.onnx"], 1, ["nothing.onnx", "export"]),
        (["evaluate", *POINT, "policy=runs/none"], 1, ["runs/none"]),
        (["collec"], 2, ["collect"]),
        (["collect", *POINT, "expert=point_reach", "num_episodes=0"], 2, ["num_episodes"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_clear_error(place: Path, words: list[str], code: int, parts: list[str]) -> None:
    done = robot_rl(*words, cwd=place, check=code)
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@needs_maniskill
def test_dataset_of_other_actions_is_refused(place: Path, tmp_path: Path) -> None:
    """Another control mode, which is said before the size (two numbers an action in the data, four in the environment)."""
    shutil.copytree(place / "demos.zarr", tmp_path / "demos.zarr")
    done = robot_rl(
        "imitate", "env=pick_cube", "dataset=demos.zarr", "policy.observation_keys=[state]", *TRAIN, "rollout_episodes=2",
        cwd=tmp_path, check=1,
    )  # fmt: skip
    assert "action semantics" in done.stderr
    assert "pd_ee_delta_pos" in done.stderr
    assert "delta_position" in done.stderr


def test_truncated_dataset_is_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "demos.zarr", tmp_path / "demos.zarr")
    chunk = sorted(p for p in (tmp_path / "demos.zarr/data/action").iterdir() if not p.name.startswith("."))[0]
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    done = robot_rl("imitate", *POINT, "dataset=demos.zarr", *TRAIN, "train.num_steps=5", cwd=tmp_path, check=1)
    assert "action" in done.stderr
    assert "Traceback" not in done.stderr


def test_nan_frame_in_a_dataset_is_named_and_nothing_trains(place: Path, tmp_path: Path) -> None:
    """A frame that turned NaN on disk: the episode's checksum knows it before a normaliser sees it."""
    import zarr

    shutil.copytree(place / "demos.zarr", tmp_path / "demos.zarr")
    state = zarr.open_group(str(tmp_path / "demos.zarr"), mode="r+")["data/state"]
    values = state[:]
    values[17, 1] = np.nan
    state[:] = values
    done = robot_rl("imitate", *POINT, "dataset=demos.zarr", *TRAIN, "train.num_steps=5", cwd=tmp_path, check=1)
    for part in ("demos.zarr", "data/state", "episode 1"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


NAN_ENV = """
import sys, torch
import robot_rl.envs.point_reach as module
step, calls = module.PointReach.step_envs, [0]
def broken(self, *args, **kwargs):
    out = step(self, *args, **kwargs)
    calls[0] += 1
    if calls[0] == 30:
        out.observation["state"][0, 1] = torch.nan
    return out
module.PointReach.step_envs = broken
from robot_rl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_nan_frame_from_an_environment_loses_no_earlier_episode(tmp_path: Path) -> None:
    words = ["collect", *POINT, "expert=point_reach", "num_episodes=12", "num_envs=1", "dataset=d.zarr"]
    done = subprocess.run(
        [sys.executable, "-c", NAN_ENV, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1, done.stderr
    assert "finite" in done.stderr
    assert "'state'" in done.stderr
    assert "Traceback" not in done.stderr
    from robot_rl.data.store import EpisodeStore

    with EpisodeStore.open(str(tmp_path / "d.zarr"), mode="r") as store:
        kept = len(store.success)
    assert kept >= 1
    robot_rl(*words, cwd=tmp_path)
    with EpisodeStore.open(str(tmp_path / "d.zarr"), mode="r") as store:
        assert store.seeds.tolist() == list(range(12))


NO_RENDERER = """
import sys
import robot_rl.envs.headless as headless
headless._SWIFTSHADER, headless._ICD_DIRECTORIES = ("/nowhere/icd.json",), ("/nowhere",)
from robot_rl.cli import main
sys.exit(main(sys.argv[1:]))
"""


@needs_maniskill
def test_images_without_a_renderer_are_one_clear_error(tmp_path: Path) -> None:
    words = ["collect", "env=pick_cube", "env.obs_mode=rgb", "expert=scripted", "num_episodes=1", "dataset=d.zarr"]
    done = subprocess.run(
        [sys.executable, "-c", NO_RENDERER, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1, done.stderr
    for part in ("Vulkan", "SwiftShader", "obs_mode=state"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "d.zarr").exists()
