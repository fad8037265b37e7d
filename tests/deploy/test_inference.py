"""Policies beside a loop: real processes that are slow, fail, are stopped and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_robot import HERE, RecurrentPolicy, SmallPolicy, small_spec

from robot_rl.deploy import inference
from robot_rl.deploy.inference import Answer, PolicyRunner, ProcessPolicy, SameThreadPolicy
from robot_rl.deploy.policy_source import PolicySource, decide, load_policy
from robot_rl.deploy.policy_words import failed, read_reply
from robot_rl.deploy.schedule import ManualClock
from robot_rl.errors import DeployError
from robot_rl.types import Observation

PATIENCE_S = 30.0


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ProcessPolicy]]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
    made: list[ProcessPolicy] = []

    def started(start_s: float = 60.0, function: str = "small_policy", **config: Any) -> ProcessPolicy:
        runner = ProcessPolicy(PolicySource(target=f"small_robot:{function}", config=config), start_s=start_s)
        made.append(runner)
        runner.info = runner.start()  # type: ignore[attr-defined]
        return runner

    yield started
    for runner in made:
        if runner.pid and runner.failure == "":
            os.kill(runner.pid, signal.SIGCONT)
        runner.close()


def observation(value: float = 0.0) -> Observation:
    return Observation(proprio=np.full((1, 2, 2), value, np.float32))


def ask(runner: PolicyRunner, request: int, value: float = 0.0) -> None:
    runner.ask(request, observation(value), episode_seed=0, decision=request)


def answer(runner: PolicyRunner) -> Answer:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        found = runner.poll(0.1)
        if found is not None:
            return found
    raise AssertionError("no answer")


def wait_for(holds: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.005)


def test_both_runners_give_the_same_actions(start: Callable[..., ProcessPolicy]) -> None:
    """The policy goes to 0.3 + 0.5 rad/s * k / 50 Hz."""
    ours, clock = start(), ManualClock()
    same = SameThreadPolicy(SmallPolicy({}), clock=clock)
    assert isinstance(ours, PolicyRunner)
    assert isinstance(same, PolicyRunner)
    info = same.start()
    assert ours.info == info  # type: ignore[attr-defined]
    assert (info.history, info.horizon, info.execute, info.keys) == (2, 8, 4, ("proprio",))
    assert info.spec == small_spec()
    found = []
    for runner in (ours, same):
        ask(runner, 7, 0.3)
        assert runner.is_busy
        found.append(answer(runner))
        assert not runner.is_busy
        assert runner.poll() is None
        assert runner.failure == ""
    wanted = np.float32(0.3) + 0.5 * np.arange(1, 9, dtype=np.float32)[:, None] / 50 + np.zeros((8, 2), np.float32)
    for one in found:
        assert (one.request, one.error) == (7, "")
        assert one.actions is not None
        assert one.actions.dtype == np.float32
        np.testing.assert_allclose(one.actions, wanted, atol=1e-6)
    assert len(ours.warm_up_s) == 3


def test_a_policy_with_a_memory_begins_every_episode_anew(start: Callable[..., ProcessPolicy]) -> None:
    """In a process also behind the warm-up."""
    for runner in (
        start(function="recurrent_policy"), SameThreadPolicy(RecurrentPolicy({}), clock=ManualClock())
    ):  # fmt: skip
        found = []
        for request, decision in enumerate((0, 1, 2, 0, 1), start=1):
            runner.ask(request, observation(), episode_seed=7, decision=decision)
            actions = answer(runner).actions
            assert actions is not None
            found.append(float(actions[0, 0]))
        assert found == [0, 1, 2, 0, 1]


def test_an_episode_that_goes_on_from_a_plan_forgets_nothing() -> None:
    told: list[Any] = []

    class Continuing(RecurrentPolicy):
        def continue_from(self, actions: np.ndarray, weights: np.ndarray) -> None:
            told.append((actions, weights))

    policy, plan, weights = Continuing({}), np.zeros((8, 2), np.float32), np.ones(8)
    for wanted, words in enumerate([{}, {"plan": plan, "weights": weights}]):
        found = decide(policy, observation(), episode_seed=0, decision=0, **words)  # type: ignore[arg-type]
        assert (found == wanted).all()
    ((actions, told_weights),) = told
    assert actions is plan
    assert told_weights is weights


def test_a_priority_is_taken_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)
    for priority in (1, 1000):
        runner = ProcessPolicy(PolicySource(target="small_robot:small_policy", fifo_priority=priority))
        try:
            runner.start()
            is_fifo = os.sched_getscheduler(runner.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
            assert ("yes" in runner.fifo) == is_fifo
            assert not (is_fifo and priority == 1000)
        finally:
            runner.close()


def test_a_stated_latency_is_kept_to_the_tick() -> None:
    clock = ManualClock(0.0)
    runner = SameThreadPolicy(SmallPolicy({}), clock=clock, latency_s=lambda request: 0.5)
    ask(runner, 1)
    assert runner.poll(0.2) is None
    assert clock.now() == 0.2
    assert runner.poll(0.2) is None
    assert runner.poll(1.0) is not None
    assert clock.now() == pytest.approx(0.5)


def test_a_policy_that_fails_says_so_and_may_be_asked_again(start: Callable[..., ProcessPolicy]) -> None:
    config: dict[str, Any] = {"raise": [0], "shape": [1]}
    for runner in (start(**config), SameThreadPolicy(SmallPolicy(config), clock=ManualClock())):
        ask(runner, 1)
        failed = answer(runner)
        assert failed.actions is None
        assert failed.error == "RuntimeError: no such thing"
        assert not failed.is_wrong_shape
        ask(runner, 2)
        wrong = answer(runner)
        assert wrong.is_wrong_shape
        assert "(1, 8, 1)" in wrong.error
        ask(runner, 3)
        assert answer(runner).actions is not None
        assert runner.failure == ""


def test_polling_never_waits_longer_than_told(start: Callable[..., ProcessPolicy]) -> None:
    runner = start(slow={"0": 1.0})
    ask(runner, 1)
    began = time.monotonic()
    assert runner.poll() is None
    assert runner.poll(0.05) is None
    assert time.monotonic() - began < 0.9
    assert answer(runner).request == 1


def test_a_killed_policy_is_noticed_and_can_be_started_again(start: Callable[..., ProcessPolicy]) -> None:
    runner = start(slow={"0": 60.0})
    ask(runner, 1)
    os.kill(runner.pid, signal.SIGKILL)
    wait_for(lambda: runner.failure)
    assert "killed by signal 9" in runner.failure
    assert runner.poll() is None
    runner.start()
    assert runner.failure == ""
    assert not runner.is_busy


def test_one_that_runs_is_not_started_again(start: Callable[..., ProcessPolicy]) -> None:
    """A command starts it to learn its spec, the control loop to run it."""
    runner = start()
    pid = runner.pid
    assert runner.start() == runner.info  # type: ignore[attr-defined]
    assert runner.pid == pid
    runner.close()
    runner.start()
    assert runner.pid != pid


def test_a_policy_that_is_stopped_for_a_while_answers_with_its_old_number(start: Callable[..., ProcessPolicy]) -> None:
    runner = start()
    os.kill(runner.pid, signal.SIGSTOP)
    ask(runner, 1)
    assert runner.poll(0.3) is None
    assert runner.failure == ""
    os.kill(runner.pid, signal.SIGCONT)
    assert answer(runner).request == 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"load": "raise"}, "weights are of another net"),
        ({"load": "exit"}, "exit code 7"),
        ({"load": 60, "start_s": 1.0}, "silence"),
    ],
    ids=["raises", "exits", "hangs"],
)
def test_a_policy_that_does_not_load_is_refused(
    start: Callable[..., ProcessPolicy], config: dict[str, Any], says: str
) -> None:
    with pytest.raises(DeployError, match=says):
        start(**config)


@pytest.mark.parametrize(
    ("source", "given", "limit_s"),
    [
        (PolicySource(onnx="a.onnx"), None, 60.0),
        (PolicySource(onnx="a.onnx", runtime="openvino"), None, 60.0),
        (PolicySource(onnx="a.onnx", runtime="tensorrt"), None, 900.0),
        (PolicySource(onnx="a.onnx", runtime="auto"), None, 900.0),
        (PolicySource(onnx="a.onnx", provider="TensorrtExecutionProvider"), None, 900.0),
        (PolicySource(target="a:b"), None, 60.0),
        (PolicySource(onnx="a.onnx", runtime="tensorrt"), 5.0, 5.0),
    ],
)
def test_an_engine_may_be_built_before_the_first_answer(
    source: PolicySource, given: float | None, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build takes minutes and leaves nothing when it is ended before. The process here is silent, and time is ours."""

    class Silent:
        exit_code, pid = None, 0

        def receive(self, wait_s: float) -> None:
            now[0] += wait_s

        def close(self) -> None:
            closed.append(now[0])

    now, closed = [0.0], list[float]()
    monkeypatch.setattr(inference, "Child", lambda module, config: Silent())
    monkeypatch.setattr(inference, "time", SimpleNamespace(monotonic=lambda: now[0]))
    runner = ProcessPolicy(source, start_s=given)
    with pytest.raises(DeployError, match=rf"(?s)within {limit_s:g} s.*start_s=\.\.\. waits longer"):
        runner.start()
    assert closed == [pytest.approx(limit_s)]


