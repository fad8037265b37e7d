"""bench lerobot: LeRobot itself with a small network; what is refused without it, and ratios by hand."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from robot_rl.workbench import bench, bench_infer, bench_lerobot
from robot_rl.workbench.bench_lerobot import Peer, Row
from robot_rl.workbench.bench_timing import BenchError, Contender, Measurement, Options

PEER = os.environ.get("ROBOT_RL_PEER_LEROBOT", "")


class Noted:
    """A clock with two calls behind it."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def __call__(self) -> None:
        self.seconds.append(1.0)


def test_it_needs_lerobots_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBOT_RL_PEER_LEROBOT", raising=False)
    with pytest.raises(BenchError, match=r"tests/peers/lerobot\.sh"):
        bench_lerobot.run(Options())
    with pytest.raises(BenchError, match="a checkpoint that LeRobot saves"):
        bench_lerobot.run(Options(peer=str(Path(sys.executable).with_name("no_python"))))


def test_a_peer_that_dies_is_named_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "peer.py"
    script.write_text("import sys; print('{}', flush=True); input(); sys.exit('no module named lerobot')")
    monkeypatch.setattr(bench_lerobot, "SCRIPT", script)
    peer = Peer(sys.executable, tmp_path, 1)
    assert peer.facts == {}
    with pytest.raises(BenchError, match="no module named lerobot"):
        peer.ask({"sampler": "DDIM-10"})
    peer.close()


def test_ratios_are_of_median_processor_times() -> None:
    times = {
        "LeRobot DDPM-100": (8.0, 10.0, 12.0),
        "LeRobot DDIM-10": (1.0,),
        "ours one-step head onnx": (0.02, 0.05, 0.9),
    }
    rows = [
        Row(Contender(name, clock, 1, "decisions"), clock, *place)
        for (name, seconds), place in zip(
            times.items(), (("LeRobot", "DDPM-100", ""), ("LeRobot", "DDIM-10", ""), ("ours", "one-step head", "onnx")), strict=True
        )
        for clock in [Noted(*seconds)]
    ]  # fmt: skip
    measured = tuple(Measurement(name, 1, "decisions", np.array([[0.5]])) for name in times)
    assert bench_lerobot._table(rows, measured)[1:] == [
        ["LeRobot", "DDPM-100", "", "500", "500", "1e+04", "1", "0.1"],
        ["LeRobot", "DDIM-10", "", "500", "500", "1e+03", "10", "1"],
        ["ours", "one-step head", "onnx", "500", "500", "50", "200", "20"],
    ]
    assert [(c.peer, c.target) for c in bench_lerobot._comparisons(rows)] == [
        ("LeRobot DDPM-100", 60),
        ("LeRobot DDIM-10", 60),
    ]


@pytest.mark.slow
@pytest.mark.skipif(not PEER, reason="ROBOT_RL_PEER_LEROBOT is not set (tests/peers/lerobot.sh makes it)")
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed (extra export)")
def test_a_small_network_beside_lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same chunk from the same checkpoint first, then times of both in one table; without OpenVINO, whose tests are apart."""
    monkeypatch.setattr(bench_lerobot, "CONFIG", {"down_dims": [16], "horizon": 8, "n_action_steps": 4})
    monkeypatch.setattr(bench_lerobot, "NET", "mlp")
    # Ten steps in one graph take minutes to export.
    monkeypatch.setattr(bench_lerobot, "EXPORTED", bench_lerobot.EXPORTED[1:])
    monkeypatch.setattr(bench_infer, "find_spec", lambda name: None)
    report = bench_lerobot.run(Options(rounds=1, peer=PEER))
    assert report.facts["difference_to_lerobot"] < 1e-5
    assert report.facts["peer"]["lerobot"] == "0.4.4"
    assert report.facts["peer"]["parameters"] == report.facts["parameters"]["same checkpoint"]
    rows = [row[:3] for row in report.facts["table"][1:]]
    assert rows == [
        ["LeRobot", "DDPM-100", "its own"], ["LeRobot", "DDIM-10", "its own"],
        ["same checkpoint", "DDIM-10", "torch"], ["same checkpoint", "RTI-3", "torch"],
        ["ours", "DDIM-10", "torch"], ["ours", "RTI-3", "torch"],
        ["same checkpoint", "1 forward", "onnx"], ["ours", "one-step head", "onnx"],
    ]  # fmt: skip
    # Processor time, which a busy machine hardly changes: 100 against 10 forwards, 10 against 3.
    cpu = {tuple(row[:2]): float(row[5]) for row in report.facts["table"][1:] if row[2] != "onnx"}
    assert cpu["LeRobot", "DDPM-100"] > 3 * cpu["LeRobot", "DDIM-10"]
    assert cpu["same checkpoint", "DDIM-10"] > 1.5 * cpu["same checkpoint", "RTI-3"]
    shown = {(r["ours"], r["peer"]) for r in bench.ratios(report)}
    assert ("ours one-step head onnx", "LeRobot DDIM-10") in shown
