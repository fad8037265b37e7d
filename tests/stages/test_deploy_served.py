"""`robot-rl deploy policy=ws://...`: a real server process that dies, hangs, comes back or serves another robot's policy."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("websockets")
pytest.importorskip("msgpack")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from scene_robot import CARD, EXECUTE, SceneRobot, ServeProcess, panda_spec, run_torch_free, write_moving_policy
from served_policy import ServedPolicy

from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.client import ClientTimes
from robot_rl.deploy.execution import Execution
from robot_rl.deploy.loop_parts import LoopConfig
from robot_rl.deploy.loop_policy import ROBOT_TIMES, source_of
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.server import PolicyServer, ServerOptions
from robot_rl.deploy.tensorrt_policy import Runtime
from robot_rl.errors import ConfigError, DeployError, PolicyError, RunError
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import deploy
from robot_rl.stages.deploy import DeployConfig, StoppedError
from robot_rl.stages.deploy_summary import Steps

PERIOD_S, LATE = 0.05, 4  # of the card: 20 Hz, 0.2 s
SUPPORT = str(Path(__file__).resolve().parents[1] / "support")
DRIVER = {"robot": {"_target_": "scene_robot.SceneRobot"}}
TIMES = ClientTimes(connect_s=10.0, answer_s=5.0, give_up_s=300.0)  # a busy machine answers late


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[int], ServeProcess]]:
    policy, made = write_moving_policy(tmp_path / "policy.onnx", panda_spec()), list[ServeProcess]()

    def start(port: int = 0) -> ServeProcess:
        made.append(ServeProcess(policy, port=port))
        return made[-1]

    yield start
    for one in made:
        one.close()


def play(
    folder: Path,
    uri: str,
    see: Callable[[StepRecord, SceneRobot], None],
    monkeypatch: pytest.MonkeyPatch,
    **changes: Any,
) -> dict[str, Any]:
    """One episode, `see` called after each command."""
    before = deploy._watch

    def watch(record: StepRecord, steps: Any, scene: Any, loop: Any) -> None:
        see(record, scene)
        before(record, steps, scene, loop)

    monkeypatch.setattr(deploy, "_watch", watch)
    monkeypatch.setenv("PYTHONPATH", SUPPORT)
    config = DeployConfig(
        policy=uri,
        robot=CARD,
        driver=DRIVER,
        num_episodes=1,
        max_steps=100_000,
        settle_s=0.05,
        black_box=False,
        server=TIMES,
    )
    run = RunDirectory.create(folder, stage="deploy", task="test", seed=0, config_yaml="", command=["test"])
    return deploy.run(replace(config, **changes), run)


def policy_processes() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "robot_rl.deploy.policy_process" in one.cmdline()]


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["killed and started again", "hung for a while"])
def test_an_outage_of_the_server_holds_the_robot_and_it_goes_on_behind_it(
    outage: str, served: Callable[..., ServeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server = served()
    uri, records, maps = server.wait(), list[StepRecord](), list[str]()
    phase, out, back = "well", -1, -1

    def see(record: StepRecord, scene: SceneRobot) -> None:
        nonlocal phase, out, back
        records.append(record)
        if phase == "well" and record.slot >= 30 and record.action is not None and record.index == 2:
            maps.extend(Path(f"/proc/{one.pid}/maps").read_text() for one in policy_processes())
            server.process.send_signal(signal.SIGKILL if outage.startswith("killed") else signal.SIGSTOP)
            phase, out = "out", len(records)
        elif phase == "out" and len(records) > out + 60 and "no answer; the robot holds" in caplog.text:
            if outage.startswith("killed"):
                served(server.port)
            else:
                server.process.send_signal(signal.SIGCONT)
            phase = "coming back"
        elif phase == "coming back" and record.action is not None:
            phase, back = "back", len(records) - 1
        elif phase == "back" and len(records) > back + 40:
            scene.is_success = True

    summary = play(tmp_path, uri, see, monkeypatch)
    assert (summary["policy"], summary["success"]["k"], summary["stops"]) == (uri, 1, {})
    assert summary["unanswered"] >= 1
    assert len(maps) == 1
    assert "torch" not in maps[0]
    # What was left of the last chunk is played for the actions that the card allows, and then it holds.
    during = records[out:back]
    last = max(number for number, record in enumerate(during) if record.action is not None)
    assert during[last].index < EXECUTE + LATE
    assert {record.request for record in during if record.action is not None} <= {
        records[out - 1].request,
        records[out - 1].request + 1,
    }
    late_s = max(record.late_s for record in during[: last + 1])
    took_s = during[last].monotonic_s - records[out - 1].monotonic_s
    assert took_s <= (EXECUTE + LATE) * PERIOD_S + late_s + 1e-6
    held = during[last + 1 :]
    assert all(record.action is None and record.goal is None for record in held)
    assert all(record.reasons & Reason.policy_late for record in held)
    at_rest = next(number for number, record in enumerate(held) if not record.sent.velocity.any())
    assert at_rest <= 5
    places = np.array([record.sent.position for record in held[at_rest:]])
    assert len(places) > 30
    assert np.ptp(places, axis=0).tolist() == [0.0] * 7
    # Behind it a new chunk from where the arm stands now, and on it goes.
    assert records[back].request > during[last].request
    assert records[back].index == 0 or records[back].index < EXECUTE + LATE
    assert records[-1].sent.position[0] > places[-1][0] + 0.02
    said = caplog.text
    assert "no answer; the robot holds where its chunk ends" in said
    assert "the policy answers again" in said


def test_a_server_that_stays_away_stops_the_robot_for_good(served: Callable[..., ServeProcess], tmp_path: Path) -> None:
    """The real command line, in a process that never loads torch; exit code 3, and words that name the server."""
    server = served()
    uri = server.wait()
    words = [
        "deploy", f"policy={uri}", f"robot={CARD}", "driver=mock", "driver.robot._target_=scene_robot.SceneRobot",
        f"+driver.robot.kill_pid={server.process.pid}", "+driver.robot.kill_at=25", "num_episodes=3", "max_steps=100000",
        "server.give_up_s=2.0", "server.connect_s=30.0", "server.answer_s=30.0", "black_box=false", f"run_root={tmp_path}", "--json",
    ]  # fmt: skip
    done = run_torch_free(words)
    assert done.returncode == 3, done.stderr
    assert "stop, policy_lost: the policy failed" in done.stderr
    assert f"{uri}: expected an answer within 2 s, got none" in done.stderr
    assert "The robot holds" in done.stderr
    (folder,) = tmp_path.glob("*_deploy_*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stops"] == {"policy_lost": 1}
    assert summary["chunk_execution"]["held_steps"] > 10


def thread_server(policy: Any) -> PolicyServer:
    one = PolicyServer(policy, NoiseSource(NoiseRule.fixed, 0, policy.noise_shape), ServerOptions(port=0))
    one.start()
    return one


class Refuses(SceneRobot):
    """Fails the test when it is told to move."""

    def command(self, goal: Any) -> Any:
        raise AssertionError("it was commanded")


def refused(folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    monkeypatch.setattr("scene_robot.SceneRobot", Refuses)
    with pytest.raises((PolicyError, DeployError, ConfigError)) as caught:
        play(folder, uri, lambda record, scene: None, monkeypatch, **changes)
    return str(caught.value)


def test_what_is_refused_before_anything_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another robot's policy, another meaning of its actions, no server, and what a server can't do."""
    other = thread_server(ServedPolicy())
    uri = f"ws://127.0.0.1:{other.port}"
    said = refused(tmp_path, uri, monkeypatch)
    assert "panda" in said
    assert "'none'" in said
    other.close()

    spec = panda_spec()
    mistaken = replace(spec, action_semantics=replace(spec.action_semantics, frame="base"))
    wrong = thread_server(OnnxPolicy(write_moving_policy(tmp_path / "wrong.onnx", mistaken)))
    said = refused(tmp_path, f"ws://127.0.0.1:{wrong.port}", monkeypatch)
    assert "frame" in said
    assert "differs" in said
    wrong.close()
    said = refused(tmp_path, uri, monkeypatch, server=TIMES)
    assert f"{uri}: expected a policy server" in said
    assert "robot-rl serve" in said
    assert "runtime=openvino" in refused(tmp_path, uri, monkeypatch, runtime=Runtime.openvino)


