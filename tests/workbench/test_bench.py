"""bench: hand numbers for timing and ratios, refusal under load, and peers that do the same work as ours."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl import cli
from robot_rl.data.normalizer import Normalizer
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.envs.point_reach import PointReach, PointReachConfig, make_env
from robot_rl.errors import DataError, DeployError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.types import Observation
from robot_rl.workbench import (
    bench,
    bench_ceilings,
    bench_env,
    bench_infer,
    bench_infer_nets,
    bench_infer_play,
    bench_infer_table,
    bench_infer_turn,
    bench_sample,
    bench_timing,
    bench_train,
)
from robot_rl.workbench.bench_timing import BenchError, Comparison, Contender, Measurement, Options, Report

needs_maniskill = pytest.mark.skipif(find_spec("mani_skill") is None, reason="ManiSkill is not installed (extra sim)")
needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed (extra export)")


class Clock:
    """A clock that only the contenders move; in bench_timing alone, as other threads of the test process need theirs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(perf_counter=lambda: self.now, sleep=self.pass_time)
        monkeypatch.setattr(bench_timing, "time", fake)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


def test_contenders_take_turns_and_only_calls_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(monkeypatch), list[str]()
    slower = itertools.count(100)  # the first call, which warms up, takes 100 s, the next 101 s ...

    def a() -> None:
        order.append("a")
        clock.pass_time(2.0)

    def b() -> None:
        order.append("b")
        clock.pass_time(next(slower))

    contenders = [
        Contender("a", a, 8, "things", repeats=2, prepare=lambda: clock.pass_time(50), settle_s=7.0),
        Contender("b", b, 1, "things"),
    ]
    first, second = bench_timing.interleave(contenders, rounds=3)
    assert "".join(order) == "aab" * 4
    assert first.seconds.tolist() == [[2, 2], [2, 2], [2, 2]]
    assert second.seconds.tolist() == [[101], [102], [103]]
    assert first.rate == 4
    assert second.to_json()["p50_ms"] == 102_000


def test_refuses_no_rounds_and_equal_names() -> None:
    twin = Contender("a", lambda: None, 1, "things")
    with pytest.raises(BenchError, match="different names"):
        bench_timing.interleave([twin, twin], rounds=1)
    with pytest.raises(BenchError, match="at least one round"):
        bench_timing.interleave([twin], rounds=0)


def measured(name: str, rows: list[list[float]], work: int = 1) -> Measurement:
    return Measurement(name, work, "things", np.array(rows, np.float64))


def test_ratio_by_hand() -> None:
    # Round medians 1, 2, 3 s of 10 things against 1, 4, 15 s of 1 thing: rates 10, 5, 10/3 against 1, 1/4, 1/15.
    ours = measured("ours", [[1, 1, 9], [2, 2, 2], [0.5, 3, 3]], work=10)
    peer = measured("peer", [[1], [4], [15]])
    found = bench_timing.compare(ours, peer, target=20.0)
    assert found["ratio"] == pytest.approx(20)  # of 10, 20, 50
    assert found["ratio_best"] == pytest.approx(20)  # 10 things in 0.5 s against 1 in 1 s
    assert found["met"] is True
    assert found["low"] is None, "three rounds give no interval"
    assert bench_timing.compare(ours, peer, target=20.1)["met"] is False
    assert bench_timing.compare(ours, peer, target=None)["met"] is None


def test_drift_of_the_machine_leaves_the_ratio_alone() -> None:
    drift = np.linspace(1, 10, 20)[:, None]
    found = bench_timing.compare(Measurement("a", 1, "x", drift), Measurement("b", 1, "x", 3 * drift), target=None)
    assert [found[key] for key in ("ratio", "low", "high", "ratio_best")] == pytest.approx([3, 3, 3, 3])


