"""Episodes of a foreign dataset: its arrays (a KeyedSource) with the meaning that a spec card gives them.

Where the format has no observation behind the last action, the last row gives it by default, and the action of that row
is dropped (FinalObservation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.formats.importing import last_step_only, require_finite, source_of
from robot_rl.data.formats.keyed import KeyedSource, SourceEpisode
from robot_rl.data.formats.spec_card import ArrayCard, FinalObservation, SpecCard
from robot_rl.errors import DataError, closest
from robot_rl.specs import ArraySpec, EnvSpec, camera_from_json
from robot_rl.types import Episode, Source

_IMAGE = "image/"


class CardReader:
    """An EpisodeReader (importing.py) of any KeyedSource.

    Args:
        source: the arrays; closed with this reader.
        card: what they mean.

    Raises:
        DataError: the card does not fit the source.
    """

    def __init__(self, source: KeyedSource, card: SpecCard) -> None:
        self._card, self._arrays = card, source
        self._source = source_of(card.source, where="spec card, source")
        self.spec = spec_of(source, card)
        self.names = tuple(episode.name for episode in source.episodes)
        self.notes = (*source.notes, *self._notes())
        self.facts: Mapping[str, Any] = {
            "format": source.format,
            "file": str(source.path),
            "success": card.success,
            "final_observation": card.final_observation.value,
            **source.facts,
        }

    def read(self, index: int) -> Episode:
        """Episode `index`. Raises DataError naming episode, key and step."""
        said = self._arrays.episodes[index]
        where = f"{self._arrays.path}, {said.name}"
        is_dropped = self._drops_last_row(said)
        steps = said.steps - is_dropped
        if steps < 1:
            raise DataError(
                where,
                expected="at least two rows (the last one is the final observation)" if is_dropped else "a row",
                got=f"{said.steps}",
                hint="Leave it out with --skip-bad.",
            )
        frames = {key: self._frames(key, index, where) for key in self.spec.observation}
        success = self._success(index, where)
        return Episode(
            observation={key: value[:steps] for key, value in frames.items()},
            final_observation={key: value[-1] for key, value in frames.items()},
            action=self._joined(self._card.action, index, where)[:steps].astype(np.float32),
            reward=self._reward(success, index, where),
            success=success,
            # Where the format says nothing, an episode that ends with success reached a true end.
            terminated=bool(success[-1]) if said.terminated is None else said.terminated,
            truncated=bool(said.truncated),
            source=self._sources(steps, index, where),
            time=self._time(steps, index, where),
            metadata=_metadata(said),
        )

    def close(self) -> None:
        """Release the files."""
        self._arrays.close()

    def _drops_last_row(self, said: SourceEpisode) -> bool:
        return not said.has_final and self._card.final_observation is FinalObservation.last_row

    def _notes(self) -> Iterator[str]:
        card = self._card
        arrays = [card.action, *card.observation.values()]
        used: set[str | None] = {key for array in arrays for key in array.keys}
        used |= {card.reward_key, card.timestamp_key, card.source_key, card.success}
        unused = [name for name in self._arrays.keys if name not in used]
        if unused:
            yield f"Not imported, since the card does not name them: {', '.join(unused)}."
        if not all(episode.has_final for episode in self._arrays.episodes):
            if card.final_observation is FinalObservation.last_row:
                yield "The last row of each episode became its final observation; its action and reward were dropped."
            else:
                yield "The last observation of each episode stands for its final one too: don't learn values from these."
        if card.reward_key is None:
            yield "Rewards are 1 at every step with success, else 0."

    def _joined(self, card: ArrayCard, index: int, where: str) -> np.ndarray:
        parts = [(rows := self._rows(key, index, where)).reshape(len(rows), -1) for key in card.keys]
        begin, end = card.columns or (0, None)
        joined: np.ndarray = np.concatenate(parts, axis=1)[:, begin:end]
        return joined

    def _frames(self, key: str, index: int, where: str) -> np.ndarray:
        card = self._card.observation[key]
        if key.startswith(_IMAGE):
            return _as_uint8(self._rows(card.keys[0], index, where), where=f"{where}, key {card.keys[0]!r}")
        if key == "points":
            return self._rows(card.keys[0], index, where).astype(np.float32)
        return self._joined(card, index, where).astype(np.float32)

    def _rows(self, key: str, index: int, where: str) -> np.ndarray:
        rows = self._arrays.rows(index, key)
        require_finite(rows, where=f"{where}, key {key!r}")
        return rows

    def _success(self, index: int, where: str) -> np.ndarray:
        said = self._arrays.episodes[index]
        steps = said.steps - self._drops_last_row(said)
        if self._card.success == "none":
            return np.zeros(steps, bool)
        if self._card.success == "last_step":
            return last_step_only(steps)
        success: np.ndarray = self._column(self._card.success, index, where) > 0
        if self._drops_last_row(said) and len(success) > 1:
            success[-2] |= success[-1]  # the row that is dropped may be the only one with the signal
        return success[:steps]

    def _reward(self, success: np.ndarray, index: int, where: str) -> np.ndarray:
        if self._card.reward_key is None:
            return success.astype(np.float32)
        reward: np.ndarray = self._column(self._card.reward_key, index, where)[: len(success)].astype(np.float32)
        return reward

    def _time(self, steps: int, index: int, where: str) -> np.ndarray:
        if self._card.timestamp_key is None:
            return np.arange(steps) / self._card.control_hz
        clock = self._column(self._card.timestamp_key, index, where)[:steps].astype(np.float64)
        seconds: np.ndarray = clock if self._card.timestamp_from_start else clock - clock[0]
        return seconds

    def _sources(self, steps: int, index: int, where: str) -> np.ndarray:
        if self._card.source_key is None:
            return np.full(steps, int(self._source), np.uint8)
        numbers = self._column(self._card.source_key, index, where)[:steps]
        strange = np.flatnonzero(~np.isin(numbers, [int(source) for source in Source]))
        if strange.size:
            raise DataError(
                f"{where}, key {self._card.source_key!r}, step {strange[0]}",
                expected=", ".join(f"{int(source)} {source.name}" for source in Source),
                got=f"{numbers[strange[0]]}", hint="Name another key, or leave source_key out.",
            )  # fmt: skip
        return numbers.astype(np.uint8)

    def _column(self, key: str, index: int, where: str) -> np.ndarray:
        """One number per action, (steps,) of the source."""
        rows, steps = self._rows(key, index, where), self._arrays.episodes[index].steps
        if rows.size != steps:
            raise DataError(
                f"{where}, key {key!r}", expected="one number per row", got=f"shape {rows.shape} for {steps} rows",
                hint="Correct the card.",
            )  # fmt: skip
        return rows.reshape(-1)


def spec_of(source: KeyedSource, card: SpecCard) -> EnvSpec:
    """The spec that a card gives the arrays of a source.

    Raises:
        DataError: the card names what the source has not, or contradicts its shapes.
    """
    if "proprio" not in card.observation:
        raise DataError(
            "spec card, observation",
            expected="'proprio', the robot's own sensors",
            got=f"{sorted(card.observation)}",
            hint="Say which key (and columns) of the source the robot can measure itself.",
        )
    if not card.control_hz > 0 or card.max_episode_steps < 1:
        raise DataError(
            "spec card",
            expected="control_hz above 0 and max_episode_steps of at least 1",
            got=f"{card.control_hz} and {card.max_episode_steps}",
            hint="Correct the card.",
        )
    return EnvSpec(
        env_id=card.env_id,
        observation={key: _array_spec(source, key, array) for key, array in card.observation.items()},
        action=_array_spec(source, "action", card.action),
        action_semantics=card.action_semantics,
        joint_names=card.joint_names,
        robot=card.robot,
        control_hz=card.control_hz,
        max_episode_steps=card.max_episode_steps,
        has_success=card.success != "none",
        cameras={
            name: camera_from_json(camera, where=f"spec card, camera {name!r}") for name, camera in card.cameras.items()
        },
        point_cloud=card.point_cloud,
    )


def _array_spec(source: KeyedSource, key: str, card: ArrayCard) -> ArraySpec:
    """Shape from the data, meaning from the card."""
    if "???" in (*card.keys, *card.units, *card.meanings):
        raise DataError(
            f"spec card, {key}", expected="keys, units and meanings", got="???", hint="Fill in the card to the end."
        )
    shapes = [_row(source, name, where=f"spec card, {key}")[0] for name in card.keys]
    where = f"spec card, {key}"
    if key.startswith(_IMAGE) or key == "points":
        last = (3,) if key != "points" else (3, 6)
        wanted = 3 if key != "points" else 2
        if len(shapes) != 1 or len(shapes[0]) != wanted or shapes[0][-1] not in last or card.columns is not None:
            raise DataError(
                where,
                expected="one key with rows of shape (H, W, 3)" if wanted == 3 else "rows of shape (M, 3 or 6)",
                got=f"{dict(zip(card.keys, shapes, strict=True))}",
                hint="Images lie as rows, columns, colours here; move the axis in the source first.",
            )
        shape = shapes[0]
    elif key in ("proprio", "state", "action"):
        size = sum(int(np.prod(shape)) for shape in shapes)
        begin, end = card.columns or (0, size)
        if not 0 <= begin < end <= size:
            raise DataError(
                f"{where}, columns",
                expected=f"a part of 0..{size}",
                got=f"{begin}..{end}",
                hint="Correct the card.",
            )
        shape = (end - begin,)
    else:
        raise DataError(
            "spec card, observation", expected="proprio, state, points or image/<camera>", got=repr(key),
            hint="Rename it; put several keys of the source into one `keys` list.",
        )  # fmt: skip
    size = int(np.prod(shape))
    for name, given in (("units", card.units), ("meanings", card.meanings), ("low", card.low), ("high", card.high)):
        allowed = {size} if name in ("low", "high") else {1, size}
        if given is not None and len(given) not in allowed:
            raise DataError(
                f"{where}, {name}", expected=f"{size} entries, one per element" + " (or one)" * (1 in allowed),
                got=f"{len(given)}", hint="Correct the card.",
            )  # fmt: skip
    dtype = "uint8" if key.startswith(_IMAGE) else "float32"
    return ArraySpec(key, shape, dtype, low=card.low, high=card.high, units=card.units, meanings=card.meanings)


def _row(source: KeyedSource, name: str, *, where: str) -> tuple[tuple[int, ...], np.dtype]:
    if name not in source.keys:
        raise DataError(
            where, expected=f"a key of {source.path}", got=repr(name), hint=closest(name, list(source.keys))
        )
    return source.keys[name]


def _metadata(said: SourceEpisode) -> dict[str, Any]:
    """As the files have it when they were exported from a store of ours, else with where it came from."""
    if said.is_export:
        return dict(said.metadata)
    number = said.name.removeprefix("episode ")
    return {"collector": "import", "source_episode": number, **said.metadata}


def _as_uint8(rows: Array, *, where: str) -> np.ndarray:
    """Images as uint8; whole numbers in 0..255 of any type are taken (PushT keeps float32)."""
    if rows.dtype == np.uint8:
        return np.asarray(rows)
    whole = np.rint(rows)
    if not np.array_equal(whole, rows) or rows.min() < 0 or rows.max() > 255:
        raise DataError(
            where,
            expected="whole numbers in 0..255",
            got=f"{rows.dtype} in {rows.min():g}..{rows.max():g}",
            hint="Images in 0..1 must be multiplied by 255 and rounded in the source first.",
        )
    images: np.ndarray = whole.astype(np.uint8)
    return images
