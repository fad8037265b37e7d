"""PolicyClient: a Policy whose actions a server computes; time limits, lost connections and other policies."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from served_policy import FAIL, SLOW, ServedPolicy, answer

from robot_rl.contracts import Policy
from robot_rl.deploy import client as client_module
from robot_rl.deploy import wire
from robot_rl.deploy.client import ClientTimes, PolicyClient, open_client
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.policy_words import NoAnswerError
from robot_rl.deploy.server import PolicyServer, ServerOptions
from robot_rl.errors import ConfigError, DeployError
from robot_rl.types import Observation

NOISE = NoiseSource(NoiseRule.seeded, 4, (1, 3, 2))


def start(policy: Any = None, **options: Any) -> PolicyServer:
    server = PolicyServer(ServedPolicy() if policy is None else policy, NOISE, ServerOptions(**{"port": 0, **options}))
    server.start()
    return server


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    one = start()
    yield one
    one.close()


def observe(rows: int, first: float = 1.0) -> Observation:
    proprio = np.arange(rows * 4, dtype=np.float32).reshape(rows, 2, 2)
    proprio[:, -1, 0] = first
    return Observation(proprio=proprio)


def uri(server: PolicyServer) -> str:
    return f"ws://127.0.0.1:{server.port}"


def test_it_is_the_policy_of_the_server(server: PolicyServer) -> None:
    client = PolicyClient(uri(server))
    assert isinstance(client, Policy)
    assert (client.spec, client.noise(), client.device) == (ServedPolicy().spec, NOISE, None)
    assert (client.config.history, client.config.horizon, client.config.execute) == (2, 3, 2)
    client.reset(np.array([True, True, True]))
    for decision in range(3):
        observation, noise = observe(3, decision), NOISE.draw([5, 6, 7], [decision] * 3)
        chunk = client.act(observation, noise)
        wanted = answer(observation.proprio[:, 0], observation.proprio[:, 1], decision)[:, None] + noise[:, 0]
        np.testing.assert_array_equal(chunk.actions, np.float32(wanted))
        assert (chunk.execute, chunk.actions.dtype, chunk.actions.flags.writeable) == (2, np.float32, True)
    client.reset(np.array([False, False, False]))
    assert client.act(observe(1), np.zeros((1, 1, 3, 2), np.float32)).actions[0, 0, 0] == 3001
    client.reset(np.array([True]))
    assert client.act(observe(1), np.zeros((1, 1, 3, 2), np.float32)).actions[0, 0, 0] == 1
    assert client.reconnects == 0
    client.close()


def ask(client: PolicyClient, first: float = 1.0) -> float:
    return float(client.act(observe(1, first), np.zeros((1, 1, 3, 2), np.float32)).actions[0, 0, 0])


def test_a_late_answer_is_an_error_and_never_that_of_the_next_request() -> None:
    policy = ServedPolicy()
    server = start(policy, workers=2)
    client = PolicyClient(uri(server), times=ClientTimes(answer_s=0.3))
    began = time.monotonic()
    with pytest.raises(DeployError, match=r"an answer within 0\.3 s, got none"):
        ask(client, SLOW)
    assert time.monotonic() - began < 20
    policy.go_on.set()
    client._times = ClientTimes()
    assert ask(client, 4.0) == 4.0
    assert client.reconnects == 1
    client.close()
    server.close()


def test_a_copy_has_an_episode_of_its_own_on_the_server(server: PolicyServer) -> None:
    """The policy counts calls since the reset of its client: 1000 for each."""
    one = PolicyClient(uri(server))
    assert [ask(one) for _ in range(3)] == [1, 1001, 2001]
    other = copy.copy(one)
    assert [ask(other), ask(one), ask(other)] == [1, 3001, 1001]
    other.reset(np.array([True]))
    assert [ask(other), ask(one)] == [1, 4001]
    assert (one.reconnects, other.reconnects) == (0, 0)
    one.close()
    assert ask(other) == 1001
    other.close()


def test_a_copy_without_a_place_at_the_server_is_refused(server: PolicyServer) -> None:
    full = start(most_clients=1)
    client = PolicyClient(uri(full))
    with pytest.raises(DeployError, match="503"):
        copy.copy(client)
    assert ask(client) == 1.0
    client.close()
    full.close()


def test_errors_of_the_server_are_told_and_the_next_request_goes_on(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = PolicyClient(uri(server))
    with pytest.raises(DeployError, match="RuntimeError: the weights are gone"):
        ask(client, FAIL)
    with pytest.raises(DeployError, match="expected finite numbers"):
        ask(client, float("nan"))
    assert ask(client) == 1.0
    assert client.reconnects == 2
    assert sum("connecting again" in record.message for record in caplog.records) == 2
    with pytest.raises(DeployError, match=r"expected float32 \(1, 2, 2\), got float32 \(1, 2, 3\)"):
        client.act(Observation(proprio=np.zeros((1, 2, 3), np.float32)), np.zeros((1, 1, 3, 2), np.float32))
    client.close()


def test_a_server_that_comes_back_is_found_and_another_policy_is_refused() -> None:
    first = start()
    port = first.port
    client = PolicyClient(uri(first), times=ClientTimes(connect_s=20.0))
    first.close()
    with pytest.raises(DeployError, match="a policy server"):
        ask(client)
    second = start(port=port)
    assert ask(client) == 1.0
    reconnects = client.reconnects
    assert reconnects == 2
    second.close()
    third = start(ServedPolicy(history=1), port=port)
    with pytest.raises(DeployError, match="the same policy as before, computed in the same way, got another one"):
        ask(client)
    third.close()


def test_what_may_pass_and_what_is_for_good() -> None:
    """A server that is away is a NoAnswerError until `give_up_s`; a wrong key or an error of the policy never is."""
    policy = ServedPolicy()
    server = start(policy, workers=2, api_key="k")
    with pytest.raises(DeployError, match="401") as caught:
        PolicyClient(uri(server))
    assert not isinstance(caught.value, NoAnswerError)
    client = PolicyClient(uri(server), api_key="k", times=ClientTimes(answer_s=0.2, connect_s=30.0, give_up_s=600.0))
    with pytest.raises(NoAnswerError, match=r"an answer within 0\.2 s"):
        ask(client, SLOW)
    policy.go_on.set()
    client._times = ClientTimes(connect_s=30.0, answer_s=30.0, give_up_s=600.0)
    with pytest.raises(DeployError, match="the weights are gone") as caught:
        ask(client, FAIL)
    assert not isinstance(caught.value, NoAnswerError)
    server.close()
    with pytest.raises(NoAnswerError, match="a policy server"):
        ask(client)
    client._times = ClientTimes(give_up_s=0.0)
    with pytest.raises(DeployError, match="an answer within 0 s, got none: ConnectionRefusedError") as caught:
        ask(client)
    assert not isinstance(caught.value, NoAnswerError)


def test_keys_sizes_and_addresses(server: PolicyServer) -> None:
    locked = start(api_key="k", most_bytes=20_000)
    with pytest.raises(DeployError, match="401"):
        PolicyClient(uri(locked))
    client = PolicyClient(uri(locked), api_key="k")
    with pytest.raises(DeployError, match="bytes, too many"):
        client.act(Observation(proprio=np.zeros((2000, 2, 2), np.float32)), np.zeros((2000, 1, 3, 2), np.float32))
    assert ask(client) == 1.0
    locked.close()
    with pytest.raises(DeployError, match="a policy server"):
        PolicyClient("ws://127.0.0.1:1")
    with pytest.raises(DeployError, match="a policy server"):
        PolicyClient("http://127.0.0.1")
    with pytest.raises(DeployError, match="uri, and connect_s, answer_s"):
        open_client({"url": uri(server)})


def test_time_in_which_nobody_asked_does_not_count_as_away(
    server: PolicyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try takes 1 s; between the first two a scene is reset for 100 s."""
    now_s = 0.0

    def tried(message: dict[str, Any]) -> dict[str, Any]:
        nonlocal now_s
        now_s += 1.0
        raise NoAnswerError("server", expected="an answer", got="none", hint="Wait.")

    one = PolicyClient(uri(server), times=ClientTimes(give_up_s=2.5))
    monkeypatch.setattr(client_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(one, "_tried", tried)
    for rest_s in (100.0, 0.0):
        with pytest.raises(NoAnswerError):
            ask(one)
        now_s += rest_s
    with pytest.raises(DeployError, match=r"an answer within 2\.5 s") as caught:
        ask(one)
    assert not isinstance(caught.value, NoAnswerError)


Answer = Callable[[Any], None]


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "a policy server"),
        ([wire.pack({"server": "another"})], "protocol 'robot-rl serve 1', got keys \\['server'\\]"),
        ([b"\xc1"], "a policy server"),
        ([None, wire.pack({"actions": np.zeros((1, 3, 2), np.float32), "request_id": 7})], "the answer to request 1"),
        (
            [None, wire.pack({"actions": np.zeros((1, 2, 2), np.float32), "request_id": 1})],
            r"actions float32 \(1, 3, 2\)",
        ),
        ([None, b"\xc1"], "an answer"),
        ([None, "Traceback: no"], "Traceback: no"),
    ],
)
def test_a_server_that_answers_something_else(server: PolicyServer, frames: list[Any], says: str) -> None:
    from websockets.sync.server import serve

    def handle(connection: Any) -> None:
        for number, frame in enumerate(frames):
            if number:
                connection.recv(timeout=60)
            connection.send(server._hello if frame is None else frame)
        done.wait(0.0 if frames else 60.0)

    done = threading.Event()
    with serve(handle, "127.0.0.1", 0) as false:
        thread = threading.Thread(target=false.serve_forever)
        thread.start()
        try:
            times, place = (
                ClientTimes(connect_s=20.0 if frames else 0.5),
                f"ws://127.0.0.1:{false.socket.getsockname()[1]}",
            )
            with pytest.raises(DeployError, match=says):
                ask(PolicyClient(place, times=times))
        finally:
            done.set()
            false.shutdown()
            thread.join()


