"""bench data: turns, epochs by hand, windows that both cut, and peers that run elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.workbench import bench, bench_data
from robot_rl.workbench.bench_data import Loader, Slices
from robot_rl.workbench.bench_timing import BenchError, Options


def test_loaders_take_turns() -> None:
    order = list[str]()

    def loader(name: str, seconds: float) -> Loader:
        def epoch_s() -> float:
            order.append(name)
            return seconds

        return Loader(name, epoch_s)

    found = bench_data.epochs([loader("a", 1.0), loader("b", 2.0)], rounds=3)
    assert "".join(order) == "ababab"
    assert {name: rows.tolist() for name, rows in found.items()} == {"a": [[1.0]] * 3, "b": [[2.0]] * 3}


def test_an_epoch_is_scaled_from_the_part_that_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(bench_data, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def take() -> None:
        clock.now += 2.0

    # 4 calls of 10 windows in 8 s (the first call warms up): 200 windows take 40 s.
    assert bench_data.timed(take, 10, 200, 7.0) == 40.0


def test_slices_by_hand() -> None:
    arrays = {
        "proprio": np.arange(5, dtype=np.float32)[:, None],
        "action": 10 + np.arange(5, dtype=np.float32)[:, None],
    }
    slices = Slices(arrays, np.array([2, 5]))
    assert len(slices) == 5
    assert slices[0]["proprio"].flatten().tolist() == [0, 0]  # padded by the first row of its episode
    assert slices[2]["proprio"].flatten().tolist() == [2, 2]  # not by the end of the episode before
    assert slices[3]["proprio"].flatten().tolist() == [2, 3]
    assert slices[3]["action"].flatten().tolist() == [13, *[14] * 15]


def test_slices_and_our_sampler_cut_the_same_windows(tmp_path: Path) -> None:
    import torch

    path = bench_data.random_demonstrations(tmp_path / "a.zarr", episodes=2, cameras=())
    with EpisodeStore.open(path) as store:
        ours = WindowSampler(
            store, history=2, horizon=16, execute=8, keys=("proprio", "state"), episodes=np.arange(2), device="cpu"
        )
        slices = Slices(store.load(["proprio", "state", "action"]), store.episode_ends)
    batch = ours.sample(64, torch.Generator().manual_seed(3))
    theirs = {slices[index]["action"].numpy().tobytes(): slices[index] for index in range(len(slices))}
    seen = batch.observation.arrays()
    for row in range(64):
        window = theirs[batch.actions[row].numpy().tobytes()]
        for key in ("proprio", "state"):
            torch.testing.assert_close(window[key], torch.as_tensor(seen[key][row]), rtol=0, atol=0)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Peers that say what they were asked and how long an epoch took them."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, seconds in (("robomimic_speed.py", 2.5), ("lerobot_speed.py", 5.0)):
        (folder / name).write_text(
            f"import json, sys\nopen({str(folder / name)!r} + '.words', 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
            f"print('chatter')\nprint(json.dumps({{'epoch_s': {seconds}, 'windows_per_s': 1}}))\n"
        )
    monkeypatch.setattr(bench_data, "SCRIPTS", folder)
    monkeypatch.setattr(bench_data, "SECONDS", 0.01)
    for variable in bench_data.PEERS:
        monkeypatch.setenv(variable, sys.executable)
    return folder


def test_peers_run_in_their_own_python(tmp_path: Path, scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra data)")
    path = bench_data.random_demonstrations(tmp_path / "a.zarr", episodes=2, cameras=())
    words = ["data", "--dataset", str(path), "--rounds", "2", "--force", "--json", str(tmp_path / "out.json")]
    assert bench.main(words) == 0
    result = json.loads((tmp_path / "out.json").read_text())["results"]["data"]
    found = {one["name"]: one for one in result["measurements"]}
    assert list(found) == [
        "dataset: WindowSampler", "dataset: DataLoader, 0 workers", "dataset: DataLoader, 2 workers",
        "dataset: robomimic, cache low_dim", "dataset: robomimic, cache all", "dataset: LeRobotDataset",
    ]  # fmt: skip
    assert found["dataset: LeRobotDataset"]["p50_ms"] == 5000
    assert found["dataset: robomimic, cache all"]["rate_p50"] == 200 / 2.5
    ours = found["dataset: WindowSampler"]["rate_best"]
    ratio = next(one for one in result["ratios"] if one["peer"] == "dataset: LeRobotDataset")
    assert ratio["ratio_best"] == pytest.approx(ours / 40)
    assert ratio["target"] == 10
    asked = (scripts / "robomimic_speed.py.words").read_text().splitlines()
    assert len(asked) == 4
    assert "--obs proprio state --cache low_dim --batch 256" in asked[0]
    assert "--no-images" in (scripts / "lerobot_speed.py.words").read_text()
    assert "LeRobotDataset" in capsys.readouterr().out


def test_a_peer_that_fails_is_named(tmp_path: Path, scripts: Path) -> None:
    pytest.importorskip("h5py")
    (scripts / "robomimic_speed.py").write_text("raise SystemExit('no module named robomimic')")
    path = bench_data.random_demonstrations(tmp_path / "a.zarr", episodes=1, cameras=())
    with pytest.raises(
        BenchError, match=r"robomimic_speed\.py: .*got no module named robomimic\. Make its environment"
    ):
        bench_data.run(Options(rounds=1, dataset=str(path)))


def test_without_peers_ours_and_torch_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in bench_data.PEERS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(bench_data, "SECONDS", 0.01)
    path = bench_data.random_demonstrations(tmp_path / "a.zarr", episodes=1, cameras=("image/a",))
    report = bench_data.run(Options(rounds=1, dataset=str(path)))
    assert [one.name for one in report.measurements] == [
        f"dataset: {name}" for name in ("WindowSampler", "DataLoader, 0 workers", "DataLoader, 2 workers")
    ]
    assert [one.target for one in report.comparisons] == [1.0, 1.0]
    assert report.facts["peers_not_named"] == ["ROBOT_RL_PEER_ROBOMIMIC", "ROBOT_RL_PEER_LEROBOT"]
    assert report.facts["dataset"] == {"windows": 100, "batch": 64}
