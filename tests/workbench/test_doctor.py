"""doctor on machines that lack things: each lack is named with what it disables and a fix, and nothing crashes."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest

from robot_rl.workbench import cores, doctor, doctor_packages
from robot_rl.workbench.doctor_packages import Diagnosis, State
from robot_rl.workbench.doctor_probes import run_probe, run_tool

TORCH = {
    "version": "2.13.0", "threads": 2, "us_one_thread": 100.0, "us_default_threads": 60.0, "built_for_cuda": None,
    "cuda": False, "gpus": [],
}  # fmt: skip
ORT = {"version": "1.32", "providers": {"CPUExecutionProvider": True}}
GONE = {"error": "ModuleNotFoundError: No module named 'x'"}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("print('noise'); print('{\"a\": 1}')", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("import time; time.sleep(60)", "no answer in 1 s"),
        ("import robot_rl_absent", "ModuleNotFoundError: No module named 'robot_rl_absent'"),
        ("print('hello')", "unreadable answer 'hello'"),
        ("print(3)", "unreadable answer '3'"),
        ("", "exit code 0"),
    ],
)
def test_probes_survive_whatever_happens(code, says):
    answer = run_probe(code, timeout_s=1.0 if "sleep" in code else 120.0)
    assert answer == ({"a": 1} if says is None else {"error": says})


def test_tools_survive_whatever_happens():
    assert run_tool("echo", "hello") == "hello"
    assert run_tool("false") is None
    assert run_tool("robot_rl_absent_tool") is None
    assert run_tool("sleep", "20", timeout_s=0.2) is None


def fake_distribution(monkeypatch, *, requires: list[str], installed: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise doctor_packages.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor_packages, "requires", lambda _: requires)
    monkeypatch.setattr(doctor_packages, "version", version)


def test_packages_against_their_bounds(monkeypatch):
    fake_distribution(
        monkeypatch,
        requires=[
            "numpy<3,>=1.26", 'torch<2.15,>=2.11; extra == "train"', 'zarr<3.2,>=3.1.3; extra == "train"',
            'mani-skill==3.0.1; extra == "sim"', 'onnxruntime>=1.20; extra == "export"', 'wandb>=0.18; extra == "track"',
        ],
        installed={"numpy": "2.1.0", "torch": "2.9.1", "zarr": "3.1.5", "onnxruntime-gpu": "1.30"},
    )  # fmt: skip
    found = {item.name: item for item in doctor_packages.packages()}
    assert found["base install"].state is State.ok
    assert found["extra train"].state is State.warning
    assert found["extra train"].detail == "outside: torch 2.9.1 (wants <2.15,>=2.11)"
    assert (found["extra sim"].state, found["extra sim"].fatal) == (State.missing, True)
    assert found["extra sim"].fix == "pip install 'robot-rl[sim]'"
    assert found["extra export"].state is State.ok  # the GPU build has the same module
    assert (found["extra track"].state, found["extra track"].fatal) == (State.missing, False)


def test_onnxruntime_provider_that_is_listed_but_does_not_load(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda name: name == "onnxruntime-gpu")
    probe = {"version": "1.30", "providers": {"CUDAExecutionProvider": False, "CPUExecutionProvider": True}}
    found = doctor.onnxruntime(probe)
    assert (found.state, found.disables, found.fatal) == (State.warning, "provider=CUDAExecutionProvider", False)
    assert doctor.onnxruntime({"version": "1", "providers": {"CPUExecutionProvider": False}}).fatal
    monkeypatch.setattr(doctor, "is_installed", lambda name: True)
    assert "overwrite each other" in doctor.onnxruntime(ORT).detail


def test_oversubscribed_threads(monkeypatch):
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2.0)
    assert doctor.threads(TORCH).state is State.ok
    slow = doctor.threads(TORCH | {"us_default_threads": 1000.0})
    assert (slow.state, slow.fix) == (State.warning, "export OMP_NUM_THREADS=1")
    assert doctor.threads(TORCH | {"threads": 16}).state is State.warning
    # One thread only: the two figures are the same measurement twice.
    assert doctor.threads(TORCH | {"threads": 1, "us_default_threads": 1000.0}).state is State.ok


@pytest.mark.parametrize(
    ("quota", "cpus", "usable"),
    [
        ("max 100000", 8, 8.0),
        ("150000 100000", 8, 1.5),
        ("900000 100000", 8, 8.0),  # more than there are
        ("nonsense", 8, 8.0),
        (None, 3, 3.0),  # no cgroup v2
    ],
)
def test_usable_cores_are_the_cpus_or_less_by_a_quota(monkeypatch, tmp_path, quota, cpus, usable):
    monkeypatch.setattr(cores, "allowed_cpus", lambda: list(range(cpus)))
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cores.usable_cores() == usable


def test_allowed_cpus_are_those_of_the_affinity(monkeypatch):
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {5, 2}, raising=False)
    assert cores.allowed_cpus() == [2, 5]
    monkeypatch.delattr(cores.os, "sched_getaffinity")  # macOS and Windows
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 3)
    assert cores.allowed_cpus() == [0, 1, 2]


def test_disk(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    for free, state in ((50, State.ok), (5, State.warning), (0.5, State.broken)):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: usage(0, 0, free * 2**30))
        found = doctor.disk(tmp_path / "not" / "there", "disk of runs")
        assert (found.state, found.detail) == (state, f"{free:.1f} GiB free in {tmp_path}")
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.disk(tmp_path, "disk of runs").fatal


def test_gpu_lacks_are_told_apart(monkeypatch):
    monkeypatch.setattr(doctor, "run_tool", lambda *_: None)
    monkeypatch.setattr(doctor, "_has_nvidia_card", lambda: False)
    assert (doctor.gpu(TORCH).state, doctor.gpu(TORCH).detail) == (State.missing, "no NVIDIA card")
    monkeypatch.setattr(doctor, "_has_nvidia_card", lambda: True)
    assert "ubuntu-drivers" in doctor.gpu(TORCH).fix
    monkeypatch.setattr(doctor, "run_tool", lambda *_: "NVIDIA L4, 580.1, 23034 MiB")
    assert "torch has no CUDA" in doctor.gpu(TORCH).detail
    assert doctor.gpu(TORCH | {"cuda": True, "built_for_cuda": "13.0"}).state is State.ok


def test_ros2_installed_but_not_sourced(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "run_probe", lambda *_, **__: GONE)
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    (tmp_path / "jazzy").mkdir()
    (tmp_path / "jazzy" / "setup.bash").touch()
    monkeypatch.setattr(doctor, "Path", lambda _: tmp_path)
    assert doctor.ros2().fix == "source /opt/ros/jazzy/setup.bash"
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert doctor.ros2().state is State.broken


def test_cameras_without_permission(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "Path", lambda _: tmp_path)
    assert doctor.cameras().state is State.missing
    (tmp_path / "video0").touch()
    assert doctor.cameras().state is State.ok
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "usermod -aG video" in doctor.cameras().fix


def answers(*, env: dict, torch: dict = TORCH):
    def probe(code: str, *, timeout_s: float, environment: object = None) -> dict:
        known = {doctor.TORCH: torch, doctor.DEFAULT_ENV: env, doctor.ONNXRUNTIME: ORT}
        return known.get(code, GONE)

    return probe


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "packages", lambda: [Diagnosis("base install", State.ok, "", needed=True)])
    monkeypatch.setattr(doctor, "run_tool", lambda *_: None)
    return monkeypatch


def test_exit_code_is_about_the_cpu_path(machine, capsys):
    machine.setattr(doctor, "run_probe", answers(env={"env": "PickCube-v1", "steps_per_s": 300.0}))
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert text.endswith("CPU path: works.\n")
    assert "pip install 'tensorrt>=10,<11'" in text
    machine.setattr(doctor, "run_probe", answers(env={"error": "killed by signal 11"}))
    assert doctor.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["cpu_path_works"] is False
    (simulator,) = [item for item in report["diagnoses"] if item["name"] == "simulator"]
    assert simulator["detail"] == "killed by signal 11"
    assert simulator["fix"]


def test_every_lack_says_what_it_disables_and_how_to_mend_it(machine, capsys):
    machine.setattr(doctor, "run_probe", lambda *_, **__: GONE)
    assert doctor.main(["--json", "--run-root", "/", "--datasets", str(Path.cwd())]) == 1
    found = json.loads(capsys.readouterr().out)["diagnoses"]
    lacks = [item for item in found if item["state"] != "ok"]
    assert {"torch", "simulator", "onnxruntime", "TensorRT", "OpenVINO"} <= {item["name"] for item in lacks}
    assert [item["name"] for item in lacks if not item["disables"] or not item["fix"]] == []