def test_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        ours, peer = np.exp(0.1 * rng.standard_normal((2, 15, 1)))
        found = bench_timing.compare(Measurement("a", 1, "x", ours), Measurement("b", 1, "x", 2 * peer), target=None)
        covered += found["low"] <= 2 <= found["high"]
    assert 0.90 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("others", "load", "own_load", "overloaded"),
    [
        (0.0, 0.0, False, False),
        (0.5, 2.5, False, False),
        (0.51, 0.0, False, True),
        (0.51, 0.0, True, True),
        (0.0, 2.51, False, True),
        (0.0, 9.0, True, False),  # behind a benchmark the load average is its own work
    ],
)
def test_overload_on_two_cores(others: float, load: float, own_load: bool, overloaded: bool) -> None:
    assert bench_timing.is_overloaded(others, load=load, cpus=2, own_load=own_load) is overloaded


def test_others_are_the_machine_without_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"busy": iter([100.0, 107.0] * 2), "own": iter([10.0, 14.0, 10.0, 13.0]), "time": iter([0.0, 2.0] * 2)}
    monkeypatch.setattr(bench_timing, "_busy_seconds", lambda: next(values["busy"]))
    monkeypatch.setattr(bench_timing, "own_seconds", lambda: next(values["own"]))
    monkeypatch.setattr(bench_timing, "time", SimpleNamespace(monotonic=lambda: next(values["time"])))
    assert bench_timing.LoadWatch().others() == 1.5  # 7 s in use, 4 of them ours, in 2 s
    assert bench_timing.LoadWatch().others(unseen_s=1.0) == 1.5  # one of the 4 was of a process that nobody waited for


def test_children_are_own_work_while_they_run_and_behind_it() -> None:
    before = bench_timing.own_seconds()
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('burnt', flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "burnt\n"
    assert bench_timing.own_seconds() - before >= 0.45
    child.communicate("\n")
    assert 0.45 <= bench_timing.own_seconds() - before < 5


def test_machine_clocks_run_in_seconds() -> None:
    before = bench_timing._busy_seconds()
    began = bench_timing.time.process_time()
    while bench_timing.time.process_time() - began < 0.3:
        pass
    assert bench_timing._busy_seconds() - before >= 0.25


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """`bench ceilings` that measures nothing, on a machine whose load the test sets."""
    load = {"before": 0.0, "during": 0.0, "average": 0.0, "runs": 0}

    def run(options: Options) -> Report:
        load["runs"] += 1
        pair = (measured("ours", [[0.001]] * options.rounds), measured("peer", [[0.012]] * options.rounds))
        return Report(pair, (Comparison("ours", "peer", 10.0),), {})

    monkeypatch.setattr(bench_ceilings, "run", run)
    monkeypatch.setattr(bench, "probe_others", lambda: load["before"])
    monkeypatch.setattr(bench, "allowed_cpus", lambda: [0, 1])
    monkeypatch.setattr(bench, "usable_cores", lambda: 1.5)
    monkeypatch.setattr(bench.LoadWatch, "others", lambda self, unseen_s: load["during"])
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (load["average"], 0.0, 0.0))
    return load


