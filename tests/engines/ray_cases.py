"""engine=ray against engine=local: the same bits, also when workers or the driver are killed; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra `ray`", allow_module_level=True)

from robot_rl.data.store import EpisodeStore
from robot_rl.engines.ray_workers import RayEngine
from robot_rl.engines.tasks import EngineKind, LocalEngine, PlayerPlan, blocks, grid_size, open_engine
from robot_rl.errors import ConfigError, DataError, EnvError, PolicyError, RunError
from robot_rl.runs.config import config_to_json, config_to_yaml, load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect, evaluate, imitate, offline
from robot_rl.workbench import bench_scale
from robot_rl.workbench.bench_timing import Options
from robot_rl.workbench.judge_calibrate import calibrate

# Ray reads these once; a cluster and who joins it share a token.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 64}
SUPPORT = Path(__file__).resolve().parents[1] / "support"
# A Ray of its own process: starting one takes seconds, and a user's cluster is another process too.
HEAD = """
import os, sys
from robot_rl.engines.ray_workers import connect
ray = connect(workers=2, address="")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    environment = os.environ | {"PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert head.stdout is not None
    assert head.stdin is not None
    address = head.stdout.readline().strip()
    assert address.startswith("127.0.0.1:")
    yield address
    head.stdin.close()
    head.wait(60)


def made(stage: Any, root: Path, *words: str) -> tuple[RunDirectory, Any]:
    """A run as the command line would make it."""
    name = stage.__name__.rpartition(".")[2]
    config = load_config(stage.CONFIG, list(words), name=name)
    text = config_to_yaml(config)
    run = RunDirectory.create(root, stage=name, task="point", seed=0, config_yaml=text, command=["robot-rl"])
    return run, config


def ran(stage: Any, root: Path, *words: str) -> tuple[Path, dict[str, Any]]:
    run, config = made(stage, root, *words)
    return run.path, stage.run(config, run)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion policy after a few steps: its actions differ in the last bit where anything does."""
    place = tmp_path_factory.mktemp("policy")
    data = f"dataset={place / 'd.zarr'}"
    ran(collect, place, "env=point_reach", "expert=point_reach", data, "num_episodes=8")
    return ran(
        imitate, place, "env=point_reach", data, "policy.observation_keys=[state]", "policy.hidden_width=32",
        "train.num_steps=20", "train.batch_size=32", "train.threads=1", "validation_fraction=0",
    )[0]  # fmt: skip


def on_ray(address: str) -> list[str]:
    return ["engine=ray", "engine_workers=2", f"engine_address='{address}'"]


def test_evaluation_and_collection_are_the_same_bits(tmp_path: Path, policy: Path, cluster: str) -> None:
    words = ["env=point_reach", f"policy='{policy}'", "num_envs=3", "task_episodes=5"]
    local, one = ran(evaluate, tmp_path, *words, "num_episodes=23")
    ray, two = ran(evaluate, tmp_path, *words, "num_episodes=23", *on_ray(cluster))
    assert (local / "episodes.jsonl").read_bytes() == (ray / "episodes.jsonl").read_bytes()
    assert len((local / "episodes.jsonl").read_text().splitlines()) == 23
    assert one["protocol"] == two["protocol"]
    assert two["protocol"]["task_episodes"] == 5
    assert two["engine"] == {"kind": "ray", "workers": 2, "repeated_tasks": 0}

    words += ["num_episodes=7", "keep=all", "mode=eta1"]
    stores = [tmp_path / "local.zarr", tmp_path / "ray.zarr"]
    ran(collect, tmp_path, *words, f"dataset={stores[0]}")
    ran(collect, tmp_path, *words, f"dataset={stores[1]}", *on_ray(cluster))
    with EpisodeStore.open(stores[0], mode="r") as a, EpisodeStore.open(stores[1], mode="r") as b:
        assert a.content_hash() == b.content_hash()
        assert list(b.seeds) == list(range(7))  # the second task has ten seeds, and the store wants seven in all


def test_judges_score_policies_the_same_and_as_often(tmp_path: Path, cluster: str) -> None:
    env = ["env=point_reach", "env.max_episode_steps=20"]
    data = tmp_path / "d.zarr"
    ran(collect, tmp_path, *env, "expert=point_reach", "expert.noise_sd=0.4", "num_episodes=40", f"dataset={data}")
    start, _ = ran(
        imitate, tmp_path, *env, f"dataset={data}", "policy.hidden_width=32", "policy.num_steps=4", "train.num_steps=60",
        "train.checkpoint_every_steps=20", "train.batch_size=32", "train.threads=1", "only_success=false",
    )  # fmt: skip
    run, _ = ran(
        offline, tmp_path, f"policy={start}", f"datasets=[{data}]", "methods=[success_only]", "critic.hidden_width=16",
        "dynamics.hidden_width=16", "dynamics.num_members=2", "critic_fit.num_steps=60", "critic_fit.check_every_steps=20",
        "model_fit.num_steps=40", "judge.fqe_bootstrap=20", "judge.num_starts=20", "imitation.train.num_steps=20",
        "imitation.train.checkpoint_every_steps=20", "imitation.train.batch_size=32",
    )  # fmt: skip
    policies = [str(path) for path in sorted((start / "checkpoints").glob("step_*"))] + [str(run), str(start)]
    component = load_config(evaluate.CONFIG, env, name="evaluate").env
    asked: dict[str, Any] = {"env": component, "seeds": range(50, 58), "num_envs": 3}
    one = calibrate(run, policies, **asked)
    two = calibrate(run, policies, **asked, engine=EngineKind.ray, workers=2, address=cluster)
    assert one == two
    assert len(one["policies"]) >= 3
    assert str(start) not in [row["policy"] for row in one["policies"]]  # the last checkpoint under another name
    other, _ = ran(
        imitate, tmp_path, *env, f"dataset={data}", "policy.execute=1", "policy.num_steps=4", "train.num_steps=1",
        "train.threads=1",
    )  # fmt: skip
    with pytest.raises(PolicyError, match="other"):
        calibrate(run, [*policies, str(other)], **asked, engine=EngineKind.ray, workers=2, address=cluster)


def test_collecting_successes_stops_at_the_same_seed(tmp_path: Path, cluster: str) -> None:
    words = ["env=point_reach", "env.max_episode_steps=12", "expert=point_reach", "num_envs=2", "keep=success"]
    words += ["num_episodes=6", "task_episodes=4"]
    _, one = ran(collect, tmp_path, *words, f"dataset={tmp_path / 'a.zarr'}")
    path, two = ran(collect, tmp_path, *words, f"dataset={tmp_path / 'b.zarr'}", *on_ray(cluster))
    assert one["content_hash"] == two["content_hash"]
    assert one["episodes"] == two["episodes"] > 6  # some seeds are too far away for 12 steps
    assert two["success_once"]["k"] == 6
    # Tries that are over are said, with what is there kept.
    words = ["env=point_reach", "env.max_episode_steps=1", "expert=point_reach", "keep=success", "num_episodes=5"]
    words += ["max_tries_factor=4", "task_episodes=10", f"dataset={tmp_path / 'c.zarr'}"]
    with pytest.raises(DataError, match="expected 5 successful episodes, got 0 after 20 tries"):
        ran(collect, path, *words)


def test_killed_workers_change_nothing(tmp_path: Path) -> None:
    config = load_config(evaluate.CONFIG, ["env=point_reach", "expert=point_reach", "num_envs=2"], name="evaluate")
    plan = PlayerPlan("robot_rl.stages.evaluate_play.make_player", config_to_json(config))
    tasks = list(blocks(0, 40, 4))
    wanted: list[Any] = []
    LocalEngine(plan).play(tasks, lambda record, _: wanted.append(record), is_done=lambda: False)
    got: list[Any] = []
    before = ray_children()
    with open_engine(EngineKind.ray, plan, workers=2, address="") as engine:
        assert isinstance(engine, RayEngine)
        assert listening() <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        pids = engine.process_ids()

        def on_episode(record: Any, _: Any) -> None:
            if not got:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            got.append(record)

        engine.play(tasks, on_episode, is_done=lambda: False)
        assert 2 <= engine.repeated <= 4  # a worker has a second task in its queue
        assert not set(engine.process_ids()) & set(pids)
    assert got == wanted
    assert not [process for process in ray_children() if process not in before]  # a Ray of our own ends


def ray_children() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE and ("ray" in p.name() or "gcs" in p.name())]


def listening() -> set[str]:
    """Addresses on which this process and those below it listen."""
    own = psutil.Process()
    found = {
        c.laddr.ip for process in [own, *own.children(recursive=True)]
        for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN
    }  # fmt: skip
    assert found  # Ray listens somewhere
    return found


def test_a_killed_driver_goes_on(tmp_path: Path, cluster: str) -> None:
    words = ["env=point_reach", "expert=point_reach", "num_envs=3", "num_episodes=300", "task_episodes=7"]
    local, _ = ran(evaluate, tmp_path, *words)
    wanted = (local / "episodes.jsonl").read_bytes()
    run, config = made(evaluate, tmp_path, *words, *on_ray(cluster))
    command = [sys.executable, "-m", "robot_rl", "evaluate", f"resume={run.path}"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    table = run.path / "episodes.jsonl"
    deadline = time.monotonic() + 120
    while not table.exists() or table.read_bytes().count(b"\n") < 12:
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    rows = table.read_bytes().splitlines()
    assert 0 < len(rows) < 300
    table.write_bytes(b"\n".join(rows[:10]) + b"\n" + rows[10][:20])  # in the middle of a task, and of a line
    summary = evaluate.run(config, run)
    assert table.read_bytes() == wanted
    assert summary["episodes"] == 300


def odd(**config: Any) -> PlayerPlan:
    return PlayerPlan("odd_players.OddPlayer", config)


def played(address: str, plan: PlayerPlan, number: int) -> list[int]:
    seen: list[int] = []
    with open_engine(EngineKind.ray, plan, workers=2, address=address) as engine:
        engine.play(blocks(0, number, 2), lambda record, _: seen.append(record.seed), is_done=lambda: False)
    return seen


def test_a_task_that_kills_its_workers_is_named(cluster: str) -> None:
    with pytest.raises(RunError, match=r"episodes 4 to 5 on engine=ray.*3 that died"):
        played(cluster, odd(deadly=5), 12)
    with pytest.raises(RuntimeError, match=r"(?s)episodes 2 to 3.*a bug in a plug-in"):
        played(cluster, odd(bug=3), 12)


def test_sweep_members_on_ray_are_those_of_processes(tmp_path: Path, cluster: str) -> None:
    command = [sys.executable, "-m", "robot_rl", "sweep", "evaluate", "env=point_reach", "expert=point_reach"]
    command += ["num_episodes=4", "num_envs=1,0", "--seeds", "0", "--jobs", "2"]
    plans = []
    for name, more in (("here", []), ("ray", ["--ray", cluster])):
        words = [*command, "--folder", name, *more]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 1, done.stderr
        plans.append(json.loads((tmp_path / name / "sweep.json").read_text()))
    assert plans[0]["summary"][0]["success_once"] == plans[1]["summary"][0]["success_once"]
    assert [plan["results"]["num_envs=0 seed=0"]["code"] for plan in plans] == [2, 2]
    assert "num_envs of at least 1" in plans[1]["results"]["num_envs=0 seed=0"]["error"]


def test_stop_is_heard_while_a_task_is_played(cluster: str) -> None:
    began = time.monotonic()

    def stop() -> bool:
        if time.monotonic() - began > 1:
            raise KeyboardInterrupt
        return False

    with (
        pytest.raises(KeyboardInterrupt),
        open_engine(EngineKind.ray, odd(sleep_s=600.0), workers=1, address=cluster) as engine,
    ):
        engine.play([[1]], lambda *_: None, is_done=stop)
    assert time.monotonic() - began < 60


def test_what_is_refused(tmp_path: Path, cluster: str, policy: Path) -> None:
    with pytest.raises(EnvError, match="never driven from behind Ray"):
        played(cluster, odd(real_time=True), 2)
    words = ["env=point_reach", "policy=no/such/run", "num_episodes=2"]
    texts = []
    for more in ([], on_ray(cluster)):
        with pytest.raises(RunError) as told:
            ran(evaluate, tmp_path, *words, *more)
        texts.append(str(told.value))
    assert texts[0] == texts[1]  # an error of a worker is the error of this process
    with pytest.raises(RunError, match="expected 9 cores for engine_workers=9, got 2"):
        ran(evaluate, tmp_path, *words, "engine=ray", "engine_workers=9", f"engine_address='{cluster}'")
    with pytest.raises(RunError, match=r"a Ray that answers, got .*refused"):
        ran(evaluate, tmp_path, *words, "engine=ray", "engine_address='127.0.0.1:9'")
    with pytest.raises(ConfigError, match="engine=ray"):
        ran(evaluate, tmp_path, *words, "engine_workers=2")
    with pytest.raises(ConfigError, match="no rti and no execution"):
        ran(evaluate, tmp_path, "env=point_reach", f"policy='{policy}'", "execution=async", "engine=ray")
    with pytest.raises(ConfigError, match="1 or more"):
        grid_size(0, EngineKind.local, num_envs=8)


def test_grid() -> None:
    assert [list(block) for block in blocks(3, 5, 2)] == [[3, 4], [5, 6], [7]]
    assert grid_size(None, EngineKind.local, num_envs=8) is None
    assert grid_size(None, EngineKind.ray, num_envs=8) == 16
    assert json.loads(json.dumps(odd(x=1).config)) == {"x": 1}


def test_the_benchmark_of_ray_measures_both_kinds_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_scale, "WAITING_TASKS", 6)
    monkeypatch.setattr(bench_scale, "EPISODE_TASKS", 2)
    report = bench_scale.run(Options(rounds=1, env="point_reach"))
    rates = {m.name: m.rate for m in report.measurements}
    assert len(rates) == 6
    assert rates["waiting, local"] == pytest.approx(20, rel=0.2)  # 50 ms each
    assert rates["waiting, two workers"] > 1.3 * rates["waiting, one worker"]  # waiting takes no core
    assert {c.target for c in report.comparisons} == {None, 1 / 1.05, 1.7}
    assert bench_scale.expert_of("push_cube") == "scripted"