def test_a_policy_gets_the_time_to_start_that_the_command_gives(tmp_path: Path) -> None:
    policy = write_moving_policy(tmp_path / "policy.onnx", panda_spec())
    config = DeployConfig(policy=str(policy), robot=CARD, driver=DRIVER, start_s=0.001)
    with pytest.raises(DeployError, match=r"(?s)within 0\.001 s.*start_s="):
        deploy.run(config, RunDirectory(tmp_path))


def test_rtc_needs_a_policy_that_can_continue(
    served: Callable[..., ServeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a server nor an exported file can; both are told what to use."""
    for policy, times in ((served().wait(), TIMES), (str(tmp_path / "policy.onnx"), ROBOT_TIMES)):
        said = refused(tmp_path, policy, monkeypatch, execution=Execution.rtc, server=times)
        assert "execution=rtc: expected a policy that can continue a chunk" in said
        assert "use execution=async" in said


def test_one_time_of_the_server_leaves_the_others_those_of_a_robot() -> None:
    config = load_config(DeployConfig, ["policy=x", "server.ping_every_s=3.0"], name="deploy")
    assert config.server == replace(ROBOT_TIMES, ping_every_s=3.0)
    assert ClientTimes() != ROBOT_TIMES


@pytest.mark.parametrize(
    ("policy", "options", "says"),
    [
        ("ws://127.0.0.1:1", {"threads": 2}, "threads=2"),
        ("policy.onnx", {"server": TIMES}, "server: expected policy=ws://host:port"),
        ("policy.onnx", {"runtime": Runtime.openvino, "provider": "CUDAExecutionProvider"}, "provider=CUDA"),
        ("policy.onnx", {"runtime": Runtime.auto, "provider": "CUDAExecutionProvider"}, "provider=CUDA"),
    ],
)
def test_options_without_meaning_are_refused(policy: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        source_of(policy, LoopConfig(), **options)


@pytest.mark.parametrize(
    "why", [KeyboardInterrupt(), StoppedError("robot", expected="no stop", got="one", hint="Look.")]
)
def test_a_summary_that_can_not_be_written_hides_no_stop(
    why: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RunError("summary.json", expected="finite numbers", got="nan", hint="A bug.")

    monkeypatch.setattr(deploy, "summarize", fail)
    run = RunDirectory.create(tmp_path, stage="deploy", task="test", seed=0, config_yaml="", command=["test"])
    with pytest.raises(type(why)), deploy._summary_at_the_end([{"seed": 1}], Steps(), run, {"began": 0.0}):
        raise why
    with pytest.raises(RunError), deploy._summary_at_the_end([{"seed": 1}], Steps(), run, {"began": 0.0}):
        pass