def test_quiet_machine_prints_the_ratio(fake: dict[str, float], capsys: Any, tmp_path: Path) -> None:
    assert cli.main(["bench", "ceilings", "--rounds", "6", "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "ours / peer  12   12-12  12         >= 10   yes" in printed
    assert "machine quiet" in printed
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["command"][:3] == ["robot-rl", "bench", "ceilings"]
    assert document["results"]["ceilings"]["ratios"][0]["ratio"] == pytest.approx(12)
    assert document["provenance"]["cpu_model"]
    noted = document["results"]["ceilings"]["load"]
    # The limit counts CPUs, as the clocks that it is compared with do; a quota is a fact beside it.
    assert [noted[key] for key in ("others_allowed_cores", "allowed_cpus", "usable_cores")] == [0.5, 2, 1.5]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


@pytest.mark.parametrize("what", [{"before": 1.2}, {"average": 2.6}])
def test_overloaded_before_measures_nothing(fake: dict[str, float], capsys: Any, what: dict[str, float]) -> None:
    fake.update(what)
    assert cli.main(["bench", "ceilings"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "expected a quiet machine" in printed.err
    assert "--force" in printed.err
    assert fake["runs"] == 0


def test_disturbed_while_measuring_shows_no_ratio(fake: dict[str, float], capsys: Any, tmp_path: Path) -> None:
    fake["during"] = 0.8
    assert cli.main(["bench", "ceilings", "--json", str(tmp_path / "out.json")]) == 1
    printed = capsys.readouterr()
    assert "ours / peer" not in printed.out
    assert "OVERLOADED" in printed.out
    assert "ratios refused: ceilings" in printed.err
    result = json.loads((tmp_path / "out.json").read_text())["results"]["ceilings"]
    assert result["ratios"] == []
    assert result["refused"] is True


def test_force_shows_the_ratio_and_says_overloaded(fake: dict[str, float], capsys: Any) -> None:
    fake["before"] = fake["during"] = 1.9
    assert cli.main(["bench", "ceilings", "--force"]) == 0
    printed = capsys.readouterr().out
    assert "ours / peer" in printed
    assert "machine OVERLOADED" in printed


def test_wrong_words(fake: dict[str, float], capsys: Any, tmp_path: Path) -> None:
    assert cli.main(["bench", "speed"]) == 2
    assert cli.main(["bench", "ceilings", "--rounds", "0"]) == 2
    assert cli.main(["bench", "ceilings", "--json", str(tmp_path / "none" / "out.json")]) == 1
    assert "expected a file that can be written" in capsys.readouterr().err
    # An option that nothing would obey, before anything is measured: also where `infer` comes late among all.
    for words, error in (
        (["ceilings", "--policy", "run"], "bench ceilings --policy: expected bench infer"),
        (["loop", "--one-step", "run"], "bench loop --one-step: expected bench infer"),
        (["infer", "--episodes", "5"], "bench infer --episodes: expected --policy RUN"),
        (["all", "--one-step", "run"], "bench infer --one-step: expected --policy RUN"),
        (["all", "--nets", "resnet"], "bench infer --nets: expected some of mlp"),
    ):
        assert cli.main(["bench", *words]) == 1
        printed = capsys.readouterr()
        assert error in printed.err
        assert printed.out == ""


def test_window_indices_by_hand() -> None:
    # Episodes of rows 0-2 and 3-4; one row in front, two from the step on.
    found = bench_sample.window_indices(np.array([3, 5]), before=1, horizon=2)
    assert found.tolist() == [[0, 2, 1], [0, 3, 0], [1, 3, 0], [3, 5, 1], [3, 5, 0]]


@pytest.mark.parametrize(("history", "horizon"), [(1, 1), (2, 16), (4, 3)])
def test_peer_cuts_the_same_windows(tmp_path: Path, history: int, horizon: int) -> None:
    path = bench_sample.random_demonstrations(tmp_path / "demos.zarr", episodes=3, steps=9)
    peer = bench_sample.SlicedWindows(path, history=history, horizon=horizon)
    with EpisodeStore.open(path) as store:
        ours = WindowSampler(
            store, history=history, horizon=horizon, execute=1, keys=bench_sample.KEYS,
            episodes=np.arange(3), device="cpu",
        )  # fmt: skip
    assert len(peer) == ours.num_windows == 27
    windows = ours.window(np.arange(27))
    for index in range(27):
        item = peer[index]
        assert windows.observation.state is not None
        assert torch.equal(item["proprio"], windows.observation.proprio[index])
        assert torch.equal(item["state"], windows.observation.state[index])
        assert torch.equal(item["action"], windows.actions[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_windows_it_is_paid_for(tmp_path: Path, workers: int) -> None:
    path = bench_sample.random_demonstrations(tmp_path / "demos.zarr", episodes=4, steps=80)
    taken = list[int]()
    peer = bench_sample.SlicedWindows(path, history=1, horizon=4)
    contender = bench_sample.loader_contender(peer, workers)
    real_next = next

    def counting(iterator: Any) -> Any:
        batch = real_next(iterator)
        taken.append(len(batch["action"]))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_sample, "next", counting, raising=False)
        contender.call()
    assert sum(taken) == contender.work == 40 * 256


def test_train_flops_against_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "NETS", ("mlp",))
    small = bench_sample.random_demonstrations
    monkeypatch.setattr(bench_train, "random_demonstrations", lambda path: small(path, episodes=3, steps=20))
    report = bench_train.run(Options(rounds=1))
    facts = report.facts["mlp"]
    # A dense layer: 2 B FLOP a weight forward, twice that backward (half of it less in the first layers).
    ratio = 1e9 * facts["gflop_per_step"] / (256 * facts["parameters"])
    assert 4 < ratio < 6
    (measurement,) = report.measurements
    assert facts["gflop_per_s"] == pytest.approx(facts["gflop_per_step"] * measurement.rate / 256)


@needs_onnx
def test_infer_measures_equal_policies_and_refuses_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_infer, "NETS", ("mlp",))
    monkeypatch.setattr(bench_infer, "ROUND_S", 0.0)
    monkeypatch.setattr(bench_infer, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_infer_nets, "DDIM_STEPS", 2)  # ten are exported for as long
    monkeypatch.setattr(bench_infer_nets, "RTI_STEPS", (1, 2))
    monkeypatch.setattr(bench_infer_table, "RTI", "RTI-2")
    report = bench_infer.run(Options(rounds=1))
    runtimes = {"DDPM-100": ("torch",), "RTI-1": ("torch",), "RTI-2": ("torch",)}
    samplers = ("DDPM-100", "DDIM-2", "RTI-1", "RTI-2", "one step")
    runtimes["one step"] = ("torch", "onnx", "onnx graph", "onnx turn", "onnx int8")
    rows = [f"mlp {s} {r}" for s in samplers for r in runtimes.get(s, ("torch", "onnx", "onnx int8"))]
    assert [m.name for m in report.measurements] == [
        "mlp bare forward, torch", "mlp read weights", "mlp matmul", *rows,
    ]  # fmt: skip
    facts = report.facts["mlp"]
    assert facts["max_error"].keys() == {"DDIM-2 onnx", "one step onnx", "one step onnx graph"}
    # enter, two residual blocks of two layers, leave, and the two layers of the level's network: 2 FLOP a weight, no biases
    assert facts["flop"] == 2 * sum(
        w.numel() for w in bench_infer_nets.random_policy("mlp").denoiser.parameters() if w.ndim == 2
    )
    assert facts["weight_bytes"] == 4 * facts["parameters"]
    seconds = max(facts["weight_bytes"] / facts["gb_per_s"] / 1e9, facts["flop"] / facts["gflop_per_s"] / 1e9)
    assert facts["floor_ms"] == pytest.approx(1e3 * seconds)
    table = report.facts["table"]
    assert [" ".join(line[:3]) for line in table[1:]] == [*rows, "mlp bare forward torch"]
    found = {tuple(line[1:3]): line for line in table}
    ddim = found["DDIM-2", "onnx"]
    assert float(ddim[9].removesuffix(" %")) == pytest.approx(
        100 * 2 * facts["floor_ms"] / float(ddim[8]), rel=0.05, abs=1
    )
    # Float32 files are their policy, int8 ones nearly; the reference is no distance from itself.
    assert found["DDIM-2", "torch"][10:] == ["0", "0"]
    assert float(ddim[11]) < 1e-4 < float(found["DDIM-2", "onnx int8"][11]) < 0.5
    assert found["bare forward", "torch"][10:] == found["one step", "onnx turn"][10:] == ["-", "-"]
    ratios = {(c.ours, c.peer): c.target for c in report.comparisons}
    assert ratios["mlp one step onnx", "mlp DDIM-2 torch"] == 60.0
    assert ratios["mlp RTI-2 torch", "mlp DDIM-2 torch"] == 3.0
    assert ratios["mlp DDIM-2 onnx int8", "mlp DDIM-2 torch"] is None
    assert "pip install" in report.facts["openvino"]
    with pytest.raises(DeployError, match="a faster wrong policy"):
        bench_infer.checked(np.zeros(3), np.array([0.0, float("nan"), 0.0]), "x")


def test_a_part_is_printed_and_kept_when_the_next_is_broken_off(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path, fake: dict[str, float]
) -> None:
    seen = list[str]()

    def run(options: Options) -> Report:
        (net,) = options.nets
        seen.append(net)
        if net == "unet5":
            raise KeyboardInterrupt
        return Report((measured(net, [[0.001]]),), (), {"table": [["head"], [f"row of {net}"]]})

    monkeypatch.setattr(bench_infer, "run", run)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["infer", "--nets", "mlp,unet5", "--json", str(tmp_path / "out.json")])
    assert seen == ["mlp", "unet5"]
    assert "row of mlp" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "out.json").read_text())["results"]) == ["infer mlp"]


