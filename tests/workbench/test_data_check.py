"""`robot-rl data check`, `stats` and `card` as people type them, on small stores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from robot_rl.data.element_statistics import ElementStatistics
from robot_rl.data.journal import WriterLock
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode
from robot_rl.workbench import data_card, data_check, data_stats

SPEC = EnvSpec(
    env_id="CheckTest-v1",
    observation={
        "proprio": ArraySpec("proprio", (2,), units=("m", "m"), meanings=("x", "y")),
        "image/front": ArraySpec("image/front", (8, 8, 3), "uint8"),
    },
    action=ArraySpec("action", (2,), low=(-1.0,) * 2, high=(1.0,) * 2, meanings=("move x", "move y")),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "delta"),
    joint_names=(),
    robot="point",
    control_hz=10.0,
    max_episode_steps=100,
)
STEPS = 40


def episode(number: int) -> Episode:
    rng = np.random.default_rng(number)
    action = rng.uniform(-0.9, 0.9, (STEPS, 2)).astype(np.float32)
    place = np.cumsum(np.concatenate([rng.uniform(-1, 1, (1, 2)), 0.1 * action]), axis=0).astype(np.float32)
    pictures = rng.integers(0, 256, (STEPS + 1, 8, 8, 3), dtype=np.uint8)
    success = np.arange(STEPS) == STEPS - 1
    return Episode(
        observation={"proprio": place[:-1], "image/front": pictures[:-1]},
        final_observation={"proprio": place[-1], "image/front": pictures[-1]},
        action=action,
        reward=success.astype(np.float32),
        success=success,
        terminated=True,
        truncated=False,
        source=np.full(STEPS, number % 2 * 2, np.uint8),
        time=np.arange(STEPS) / 10.0 + rng.uniform(0, 0.005, STEPS),
        metadata={"seed": number},
    )


def write(path: Path, episodes: list[Episode]) -> Path:
    with EpisodeStore.create(path, SPEC) as store:
        store.append_many(episodes)
    return path


def frozen(number: int) -> Episode:
    one = episode(number)
    pictures = np.array(one.observation["image/front"])
    pictures[10:30] = pictures[10]
    return dataclasses.replace(one, observation={**one.observation, "image/front": pictures})


def test_clean_store_may_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.zarr", [episode(i) for i in range(4)])
    assert data_check.main(["check", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["may_train"], said["findings"], said["facts"]["windows"]) == (True, [], 160)
    assert said["speed"]["windows_per_s"] > 0
    assert data_check.main(["check", str(path)]) == 0
    assert "0 errors, 0 warnings, 0 notes: training may start" in capsys.readouterr().out


def test_fault_stops_training_and_the_fix_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.zarr", [episode(0), frozen(1), episode(2), frozen(3)])
    assert data_check.main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "error   frozen_camera: episode 1, step 11, camera front: " in out
    assert "also in episodes 3" in out
    assert f"robot-rl data trim {path} --episodes 1 --end 29" in out
    assert "training may not start" in out
    assert data_check.main(["check", str(path), "--ignore", "frozen_camera"]) == 0
    assert data_check.main(["check", str(path), "--limit", "frozen_s=9"]) == 0


def test_every_fix_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command in a fix is one that `robot-rl data` has, with words that it takes."""
    from robot_rl.data.quality import STORE, delete_command, trim_command
    from robot_rl.workbench.data import main

    path = write(tmp_path / "d.zarr", [episode(i) for i in range(3)])
    for command in (
        delete_command(1, 2), trim_command(0, begin=3), f"robot-rl data relabel {STORE} --reward sparse",
        f"robot-rl data relabel {STORE} --success last_step",
    ):  # fmt: skip
        words = command.replace(STORE, str(path)).split()[2:]
        assert main([*words, "--dry-run"]) == 0


