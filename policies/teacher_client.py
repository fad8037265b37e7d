"""A teacher behind a policy server: one of ours (`robot-rl serve`), or any that speaks openpi's protocol (pi0, pi0.5, ...).

A server of ours states its spec and takes whole batches. A foreign one states nothing that can be relied on, so its
conventions come from a teacher card, and it takes one frame at a time, so N envs cost N round trips. None of its code runs
here, and nothing is unpickled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from robot_rl.data.same_spec import require_same_actions
from robot_rl.data.teacher_card import (
    Colour,
    TeacherCamera,
    TeacherCard,
    card_of,
    load_teacher_card,
    require_same_observation,
)
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
        card: teacher card (YAML) of a foreign server; empty: a server of ours.
        names: low-dimensional observation key -> the foreign server's key.
        prompt: instruction, where the observation has none.
        connect_s, answer_s: how long to wait; below calls.timeout_s.
    """

    uri: str = ""
    card: str = ""
    names: dict[str, str] = field(default_factory=dict)
    prompt: str = ""
    connect_s: float = 10.0
    answer_s: float = 20.0


class TeacherClient:
    """A Teacher over a WebSocket. Retries are the caller's; a lost or late connection is opened anew at the next call.

    Args:
        config: see TeacherClientConfig.
        spec: of the environment.
        build, load: of other components; not used.

    Raises:
        ConfigError: no uri, or a card that can't be read.
        DeployError: no server there.
        PolicyError: a server of ours whose actions mean something else.
    """

    is_remote = True

    def __init__(
        self, config: TeacherClientConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        if not config.uri:
            raise ConfigError(
                "teacher.uri", expected="ws://host:port", got="none", hint="teacher.uri=ws://127.0.0.1:8000."
            )
        times = ClientTimes(connect_s=config.connect_s, answer_s=config.answer_s)
        key = os.environ.get(KEY_ENV, "")
        self._ours = None if config.card else PolicyClient(config.uri, api_key=key, times=times)
        self._foreign = _OpenPiClient(config, load_teacher_card(config.card), times, key) if config.card else None
        if self._ours is not None:
            served = self._ours.spec
            require_same_actions(
                served.action_semantics, spec.action_semantics, where=config.uri, taker=spec.env_id,
                hint="Choose the environment that this teacher was trained in.",
            )  # fmt: skip
            keys = tuple(self._ours.config.observation_keys)
            require_same_observation(served, spec, keys, where=config.uri)
            self.card: TeacherCard = card_of(served, name=config.uri, history=self._ours.config.history, keys=keys)
            self._noise = NoiseSource(rule=NoiseRule.fixed, seed=0, shape=self._ours.noise_shape)
        else:
            assert self._foreign is not None
            self.card = self._foreign.card
        self.history = self.card.history

    def label(self, observation: Observation) -> ActionChunk:
        """What it would do, in the environment's actions, as a tensor.

        Raises:
            DeployError: no connection, no answer in time, or an error of the server.
        """
        seen = observation.map(lambda x: np.asarray(torch.as_tensor(x).cpu()))
        if self._ours is not None:
            number = len(seen.proprio)
            self._ours.reset(np.ones(number, dtype=bool))
            chunk = self._ours.act(seen, self._noise.draw([0] * number, [0] * number))
            return ActionChunk(torch.from_numpy(np.array(chunk.actions)), execute=chunk.execute)
        assert self._foreign is not None
        return self._foreign.label(seen)

    def close(self) -> None:
        """End the connection; also twice."""
        for each in (self._ours, self._foreign):
            if each is not None:
                each.close()


class _OpenPiClient:
    """openpi's client: one frame out, one chunk back."""

    def __init__(self, config: TeacherClientConfig, card: TeacherCard, times: ClientTimes, api_key: str) -> None:
        self.config, self.card, self._times, self._key = config, card, times, api_key
        unnamed = [key for key in card.keys if key not in config.names]
        if unnamed:
            raise ConfigError(
                "teacher.names", expected=f"the server's names of {list(card.keys)}", got=f"none for {unnamed}",
                hint="teacher.names={proprio: observation/state}.",
            )  # fmt: skip
        self._connection: Any = None
        self._connect()

    def label(self, observation: Observation) -> ActionChunk:
        """One round trip a row."""
        chunks = [self._infer(self._frame(observation, row)) for row in range(len(observation.proprio))]
        sizes = {chunk.shape for chunk in chunks}
        if len(sizes) != 1:
            raise self._broken("chunks of one length", str(sorted(sizes)))
        actions = torch.from_numpy(self.card.to_env(np.stack(chunks)))
        return ActionChunk(actions, execute=1)

    def close(self) -> None:
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

    def _infer(self, frame: Mapping[str, Any]) -> np.ndarray:
        from websockets.exceptions import ConnectionClosed

        if self._connection is None:
            self._connect()
        try:
            self._connection.send(wire.pack(dict(frame)))
            answer = self._connection.recv(timeout=self._times.answer_s)
            if isinstance(answer, str):
                raise self._broken("an answer", answer)
            actions = wire.unpack(answer)["actions"]
        except (ConnectionClosed, OSError, DataError, KeyError, TypeError) as error:
            self.close()
            raise self._broken("a chunk of actions", f"{type(error).__name__}: {error}") from error
        except DeployError:
            self.close()
            raise
        chunk = np.atleast_2d(np.asarray(actions, dtype=np.float32))
        if chunk.ndim != 2 or chunk.shape[1] < self.card.size:
            raise self._broken(f"actions (Tp, {self.card.size})", str(chunk.shape))
        return chunk[:, : self.card.size]  # pi0 pads its actions to a fixed width

    def _connect(self) -> None:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        times, headers = self._times, {"Authorization": f"Api-Key {self._key}"} if self._key else None
        deadline_s = time.monotonic() + times.connect_s
        try:
            self._connection = connect(
                self.config.uri, compression=None, max_size=MOST_BYTES, additional_headers=headers, proxy=None,
                open_timeout=times.connect_s, ping_interval=None,
            )  # fmt: skip
            wire.unpack(self._connection.recv(timeout=max(deadline_s - time.monotonic(), 0.01)))
        except (OSError, WebSocketException, DataError, TypeError) as error:
            self.close()
            raise self._broken("a policy server", f"{type(error).__name__}: {error}") from error

    def _broken(self, expected: str, got: str) -> DeployError:
        return DeployError(self.config.uri, expected=expected, got=got[:1000], hint="Look at the server's own log.")


def picture(image: np.ndarray, camera: TeacherCamera) -> np.ndarray:
    """An environment's picture, uint8 (H, W, 3) rgb from the top, as a teacher's camera convention wants it."""
    image = image[::-1] if camera.upside_down else image
    return np.ascontiguousarray(image[..., ::-1] if camera.colour is Colour.bgr else image)
