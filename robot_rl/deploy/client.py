"""A policy on another machine, used as a Policy: it asks a server (server.py), and every wait has an end.

A robot uses it like an exported file: `robot-rl deploy policy=ws://host:port` (loop_policy.py). No torch.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.deploy import wire
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.onnx_policy import OnnxPolicyConfig
from robot_rl.deploy.policy_words import NoAnswerError
from robot_rl.deploy.serving import PROTOCOL
from robot_rl.errors import DataError, DeployError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

log = logging.getLogger(__name__)

KEY_ENV = "ROBOT_RL_SERVE_KEY"
_PAUSE_S = 0.2  # between two tries to connect to a server that is away


@dataclass(frozen=True)
class ClientTimes:
    """How long a client waits.

    Attributes:
        connect_s: for a connection and the server's first frame.
        answer_s: for the answer to one request.
        ping_every_s, ping_timeout_s: a server that answers no ping for so long is gone.
        give_up_s: a server without an answer for so long will not come back: the error is no longer NoAnswerError, and a robot
            that holds meanwhile is stopped. Only time in which it was asked counts, not that between two episodes.
    """

    connect_s: float = 10.0
    answer_s: float = 10.0
    ping_every_s: float = 5.0
    ping_timeout_s: float = 10.0
    give_up_s: float = 30.0


class PolicyClient:
    """A Policy that a server computes; numpy.

    A lost connection is opened anew once a request, said in the log and counted in `reconnects`; the request is then sent
    again, to a server that begins a new history. A late answer is an error, and its connection is closed, so it can't be
    taken for that of a later request. A shallow copy is a client of its own.

    Args:
        uri: ws://host:port or wss://host:port.
        api_key: of the server; "" for none. Over ws:// it can be read by anybody on the way.
        times: see ClientTimes.

    Raises:
        DeployError: no server of ours answers there.
    """

    device = None

    def __init__(self, uri: str, *, api_key: str = "", times: ClientTimes | None = None) -> None:
        self.uri, self._api_key, self._times = uri, api_key, times or ClientTimes()
        self.reconnects = self._requests = 0
        self._connection: Any = None
        self._away_s = 0.0  # waited in vain since the last answer
        self._hello: dict[str, Any] = {}
        self._hello = self._connect()
        hello = self._hello
        self.spec = EnvSpec.from_json(hello["spec"], where=f"{uri}, spec")
        keys = tuple(hello["observation_keys"])
        self.config = OnnxPolicyConfig(keys, hello["history"], hello["horizon"], hello["execute"])
        self.sampling: str = hello["sampling"]
        self.computed = _computed(uri, hello.get("computed") or {})  # of a server that says nothing, nothing is known
        self.provider: str = self.computed["provider"]
        self.noise_rule, self.noise_seed = NoiseRule(hello["noise"]["rule"]), int(hello["noise"]["seed"])
        draws, horizon, size = hello["noise"]["shape"]
        self.noise_shape: tuple[int, int, int] = (draws, horizon, size)

    def __copy__(self) -> PolicyClient:
        """Another client of the same server, with a connection and so an episode of its own there.

        Raises:
            DeployError: no server of ours answers, or it has another policy by now.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _connection=None, _away_s=0.0, _requests=0, reconnects=0)
        other._connect_to_same()
        return other

    def noise(self) -> NoiseSource:
        """The noise source that the server states."""
        return NoiseSource(rule=self.noise_rule, seed=self.noise_seed, shape=self.noise_shape)

    def act(self, observation: Observation, noise: Float32[Array, "N draws Tp A"]) -> ActionChunk:
        """Ask the server for the next chunks.

        Raises:
            NoAnswerError: no answer in time, or no connection; the next call may have one.
            DeployError: a key is missing, an error of the server, another policy than before, or away for `give_up_s`.
        """
        arrays = observation.arrays()
        missing = [key for key in self.config.observation_keys if key not in arrays]
        if missing:
            raise DeployError(
                f"{self.uri}: observation", expected=f"keys {list(self.config.observation_keys)}", got=f"keys {sorted(arrays)}",
                hint=f"Provide {missing}.",
            )  # fmt: skip
        asked = {key: np.asarray(arrays[key]) for key in self.config.observation_keys}
        answer = self._ask({"endpoint": "act", "observation": asked, "noise": np.asarray(noise, np.float32)})
        actions = answer.get("actions")
        wanted = (len(noise), self.config.horizon, *self.spec.action.shape)
        if not isinstance(actions, np.ndarray) or actions.shape != wanted or actions.dtype != np.float32:
            raise self._broken(f"actions float32 {wanted}", str(getattr(actions, "shape", type(actions).__name__)))
        return ActionChunk(actions=actions.copy(), execute=int(answer["execute"]))

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Tell the server which rows begin a new episode; nothing is sent where none does."""
        begins = np.asarray(mask, bool)
        if begins.any():
            self._ask({"endpoint": "reset", "mask": begins})

    def close(self) -> None:
        """End the connection; also twice. The next request opens one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close_timeout = 1.0
            connection.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message; keeps how long there was none."""
        now_s = time.monotonic()
        try:
            answer = self._tried(message)
        except NoAnswerError as error:
            self._away_s += time.monotonic() - now_s
            if self._away_s < self._times.give_up_s:
                raise
            raise DeployError(
                error.where, expected=f"an answer within {self._times.give_up_s:g} s", got=f"none: {error.got}", hint=error.hint
            ) from error  # fmt: skip
        self._away_s = 0.0
        return answer

    def _tried(self, message: dict[str, Any]) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        self._requests += 1
        data = wire.pack({**message, "request_id": self._requests})
        for is_again in (False, True):
            if self._connection is None:
                self._reconnect()
            try:
                return self._answer(data)
            except (ConnectionClosed, OSError) as error:
                self.close()
                closed = getattr(error, "rcvd", None)
                if closed is not None and closed.code == 1009:
                    raise self._broken("a request that the server takes", f"{len(data)} bytes, too many") from error
                if is_again:
                    raise self._broken("a connection", f"lost twice: {error}", is_away=True) from error
                log.warning("%s: connection lost (%s)", self.uri, error)
        raise AssertionError("unreachable")

    def _answer(self, data: bytes) -> dict[str, Any]:
        try:
            self._connection.send(data)
            frame = self._connection.recv(timeout=self._times.answer_s)
        except TimeoutError as error:
            self.close()
            raise self._broken(f"an answer within {self._times.answer_s:g} s", "none", is_away=True) from error
        if isinstance(frame, str):
            self.close()
            raise self._broken("an answer", frame)
        try:
            answer = wire.unpack(frame)
        except DataError as error:
            self.close()
            raise self._broken("an answer", error.got) from error
        if not isinstance(answer, dict) or answer.get("request_id") != self._requests:
            self.close()
            raise self._broken(f"the answer to request {self._requests}", "another one")
        return answer

    def _reconnect(self) -> None:
        self.reconnects += 1
        if self._away_s == 0.0:
            log.warning(
                "%s: connecting again, for the %d. time; the server begins a new episode", self.uri, self.reconnects
            )
        else:
            time.sleep(_PAUSE_S)
        self._connect_to_same()

    def _connect_to_same(self) -> None:
        if self._connect() != self._hello:
            self.close()
            raise self._broken("the same policy as before, computed in the same way", "another one")

    def _connect(self) -> dict[str, Any]:
        """Open a connection and read the server's first frame."""
        from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
        from websockets.sync.client import connect

        times, headers = self._times, {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None
        deadline_s = time.monotonic() + times.connect_s
        try:
            self._connection = connect(
                self.uri, compression=None, max_size=64 << 20, additional_headers=headers, proxy=None,
                open_timeout=times.connect_s, ping_interval=times.ping_every_s, ping_timeout=times.ping_timeout_s,
            )  # fmt: skip
            # A server that reads nothing would block `send` for ever: TCP alone has no time limit there.
            limit = struct.pack("ll", int(times.answer_s), int(times.answer_s % 1 * 1e6))
            with suppress(OSError):  # closed already: `recv` says why
                self._connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            hello = wire.unpack(self._connection.recv(timeout=max(deadline_s - time.monotonic(), 0.01)))
        except (OSError, TimeoutError, WebSocketException, DataError, ValueError) as error:
            self.close()
            # Refused for good: no address, no policy server, or a status that says no (401; 503 is a full house).
            is_final = isinstance(error, (DataError, InvalidURI)) or type(error) is ValueError
            is_final |= isinstance(error, InvalidStatus) and error.response.status_code < 500
            raise self._broken("a policy server", f"{type(error).__name__}: {error}", is_away=not is_final) from error
        if not isinstance(hello, dict) or hello.get("protocol") != PROTOCOL:
            self.close()
            raise self._broken(f"protocol {PROTOCOL!r}", f"keys {sorted(map(str, hello))[:8]}")
        return hello

    def _broken(self, expected: str, got: str, *, is_away: bool = False) -> DeployError:
        hint = "Is it running there (`robot-rl serve`), with this API key? /healthz and /metrics say more."
        return (NoAnswerError if is_away else DeployError)(self.uri, expected=expected, got=got[:1000], hint=hint)


def _computed(uri: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """See computed_by."""
    provider = f", {told['provider']}" if told.get("provider") else ""
    return {"provider": f"server {uri}{provider}", "threads": told.get("threads"), "precision": told.get("precision")}


def open_client(config: Mapping[str, Any]) -> PolicyClient:
    """A client from JSON types: uri, and fields of ClientTimes; the API key from the environment variable ROBOT_RL_SERVE_KEY.

    Raises:
        DeployError: an unknown key, or no server.
    """
    names = [entry.name for entry in fields(ClientTimes)]
    if "uri" not in config or set(config) - {"uri", *names}:
        raise DeployError(
            "policy, config", expected=f"uri, and {', '.join(names)}", got=f"{sorted(config)}", hint="Correct it."
        )
    times = ClientTimes(**{name: float(config[name]) for name in names if name in config})
    return PolicyClient(str(config["uri"]), api_key=os.environ.get(KEY_ENV, ""), times=times)
