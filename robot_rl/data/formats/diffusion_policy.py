"""Reads diffusion_policy's `replay_buffer.zarr` (Chi et al. 2023; also DP3, UMI and RL-100), a directory or a zip.

    data/<key>           all steps of all episodes, one after the other
    meta/episode_ends    int64, where each episode ends (exclusive)
Such a store does not say what its numbers mean, so a spec card does. Source of the layout: real-stanford/
diffusion_policy, common/replay_buffer.py.

There is no observation behind the last action. By default the last row gives it, and the action of that row is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.formats.importing import last_step_only, require_finite, source_of
from robot_rl.data.formats.spec_card import ArrayCard, FinalObservation, SpecCard
from robot_rl.data.formats.zarr_source import ZarrSource
from robot_rl.errors import DataError
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Episode

_ENDS = "meta/episode_ends"
_IMAGE = "image/"


class DiffusionPolicyReader:
    """An EpisodeReader of one replay_buffer.zarr.

    Args:
        path: directory, or .zarr.zip.
        card: what its numbers mean.

    Raises:
        DataError: damaged, or the card does not fit the data.
    """

    def __init__(self, path: Path, card: SpecCard) -> None:
        self._card, self._zarr = card, ZarrSource(path)
        try:
            self._refuse_own()
            self._source = source_of(card.source, where="spec card, source")
            self._ends = self._episode_ends()
            self.spec = self._spec()
            self.notes = tuple(self._notes())
        except BaseException:
            self._zarr.close()
            raise
        self.names = tuple(f"episode {index}" for index in range(len(self._ends)))
        self.facts: Mapping[str, Any] = {
            "format": "diffusion_policy",
            "file": str(path),
            "success": card.success,
            "final_observation": card.final_observation.value,
        }

    def read(self, index: int) -> Episode:
        """Episode `index`. Raises DataError naming episode, key and step."""
        start, stop = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        where = f"{self._zarr.path}, episode {index}"
        keeps_all = self._card.final_observation is FinalObservation.repeat
        steps = stop - start - (not keeps_all)
        if steps < 1:
            raise DataError(
                where,
                expected="at least two rows (the last one is the final observation)" if not keeps_all else "a row",
                got=f"{stop - start}",
                hint="Leave it out with --skip-bad.",
            )
        frames = {key: self._frames(key, start, stop, where) for key in self.spec.observation}
        action = self._joined(self._card.action, start, stop, where)[:steps].astype(np.float32)
        success = self._success(start, stop, where)[:steps]
        return Episode(
            observation={key: value[:steps] for key, value in frames.items()},
            final_observation={key: value[-1] for key, value in frames.items()},
            action=action,
            reward=self._reward(success, start, stop, where),
            success=success,
            # An episode that ends with success reached a true end; the format says nothing about the others.
            terminated=bool(success[-1]),
            truncated=False,
            source=np.full(steps, int(self._source), np.uint8),
            time=self._time(steps, start, stop, where),
            metadata={"collector": "import", "source_episode": str(index)},
        )

    def close(self) -> None:
        """Release the file."""
        self._zarr.close()

    def _refuse_own(self) -> None:
        if self._zarr.attributes().get("schema") == "robot_rl.episodes":
            raise DataError(
                f"{self._zarr.path}",
                expected="a store of diffusion_policy",
                got="a store of robot-rl",
                hint="It needs no import: use it as it is (dataset=...).",
            )

    def _episode_ends(self) -> np.ndarray:
        (size, *more), dtype = self._zarr.array(_ENDS)
        where = f"{self._zarr.path}, {_ENDS}"
        if more or dtype.kind not in "iu" or size == 0:
            raise DataError(
                where, expected="whole numbers (E,), one per episode", got=f"{dtype} of shape {(size, *more)}",
                hint="The store holds no episode." if size == 0 else "Not a store of diffusion_policy.",
            )  # fmt: skip
        ends = self._zarr.rows(_ENDS, 0, size, where=f"{self._zarr.path}").astype(np.int64)
        backwards = np.flatnonzero(np.diff(ends, prepend=0) < 0)
        if backwards.size:
            bad = int(backwards[0])
            raise DataError(
                f"{where}, episode {bad}",
                expected=f"an end not before {ends[bad - 1] if bad else 0}, where the episode begins",
                got=f"{ends[bad]}",
                hint="Ends count rows from the start of the store; these may be lengths (use their cumulative sum).",
            )
        return ends

    def _spec(self) -> EnvSpec:
        card = self._card
        if "proprio" not in card.observation:
            raise DataError(
                "spec card, observation",
                expected="'proprio', the robot's own sensors",
                got=f"{sorted(card.observation)}",
                hint="Say which key (and columns) of data/ the robot can measure itself.",
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
            observation={key: self._array_spec(key, array) for key, array in card.observation.items()},
            action=self._array_spec("action", card.action),
            action_semantics=card.action_semantics,
            joint_names=card.joint_names,
            robot=card.robot,
            control_hz=card.control_hz,
            max_episode_steps=card.max_episode_steps,
            has_success=card.success != "none",
        )

    def _array_spec(self, key: str, card: ArrayCard) -> ArraySpec:
        """Shape from the data, meaning from the card."""
        if "???" in (*card.keys, *card.units, *card.meanings):
            raise DataError(
                f"spec card, {key}", expected="keys, units and meanings", got="???", hint="Fill in the card to the end."
            )
        shapes = [self._zarr.array(f"data/{name}")[0][1:] for name in card.keys]
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
                hint="Rename it; put several keys of data/ into one `keys` list.",
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

    def _notes(self) -> Iterator[str]:
        arrays = [self._card.action, *self._card.observation.values()]
        used = {key for array in arrays for key in array.keys}
        used |= {key for key in (self._card.reward_key, self._card.timestamp_key, self._card.success) if key}
        unused = [name for name in self._zarr.arrays("data") if name not in used]
        if unused:
            yield f"Not imported, since the card does not name them: {', '.join(unused)}."
        behind = min(self._zarr.array(f"data/{key}")[0][0] for array in arrays for key in array.keys) - int(
            self._ends[-1]
        )
        if behind > 0:
            yield f"{behind} rows behind the last episode are left out (a recording that was cut off)."
        if self._card.final_observation is FinalObservation.last_row:
            yield "The last row of each episode became its final observation; its action and reward were dropped."
        else:
            yield "The last observation of each episode stands for its final one too: don't learn values from these."
        if self._card.reward_key is None:
            yield "Rewards are 1 at every step with success, else 0."

    def _joined(self, card: ArrayCard, start: int, stop: int, where: str) -> np.ndarray:
        parts = [self._rows(key, start, stop, where).reshape(stop - start, -1) for key in card.keys]
        begin, end = card.columns or (0, None)
        joined: np.ndarray = np.concatenate(parts, axis=1)[:, begin:end]
        return joined

    def _frames(self, key: str, start: int, stop: int, where: str) -> np.ndarray:
        card = self._card.observation[key]
        if key.startswith(_IMAGE):
            return _as_uint8(self._rows(card.keys[0], start, stop, where), where=f"{where}, key {card.keys[0]!r}")
        if key == "points":
            return self._rows(card.keys[0], start, stop, where).astype(np.float32)
        return self._joined(card, start, stop, where).astype(np.float32)

    def _rows(self, key: str, start: int, stop: int, where: str) -> np.ndarray:
        is_known = key in self._card.empty_chunks
        rows = self._zarr.rows(f"data/{key}", start, stop, where=where, fill_is_known=is_known)
        require_finite(rows, where=f"{where}, key {key!r}")
        return rows

    def _success(self, start: int, stop: int, where: str) -> np.ndarray:
        if self._card.success == "none":
            return np.zeros(stop - start, bool)
        if self._card.success == "last_step":
            steps = stop - start - (self._card.final_observation is FinalObservation.last_row)
            return last_step_only(steps)
        success: np.ndarray = self._column(self._card.success, start, stop, where) > 0
        if self._card.final_observation is FinalObservation.last_row and len(success) > 1:
            success[-2] |= success[-1]  # the row that is dropped may be the only one with the signal
        return success

    def _reward(self, success: np.ndarray, start: int, stop: int, where: str) -> np.ndarray:
        if self._card.reward_key is None:
            return success.astype(np.float32)
        reward: np.ndarray = self._column(self._card.reward_key, start, stop, where)[: len(success)].astype(np.float32)
        return reward

    def _time(self, steps: int, start: int, stop: int, where: str) -> np.ndarray:
        if self._card.timestamp_key is None:
            return np.arange(steps) / self._card.control_hz
        clock = self._column(self._card.timestamp_key, start, stop, where)[:steps].astype(np.float64)
        seconds: np.ndarray = clock - clock[0]
        return seconds

    def _column(self, key: str, start: int, stop: int, where: str) -> np.ndarray:
        """One number per row, (rows,)."""
        rows = self._rows(key, start, stop, where)
        if rows.size != stop - start:
            raise DataError(
                f"{where}, key {key!r}",
                expected="one number per row",
                got=f"shape {rows.shape}",
                hint="Correct the card.",
            )
        return rows.reshape(-1)


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
