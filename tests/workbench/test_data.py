"""`robot-rl data` as people type it: info, and import with a card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.workbench.data import main

CARD = """
env_id: PushT-v0
robot: pusher
control_hz: 10
max_episode_steps: 300
joint_names: []
source: teleop
success: last_step
action_semantics: {kind: absolute, delta_reference: none, frame: base, rotation: none, gripper: none, control_mode: pos}
action: {keys: [action], units: [px], meanings: [target x, target y]}
observation:
  proprio: {keys: [state], units: [px], meanings: [agent x, agent y]}
"""


@pytest.fixture
def pusht(tmp_path: Path) -> Path:
    """Two episodes of 4 rows, action = state + 1; and a card."""
    state = np.arange(16, dtype=np.float32).reshape(8, 2)
    root = zarr.open_group(str(tmp_path / "pusht.zarr"), mode="w", zarr_format=2)
    root.create_array("data/state", data=state)
    root.create_array("data/action", data=state + 1)
    root.create_array("meta/episode_ends", data=np.array([4, 8]))
    (tmp_path / "card.yaml").write_text(CARD)
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    source, target = str(folder / "pusht.zarr"), str(folder / "out.zarr")
    return ["import", source, target, "--format", "diffusion_policy", *more]


def test_import_with_a_card(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(pusht, "--spec", str(pusht / "card.yaml"), "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["episodes"], report["steps"], report["successes"]) == (2, 6, 2)
    with EpisodeStore.open(pusht / "out.zarr") as store:
        assert report["content_hash"] == store.content_hash()
        assert store.episode(1).action.tolist() == [[9, 10], [11, 12], [13, 14]]
        assert store.spec.control_hz == 10


def test_card_may_be_json_and_the_limit_overridden(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from omegaconf import OmegaConf

    card = OmegaConf.to_container(OmegaConf.create(CARD))
    (pusht / "card.json").write_text(json.dumps(card))
    assert main(words(pusht, "--spec", str(pusht / "card.json"), "--max-episode-steps", "2")) == 0
    assert "2 of 2 demonstrations are longer than the limit of 2 steps" in capsys.readouterr().out


def test_no_card_prints_one_to_fill_in(pusht: Path) -> None:
    with pytest.raises(DataError) as caught:
        main(words(pusht))
    for part in ("action_semantics:", "control_hz: ???", "# state: one row is (2,)"):
        assert part in str(caught.value)


def test_unfilled_template_is_refused(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The template that `info` prints is a whole card but for its question marks."""
    assert main(["info", str(pusht / "pusht.zarr"), "--json"]) == 0
    template = json.loads(capsys.readouterr().out)["card"]
    (pusht / "card.yaml").write_text(template)
    with pytest.raises(ConfigError, match=r"env_id.*expected a value"):
        main(words(pusht, "--spec", str(pusht / "card.yaml")))
    for before, after in (
        ("max_episode_steps: ???", "max_episode_steps: 300"), ("control_hz: ???", "control_hz: 10"),
        ("success: ???", "success: none"), ("kind: ???", "kind: absolute"), (": ???", ": none"),
        ('keys: ["???"]', "keys: [state]"), ('"???"', "x"),
    ):  # fmt: skip
        template = template.replace(before, after)
    (pusht / "card.yaml").write_text(template)
    assert main(words(pusht, "--spec", str(pusht / "card.yaml"))) == 0


def test_card_in_the_docs(tmp_path: Path) -> None:
    """docs/import.md's card, on a store with PushT's keys."""
    text = (Path(__file__).resolve().parents[2] / "docs/import.md").read_text()
    (tmp_path / "card.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    root = zarr.open_group(str(tmp_path / "pusht.zarr"), mode="w", zarr_format=2)
    for key, shape in (("state", (5,)), ("action", (2,)), ("img", (96, 96, 3))):
        root.create_array(f"data/{key}", data=np.ones((4, *shape), np.float32))
    root.create_array("meta/episode_ends", data=np.array([4]))
    assert main(words(tmp_path, "--spec", str(tmp_path / "card.yaml"))) == 0


def test_dry_run_lists_every_bad_episode_and_writes_nothing(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = zarr.open_group(str(pusht / "pusht.zarr"), mode="r+")["data/state"]
    state[:] = np.where(np.arange(16).reshape(8, 2) == 11, np.nan, state[:])
    card = ["--spec", str(pusht / "card.yaml")]
    assert main(words(pusht, *card, "--dry-run")) == 1
    assert "left out: episode 1: " in capsys.readouterr().out
    assert not (pusht / "out.zarr").exists()
    assert main(words(pusht, *card, "--skip-bad", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--spec", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--env", "pick_cube"], ["--spec"]),
        (["--max-episodes", "0"], ["--max-episodes"]),
    ],
)
def test_wrong_words(pusht: Path, more: list[str], parts: list[str]) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        main(words(pusht, *more))
    for part in parts:
        assert part in str(caught.value)


def test_misspelt_card_names_the_field(pusht: Path) -> None:
    (pusht / "card.yaml").write_text(CARD.replace("control_hz", "control_h"))
    with pytest.raises(ConfigError, match=r"control_h.*control_hz"):
        main(words(pusht, "--spec", str(pusht / "card.yaml")))


def test_info_of_a_store(pusht: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(pusht, "--spec", str(pusht / "card.yaml")))
    capsys.readouterr()
    assert main(["info", str(pusht / "out.zarr"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["episodes"], facts["steps"], facts["success_once"]) == ("robot-rl", 2, 6, 2)
    assert facts["spec"]["robot"] == "pusher"
    assert main(["info", str(pusht / "out.zarr")]) == 0
    assert "lengths: 3..3 of at most 300" in capsys.readouterr().out


def test_info_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing there"):
        main(["info", str(tmp_path / "none.zarr")])