def test_damaged_episode_is_named_and_the_rest_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.zarr", [episode(0), episode(1), episode(2)])
    chunk = zarr.open_group(str(path), mode="r+")["data/action"]
    chunk[STEPS + 3] = 0.5
    assert data_check.main(["check", str(path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    (found,) = [finding for finding in said["findings"] if finding["check"] == "damaged"]
    assert (found["place"]["episode"], said["facts"]["episodes"], said["facts"]["damaged"]) == (1, 2, 1)


def test_foreign_data_by_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    root = zarr.open_group(str(tmp_path / "pusht.zarr"), mode="w", zarr_format=2)
    root.create_array("data/state", data=np.cumsum(rng.standard_normal((90, 2)), axis=0).astype(np.float32))
    root.create_array("data/action", data=rng.standard_normal((90, 2)).astype(np.float32))
    root.create_array("meta/episode_ends", data=np.array([40, 45, 90]))
    (tmp_path / "card.yaml").write_text("""
env_id: PushT-v0
robot: pusher
control_hz: 10
max_episode_steps: 300
joint_names: []
source: scripted
success: last_step
action_semantics: {kind: absolute, delta_reference: none, frame: base, rotation: none, gripper: none, control_mode: pos}
action: {keys: [action], units: [px], meanings: [target x, target y]}
observation:
  proprio: {keys: [state], units: [px], meanings: [agent x, agent y]}
""")
    words = [
        "check",
        str(tmp_path / "pusht.zarr"),
        "--format",
        "diffusion_policy",
        "--spec",
        str(tmp_path / "card.yaml"),
    ]
    data_check.main([*words, "--json"])
    said = json.loads(capsys.readouterr().out)
    (short,) = [finding for finding in said["findings"] if finding["check"] == "no_window"]
    assert (short["place"]["episode"], short["value"]) == (1, 4.0)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--limit", "gap_warn=3"], ["gap_warn", "gap_warning"]),
        (["--limit", "skew=x"], ["skew", "a number"]),
        (["--ignore", "frozen"], ["frozen_camera"]),
        (["--execute", "20"], ["execute <= horizon"]),
        (["--spec", "card.yaml"], ["--format"]),
    ],
)
def test_wrong_words(tmp_path: Path, more: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        data_check.main(["check", str(tmp_path), *more])
    for part in parts:
        assert part in str(caught.value)


def test_stats_are_numpys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = [episode(i) for i in range(4)]
    path = write(tmp_path / "d.zarr", episodes)
    assert data_stats.main(["stats", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    action = np.concatenate([one.action for one in episodes]).astype(np.float64)
    table = said["keys"]["action"]
    np.testing.assert_allclose(table["mean"], action.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(table["std"], action.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose([table["low"], table["high"]], [action.min(axis=0), action.max(axis=0)])
    np.testing.assert_allclose(
        [table[q] for q in ("q01", "q50", "q99")], np.quantile(action, (0.01, 0.5, 0.99), axis=0)
    )
    pixels = np.concatenate([one.observation["image/front"] for one in episodes]).reshape(-1, 3)
    np.testing.assert_allclose(said["keys"]["image/front"]["mean"], pixels.mean(axis=0))
    assert (said["episodes"], said["success_once"], said["lengths"]["median"]) == (4, 4, 40.0)
    assert said["sources"] == {"teleop": 0.5, "policy": 0.5}
    assert data_stats.main(["stats", str(path)]) == 0
    assert "0 move x" in capsys.readouterr().out


def test_thinned_quantiles_are_every_nth_row() -> None:
    statistics = ElementStatistics(ArraySpec("x", (1,)), kept_rows=100)
    rows = np.arange(1000, dtype=np.float32)[:, None]
    for begin in range(0, 1000, 7):
        statistics.add(rows[begin : begin + 7])
    summary = statistics.summary()
    kept = rows[::16, 0]
    assert (summary.rows, summary.kept) == (1000, len(kept))
    assert summary.q50[0] == np.median(kept)
    np.testing.assert_allclose([summary.mean[0], summary.std[0]], [rows.mean(), rows.std()])


def test_card_is_written_beside_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.zarr", [episode(0), episode(1)])
    before = EpisodeStore.open(path).content_hash()
    words = ["card", str(path), "--set", "licence=CC-BY-4.0", "--set", "operators=2", "--set", "notes=a | b"]
    assert data_card.main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operators"] == 2
    assert EpisodeStore.open(path).metadata == {}
    assert data_card.main([*words, "--json"]) == 0
    capsys.readouterr()
    assert data_card.main(["card", str(path), "--set", "notes=", "--set", "origin=here", "--json"]) == 0
    card = {"licence": "CC-BY-4.0", "operators": 2, "origin": "here"}
    assert json.loads(capsys.readouterr().out) == card
    store = EpisodeStore.open(path)
    assert store.metadata["card"] == card
    assert store.content_hash() == before
    store.verify()
    history = store.metadata["history"]
    assert [entry["command"] for entry in history] == ["card", "card"]
    assert history[0]["arguments"] == {"card": {"licence": "CC-BY-4.0", "operators": 2, "notes": "a | b"}}
    assert history[1]["arguments"] == {"card": {"notes": None, "origin": "here"}}
    assert history[1]["sources"] == [{"store": "d.zarr", "episodes": 2, "content_hash": before}]
    assert data_card.main(["card", str(path), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert out.startswith('---\nlicense: "cc-by-4.0"\n')
    assert "| operators | 2 |" in out
    assert before in out
    with EpisodeStore.open(path, mode="a") as writer:
        writer.append(episode(2))
        assert len(writer) == 3


def test_card_refuses(tmp_path: Path) -> None:
    path = write(tmp_path / "d.zarr", [episode(0)])
    with pytest.raises(DataError, match="licence"):
        data_card.main(["card", str(path), "--set", "license=MIT"])
    with pytest.raises(DataError, match="number of people"):
        data_card.main(["card", str(path), "--set", "operators=Ann"])
    lock = WriterLock(path)
    try:
        with pytest.raises(DataError, match="no other writer"):
            data_card.main(["card", str(path), "--set", "licence=MIT"])
    finally:
        lock.release()
    assert EpisodeStore.open(path).metadata == {}
