"""`robot-rl data view`: a page that needs nothing else, and a Rerun recording by a stand-in of its module."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode, Source
from robot_rl.workbench import data_view
from robot_rl.workbench.data_view import strip_bars

SPEC = EnvSpec(
    env_id="View<Test>-v1",
    observation={
        "proprio": ArraySpec("proprio", (2,), units=("m", "m"), meanings=("x", "y & z")),
        "image/front": ArraySpec("image/front", (16, 16, 3), "uint8"),
    },
    action=ArraySpec("action", (1,), meanings=("push",)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "delta"),
    joint_names=(),
    robot="point",
    control_hz=10.0,
    max_episode_steps=100,
)
STEPS = 12


def episode(number: int) -> Episode:
    rng = np.random.default_rng(number)
    pictures = rng.integers(0, 256, (STEPS + 1, 16, 16, 3), dtype=np.uint8)
    proprio = rng.standard_normal((STEPS + 1, 2)).astype(np.float32)
    success = (np.arange(STEPS) == STEPS - 1) & (number != 1)
    return Episode(
        observation={"proprio": proprio[:-1], "image/front": pictures[:-1]},
        final_observation={"proprio": proprio[-1], "image/front": pictures[-1]},
        action=rng.standard_normal((STEPS, 1)).astype(np.float32),
        reward=success.astype(np.float32),
        success=success,
        terminated=bool(success.any()),
        truncated=False,
        source=np.where(np.arange(STEPS) < 3, Source.intervention, Source.policy).astype(np.uint8),
        time=np.arange(STEPS) / 10.0,
        metadata={"seed": number, "said": "<script>alert(1)</script>"},
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with EpisodeStore.create(tmp_path / "d.zarr", SPEC, metadata={"card": {"notes": "<b>"}}) as made:
        made.append_many([episode(i) for i in range(5)])
    return tmp_path / "d.zarr"


class Page(HTMLParser):
    """Ids, links, tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "href" and tag == "a":
                self.links.append(value or "")
            if name == "src":
                self.addresses.append(value or "")


def test_page_is_whole_and_needs_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_view.main(["view", str(store), "--episodes", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    text = Path(facts["page"]).read_text()
    page = Page(text)
    assert facts["page"] == f"{store}.html"
    assert (facts["episodes"], len(facts["drawn"])) == (5, 3)
    assert [name for name in page.ids if name.startswith("episode-")] == [f"episode-{i}" for i in facts["drawn"]]
    assert {link.removeprefix("#") for link in page.links} - {""} <= set(page.ids)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert page.addresses
    assert not re.search(r'(?:src|href)="https?:', text)
    assert "<title>View&lt;Test&gt;-v1: d.zarr</title>" in text
    # A plot an element and drawn episode: 1 of the action, 2 of proprio.
    assert len(re.findall(r"0  ?push", text)) == 3
    assert len(re.findall(r"1  ?y &amp; z", text)) == 3
    for number in range(5):
        assert f"episode {number}: 12 steps, {'failure' if number == 1 else 'success'}" in text


def test_one_episode_and_dry_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_view.main(["view", str(store), "--episode", "4", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == [4]
    assert not Path(f"{store}.html").exists()
    with pytest.raises(ConfigError, match=r"0\.\.4"):
        data_view.main(["view", str(store), "--episode", "5"])
    with pytest.raises(DataError, match="--output"):
        data_view.main(["view", str(store), "--output", str(store / "no" / "such" / "page.html")])


def test_bars_are_the_shares_of_the_sources(store: Path) -> None:
    with EpisodeStore.open(store) as opened:
        bars = strip_bars(opened, [1, 4])
    assert [(bar.number, bar.steps, bar.success) for bar in bars] == [(1, 12, False), (4, 12, True)]
    assert bars[0].sources == {2: 0.75, 3: 0.25}


def test_many_episodes_are_sampled_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_view, "STRIP_EPISODES", 4)
    spec = dataclasses.replace(SPEC, observation={"proprio": SPEC.observation["proprio"]})
    with EpisodeStore.create(tmp_path / "many.zarr", spec) as made:
        rows = [episode(i) for i in range(9)]
        made.append_many(
            [
                dataclasses.replace(
                    one, observation={"proprio": one.observation["proprio"]},
                    final_observation={"proprio": one.final_observation["proprio"]},
                )
                for one in rows
            ]
        )  # fmt: skip
    data_view.main(["view", str(tmp_path / "many.zarr"), "--episode", "7"])
    text = (tmp_path / "many.zarr.html").read_text()
    assert "The strip shows 5, evenly spread; 1 are drawn" in text


def test_rerun_missing_names_the_extra(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(DataError, match=r"robot-rl\[rerun\]"):
        data_view.main(["view", str(store), "--rerun", str(tmp_path / "o.rrd")])
    assert not Path(f"{store}.html").exists()


def test_rerun_gets_every_number_of_every_step(store: Path, tmp_path: Path) -> None:
    logged: list[tuple[str, int, Any]] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.step = -1

        def save(self, path: str) -> None:
            Path(path).write_bytes(b"x")

        def set_time(self, name: str, *, sequence: int | None = None, duration: float | None = None) -> None:
            self.step = self.step if sequence is None else sequence

        def log(self, path: list[str], value: Any) -> None:
            logged.append(("/".join(path), self.step, value))

        def disconnect(self) -> None:
            pass

    module = SimpleNamespace(RecordingStream=Stream, Image=np.asarray, Scalars=float)
    with EpisodeStore.open(store) as opened:
        data_view.write_rerun(module, opened, [2], tmp_path / "o.rrd")
    wanted = episode(2)
    push = [value for path, _, value in logged if path == "episode_2/action/push"]
    np.testing.assert_array_equal(push, wanted.action[:, 0])
    frames = {step: value for path, step, value in logged if path == "episode_2/image/front"}
    assert sorted(frames) == list(range(STEPS))
    np.testing.assert_array_equal(frames[5], wanted.observation["image/front"][5])
