"""A teacher behind a policy server: one of ours (`robot-rl serve`), or any that speaks openpi's protocol (pi0, pi0.5, ...).

A server of ours states its spec and takes whole batches. A foreign one states nothing that can be relied on, so its
conventions come from a teacher card, and it takes one frame at a time, so N envs cost N round trips. None of its code runs
here, and nothing is unpickled.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from robot_rl.data.same_spec import require_same_actions
from robot_rl.data.teacher_card import Colour, TeacherCamera, TeacherCard, card_of, require_same_observation
from robot_rl.data.teacher_card_file import load_teacher_card
from robot_rl.deploy import wire
from robot_rl.deploy.client import KEY_ENV, ClientTimes, PolicyClient
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError, DataError, DeployError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class TeacherClientConfig:
    """Where a teacher is served.

    Attributes:
        uri: ws://host:port or wss://host:port; the API key comes from the environment variable ROBOT_RL_SERVE_KEY.
        card: teacher card (YAML) of a foreign server; empty: a server of ours, which takes neither names nor prompt.
        names: low-dimensional observation key -> the foreign server's key.
        prompt: instruction, where the observation has none.
        connect_s: for a connection.
        answer_s: for an answer, to a batch of a server of ours and to a frame of a foreign one; both below calls.timeout_s.
    """

    uri: str = ""
    card: str = ""
    names: dict[str, str] = field(default_factory=dict)
    prompt: str = ""
    connect_s: float = 10.0
    answer_s: float = 20.0


class TeacherClient:
    """A Teacher over a WebSocket. Retries are the caller's; a lost or closed connection is opened anew at the next call.

    Args:
        config: see TeacherClientConfig.
        spec: of the environment.
        build, load: of other components; not used.

    Raises:
        ConfigError: no uri, a card that can't be read or wants more than one frame, or settings that do not fit the server.
        DeployError: no server there.
        PolicyError: a server of ours whose actions mean something else.
    """

    is_remote = True

    def __init__(
        self, config: TeacherClientConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        card = load_teacher_card(config.card) if config.card else None
        _check(config, card)
        times = ClientTimes(connect_s=config.connect_s, answer_s=config.answer_s)
        key = os.environ.get(KEY_ENV, "")
        self.is_one_frame = card is not None
        self._new: Callable[[], _OwnLink | _OpenPiLink]
        if card is None:
            first = _OwnLink(config.uri, times, key, known=None)
            served = first.open()
            require_same_actions(
                served.spec.action_semantics, spec.action_semantics, where=config.uri, taker=spec.env_id,
                hint="Choose the environment that this teacher was trained in.",
            )  # fmt: skip
            keys = tuple(served.config.observation_keys)
            require_same_observation(served.spec, spec, keys, where=config.uri)
            card = card_of(served.spec, name=config.uri, history=served.config.history, keys=keys)
            self._link: _OwnLink | _OpenPiLink = first
            self._new = lambda: _OwnLink(config.uri, times, key, known=served)
        else:
            self._new = lambda: _OpenPiLink(config, card, times, key)
            self._link = self._new()
            self._link.open()
        self.card: TeacherCard = card
        self.history = card.history

    def label(self, observation: Observation) -> ActionChunk:
        """What it would do, in the environment's actions, as a tensor.

        Raises:
            DeployError: no connection, no answer in time, or an error of the server.
        """
        return self._link.label(observation.map(lambda x: np.asarray(torch.as_tensor(x).cpu())))

    def close(self) -> None:
        """End the connection, also twice, and while another thread waits in `label`: that one keeps the old connection and
        fails, and the next call has one of its own."""
        link, self._link = self._link, self._new()
        link.close()


def _check(config: TeacherClientConfig, card: TeacherCard | None) -> None:
    """Refuse what a server could not hear."""
    if not config.uri:
        raise ConfigError("teacher.uri", expected="ws://host:port", got="none", hint="teacher.uri=ws://127.0.0.1:8000.")
    if card is None:
        for name in ("names", "prompt"):
            if getattr(config, name):
                raise ConfigError(
                    f"teacher.{name}", expected="none for a server of ours, which states its own keys and hears no instruction",
                    got=str(getattr(config, name)), hint="Leave it out; for a foreign server give teacher.card as well.",
                )  # fmt: skip
        return
    if card.history != 1:
        raise ConfigError(
            f"{config.card}, history", expected="1: openpi's protocol has one frame a message", got=str(card.history),
            hint="Such a teacher has to remember its frames, which a function of the observation does not; take another.",
        )  # fmt: skip
    unnamed = [key for key in card.keys if key not in config.names]
    if unnamed:
        raise ConfigError(
            "teacher.names", expected=f"the server's names of {list(card.keys)}", got=f"none for {unnamed}",
            hint="teacher.names={proprio: observation/state}.",
        )  # fmt: skip


class _OwnLink:
    """A connection to a server of ours, which takes whole batches.

    Args:
        known: an earlier connection, whose policy must be served still, or None.
    """

    def __init__(self, uri: str, times: ClientTimes, api_key: str, *, known: PolicyClient | None) -> None:
        self._uri, self._times, self._key, self._known = uri, times, api_key, known
        self._client: PolicyClient | None = None
        self._is_closed = False

    def open(self) -> PolicyClient:
        """The client, connected at the first call; later it connects anew by itself."""
        if self._client is None:
            client = PolicyClient(self._uri, api_key=self._key, times=self._times)
            told, before = (
                None if each is None else (each.spec, each.config, each.noise_shape) for each in (client, self._known)
            )
            if before not in (None, told):
                client.close()
                raise DeployError(
                    self._uri, expected="the same policy as before", got="another one", hint="Start a new run with it."
                )
            self._client = client
        return self._client

    def label(self, seen: Observation) -> ActionChunk:
        """One round trip to begin an episode in every row, one for the answers."""
        number = len(seen.proprio)
        try:
            client = self.open()
            client.reset(np.ones(number, dtype=bool))
            noise = NoiseSource(rule=NoiseRule.fixed, seed=0, shape=client.noise_shape)
            chunk = client.act(seen, noise.draw([0] * number, [0] * number))
        finally:
            if self._is_closed:  # meanwhile; the client may have connected again
                self.close()
        return ActionChunk(torch.from_numpy(np.array(chunk.actions)), execute=chunk.execute)

    def close(self) -> None:
        self._is_closed = True
        if self._client is not None:
            self._client.close()


class _OpenPiLink:
    """A connection to a foreign server: one frame out, one chunk back."""

    def __init__(self, config: TeacherClientConfig, card: TeacherCard, times: ClientTimes, api_key: str) -> None:
        self.config, self.card, self._times, self._key = config, card, times, api_key
        self._connection: Any = None
        self._is_closed = False

    def open(self) -> Any:
        """The connection, a new one where there is none."""
        if self._connection is None:
            self._connection = self._connected()
            if self._is_closed:  # meanwhile
                self.close()
                raise self._broken("a call that is waited for", "a late one")
        return self._connection

    def label(self, seen: Observation) -> ActionChunk:
        """One round trip a row."""
        # The same connection for all rows: one that is closed meanwhile must not be opened again by a late call.
        connection = self.open()
        try:
            chunks = [self._infer(connection, self._frame(seen, row)) for row in range(len(seen.proprio))]
        except DeployError:
            self._drop()
            raise
        sizes = {chunk.shape for chunk in chunks}
        if len(sizes) != 1:
            raise self._broken("chunks of one length", str(sorted(sizes)))
        return ActionChunk(torch.from_numpy(self.card.to_env(np.stack(chunks))), execute=1)

    def close(self) -> None:
        self._is_closed = True
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close_timeout = 1.0
            connection.close()

    def _frame(self, observation: Observation, row: int) -> dict[str, Any]:
        arrays = observation.arrays()
        frame: dict[str, Any] = {self.config.names[key]: arrays[key][row, -1] for key in self.card.keys}
        frame |= {name: picture(arrays[f"image/{c.source}"][row, -1], c) for name, c in self.card.cameras.items()}
        texts = observation.instruction
        prompt = self.config.prompt if texts is None else texts[row]
        if self.card.needs_instruction and not prompt:
            raise ConfigError(
                "teacher.prompt", expected="an instruction", got="none", hint="teacher.prompt='pick up the cube'."
            )
        return frame | ({"prompt": prompt} if prompt else {})

    def _infer(self, connection: Any, frame: Mapping[str, Any]) -> np.ndarray:
        from websockets.exceptions import WebSocketException

        try:
            connection.send(wire.pack(dict(frame)))
            answer = connection.recv(timeout=self._times.answer_s)
            if isinstance(answer, str):
                raise self._broken("an answer", answer)
            chunk = np.atleast_2d(np.asarray(wire.unpack(answer)["actions"], dtype=np.float32))
        except (WebSocketException, RuntimeError, OSError, DataError, KeyError, TypeError, ValueError) as error:
            raise self._broken("a chunk of actions", f"{type(error).__name__}: {error}") from error
        width = self.card.size if self.card.sent_size is None else self.card.sent_size
        if chunk.ndim != 2 or chunk.shape[1] != width:
            raise self._broken(
                f"actions (Tp, {width})",
                str(chunk.shape),
                hint="If it pads its actions, say so: `sent_size` of the card.",
            )
        return chunk[:, : self.card.size]

    def _connected(self) -> Any:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        times, headers = self._times, {"Authorization": f"Api-Key {self._key}"} if self._key else None
        deadline_s = time.monotonic() + times.connect_s
        connection: Any = None
        try:
            connection = connect(
                self.config.uri, compression=None, max_size=MOST_BYTES, additional_headers=headers, proxy=None,
                open_timeout=times.connect_s, ping_interval=None,
            )  # fmt: skip
            # A server that reads nothing would block `send`, and `close` behind it, for ever.
            limit = struct.pack("ll", int(times.answer_s), int(times.answer_s % 1 * 1e6))
            with suppress(OSError):  # closed already: `recv` says why
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            wire.unpack(connection.recv(timeout=max(deadline_s - time.monotonic(), 0.01)))
        except (OSError, WebSocketException, RuntimeError, DataError, TypeError) as error:
            if connection is not None:
                connection.close_timeout = 1.0
                connection.close()
            raise self._broken("a policy server", f"{type(error).__name__}: {error}") from error
        return connection

    def _broken(self, expected: str, got: str, *, hint: str = "Look at the server's own log.") -> DeployError:
        return DeployError(self.config.uri, expected=expected, got=got[:1000], hint=hint)


def picture(image: np.ndarray, camera: TeacherCamera) -> np.ndarray:
    """An environment's picture, uint8 (H, W, 3) rgb from the top, as a teacher's camera convention wants it."""
    image = image[::-1] if camera.upside_down else image
    return np.ascontiguousarray(image[..., ::-1] if camera.colour is Colour.bgr else image)
