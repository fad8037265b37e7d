"""The report of a run: what it says of known runs, what it does with broken ones, and that nothing hostile gets in."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, RunError
from robot_rl.runs import report
from robot_rl.runs.report import read_run
from robot_rl.runs.report_data import pick_episodes, plane, read_dataset
from robot_rl.runs.report_page import report_html
from robot_rl.runs.report_plots import curves, learning_curves
from robot_rl.runs.report_text import result_rows, sentence
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode
from robot_rl.workbench.report import main

HOSTILE = """</style></title><script>alert(1)</script><img src=x onerror="a()">'"&$x_1$ ]]>"""


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.parts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.parts)


def assert_self_contained(html: str) -> Page:
    """No script, no handler, no address but data: and ids of the page itself."""
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert (
        page.tags.count("html")
        == page.tags.count("body")
        == page.tags.count("style") - html.count("<defs>\n  <style")
        == 1
    )
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith(("data:image/png;base64,", "#")), (name, value)
        assert not re.search(r"url\((?!#)", value), (name, value)
    ids = [value for name, value in page.attributes if name == "id" and re.fullmatch(r"[pm][0-9a-f]{10}", value)]
    assert len(ids) == len(set(ids)), "clip paths and markers of two figures share ids"
    return page


def episode_line(seed: int, *, success: bool, length: int = 20) -> dict[str, Any]:
    return {"seed": seed, "length": length, "success_once": success, "success_at_end": success}


def write_run(path: Path, *, stage: str = "evaluate", **files: Any) -> Path:
    """A run directory; `summary`, `status`, ... replace the contents of a finished evaluation, None leaves one out."""
    path.mkdir(parents=True)
    content = {
        "status.json": {"state": "finished", "stage": stage, "task": "reach", "seed": 3, "pid": 1, "seconds": 12.0},
        "summary.json": {"success_once": {"k": 9, "n": 10}, "success_at_end": {"k": 8, "n": 10}},
        "provenance.json": {"git": {"commit": "abc123", "dirty": True}, "packages": {"torch": "2.13"}, "gpus": None},
        "config.yaml": "policy: runs/earlier/export/policy.onnx\nseed: 3\n",
        "command.txt": "robot-rl evaluate\n",
        "metrics.jsonl": [{"step": i, "eval/success_once": 1.0} for i in (1, 2)],
        "episodes.jsonl": [episode_line(100 + i, success=i > 0) for i in range(10)],
        "log.txt": "first\nlast line\n",
    }
    content |= {f"{name.replace('_json', '.json').replace('_jsonl', '.jsonl')}": value for name, value in files.items()}
    for name, value in content.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if isinstance(value, list):
            text = "".join(json.dumps(line) + "\n" for line in value)
        (path / name).write_text(text, encoding="utf-8")
    return path


def spec_with(observation: dict[str, ArraySpec], *, action_size: int = 2) -> EnvSpec:
    return EnvSpec(
        env_id="Reach-v0",
        observation=observation,
        action=ArraySpec("action", (action_size,), units=("1",) * action_size, meanings=("a",) * action_size),
        action_semantics=ActionSemantics(
            kind=ActionKind.delta, delta_reference=DeltaReference.measured, frame="base", rotation="none",
            gripper="none", control_mode="delta_position",
        ),
        joint_names=("x", "y"),
        robot="point",
        control_hz=10.0,
        max_episode_steps=20,
    )  # fmt: skip


def metres(name: str, *meanings: str, unit: str = "m") -> ArraySpec:
    return ArraySpec(name, (len(meanings),), units=(unit,) * len(meanings), meanings=meanings)


@pytest.fixture
def image_store(tmp_path: Path) -> Path:
    """Three episodes of 5 steps, the second failed; pixel (t, 0, 0) of episode e holds 10 e + t."""
    observation = {
        "proprio": metres("proprio", "x", "y"),
        "image/front": ArraySpec("image/front", (4, 6, 3), dtype="uint8"),
    }
    with EpisodeStore.create(tmp_path / "demos.zarr", spec_with(observation)) as store:
        for number in range(3):
            images = np.zeros((5, 4, 6, 3), np.uint8)
            images[:, 0, 0, 0] = 10 * number + np.arange(5)
            success = np.array([False] * 4 + [number != 1])
            store.append(
                Episode(
                    observation={"proprio": np.full((5, 2), number, np.float32), "image/front": images},
                    final_observation={"proprio": np.zeros(2, np.float32), "image/front": images[0]},
                    action=np.zeros((5, 2), np.float32), reward=np.zeros(5, np.float32), success=success,
                    terminated=True, truncated=False, source=np.zeros(5, np.uint8), time=np.arange(5) / 10.0,
                    metadata={"seed": 70 + number},
                )
            )  # fmt: skip
    return tmp_path / "demos.zarr"


