"""`robot-rl compare` on evaluation runs: hand-made ones with known counts, and real ones of the point task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from robot_rl.cli import main as robot_rl
from robot_rl.errors import ConfigError, DataError, RunError
from robot_rl.workbench.compare import main

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write an evaluation run with the given outcomes and return its path."""

    def write(
        name: str, outcomes: Sequence[bool], *, first_seed: int = 100, finished: bool = True, state: str = "s",
        steps: int = 10, **protocol: Any,
    ) -> str:  # fmt: skip
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text("env:\n  _target_: envs.point\n  limit: 30\npolicy: p\n")
        (run / "status.json").write_text(json.dumps({"state": "finished", "stage": "evaluate", "task": "t", "seed": 0}))
        (run / "command.txt").write_text(f"robot-rl evaluate policy={name}\n")
        rows = [
            {
                "seed": first_seed + i, "length": 30, "total_reward": won * (1 + i / 10), "success_once": won,
                "success_at_end": won and i % 2 == 0, "success_at_reset": False, "terminated": won,
                "truncated": not won, "steps_to_success": steps if won else None, "action_change_rms": 0.1,
                "action_jerk_rms": 0.1, "gripper_flips": 0, "initial_state": f"{state}{first_seed + i}",
            }
            for i, won in enumerate(outcomes)
        ]  # fmt: skip
        (run / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = {
            "task": "T", "max_episode_steps": 30, "versions": {"torch": "2"}, "history": 1, "num_envs": 8,
            "first_seed": first_seed, "num_episodes": len(rows), "policy": {"path": name},
        }  # fmt: skip
        if finished:
            (run / "summary.json").write_text(json.dumps({"protocol": facts | protocol}))
        return str(run)

    return write


def result(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert isinstance(out, dict)
    return out


def test_ten_and_nineteen_of_twenty(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Barnard on other seeds gives p = 0.001; the same counts on the same seeds are McNemar's 9 against 0."""
    a = make("a", [True] * 10 + [False] * 10)
    other = result([a, make("b", [True] * 19 + [False], first_seed=500)], capsys)
    assert other["test"]["method"] == "Barnard, exact"
    assert round(other["test"]["p_value"], 3) == 0.001
    assert (other["verdict"], other["paired"], other["pairs"]) == ("B better", False, None)
    same = result([a, make("c", [True] * 19 + [False])], capsys)
    assert same["test"] == {"method": "McNemar, exact", "p_value": 2 * 0.5**9, "discordant": 9}
    assert same["pairs"] == {"both": 10, "only_a": 0, "only_b": 9, "neither": 1}
    assert same["interval"]["difference"] == pytest.approx(0.45)
    turned = result([str(Path(a).parent / "c"), a], capsys)
    assert turned["verdict"] == "A better"
    assert turned["interval"]["low"] == pytest.approx(-same["interval"]["high"])


def test_not_distinguishable(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a = make("a", [True] * 25 + [False] * 25)
    b = make("b", [True] * 29 + [False] * 21, first_seed=500)
    found = result([a, b], capsys)
    assert found["verdict"] == "not distinguishable"
    assert found["test"]["p_value"] == pytest.approx(0.53, abs=0.005)
    assert found["statements"][0].startswith("Not distinguishable: B - A = +8.0 points")
    assert "does not show that they are equal" in found["statements"][0]
    assert found["statements"][1].startswith("It is not shown that B is not worse than A by more than 5 points")


def test_equivalence_statement(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """One discordant pair each way in 300: no difference, and equal within 5 points; not within 0.5."""
    a = make("a", [True] * 299 + [False])
    b = make("b", [False] + [True] * 299)
    found = result([a, b], capsys)
    assert (found["pairs"]["only_a"], found["pairs"]["only_b"]) == (1, 1)
    assert found["statements"][1].startswith("B is not worse than A by more than 5 points: the difference is above -")
    assert found["statements"][2].startswith("A and B are equivalent within 5 points")
    assert "with 95 %" in found["statements"][1]
    # The one-sided 95 % bound is the limit of the two-sided 90 % interval.
    narrow = result([a, b, "--confidence", "90"], capsys)["interval"]
    assert found["bounds"]["low"] == pytest.approx(narrow["low"], abs=1e-9)
    strict = result([a, b, "--margin", "0.5"], capsys)
    assert strict["statements"][1].startswith("It is not shown")
    assert "not shown to be equivalent within 0.5 points" in strict["statements"][2]


def test_bootstrap_rows(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Returns differ by half the mean of 1 + i/10 over odd i. Time is 12 against 8 where both succeed,
    and 21 against 8 when a failure counts 30."""
    a, b = make("a", [True, False] * 10, steps=12), make("b", [True] * 20, steps=8)
    rows = result([a, b], capsys)["bootstrap"]
    assert [row["difference"] for row in rows] == pytest.approx([1.0, -4.0, -13.0])
    assert (rows[1]["low"], rows[1]["high"], rows[1]["n"]) == (-4.0, -4.0, 10)
    assert rows[2]["low"] < -13 < rows[2]["high"]
    again = result([a, b], capsys)["bootstrap"]
    other = result([a, b, "--seed", "1"], capsys)["bootstrap"]
    assert rows == again
    assert rows != other


def test_metric_at_end(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", [True, False] * 10), make("b", [True] * 20)
    assert result([a, b, "--metric", "success_at_end"], capsys)["pairs"]["only_b"] == 0
    assert result([a, b], capsys)["pairs"]["only_b"] == 10


def test_what_may_differ(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", [True, False], num_envs=1, history=1), make("b", [True, True], num_envs=16, history=2)
    assert result([a, b], capsys)["paired"]


def test_torch_against_onnx_on_the_same_seeds(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever describes the policy is what is compared: provider, precision and threads of it may differ."""
    torch = {"path": "run", "class": "OneStepPolicy", "provider": "torch cpu", "precision": "fp32", "threads": 2}
    onnx = {"path": "policy.onnx", "class": "TensorRtPolicy", "provider": "TensorRT 10.9", "precision": "fp16"}
    found = result([make("a", [True, False], policy=torch), make("b", [True, False], policy=onnx)], capsys)
    assert found["paired"]
    assert found["notes"] == []
    assert [found[side]["policy"]["provider"] for side in ("a", "b")] == ["torch cpu", "TensorRT 10.9"]


@pytest.mark.parametrize(
    ("protocol", "key"),
    [
        ({"max_episode_steps": 50}, "max_episode_steps: 30 in A, 50 in B"),
        ({"versions": {"torch": "3"}}, "versions.torch: 2 in A, 3 in B"),
        ({"terminate_on_success": True}, "terminate_on_success: absent in A, True in B"),
    ],
)
def test_other_protocol_is_refused(
    make: Make, capsys: pytest.CaptureFixture[str], protocol: dict[str, Any], key: str
) -> None:
    words = [make("a", [True]), make("b", [False], **protocol)]
    with pytest.raises(DataError, match=re.escape(key)):
        main(words)
    with pytest.raises(DataError):
        main([*words, "--allow", "task"])
    allowed = result([*words, "--allow", key.partition(":")[0]], capsys)
    assert any(key in note for note in allowed["notes"])


def test_shared_seeds(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", [True] * 10), make("b", [False] * 10, first_seed=104)
    loose = result([a, b], capsys)
    assert not loose["paired"]
    assert "6 seeds are in both runs" in loose["notes"][0]
    tight = result([a, b, "--shared-seeds"], capsys)
    assert tight["pairs"] == {"both": 0, "only_a": 6, "only_b": 0, "neither": 0}
    with pytest.raises(DataError, match="seeds that both"):
        main([a, make("c", [True], first_seed=900), "--shared-seeds"])


def test_other_starts_are_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = result([make("a", [True] * 3), make("b", [True] * 3, state="x")], capsys)
    assert "3 of 3 seeds began in different states" in found["notes"][0]


def test_sequential_while_a_run_goes_on(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a = make("a", [False] * 30)
    b = make("b", [True] * 20, finished=False)
    with pytest.raises(RunError, match=r"summary\.json.*--sequential"):
        main([a, b])
    table = Path(b) / "episodes.jsonl"
    whole = table.read_bytes()
    table.write_bytes(whole + b'{"seed": 12')  # being written at this moment
    found = result([a, b, "--sequential"], capsys)
    assert table.read_bytes() == whole + b'{"seed": 12', "a run that goes on must not be touched"
    assert found["verdict"] == "B better"
    assert found["sequential"]["pairs"] == 20
    assert found["sequential"]["claimed_at"] < 10
    assert "Not finished" in found["notes"][-1]
    assert "bootstrap" not in found
    (Path(b) / "config.yaml").write_text("env:\n  _target_: envs.point\n  limit: 31\n")
    with pytest.raises(DataError, match=r"env\.limit: 30 in A, 31 in B"):
        main([a, b, "--sequential"])


def test_sequential_is_more_careful(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    only_b = [True, False] * 10 + [True] * 6
    a, b = make("a", [not won for won in only_b] + [True] * 44), make("b", only_b + [True] * 44)
    fixed, looked = result([a, b], capsys), result([a, b, "--sequential"], capsys)
    assert looked["test"]["p_value"] > fixed["test"]["p_value"]
    assert looked["interval"]["low"] < fixed["interval"]["low"] < fixed["interval"]["high"] < looked["interval"]["high"]


def test_claim_that_later_pairs_contradict(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten pairs for A, then thirty for B: the claim stands by its rule, and the page says what is odd."""
    a, b = make("a", [True] * 10 + [False] * 30), make("b", [False] * 10 + [True] * 30)
    found = result([a, b, "--sequential"], capsys)
    assert found["verdict"] == "A better"
    assert "later pairs point the other way" in found["notes"][-1]


def test_sequential_without_shared_seeds(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", [False] * 12), make("b", [True] * 9, first_seed=900)
    found = result([a, b, "--sequential"], capsys)
    assert (found["sequential"]["pairs"], found["verdict"]) == (9, "B better")
    assert "n-th episode" in found["notes"][0]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("option", [[], ["--sequential"]])
def test_page_needs_nothing_else(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    a, b = make("a", [True] * 10 + [False] * 10), make("<b>", [True] * 19 + [False])
    assert main([a, b, "--html", str(tmp_path / "new/page.html"), *option]) == 0
    assert "page.html" in capsys.readouterr().out
    text = (tmp_path / "new/page.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert not {tag for tag, _ in tags.found} & {"script", "link", "img", "iframe", "b"}
    assert "http" not in text
    assert not any(key in ("src", "href") for _, attributes in tags.found for key in attributes)
    squares = [tag for tag, attributes in tags.found if tag == "rect" and attributes.get("width") == "15"]
    assert len(squares) == 20 + 4  # pairs and the legend
    for part in ("B is better: B - A = +45.0 points", "10/20", "19/20", "only B 9", "robot-rl evaluate policy=<b>"):
        assert part in tags.text, part


def page_text(words: Sequence[str], tmp_path: Path) -> str:
    assert main([*words, "--html", str(tmp_path / "page.html")]) == 0
    tags = _Tags()
    tags.feed((tmp_path / "page.html").read_text())
    return tags.text


def test_page_names_the_policies_and_what_ran_them(make: Make, tmp_path: Path) -> None:
    """Of this version, of an older one, of an expert, and of a run that goes on and has only a configuration."""
    onnx = {"path": "x/policy.onnx", "class": "OnnxPolicy", "provider": "CUDAExecutionProvider", "precision": "fp32"}
    a, b = make("a", [True], policy=onnx), make("b", [True])
    text = page_text([a, b], tmp_path)
    assert "x/policy.onnxOnnxPolicy, CUDAExecutionProvider, fp32run " in text
    assert f"brun {b}, seeds 100 to 100 (1)" in text
    c = make("c", [True], policy={"expert": {"_target_": "robot_rl.envs.experts.Grasp", "speed": 1}})
    going = make("d", [True], finished=False)
    text = page_text([c, going, "--sequential"], tmp_path)
    assert "expert Grasp" in text
    assert f"prun {going}" in text


def test_wrong_runs(make: Make, tmp_path: Path) -> None:
    a = make("a", [True])
    with pytest.raises(RunError, match="no such folder"):
        main([a, str(tmp_path / "nothing")])
    with pytest.raises(DataError, match="two different runs"):
        main([a, a])
    other = make("other", [True])
    (Path(other) / "episodes.jsonl").unlink()
    with pytest.raises(RunError, match="robot-rl evaluate policy="):
        main([a, other])
    with pytest.raises(DataError, match="0 episodes"):
        main([a, make("empty", [])])
    twice = make("twice", [True, True])
    table = Path(twice) / "episodes.jsonl"
    table.write_text(table.read_text().replace('"seed": 101', '"seed": 100'))
    with pytest.raises(DataError, match="2 episodes with 1 seeds"):
        main([a, twice])
    torn = make("torn", [True, True])
    table = Path(torn) / "episodes.jsonl"
    table.write_text(table.read_text()[:-20])
    with pytest.raises(DataError, match="line 2"):
        main([a, torn])


@pytest.mark.parametrize(
    "words", [["--margin", "0"], ["--margin", "-5"], ["--confidence", "50"], ["--allow", "nokey"], ["--seed", "-1"]]
)
def test_wrong_options(make: Make, words: list[str]) -> None:
    with pytest.raises(ConfigError):
        main([make("a", [True]), make("b", [True]), *words])


def test_page_that_cannot_be_written(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--html"):
        main([make("a", [True]), make("b", [True]), "--html", str(tmp_path / "file/page.html")])


def test_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two evaluations of the point task by the command line: a good expert, and one with much noise."""
    monkeypatch.chdir(tmp_path)
    for name, noise in (("good", 0.0), ("noisy", 3.0)):
        words = ["env=point_reach", "expert=point_reach", f"expert.noise_sd={noise}", "num_episodes=20"]
        words += ["env.max_episode_steps=12", f"run_root={name}", "--track", "none", "--quiet"]
        assert robot_rl(["evaluate", *words]) == 0
    capsys.readouterr()
    (good,), (noisy,) = (tmp_path / "good").iterdir(), (tmp_path / "noisy").iterdir()
    assert robot_rl(["compare", str(good), str(noisy)]) == 0
    text = capsys.readouterr().out
    assert "A is better" in text
    for run in (good, noisy):
        assert f"{json.loads((run / 'summary.json').read_text())['success_once']['k']}/20" in text
    assert robot_rl(["compare", str(good), "nowhere"]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert robot_rl(["compare", str(good)]) == 2
