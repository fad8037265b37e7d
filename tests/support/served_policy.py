"""A policy with known answers for tests of the policy server, and a client that knows nothing of our code."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect

from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import ActionChunk, Observation

SPEC = EnvSpec(
    env_id="Served",
    observation={"proprio": ArraySpec("proprio", (2,)), "image/front": ArraySpec("image/front", (4, 5, 3), "uint8")},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "joint"),
    joint_names=("a", "b"),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)
FAIL, SLOW = -1.0, -2.0  # first element of proprio


class ServedPolicy:
    """actions[i] = 10 * oldest frame + newest frame + noise[i] + 1000 * calls since the reset, + 1e6 * first pixel."""

    device = None
    noise_shape = (1, 3, 2)
    sampling = "known"

    def __init__(self, *, keys: tuple[str, ...] = ("proprio",), history: int = 2) -> None:
        self.spec = SPEC
        self.config = SimpleNamespace(observation_keys=keys, history=history, horizon=3, execute=2)
        self.calls = 0
        self.is_slow, self.go_on = threading.Event(), threading.Event()

    def reset(self, mask: np.ndarray) -> None:
        self.calls = 0

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        if observation.proprio.size and observation.proprio[0, -1, 0] == FAIL:
            raise RuntimeError("the weights are gone")
        if observation.proprio.size and observation.proprio[0, -1, 0] == SLOW:
            self.is_slow.set()
            self.go_on.wait(60)
        base = answer(observation.proprio[:, 0], observation.proprio[:, -1], self.calls)[:, None]
        self.calls = self.calls + 1
        for image in observation.images.values():
            base = base + np.float32(1e6) * image[:, -1, 0, 0, 0].astype(np.float32)[:, None, None]
        return ActionChunk(actions=np.float32(base + noise[:, 0]), execute=2)


def answer(oldest: np.ndarray, newest: np.ndarray, calls: int) -> np.ndarray:
    """What ServedPolicy gives without noise."""
    return np.float32(10 * oldest + newest + 1000 * calls)


def packed(message: dict[str, Any]) -> bytes:
    """openpi's encoding, written from its description."""

    def array(value: Any) -> Any:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}

    return bytes(msgpack.packb(message, default=array))


def unpacked(frame: bytes) -> dict[str, Any]:
    def array(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" not in value:
            return value
        return np.frombuffer(value[b"data"], value[b"dtype"]).reshape(value[b"shape"])

    out: dict[str, Any] = msgpack.unpackb(frame, object_hook=array)
    return out


class RawClient:
    """Speaks the wire without our code; `hello` is the first frame."""

    def __init__(self, port: int, **options: Any) -> None:
        self.connection: ClientConnection = connect(
            f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None, **options
        )  # type: ignore[assignment]
        self.hello = unpacked(self.receive())

    def receive(self) -> Any:
        return self.connection.recv(timeout=60)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self.connection.send(packed(message))
        frame = self.receive()
        assert isinstance(frame, bytes), frame
        return unpacked(frame)

    def proprio(self, *values: float, **more: Any) -> dict[str, Any]:
        return self.ask({"proprio": np.float32(values), **more})