def test_an_evaluation_says_its_count_and_its_wilson_interval(tmp_path: Path) -> None:
    """9 of 10: Wilson 95 % from 59.6 to 98.2 % (computed by hand from Wilson's formula)."""
    html = report_html(read_run(write_run(tmp_path / "run")))
    text = assert_self_contained(html).text
    assert (
        "policy.onnx of earlier had success in 9 of 10 held-out episodes (90.0 %; Wilson 95 %: 59.6 to 98.2 %)." in text
    )
    for part in (
        "9/10 = 90.0%",
        "59.6% to 98.2%",
        "8/10",
        "abc123 with uncommitted changes",
        "100 to 109 (10 episodes)",
    ):
        assert part in text
    assert 'class="notes"' not in html


def test_a_killed_run_is_told_from_a_running_one_and_is_not_touched(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    lines = "".join(json.dumps(episode_line(i, success=i != 2)) + "\n" for i in range(4)) + '{"seed": 4, "len'
    status = {"state": "running", "stage": "evaluate", "task": "reach", "seed": 0, "pid": child.pid}
    run = write_run(tmp_path / "run", status_json=status, summary_json=None, episodes_jsonl=lines)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    facts = read_run(run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert facts.state == "killed"
    (row,) = result_rows(facts)
    assert (row.success.k, row.success.n, row.partial) == (3, 4, True)
    assert sentence(facts).startswith("The run was killed at step 2; ")
    text = Page(report_html(facts)).text
    assert "3/4 = 75.0% so far" in text
    assert "1 of 5 lines of episodes.jsonl are damaged" in text
    assert report._is_alive(7, read=lambda path: b"python\0-m\0robot_rl\0imitate")
    assert not report._is_alive(7, read=lambda path: b"bash\0")


def test_every_text_of_a_run_is_escaped(tmp_path: Path, image_store: Path) -> None:
    child = write_run(tmp_path / "run" / "stages" / "evaluate<b>_export", stage=f"evaluate_{HOSTILE}")
    status = {"state": "failed", "stage": HOSTILE, "task": HOSTILE, "seed": HOSTILE, "message": HOSTILE}
    metrics = [{"step": i, HOSTILE: float(i)} for i in range(3)]
    parts = {HOSTILE: {"state": "finished", "run": str(child), "seconds": 1}}
    rest = write_run(
        tmp_path / "rest", status_json=status, metrics_jsonl=metrics, command_txt=HOSTILE, pipeline_json=parts,
        provenance_json={"git": {"commit": HOSTILE}, "packages": {HOSTILE: HOSTILE}, "gpus": [HOSTILE], "time": HOSTILE},
        summary_json={"content_hash": HOSTILE},
    )  # fmt: skip
    (rest / "config.yaml").write_text(f"dataset: {image_store}\nteacher: {json.dumps(HOSTILE)}\nseed: 1\n")
    (rest / "command.txt").write_text(HOSTILE)
    (rest / "log.txt").write_text(HOSTILE)
    page = assert_self_contained(report_html(read_run(rest)))
    assert page.text.count(HOSTILE) >= 8
    # Without parts, the curves of the hostile metric are drawn: its name must not become markup or TeX in the SVG.
    (rest / "pipeline.json").unlink()
    page = assert_self_contained(report_html(read_run(rest)))
    assert sum(HOSTILE in part for part in page.parts) >= 8


@pytest.mark.parametrize(
    "name", ["status.json", "summary.json", "provenance.json", "config.yaml", "metrics.jsonl", "episodes.jsonl", "pipeline.json",
             "command.txt", "log.txt"],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\x00{]\nx\n", b"[1, 2]\n", b"null\n", b'{"success_once": 3, "state": []}\n']
)
def test_a_missing_or_damaged_file_is_a_note_and_no_crash(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = write_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    if content is not None:
        (run / name).write_bytes(content)
    html = report_html(read_run(run))
    assert_self_contained(html)
    if name in ("status.json", "summary.json", "provenance.json") and not str(content).startswith("b'{"):
        assert f"{name} " in Page(html).text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a run directory"):
        read_run(tmp_path)


def test_a_pipeline_has_a_row_a_policy_also_after_it_was_moved(tmp_path: Path) -> None:
    root = tmp_path / "there" / "pipe"
    counts = {"collect": 10, "evaluate_imitate": 7, "evaluate_export": 9}
    for name, k in counts.items():
        write_run(root / "stages" / f"x_{name}_s0", stage=name, summary_json={"success_once": {"k": k, "n": 10}})
    export = write_run(root / "stages" / "x_export_s0", stage="export", summary_json={}, episodes_jsonl=None)
    (export / "export").mkdir()
    (export / "export/latency.json").write_text(json.dumps({"min_ms": 0.1, "p50_ms": 0.25, "p99_ms": 2.0}))
    children = {
        name: {"state": "finished", "run": f"/gone/stages/x_{name}_s0", "seconds": 5.5} for name in [*counts, "export"]
    }
    status = {"state": "finished", "stage": "pipeline", "task": "reach", "seed": 0}
    for name, value in {"status.json": status, "pipeline.json": children, "summary.json": {}}.items():
        (root / name).write_text(json.dumps(value))
    facts = read_run(root)
    assert [(row.label, row.success.k, row.seconds) for row in result_rows(facts)] == [
        ("expert (collect)", 10, 5.5), ("imitated policy", 7, 5.5), ("exported policy, ONNX", 9, 5.5),
    ]  # fmt: skip
    assert sentence(facts).startswith("The exported policy solved reach in 9 of 10 episodes (90.0 %;")
    assert sentence(facts).endswith("and decides in 0.25 ms (p50).")
    text = assert_self_contained(report_html(facts)).text
    assert "2 ms" in text
    children["export"]["run"] = "/gone/stages/elsewhere"
    (root / "pipeline.json").write_text(json.dumps(children))
    shutil.rmtree(export)
    assert "The run directory of stage export is gone." in Page(report_html(read_run(root))).text


def test_curves_are_thinned_to_their_ends_and_drawn_once() -> None:
    metrics: list[dict[str, Any]] = [
        {"step": i, "a": i**2, "same": i**2, "one_low": 0.0, "one": 0.0} for i in range(5000)
    ]
    metrics += [{"step": 7, "single": 1.0}, {"step": 5000, "a": "text"}]
    found = curves(metrics)
    assert set(found) == {"a", "one", "one_low"}
    steps, values = found["a"]
    assert len(steps) == 600
    assert (steps[0], steps[-1], values[-1]) == (0, 4999, 4999**2)
    assert np.array_equal(values, steps**2)
    assert learning_curves([{"step": 1, "a": 1.0}], name="x") == ""


def test_failures_get_up_to_half_of_the_drawn_episodes() -> None:
    success = np.array([True] * 90 + [False] * 10)
    assert pick_episodes(success, 200) == list(range(100))
    picked = pick_episodes(success, 8)
    assert [bool(success[i]) for i in picked] == [True] * 4 + [False] * 4
    assert picked[0] == 0
    assert picked[-1] == 99
    assert pick_episodes(np.zeros(6, bool), 4) == [0, 2, 3, 5]
    assert pick_episodes(np.zeros(0, bool), 4) == []


def test_the_plane_is_a_position_in_metres_and_not_joint_angles() -> None:
    joints = metres("proprio", "qpos[0]", "qpos[1]", "qpos[2]", unit="rad")
    pose = metres("state", "is_grasped", "tcp[0]", "tcp[1]", "tcp[2]", "goal[0]")
    assert plane(spec_with({"proprio": joints, "state": pose})) == ("state", [1, 2, 3])
    assert plane(spec_with({"proprio": metres("proprio", "x", "y"), "state": pose})) == ("proprio", [0, 1])
    assert plane(spec_with({"proprio": joints})) == ("proprio", [0, 1])
    assert plane(spec_with({"proprio": metres("proprio", "gap")})) == ("action", [0, 1])


def test_trajectories_and_film_strips_show_the_recorded_numbers(tmp_path: Path, image_store: Path) -> None:
    from PIL import Image

    data = read_dataset(image_store)
    assert (data.episodes, data.successes, data.steps, data.shown) == (3, 2, 15, 3)
    first = data.projections[0]
    assert first.success == (True, False, True)
    assert [line[0].tolist() for line in first.lines] == [[0, 0], [1, 1], [2, 2]]
    # The first success and the first failure; five steps are fewer than the frames of a strip.
    assert [(strip.episode, strip.seed, strip.success) for strip in data.strips] == [(0, 70, True), (1, 71, False)]
    run = write_run(tmp_path / "run", stage="collect", summary_json={"content_hash": "0" * 64})
    (run / "config.yaml").write_text(f"dataset: {image_store}\n")
    html = report_html(read_run(run))
    images = [value for name, value in assert_self_contained(html).attributes if name == "src"]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))))[0, ::6, 0] for text in images
    ]
    assert [row.tolist() for row in pixels] == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    assert "no longer the one that collect recorded" in html
    summary = {"content_hash": data.content_hash, "success_once": {"k": 3, "n": 3}}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "no longer the one" not in report_html(read_run(run))