def test_infer_has_a_part_for_each_net_and_refuses_wrong_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: part.nets for name, part in bench_infer.parts(Options()).items()} == {
        "mlp": ("mlp",), "unet5": ("unet5",), "unet65": ("unet65",),
    }  # fmt: skip
    assert set(bench_infer.parts(Options(policy="run"))) == {"policy"}
    for options in (Options(nets=("unet",)), Options(nets=("mlp",), policy="run")):
        with pytest.raises(BenchError, match="some of mlp, unet5, unet65"):
            bench_infer.parts(options)
    monkeypatch.setattr(bench_infer.shutil, "which", lambda name: None)
    with pytest.raises(BenchError, match=r"a C\+\+ compiler"):
        bench_infer.parts(Options(compiled=True))
    with pytest.raises(BenchError, match="--dataset"):
        bench_infer_nets.subject_of("policy", Options(policy="run"))


@needs_onnx
def test_every_sampler_and_file_plays_the_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_infer_nets, "DDIM_STEPS", 2)
    monkeypatch.setattr(bench_infer_nets, "RTI_STEPS", (1,))
    torch.manual_seed(0)
    spec = PointReach(PointReachConfig(), num_envs=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    config = DiffusionPolicyConfig(horizon=4, execute=2, hidden_width=16, level_embedding=8)
    policy = DiffusionPolicy(config, spec, Normalizer.identity(sizes)).eval().requires_grad_(False)
    head = policy.one_step_student().eval().requires_grad_(False)
    env = {"_target_": "robot_rl.envs.point_reach.make_env", "max_episode_steps": 10}
    calibration = Observation.from_arrays(
        {key: torch.zeros(1, 1, *array.shape) for key, array in spec.observation.items()}
    )
    subject = bench_infer_nets.Subject("policy", policy, head, calibration, env)
    file = bench_infer_nets.exported(head, tmp_path / "head.onnx", threads=1)
    found = bench_infer_nets.samplers(subject)
    rows = bench_infer_play.played(subject, found, {"one step": file}, Options(episodes=3))
    places = [(row["sampler"], row["runtime"]) for row in rows]
    assert places == [*((s, "torch") for s in ("DDPM-100", "DDIM-2", "RTI-1", "one step")), ("one step", "onnx int8")]
    by_place = dict(zip(places, rows, strict=True))
    reference, plain, exported = (
        by_place["DDIM-2", "torch"],
        by_place["one step", "torch"],
        by_place["one step", "onnx int8"],
    )
    assert (reference["distance"], reference["difference to DDIM"]) == (0, 0)
    assert plain["distance"] > 1e-3
    for name in ("distance", "jerk rms", "step rms"):  # here the file is the policy in float32
        assert exported[name] == pytest.approx(plain[name], rel=1e-3)
    assert bench_infer_play.as_cells(reference)[:3] == ("DDIM-2", "torch", reference["success once"])
    assert reference["success once"].endswith("/3")
    rti = found[2].policy
    one = calibration.map(lambda x: x.numpy())
    assert bench_infer.eager(rti, one, bench_infer._first_noise(rti))().shape == (1, 4, 2)  # the 3 envs are forgotten


@needs_onnx
def test_a_turn_is_the_graph_with_all_that_a_loop_does_around_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = bench_infer_nets.random_policy("mlp")
    head = policy.one_step_student().eval().requires_grad_(False)
    file = bench_infer_nets.exported(head, tmp_path / "head.onnx", threads=1)
    observation, noise = bench_infer.inputs(head)
    judged, step = list[Any](), bench_infer_turn.SafetyFilter.step
    monkeypatch.setattr(bench_infer_turn.SafetyFilter, "step", lambda *words: judged.append(words[1]) or step(*words))
    calls = bench_infer_turn.turn_calls(file, head.spec, observation, noise)
    assert np.array_equal(calls["graph"](), file.act(observation, noise).actions)
    for decision in range(3):
        drawn = file.noise().draw([0], [decision])
        assert np.array_equal(calls["turn"](), file.act(observation, drawn).actions)
    assert len(judged) == 3
    broken = observation.map(lambda x: np.full_like(x, np.nan))
    with pytest.raises(DataError, match="reading"):
        bench_infer_turn.turn_calls(file, head.spec, broken, noise)["turn"]()
    places = [("DDIM-10", "torch"), *(("one step", f"onnx{part}") for part in ("", " graph", " turn"))]
    found = {(c.ours, c.peer): c.target for c in bench_infer_table.comparisons("unet 65 M", places)}
    assert found == {
        ("unet 65 M one step onnx", "unet 65 M DDIM-10 torch"): 60.0,
        ("unet 65 M one step onnx", "unet 65 M one step torch"): 7.0,
        ("unet 65 M one step onnx turn", "unet 65 M one step onnx graph"): 1 / 1.15,
    }


def test_a_slow_contender_plays_fewer_rounds_and_is_compared_over_those(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = Clock(monkeypatch), list[str]()
    slow = Contender("slow", lambda: clock.pass_time(8), 1, "x", most_rounds=2)
    growing = itertools.count(1)
    fast = Contender("fast", lambda: clock.pass_time(next(growing)), 1, "x")
    first, second = bench_timing.interleave([slow, fast], rounds=4, on_turn=turns.append)
    assert turns == ["slow", "fast"] * 3 + ["fast"] * 2  # one round more warms up
    assert first.seconds.tolist() == [[8], [8]]
    assert second.seconds.tolist() == [[2], [3], [4], [5]]
    assert bench_timing.compare(second, first, target=None)["ratio"] == pytest.approx((8 / 2 + 8 / 3) / 2)


def test_the_pace_of_a_call_fits_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench_infer, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for seconds, expected in ((8.0, (1, 2)), (1.0, (1, 15)), (0.0625, (3, 80)), (2.0**-10, (20, 768))):

        def call(taken: float = seconds) -> None:
            now[0] += taken

        found = bench_infer.pace(call)
        assert (found["repeats"], found["most_rounds"]) == expected


def test_ceilings_count_bytes_and_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ceilings, "COPY_BYTES", 2**20)
    monkeypatch.setattr(bench_ceilings, "MATRIX", 64)
    report = bench_ceilings.run(Options(rounds=1))
    work = {m.name: (m.work, m.unit) for m in report.measurements}
    assert work["copy, torch"] == (2 * 2**20 / 1e9, "GB")
    assert work["matmul, float32"] == (2 * 64**3 / 1e9, "GFLOP")


def test_our_contender_plays_one_whole_episode_in_each_env() -> None:
    env = make_env(PointReachConfig(terminate_on_success=False), num_envs=3, history=1)
    env.reset(itertools.count(0))
    contender = bench_env.our_contender(env, "ours", chunk=7)
    contender.call()
    assert env.episode_seeds.tolist() == [3, 4, 5]
    contender.call()
    assert env.episode_seeds.tolist() == [6, 7, 8]
    assert contender.work == 3 * env.spec.max_episode_steps


def test_env_needs_a_raw_environment_to_compare_with() -> None:
    with pytest.raises(BenchError, match="a ManiSkill task"):
        bench_env.run(Options(rounds=1, env="point_reach"))


@needs_maniskill
def test_env_against_maniskill() -> None:
    report = bench_env.run(Options(rounds=1))
    assert report.facts["first_states_equal"] is True
    assert report.measurements[0].name == bench_env.RAW
    work = {m.name: m.work for m in report.measurements}
    assert work[bench_env.RAW] == work["ours, N=1 chunk 1"] == 50
    assert work["ours, N=4 chunk 8"] == 200
    assert {c.peer for c in report.comparisons} == {bench_env.RAW}
