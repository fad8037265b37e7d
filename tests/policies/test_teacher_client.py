"""The client of teachers behind a server: late calls keep to their own connection, and what does not fit is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from websockets.exceptions import ConcurrencyError, ConnectionClosed
from websockets.sync.server import serve

from robot_rl.deploy import wire
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.server import PolicyServer, ServerOptions
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import ConfigError, DeployError
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig
from robot_rl.policies.teacher_client import TeacherClient, TeacherClientConfig
from robot_rl.types import ActionChunk, Observation

SPEC = make_env(PointReachConfig(), num_envs=1, history=1).spec
CARD = """
name: far away
size: 2
control_hz: 10
semantics: {kind: delta, delta_reference: measured, frame: base, rotation: none, gripper: none, control_mode: delta_position}
keys: [proprio]
"""


class Foreign:
    """A foreign server: the answer to a frame is its state, `wider` columns of 7 behind it, one frame after the other.

    Until `goes` is set the first of its `connections` gets no answer.
    """

    def __init__(self) -> None:
        self.wider, self.connections = 0, 0
        self.goes = threading.Event()
        self.goes.set()

    def __call__(self, connection: Any) -> None:
        self.connections += 1
        is_first = self.connections == 1
        connection.send(wire.pack({"model": "far away"}))
        try:
            for frame in connection:
                if is_first:
                    self.goes.wait(60)
                state = np.asarray(wire.unpack(frame)["observation/state"], np.float32)
                chunk = np.concatenate([state, np.full(self.wider, 7.0, np.float32)])[None]
                connection.send(wire.pack({"actions": chunk}))
        except ConnectionClosed:
            return


@contextmanager
def serving(answers: Any) -> Iterator[int]:
    with serve(answers, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def card(folder: Path, *more: str) -> str:
    path = folder / "card.yaml"
    path.write_text(CARD + "\n".join(more))
    return str(path)


def client(port: int, **settings: Any) -> TeacherClient:
    config = TeacherClientConfig(uri=f"ws://127.0.0.1:{port}", **settings)
    return TeacherClient(config, spec=SPEC, build=lambda *_: None, load=lambda *_: None)


def foreign(port: int, path: str, **settings: Any) -> TeacherClient:
    return client(port, card=path, names={"proprio": "observation/state"}, **settings)


def seen(number: int = 3) -> Observation:
    proprio = torch.arange(2.0 * number).reshape(number, 1, 2) / 10
    return Observation(proprio=proprio, state=torch.zeros(number, 1, 4))


def waiting(teacher: TeacherClient) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that asks, and what came of it; it is in `label` when this returns, as far as a pause can tell."""
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            teacher.label(seen())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.3)
    return thread, failed


def test_a_late_call_and_its_retry_have_connections_of_their_own(tmp_path: Path) -> None:
    answers = Foreign()
    with serving(answers) as port:
        teacher = foreign(port, card(tmp_path))
        answers.goes.clear()
        late, failed = waiting(teacher)
        teacher.close()  # what AskedTeacher does with a late one
        late.join(30)
        assert not late.is_alive()
        assert [type(each) for each in failed] == [DeployError]  # and not with an answer to anybody's question
        for _ in range(3):
            assert torch.equal(torch.as_tensor(teacher.label(seen()).actions)[:, 0], seen().proprio[:, 0])
        assert answers.connections == 2
        answers.goes.set()
        teacher.close()


def test_a_teacher_that_is_late_once_is_asked_again(tmp_path: Path) -> None:
    answers = Foreign()
    with serving(answers) as port:
        teacher = foreign(port, card(tmp_path), answer_s=60.0)
        asked = AskedTeacher(teacher, CallConfig(retries=1, wait_s=0.0, timeout_s=1.0))
        answers.goes.clear()
        assert torch.equal(asked.label(seen(1)), seen(1).proprio[:, 0])
        assert (asked.retried, asked.calls) == (1, 1)
        answers.goes.set()
        asked.close()