def test_a_damaged_dataset_is_named_and_the_rest_is_shown(tmp_path: Path, image_store: Path) -> None:
    run = write_run(tmp_path / "run", stage="collect")
    (run / "config.yaml").write_text(f"dataset: {image_store}\n")
    (chunk,) = (path for path in (image_store / "data/action").iterdir() if not path.name.startswith("."))
    chunk.write_bytes(chunk.read_bytes()[:-3])
    text = Page(report_html(read_run(run))).text
    assert "can't be read" in text
    assert "9/10" in text


def test_the_command_reports_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from robot_rl.cli import main as robot_rl

    monkeypatch.chdir(tmp_path)
    words = ["env=point_reach", "expert=point_reach", "num_episodes=6", "dataset=d.zarr", "--quiet", "--track=none"]
    assert robot_rl(["collect", *words]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = assert_self_contained((run / "report.html").read_text()).text
    assert (
        "The expert had success in 6 of 6 episodes (100.0 %; Wilson 95 %: 61.0 to 100.0 %); 6 episodes are stored"
        in text
    )
    assert "6 episodes of PointReach, 6 with success" in text
    with pytest.raises(ConfigError, match="one run"):
        main([str(run), str(run), "--output", "x.html"])
    with pytest.raises(RunError, match="can be written"):
        main([str(run), "--output", "no/such/folder/x.html"])
