"""docs/results.md is what the JSON files beside it make, and every row says where its figures are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robot_rl.errors import DataError
from robot_rl.workbench.results import generate, main

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = {"command": "robot-rl evaluate policy=x", "seeds": "0-9", "date": "2026-11-25", "machine": "two cores"}


def write(folder: Path, name: str, **content: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_page_is_up_to_date() -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert text == generate(ROOT / "docs/results"), "run `robot-rl results`"


def test_demo_figures_are_in_the_page() -> None:
    demo = json.loads((ROOT / "docs/results/demo.json").read_text())
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for stage in demo["stages"]:
        assert f"{stage['success_once']['k']}/{stage['success_once']['n']}" in text
    assert f"{demo['latency']['p50_ms']:.3g} ms" in text
    assert demo["provenance"]["cpu_model"] in text
    assert demo["provenance"]["git"]["commit"][:12] in text


def test_rows_have_an_origin(tmp_path: Path) -> None:
    rows = [
        {"policy": "a|b", "success_once": {"k": 9, "n": 10, "low": 0.596, "high": 0.982}, "time": {"p50_ms": 0.05678}},
        {"policy": "c", "met": True, "command": "robot-rl bench", "seeds": None},
    ]
    write(tmp_path / "r", "x.json", rows=rows, note="A note.", **ORIGIN)
    text = generate(tmp_path / "r")
    head, first, second = cells(text)
    assert head == ["policy", "success once", "time p50 ms", "met", "seeds", "date", "machine", "command"]
    assert first == [
        "a\\|b", "9/10 (Wilson 95 %: 59.6% to 98.2%)", "0.05678", "-", "0-9", "2026-11-25", "two cores",
        "`robot-rl evaluate policy=x`",
    ]  # fmt: skip
    assert second == ["c", "-", "-", "yes", "-", "2026-11-25", "two cores", "`robot-rl bench`"]
    assert "A note." in text


def test_rows_as_a_mapping(tmp_path: Path) -> None:
    write(tmp_path / "r", "x.json", rows={"first": {"value": 1.5}, "second": 2}, **ORIGIN)
    assert [row[:2] for row in cells(generate(tmp_path / "r"))[1:]] == [["first", "1.5"], ["second", "2"]]


def test_benchmarks_as_they_are_written(tmp_path: Path) -> None:
    measured = {"name": "ours", "unit": "windows", "rate_p50": 12345.0, "p50_ms": 1.0, "p99_ms": 2.0}
    ratio = {"ours": "ours", "peer": "peer", "ratio": 11.5, "low": 11.0, "high": 12.0, "target": 10, "met": True}
    result = {"measurements": [measured], "ratios": [ratio], "overloaded": True}
    provenance = {
        "time": "2026-11-25T10:00:00+00:00",
        "cpu_model": "X",
        "usable_cpus": 2,
        "memory_gib": 4,
        "gpus": None,
    }
    write(tmp_path / "r", "b.json", command=["robot-rl", "bench"], provenance=provenance, results={"sample": result})
    rows = cells(generate(tmp_path / "r"))
    assert rows[1][:3] == ["sample", "ours", "1.234e+04 windows/s"]
    assert rows[2][1:3] == ["ours / peer", "11.5 (95 %: 11 to 12)"]
    assert rows[3][1] == "the machine was overloaded"
    assert rows[1][-3:] == ["2026-11-25", "X, 2 cores, 4 GiB, no GPU", "`robot-rl bench`"]


@pytest.mark.parametrize("missing", sorted(ORIGIN))
def test_a_figure_without_origin_is_refused(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "r", "x.json", rows=[{"value": 1}], **{k: v for k, v in ORIGIN.items() if k != missing})
    with pytest.raises(DataError, match=f"no {missing}"):
        generate(tmp_path / "r")


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        generate(tmp_path)
    write(tmp_path / "r", "x.json", rows=[], **ORIGIN)
    with pytest.raises(DataError, match="rows"):
        generate(tmp_path / "r")
    (tmp_path / "r/x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json"):
        generate(tmp_path / "r")


def test_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "r", "x.json", rows=[{"value": 1}], **ORIGIN)
    words = ["--folder", str(tmp_path / "r")]
    assert main([*words, "--check"]) == 1
    assert main(words) == 0
    assert main([*words, "--check"]) == 0
    assert (tmp_path / "r.md").read_text() == generate(tmp_path / "r")
    write(tmp_path / "r", "y.json", rows=[{"value": 2}], **ORIGIN)
    assert main([*words, "--check"]) == 1
    assert "run `robot-rl results`" in capsys.readouterr().out