def test_a_server_that_reads_nothing_does_not_hold_up_the_client(server: PolicyServer) -> None:
    """It speaks the handshake and the first frame, and then stops reading; TCP's buffers are full after some megabytes."""
    import base64
    import hashlib
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def stall() -> None:
        connection, _ = listener.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split()[1]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        hello = server._hello
        frame = b"\x82\x7e" + len(hello).to_bytes(2, "big") + hello
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + accept + b"\r\n\r\n" + frame
        )  # fmt: skip
        done.wait(60)
        connection.close()

    done = threading.Event()
    thread = threading.Thread(target=stall)
    thread.start()
    times = ClientTimes(answer_s=0.5, connect_s=0.5)
    client = PolicyClient(f"ws://127.0.0.1:{listener.getsockname()[1]}", times=times)
    listener.close()
    rows = 1_000_000
    with pytest.raises(DeployError):
        client.act(Observation(proprio=np.zeros((rows, 2, 2), np.float32)), np.zeros((rows, 1, 3, 2), np.float32))
    done.set()
    thread.join()


def test_a_robot_asks_a_server_through_the_process_of_its_policy(server: PolicyServer) -> None:
    policy = ProcessPolicy(PolicySource(target="robot_rl.deploy.client:open_client", config={"uri": uri(server)}))
    info = policy.start()
    assert (info.spec, info.history, info.horizon, info.execute) == (ServedPolicy().spec, 2, 3, 2)
    for request, decision in enumerate(
        (0, 1, 0), start=1
    ):  # of two episodes; the server's policy counts calls since a reset
        policy.ask(request, observe(1, 3.0), episode_seed=6, decision=decision)
        got = policy.poll(60.0)
        assert got is not None
        assert got.actions is not None
        seen = answer(np.float32([0, 1]), np.float32([3, 3]), decision)
        np.testing.assert_allclose(got.actions, seen + NOISE.draw([6], [decision])[0, 0], atol=1e-3)
    policy.close()