def test_a_start_that_may_take_no_time_is_refused() -> None:
    for start_s in (0.0, -1.0, float("nan")):
        with pytest.raises(DeployError, match="start_s: expected above 0"):
            ProcessPolicy(PolicySource(onnx="a.onnx"), start_s=start_s)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (PolicySource(), "either"),
        (PolicySource(onnx="a.onnx", target="b:c"), "either"),
        (PolicySource(target="small_robot:none"), "none"),
        (PolicySource(target="no_such_module:f"), "no_such_module"),
        (PolicySource(target="nonsense"), "module:function"),
        (PolicySource(onnx="none.onnx"), "an .onnx file"),
    ],
)
def test_sources_that_name_nothing_are_refused(source: PolicySource, says: str) -> None:
    with pytest.raises(DeployError, match=says):
        load_policy(source)


def test_the_process_ends_with_its_parent(start: Callable[..., ProcessPolicy], tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {HERE!r})
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.policy_source import PolicySource
if __name__ == "__main__":
    runner = ProcessPolicy(PolicySource(target="small_robot:small_policy"))
    runner.start()
    print(runner.pid, flush=True)
    time.sleep(600)
"""
    script = tmp_path / "parent.py"
    script.write_text(code, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert Path(f"/proc/{pid}").exists()
        finally:
            parent.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text())


def test_an_exported_policy_runs_in_a_process_with_numpy_alone(path: Path) -> None:
    """The child of an .onnx policy gives what the file gives here, and never loads torch."""
    source = PolicySource(onnx=str(path))
    here, runner = load_policy(source), ProcessPolicy(source)
    try:
        runner.start()
        seen = Observation(proprio=np.random.default_rng(0).standard_normal((1, 2, 3)).astype(np.float32))
        runner.ask(1, seen, episode_seed=3, decision=4)
        found = answer(runner).actions
        np.testing.assert_array_equal(found, here.act(seen, here.noise().draw([3], [4])).actions[0])
        maps = Path(f"/proc/{runner.pid}/maps").read_text(encoding="utf-8")
        assert "onnxruntime" in maps
        assert "torch" not in maps
    finally:
        runner.close()


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(DeployError, match=r"(?s)the package 'openvino', got not installed.*robot-rl\[openvino\]"):
        read_reply(failed(ModuleNotFoundError("No module named 'openvino'", name="openvino")))
