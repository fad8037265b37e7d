"""The policy server over real sockets, asked by a client that knows nothing of our code (tests/support/served_policy.py)."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from served_policy import FAIL, SLOW, RawClient, ServedPolicy, answer, packed, unpacked
from websockets.exceptions import ConnectionClosed, InvalidStatus

from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.server import PolicyServer, ServerOptions
from robot_rl.deploy.serving import noise_of
from robot_rl.errors import DeployError

NOISE = NoiseSource(NoiseRule.seeded, 4, (1, 3, 2))
Serve = Callable[..., PolicyServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[PolicyServer] = []

    def start(policy: Any = None, **options: Any) -> PolicyServer:
        policy = ServedPolicy() if policy is None else policy
        server = PolicyServer(policy, NOISE, ServerOptions(**{"port": 0, **options}))
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()
        assert not server.is_running


def http(server: PolicyServer, path: str, key: str = "") -> tuple[int, str]:
    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers), timeout=60
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def noise(seed: int, decision: int) -> np.ndarray:
    return np.asarray(NOISE.draw([seed], [decision])[0, 0])


def test_first_frame_and_a_chunk_by_hand(serve: Serve) -> None:
    client = RawClient(serve().port)
    spec = client.hello.pop("spec")
    assert (spec["env_id"], spec["action"]["shape"]) == ("Served", [2])
    assert client.hello == {
        "protocol": "robot-rl serve 1", "observation_keys": ["proprio"], "history": 2, "horizon": 3, "execute": 2,
        "sampling": "known", "noise": {"rule": "seeded", "seed": 4, "shape": [1, 3, 2]}, "computed": {},
    }  # fmt: skip
    first = client.proprio(1, 2, request_id="a")
    assert set(first) == {"actions", "execute", "policy_timing", "server_timing", "request_id"}
    assert (first["execute"], first["request_id"]) == (2, "a")
    assert first["actions"].dtype == np.float32
    np.testing.assert_array_equal(first["actions"], np.float32([11, 22]) + noise(0, 0))
    assert 0 <= first["policy_timing"]["infer_ms"] <= first["server_timing"]["infer_ms"]
    second = client.proprio(3, 4)
    np.testing.assert_array_equal(second["actions"], np.float32([10 + 3 + 1000, 20 + 4 + 1000]) + noise(0, 1))
    assert second["server_timing"]["prev_total_ms"] > 0
    assert "request_id" not in second
    assert client.ask({"endpoint": "reset", "seed": 9, "request_id": 5}) == {
        "reset": 1, "seed": 9, "request_id": 5, "server_timing": pytest.approx({"infer_ms": 0, "prev_total_ms": 0}, abs=1e5),
    }  # fmt: skip
    client.ask({"endpoint": "observe", "proprio": np.float64([5, 6])})
    np.testing.assert_array_equal(client.proprio(7, 8)["actions"], np.float32([57, 68]) + noise(9, 0))
    assert client.ask({"endpoint": "reset"})["seed"] == 1
    np.testing.assert_array_equal(client.proprio(7, 8)["actions"], np.float32([77, 88]) + noise(1, 0))


def test_a_thousand_requests_of_two_clients_while_others_misbehave(serve: Serve) -> None:
    """One client waits 2 s for one answer, one is malformed, one too long: the two get all their answers, each its own."""
    policy = ServedPolicy()
    server = serve(policy, most_bytes=100_000, workers=2)
    clients = [RawClient(server.port) for _ in range(2)]

    def play(number: int) -> int:
        client, old = clients[number], np.float32([number, 0])
        for decision in range(500):
            new = np.float32([number, decision])
            if number == 0 and decision == 250:
                new = np.float32([SLOW, decision])
            got = client.ask({"proprio": new, "request_id": decision})
            wanted = answer(old, new, decision) + noise(number, decision)
            np.testing.assert_array_equal(got["actions"], np.float32(wanted))
            assert got["request_id"] == decision
            old = new
        return 500

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(play, number) for number in range(2)]
        assert policy.is_slow.wait(60)
        began = time.monotonic()
        malformed, oversized = RawClient(server.port), RawClient(server.port)
        malformed.connection.send(b"\xc1\xff")
        text = malformed.receive()
        assert isinstance(text, str)
        assert text.startswith("DataError: message: expected msgpack as openpi's client packs it, got 2 bytes")
        with pytest.raises(ConnectionClosed) as closed:
            malformed.receive()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "DataError")
        with pytest.raises(ConnectionClosed) as closed:
            oversized.proprio(*np.zeros(30_000))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert http(server, "/healthz") == (200, "OK\n")
        time.sleep(max(0.0, 2 - (time.monotonic() - began)))
        policy.go_on.set()
        assert sum(future.result(timeout=120) for future in futures) == 1000
    # An answer is counted behind its sending.
    wait_until(lambda: server.metrics.clients == 2 and server.metrics.requests >= 1000)
    told = server.metrics.to_json()
    assert (told["requests"], told["connections"], told["errors"]) == (1000, 4, {"DataError": 1, "too_big": 1})
    assert told["latency_ms"]["1.0"] >= 2000 > told["latency_ms"]["0.5"]
    lines = http(server, "/metrics")[1].splitlines()
    assert {"robot_rl_serve_clients 2", "robot_rl_serve_requests_total 1000"} <= set(lines)
    assert 'robot_rl_serve_errors_total{kind="too_big"} 1' in lines


def test_pings_are_answered_while_the_policy_thinks(serve: Serve) -> None:
    policy = ServedPolicy()
    server = serve(policy)
    client = RawClient(server.port)
    client.connection.send(packed({"proprio": np.float32([SLOW, 0])}))
    assert policy.is_slow.wait(60)
    assert client.connection.ping().wait(30)
    assert http(server, "/healthz") == (200, "OK\n")
    policy.go_on.set()
    assert unpacked(client.receive())["actions"].shape == (3, 2)


def test_a_client_that_answers_no_ping_is_dropped(serve: Serve) -> None:
    import socket

    server = serve(ping_every_s=0.05, ping_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        wait_until(lambda: server.metrics.errors["lost"] == 1)
    assert server.metrics.clients == 0


def bad(**changes: Any) -> dict[str, Any]:
    return {"proprio": np.float32([1, 2]), **changes}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({}, "DataError: observation, key 'proprio': expected an array"),
        (bad(proprio=np.float32([1, 2, 3])), "expected float32 (2,), got float32 (3,)"),
        (bad(proprio=np.float32([1, np.nan])), "expected finite numbers"),
        (bad(proprio=np.float64([1, 1e300])), "expected finite numbers"),
        (bad(proprio=np.array(["a", "b"])), "got <U1 (2,)"),
        (bad(proprio=b"12345678"), "expected an array, got bytes"),
        (bad(proprio=[1, "x"]), "expected an array, got list"),
        (bad(endpoint="infre"), "Did you mean 'infer'?"),
        (bad(endpoint=["infer"]), "message, endpoint"),
        (bad(request_id=1.5), "message, request_id"),
        ({"endpoint": "reset", "seed": -1}, "message, seed"),
        ({"endpoint": "reset", "mask": np.zeros(2)}, "message, mask: expected bool (N,), got float64 (2,)"),
        ({"endpoint": "act", "observation": {}}, "expected observation and noise"),
        (
            {"endpoint": "act", "observation": {"proprio": np.zeros((1, 2, 2), np.float32)}, "noise": np.zeros((1, 3, 2), "f4")},
            "message, noise: expected float32 (N, 1, 3, 2), got float32 (1, 3, 2)",
        ),
        (
            {"endpoint": "act", "observation": {"proprio": np.zeros((2, 2), "f4")}, "noise": np.zeros((2, 1, 3, 2), "f4")},
            "expected float32 (2, 2, 2), got float32 (2, 2)",
        ),
        ({"endpoint": "reset", "mask": np.zeros(257, bool)}, "message, mask: expected at most 256 rows, got 257"),
        (
            {"endpoint": "act", "observation": {}, "noise": np.zeros((257, 1, 3, 2), "f4")},
            "message, noise: expected at most 256 rows, got 257",
        ),
        (bad(proprio=np.float32([FAIL, 0])), "RuntimeError: the weights are gone"),
    ],
)  # fmt: skip
def test_a_bad_message_ends_its_client_and_no_other(serve: Serve, message: dict[str, Any], says: str) -> None:
    server = serve()
    good, other = RawClient(server.port), RawClient(server.port)
    good.proprio(1, 2)
    other.connection.send(packed(message))
    text = other.receive()
    assert isinstance(text, str)
    assert says in text
    with pytest.raises(ConnectionClosed) as closed:
        other.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    np.testing.assert_array_equal(good.proprio(3, 4)["actions"], np.float32([1013, 1024]) + noise(0, 1))


def test_as_many_rows_as_the_server_is_told_are_answered(serve: Serve) -> None:
    message = {
        "endpoint": "act",
        "observation": {"proprio": np.zeros((3, 2, 2), "f4")},
        "noise": np.zeros((3, 1, 3, 2), "f4"),
    }
    for most, fits in ((3, True), (2, False)):
        client = RawClient(serve(most_rows=most).port)
        client.connection.send(packed(message))
        got = client.receive()
        assert isinstance(got, str) != fits
        assert not fits or unpacked(got)["actions"].shape == (3, 3, 2)


def test_text_frames_lists_and_numbers_as_keys_are_refused(serve: Serve) -> None:
    import msgpack

    server = serve()
    for frame in ("hello", msgpack.packb([1]), msgpack.packb({b"proprio": 1})):
        client = RawClient(server.port)
        client.connection.send(frame)
        assert str(client.receive()).startswith("DataError: message: expected a")


def test_names_of_openpi_and_pictures_with_channels_first(serve: Serve) -> None:
    policy = ServedPolicy(keys=("proprio", "image/front"), history=1)
    names = {"proprio": ("observation/joint", "observation/gripper"), "image/front": ("images/cam_high",)}
    server = serve(policy, names=names)
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) + 7
    part = {"observation/joint": np.float64([1]), "observation/gripper": np.float32(2), "prompt": "pick up the cube"}
    for image in (picture, np.moveaxis(picture, -1, 0), picture / np.float32(255)):
        client = RawClient(server.port)
        seed = server.metrics.connections - 1
        got = client.ask({**part, "images": {"cam_high": np.ascontiguousarray(image)}})["actions"]
        np.testing.assert_array_equal(got, np.float32(np.float32(1e6 * 7 + np.float32([11, 22])) + noise(seed, 0)))
    for image, error in (
        (picture.astype(np.float32), "expected uint8, or floating point in 0..1, got float32 in 7..66"),
        (picture / np.float32(255) * np.nan, "got float32 in nan..nan"),
        (picture[:3], "expected (4, 5, 3) or (3, 4, 5), got (3, 5, 3)"),
    ):
        client = RawClient(server.port)
        client.connection.send(packed({**part, "images": {"cam_high": image}}))
        received = client.receive()
        assert "key 'images/cam_high': " in received
        assert error in received
    client = RawClient(server.port)
    client.connection.send(packed(part))
    assert "(it is the policy's 'image/front')" in client.receive()


def test_an_api_key_is_needed_by_all_but_healthz(serve: Serve) -> None:
    server = serve(api_key="s3cret", host="0.0.0.0")
    for headers in ({}, {"Authorization": "Api-Key other"}, {"Authorization": "s3cret"}):
        with pytest.raises(InvalidStatus) as refused:
            RawClient(server.port, additional_headers=headers)
        assert refused.value.response.status_code == 401
    assert RawClient(server.port, additional_headers={"Authorization": "Api-Key s3cret"}).hello["horizon"] == 3
    assert http(server, "/healthz")[0] == 200
    assert (http(server, "/metrics")[0], http(server, "/metrics", "s3cret")[0]) == (401, 200)
    assert server.metrics.errors["unauthorized"] == 4


def test_pages_in_browsers_and_too_many_clients_are_refused(serve: Serve) -> None:
    server = serve(most_clients=1)
    with pytest.raises(InvalidStatus) as refused:
        RawClient(server.port, origin="http://evil.example")
    assert refused.value.response.status_code == 403
    first = RawClient(server.port)
    with pytest.raises(InvalidStatus) as refused:
        RawClient(server.port)
    assert refused.value.response.status_code == 503
    first.connection.close()
    wait_until(lambda: server.metrics.clients == 0)
    RawClient(server.port).proprio(1, 2)


def test_what_can_not_be_served(serve: Serve) -> None:
    with pytest.raises(DeployError, match="an API key for an address beyond this machine"):
        serve(host="0.0.0.0")
    with pytest.raises(DeployError, match="names for"):
        serve(names={"state": ("state",)})
    with pytest.raises(DeployError, match="most_rows of at least 1"):
        serve(most_rows=0)
    with pytest.raises(DeployError, match="a free port"):
        serve(port=serve().port)


def test_close_ends_clients_and_waits_for_the_policy(serve: Serve) -> None:
    policy = ServedPolicy()
    server = serve(policy)
    client = RawClient(server.port)
    client.connection.send(packed({"proprio": np.float32([SLOW, 0])}))
    assert policy.is_slow.wait(60)
    timer = threading.Timer(0.3, policy.go_on.set)
    timer.start()
    server.close()
    timer.join()
    with pytest.raises(ConnectionClosed):
        client.receive()
    assert server.metrics.errors == {}


def test_noise_of_a_policy() -> None:
    assert noise_of(ServedPolicy()) == NoiseSource(NoiseRule.seeded, 0, (1, 3, 2))
    assert noise_of(ServedPolicy(), rule=NoiseRule.fixed, seed=3) == NoiseSource(NoiseRule.fixed, 3, (1, 3, 2))