def test_neither_end_loads_torch() -> None:
    code = (
        "import sys, robot_rl.deploy.server, robot_rl.deploy.client\n"
        "assert not {'torch', 'websockets', 'msgpack', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_serve_through_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from small_onnx import write_policy
    from small_robot import small_spec

    spec, actions = small_spec(), np.arange(8, dtype=np.float32).reshape(4, 2)
    write_policy(tmp_path / "policy.onnx", spec, actions, execute=3)
    process = subprocess.Popen(
        [sys.executable, "-m", "robot_rl", "serve", "policy=policy.onnx", "port=0", "threads=2", "--json"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"ROBOT_RL_SERVE_KEY": "k"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving policy.onnx on ws://" in line)
        client = PolicyClient(line.split()[-1], api_key="k", times=ClientTimes(answer_s=60.0, connect_s=60.0))
        size = spec.observation["proprio"].size
        chunk = client.act(Observation(proprio=np.zeros((1, 1, size), np.float32)), np.zeros((1, 0, 4, 2), np.float32))
        np.testing.assert_array_equal(chunk.actions[0], actions)
        client.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        summary = json.loads(out)
        assert (summary["requests"], summary["connections"], summary["errors"]) == (1, 1, {})
        assert client.computed == {
            "provider": f"server {client.uri}, CPUExecutionProvider", "threads": 2, "precision": "fp32"
        }  # fmt: skip
        assert client.provider == client.computed["provider"]
    finally:
        process.kill()
        process.wait()


def test_a_server_of_a_server_is_refused(tmp_path: Path) -> None:
    from robot_rl.runs.directory import RunDirectory
    from robot_rl.stages import serve

    with pytest.raises(ConfigError, match="a policy that is computed here, got ws://"):
        serve.run(serve.ServeConfig(policy="ws://127.0.0.1:1"), RunDirectory(tmp_path))


def test_names_of_the_clients_come_from_the_command_line() -> None:
    from robot_rl.runs.config import load_config
    from robot_rl.stages.serve import ServeConfig, _options

    words = ["policy=x", "observation={proprio:[a/b,c],image/front:images/cam_high}", "most_mb=2", "most_rows=9"]
    options = _options(load_config(ServeConfig, words, name="serve"))
    assert options.names == {"proprio": ("a/b", "c"), "image/front": ("images/cam_high",)}
    assert (options.most_bytes, options.most_rows) == (2 << 20, 9)