class Slow(Foreign):
    """Every frame takes 0.2 s."""

    def __call__(self, connection: Any) -> None:
        connection.send(wire.pack({}))
        for frame in connection:
            time.sleep(0.2)
            connection.send(wire.pack({"actions": np.asarray(wire.unpack(frame)["observation/state"])[None]}))


def test_the_time_limit_is_of_a_row_where_every_row_is_a_message(tmp_path: Path) -> None:
    with serving(Slow()) as port:
        asked = AskedTeacher(foreign(port, card(tmp_path)), CallConfig(retries=0, timeout_s=1.0))
        assert torch.equal(asked.label(seen(8)), seen(8).proprio[:, 0])  # 1.6 s
        assert asked.is_one_frame
        asked.close()


@pytest.mark.parametrize("error", [ConcurrencyError("two at once"), RuntimeError("no more threads")])
def test_errors_of_the_library_are_errors_of_the_teacher(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Foreign()
    with serving(answers) as port:
        teacher = foreign(port, card(tmp_path))
        teacher.label(seen())
        from websockets.sync.client import ClientConnection

        def breaks(self: Any, *_: Any, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(ClientConnection, "recv", breaks)
            asked = AskedTeacher(teacher, CallConfig(retries=1, wait_s=0.0))
            with pytest.raises(DeployError, match="asked 2 times"):
                asked.label(seen())
        assert teacher.label(seen()).actions.shape == (3, 1, 2)
        teacher.close()


class Served:
    """A policy of ours that repeats the proprio, when it may."""

    device, noise_shape, sampling = None, (0, 1, 2), "known"

    def __init__(self) -> None:
        from types import SimpleNamespace

        self.spec = SPEC
        self.config = SimpleNamespace(observation_keys=("proprio",), history=1, horizon=1, execute=1)
        self.goes = threading.Event()
        self.goes.set()

    def reset(self, mask: np.ndarray) -> None: ...

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        self.goes.wait(60)
        return ActionChunk(np.float32(observation.proprio[:, -1:]), execute=1)


def test_a_late_call_to_a_server_of_ours_is_left_behind_too() -> None:
    policy = Served()
    server = PolicyServer(policy, NoiseSource(NoiseRule.fixed, 0, policy.noise_shape), ServerOptions(port=0))
    server.start()
    teacher = client(server.port)
    try:
        assert not teacher.is_one_frame
        policy.goes.clear()
        late, _ = waiting(teacher)
        teacher.close()
        policy.goes.set()
        for _ in range(3):
            assert torch.equal(torch.as_tensor(teacher.label(seen()).actions)[:, 0], seen().proprio[:, 0])
        late.join(30)
        assert not late.is_alive()
        assert teacher.label(seen(1)).actions.shape == (1, 1, 2)  # the late one closed its own connection, not this
    finally:
        policy.goes.set()
        teacher.close()
        server.close()


@pytest.mark.parametrize("settings", [{"prompt": "go there"}, {"names": {"proprio": "state"}}])
def test_a_server_of_ours_takes_neither_prompt_nor_names(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"teacher\.{next(iter(settings))}.*teacher\.card"):
        client(9, **settings)


def test_a_foreign_teacher_with_a_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"card\.yaml, history: expected 1"):
        foreign(9, card(tmp_path, "history: 2"))


def test_the_width_of_an_answer_is_the_cards(tmp_path: Path) -> None:
    answers = Foreign()
    with serving(answers) as port:
        teacher, padded = foreign(port, card(tmp_path)), foreign(port, card(tmp_path, "sent_size: 4"))
        with pytest.raises(DeployError, match=r"actions \(Tp, 4\)"):
            padded.label(seen())
        answers.wider = 2
        assert torch.equal(torch.as_tensor(padded.label(seen()).actions)[:, 0], seen().proprio[:, 0])
        with pytest.raises(DeployError, match=r"\(1, 4\).*sent_size"):
            teacher.label(seen())
        teacher.close()
        padded.close()
