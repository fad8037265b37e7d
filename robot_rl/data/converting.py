"""The same episodes under another declaration: rotations, absolute or delta actions, range of a gripper, fewer points.

Only what the data declare is converted. Rotations and deltas are computed in float64 and kept as float32; Euler angles are
read and never written.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.action_layout import bounded, gripper_ends, layout_of, scale_of
from robot_rl.data.conversion import (
    Conversion,
    Turned,
    elements_of,
    kind_of,
    new_action_spec,
    new_semantics,
    turned_spec,
)
from robot_rl.data.deltas import Poses, changes_of, require_frame, targets_of
from robot_rl.data.editing import edited
from robot_rl.data.element_names import names_of, units_of
from robot_rl.data.episode_rows import array_names
from robot_rl.data.recorded_points import POINTS, points_of_frames, with_points_spec
from robot_rl.data.rewriting import Plan, pieces_of
from robot_rl.data.rotations import convert_rotations, rotation_size
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, EnvSpec
from robot_rl.types import Episode


def plan_convert(store: EpisodeStore, target: Path, conversion: Conversion) -> Plan:
    """All episodes under the new declaration.

    Args:
        store: the source; it stays as it is.
        target: the new store.
        conversion: what to change.

    Raises:
        DataError: nothing to change, something that the data do not declare, or what can't be computed from them.
    """
    converter = Converter(store.spec, conversion, where=f"{store.path}")
    names = array_names(converter.spec)
    changed = {names["action"]} if converter.changes_action else set()
    for turned in conversion.observations:
        changed |= {names[turned.key], names[f"final/{turned.key}"]}
    if conversion.points is not None:
        changed |= {names[POINTS], names[f"final/{POINTS}"]}
    pieces = [replace(piece, change=converter.episode) for piece in pieces_of(store, range(len(store)))]
    arguments = {key: value for key, value in asdict(conversion).items() if value}
    for key, spec in (("before", store.spec), ("after", converter.spec)):
        arguments[key] = spec.to_json()["action_semantics"]
    plan = edited(
        store, pieces, "convert", arguments=arguments, target=target, may_change=frozenset(changed),
        notes=tuple(converter.notes),
    )  # fmt: skip
    return replace(plan, spec=converter.spec)


class Converter:
    """One conversion of one spec.

    Attributes:
        spec: the new one.
        changes_action: whether actions differ.
        notes: one sentence each, for people.

    Raises:
        DataError: as `plan_convert`.
    """

    def __init__(self, spec: EnvSpec, conversion: Conversion, *, where: str) -> None:
        self._old, self._conversion, self._where = spec, conversion, where
        self.notes: list[str] = []
        self._semantics = new_semantics(spec.action_semantics, conversion, where)
        old, new = spec.action_semantics, self._semantics
        self._moves = kind_of(old) != kind_of(new)
        self.changes_action = self._moves or (old.rotation, old.gripper) != (new.rotation, new.gripper)
        if not self.changes_action and not conversion.observations and conversion.points is None:
            raise DataError(
                where, expected="something to convert", got="the declaration that the data have already",
                hint="See `robot-rl data convert --help`; `robot-rl data info` prints the declaration.",
            )  # fmt: skip
        at = {"rotation_at": conversion.rotation_at, "gripper_at": conversion.gripper_at}
        self._layout = layout_of(spec.action, old, where=where, **at)
        if self._moves:
            self._require_measured()
            if old.frame != "joint" and conversion.measured is not None and new.kind is ActionKind.absolute:
                key = conversion.measured.key
                self.notes.append(f"The targets are in the frame that observation {key!r} is measured in; check that.")
        observation = dict(spec.observation)
        for turned in conversion.observations:
            observation[turned.key] = turned_spec(observation, turned, where)
        action = spec.action
        if self.changes_action:
            action = new_action_spec(spec.action, self._layout, old, new, where=where)
        if action.low is None and spec.action.low is not None:
            self.notes.append("The bounds of the action are not known under the new declaration: none are stated.")
        self.spec = replace(spec, observation=observation, action=action, action_semantics=new)
        if conversion.points is not None:
            self.spec = with_points_spec(self.spec, conversion.points, where=where)

    def episode(self, episode: Episode) -> Episode:
        """The episode under the new declaration. Raises DataError naming step and element."""
        observation, final = dict(episode.observation), dict(episode.final_observation)
        for turned in self._conversion.observations:
            rows = np.concatenate([np.asarray(observation[turned.key]), np.asarray(final[turned.key])[None]])
            rows = _turned_rows(rows, turned, where=f"observation {turned.key!r}")
            observation[turned.key], final[turned.key] = rows[:-1], rows[-1]
        source = self._conversion.points
        if source is not None:
            observation[POINTS] = points_of_frames(observation, self._old, source, where=self._where)
            last = {key: np.asarray(value)[None] for key, value in final.items()}
            final[POINTS] = points_of_frames(last, self._old, source, where=self._where)[0]
        action = self._action(episode) if self.changes_action else episode.action
        return replace(episode, observation=observation, final_observation=final, action=action)

    def _require_measured(self) -> None:
        """A change of kind needs one arm, and an observation of the same quantity in the same unit."""
        layout, semantics, measured = self._layout, self._old.action_semantics, self._conversion.measured
        where = f"{self._where}, action"
        require_frame(semantics.frame, has_rotation=bool(layout.rotations), where=where)
        if len(layout.rotations) > 1 or (layout.rotations and len(layout.linear) != 3):
            raise DataError(
                where, expected="joints, or one x y z with one rotation", got=f"{len(layout.rotations)} rotations and "
                f"{len(layout.linear)} other elements", hint="Several arms at once are not converted between kinds.",
            )  # fmt: skip
        if measured is None:
            raise DataError(
                where, expected="an observation that measures the same, in the order of the action", got="none",
                hint="State it: --measured proprio=0:7 for joints, --measured proprio=18:25:quat_wxyz for a pose.",
            )  # fmt: skip
        array = elements_of(self._old.observation, measured.key, measured.first, measured.stop, self._where)
        turn = rotation_size(measured.rotation, where=where) if measured.rotation != "none" else 0
        if measured.stop - measured.first != len(layout.linear) + turn or bool(turn) != bool(layout.rotations):
            raise DataError(
                f"{self._where}, --measured", expected=f"{len(layout.linear)} positions"
                + (" and a rotation" if layout.rotations else ""), got=f"{measured.stop - measured.first} elements, rotation "
                f"{measured.rotation}", hint="Grippers are left out: they are not part of it.",
            )  # fmt: skip
        for place, element in enumerate(layout.linear):
            unit = units_of(array)[measured.first + place]
            own = scale_of(units_of(self._old.action)[element])[2]
            if unit != own:
                raise DataError(
                    f"{self._where}, --measured", expected=f"{own} as action element {element} "
                    f"({names_of(self._old.action)[element]})", got=f"{unit} ({names_of(array)[measured.first + place]})",
                    hint="Both must measure the same in the same unit.",
                )  # fmt: skip

    def _action(self, episode: Episode) -> np.ndarray:
        layout, old, new = self._layout, self._old.action_semantics, self._semantics
        values = np.asarray(episode.action, np.float64)
        executed = bounded(values, self._old.action, (layout.linear, *(range(a, b) for a, b in layout.rotations)))
        linear, turns = values[:, list(layout.linear)], [executed[:, a:b] for a, b in layout.rotations]
        if old.rotation != new.rotation or self._moves:
            turns = [self._physical(turn, first) for turn, (first, _) in zip(turns, layout.rotations, strict=True)]
        if self._moves:
            linear = np.stack([self._scaled(executed[:, e], e) for e in layout.linear], axis=1)
            linear, turns = self._moved(linear, turns, episode)
        elif old.rotation != new.rotation:
            turns = [convert_rotations(turn, old.rotation, new.rotation, where="action") for turn in turns]
        grippers = values[:, list(layout.grippers)]
        if old.gripper != new.gripper:
            (closed, opened), (low, high) = (gripper_ends(one.gripper, where=self._where) for one in (old, new))
            grippers = low + (grippers - closed) / (opened - closed) * (high - low)
        return self._joined(linear, turns, grippers).astype(np.float32)

    def _moved(
        self, linear: np.ndarray, turns: list[np.ndarray], episode: Episode
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Through absolute targets to the new kind and reference."""
        old, new, measured = self._old.action_semantics, self._semantics, self._conversion.measured
        assert measured is not None
        rows = np.asarray(episode.observation[measured.key], np.float64)[:, measured.first : measured.stop]
        size = len(self._layout.linear)
        seen = _poses(rows[:, :size], rows[:, size:], measured.rotation, where=f"observation {measured.key!r}")
        given = _poses(linear, turns[0] if turns else rows[:, :0], old.rotation, where="action")
        if old.kind is ActionKind.delta:
            given = targets_of(given, seen, old.delta_reference, frame=old.frame)
        if new.kind is ActionKind.delta:
            given = changes_of(given, seen, new.delta_reference, frame=new.frame, stored=self._stored)
        if given.turn is None:
            return given.linear, []
        return given.linear, [_written(given.turn, new.rotation)]

    def _stored(self, change: Poses) -> Poses:
        """A change after its way through float32."""
        linear = change.linear.astype(np.float32).astype(np.float64)
        if change.turn is None:
            return Poses(linear)
        turn = _written(change.turn, self._semantics.rotation).astype(np.float32).astype(np.float64)
        return _poses(linear, turn, self._semantics.rotation, where="action")

    def _scaled(self, values: np.ndarray, element: int) -> np.ndarray:
        factor, offset, _ = scale_of(units_of(self._old.action)[element])
        return factor * values + offset

    def _physical(self, turn: np.ndarray, first: int) -> np.ndarray:
        """Numbers of a rotation without a controller's scale."""
        return np.stack([self._scaled(turn[:, i], first + i) for i in range(turn.shape[1])], axis=1)

    def _joined(self, linear: np.ndarray, turns: list[np.ndarray], grippers: np.ndarray) -> np.ndarray:
        columns: dict[int, np.ndarray] = {e: linear[:, i : i + 1] for i, e in enumerate(self._layout.linear)}
        columns |= {e: grippers[:, i : i + 1] for i, e in enumerate(self._layout.grippers)}
        columns |= {first: turn for (first, _), turn in zip(self._layout.rotations, turns, strict=True)}
        return np.concatenate([columns[element] for element in sorted(columns)], axis=1)


def _turned_rows(rows: Array, turned: Turned, *, where: str) -> np.ndarray:
    values = np.asarray(rows[:, turned.first : turned.stop], np.float64)
    new = convert_rotations(values, turned.given, turned.wanted, where=where).astype(np.float32)
    out: np.ndarray = np.concatenate([rows[:, : turned.first], new, rows[:, turned.stop :]], axis=1)
    return out


def _poses(linear: Float64[Array, "T L"], turn: Float64[Array, "T D"], name: str, *, where: str) -> Poses:
    from scipy.spatial.transform import Rotation

    if name == "none":
        return Poses(linear)
    return Poses(linear, Rotation.from_quat(convert_rotations(turn, name, "quat_xyzw", where=where)))


def _written(turn: Any, name: str) -> np.ndarray:
    written: np.ndarray = convert_rotations(turn.as_quat(), "quat_xyzw", name, where="action")
    return written
