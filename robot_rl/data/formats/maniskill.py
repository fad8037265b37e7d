"""Reads ManiSkill 3 trajectories: `<name>.h5` and `<name>.json` as its RecordEpisode wrapper writes them.

    traj_<episode_id>/actions (T, A)   terminated, truncated, success, fail (T)   rewards (T)
                      obs (T + 1, D) flattened, or obs/agent/..., obs/extra/..., obs/sensor_data/<camera>/rgb,
                      obs/pointcloud/xyzw and rgb (T + 1, M, 4 and 3), brought into the robot's base frame
Row t of obs is what action t answered to; row T is the final observation. Elements are matched with the spec by their
names (`agent.qpos[0]`), never by the order of groups. Source: mani_skill 3.0.1, utils/wrappers/record.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robot_rl.data.formats.hdf5_source import leaf_names, named_damage, open_hdf5, require_written
from robot_rl.data.formats.importing import last_step_only, require_finite, source_of
from robot_rl.data.formats.maniskill_arrays import (
    CLOUD,
    base_frame_points,
    depth_in_metres,
    require_rows,
    rows_of,
)
from robot_rl.data.formats.maniskill_header import ManiSkillHeader, replay_hint
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode, Source

_IMAGE = "image/"
_SENSORS = ("sensor_data", "sensor_param", CLOUD)
_POINTS, _DEPTH = "points", "depth/"
_SOURCES = {"motionplanning": "scripted", "rl": "policy", "human": "teleop", "teleoperation": "teleop"}


class ManiSkillReader:
    """An EpisodeReader of one ManiSkill file.

    Args:
        header: of the file.
        spec: of the environment that the file was recorded in.
        source: who acted, by the names of `Source`; None takes it from the json's source_type.
        success: "file", or for files without a success signal "last_step" (every episode is a good demonstration)
            or "none".

    Raises:
        DataError: the spec is of another task, robot, rate or control mode, or what it wants is not in the file.
    """

    def __init__(
        self, header: ManiSkillHeader, spec: EnvSpec, *, source: str | None = None, success: str = "file"
    ) -> None:
        self.spec, self._header, self._success = spec, header, success
        _check_spec(header, spec)
        self._source = _source(header, source)
        self.names = tuple(header.entries)
        self.facts: Mapping[str, Any] = {
            "format": "maniskill",
            "file": str(header.path),
            "env_kwargs": json.loads(json.dumps(header.env_kwargs, default=str)),
            "max_episode_steps": header.max_episode_steps,
            "source_type": header.source_type,
            "source_desc": header.source_desc,
            "success": success,
        }
        self._file = open_hdf5(header.path)
        try:
            with named_damage(f"{header.path}"):
                self.notes = tuple(self._look_at_first())
        except BaseException:
            self._file.close()
            raise

    def read(self, index: int) -> Episode:
        """Episode `index`. Raises DataError naming trajectory and dataset."""
        name = self.names[index]
        with named_damage(f"{self._header.path}, {name}"):
            return self._episode(name, self._header.entries[name], self._file[name], f"{self._header.path}, {name}")

    def _episode(self, name: str, entry: Mapping[str, Any], group: Any, where: str) -> Episode:
        action = self._actions(group, where)
        steps = len(action)
        if entry.get("elapsed_steps") not in (None, steps):
            raise DataError(
                where,
                expected=f"{entry['elapsed_steps']} steps, as the json says",
                got=f"{steps} actions",
                hint="The two files don't belong together, or one was changed.",
            )
        frames = {key: self._frames(group, key, steps, where) for key in self.spec.observation}
        flags = {key: rows_of(group, key, steps, where).astype(bool) for key in ("terminated", "truncated")}
        success = self._success_of(group, steps, where)
        terminated = bool(flags["terminated"][-1])
        return Episode(
            observation={key: value[:-1] for key, value in frames.items()},
            final_observation={key: value[-1] for key, value in frames.items()},
            action=action,
            reward=self._reward(group, success, where),
            success=success,
            terminated=terminated,
            truncated=bool(flags["truncated"][-1]) and not terminated,
            source=np.full(steps, int(self._source), np.uint8),
            time=np.arange(steps) / self.spec.control_hz,
            metadata=self._metadata(name, entry),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _look_at_first(self) -> Iterator[str]:
        """Sentences about what is in the file and will not be imported, or is made up; errors of the whole file."""
        group = self._file[self.names[0]]
        where = f"{self._header.path}, {self.names[0]}"
        self._actions(group, where)
        for key in self.spec.observation:
            self._check_key(group["obs"], key, where)
        self._success_of(group, len(group["actions"]), where)
        unused = sorted(set(leaf_names(group["obs"])) - set(self._used_leaves()))
        if unused:
            yield f"Not imported, since the spec has no place for them: {', '.join(unused)}."
        if "rewards" not in group:
            yield "The file has no rewards: they are success minus fail at every step, as reward_mode=sparse."
        elif (mode := self._header.env_kwargs.get("reward_mode")) != "sparse":
            yield f"Rewards are the file's own (reward_mode {mode}); env=... of robot-rl has reward_mode=sparse."

    def _used_leaves(self) -> Iterator[str]:
        for key, array in self.spec.observation.items():
            if key.startswith(_IMAGE):
                yield f"sensor_data/{key.removeprefix(_IMAGE)}/rgb"
            elif key.startswith(_DEPTH):
                yield f"sensor_data/{key.removeprefix(_DEPTH)}/depth"
            elif key == _POINTS:
                yield from (f"{CLOUD}/xyzw", f"{CLOUD}/rgb")
            else:
                prefix = "agent/" if key == "proprio" else ""
                yield from (prefix + name.partition("[")[0].replace(".", "/") for name in array.meanings)

    def _check_key(self, obs: Any, key: str, where: str) -> None:
        if key.startswith((_IMAGE, _DEPTH)) or key in ("proprio", "state", _POINTS):
            return
        raise DataError(
            f"{where}, obs",
            expected=f"a spec of proprio, state, points, image/ and depth/<camera> (this one wants {key!r})",
            got=f"{sorted(leaf_names(obs)) or 'a flat array'}",
            hint="Nothing else is read from such a file.",
        )

    def _actions(self, group: Any, where: str) -> np.ndarray:
        actions = group.get("actions")
        if actions is None or hasattr(actions, "keys"):
            raise DataError(
                f"{where}, actions",
                expected="one action vector for one robot",
                got="nothing" if actions is None else f"a dictionary with {', '.join(sorted(actions))}",
                hint="Tasks with several robots, and controllers with dictionaries of actions, are not supported.",
            )
        require_written(actions, where=f"{where}, actions")
        array = np.asarray(actions)
        if array.ndim != 2 or array.shape[1:] != self.spec.action.shape:
            raise DataError(
                f"{where}, actions",
                expected=f"(T, {self.spec.action.size}), as {self.spec.action_semantics.control_mode} has",
                got=f"{array.shape}",
                hint="The spec belongs to another control mode or robot.",
            )
        if len(array) == 0:
            raise DataError(f"{where}, actions", expected="at least one step", got="none", hint="Use --skip-bad.")
        require_finite(array, where=f"{where}, key 'actions'")
        return array.astype(np.float32)

    def _frames(self, group: Any, key: str, steps: int, where: str) -> np.ndarray:
        """Frames of one key of the spec, (T + 1, ...)."""
        spec, obs = self.spec.observation[key], group["obs"]
        if key.startswith(_DEPTH):
            depth: np.ndarray = depth_in_metres(obs, spec, rows=steps + 1, where=where)
            return depth
        if key == _POINTS:
            points: np.ndarray = base_frame_points(group, spec, robot=self.spec.robot, rows=steps + 1, where=where)
            return points
        if key.startswith(_IMAGE):
            path = f"sensor_data/{key.removeprefix(_IMAGE)}/rgb"
            if hasattr(obs, "keys") and path in obs:
                return rows_of(obs, path, steps + 1, where)
            raise DataError(
                f"{where}, obs", expected=path, got=f"{sorted(leaf_names(obs)) or 'a flat array'}",
                hint=replay_hint(self._header.path, "-o rgb --use-env-states"),
            )  # fmt: skip
        table, columns = self._table(obs, steps, where)
        prefix = "agent." if key == "proprio" else ""
        wanted = [prefix + name for name in spec.meanings] if len(spec.meanings) == spec.size else []
        missing = [name for name in wanted if name not in columns]
        if missing or not wanted:
            raise DataError(
                f"{where}, obs, for {key!r}",
                expected=", ".join(missing[:8] or [f"one name per element in the spec ({spec.size} meanings)"]),
                got=f"{len(columns)} named elements: {', '.join(list(columns)[:8])} ...",
                hint=replay_hint(self._header.path, "-o state --use-env-states")
                if missing
                else "Complete the spec card.",
            )
        return table[:, [columns[name] for name in wanted]]

    def _table(self, obs: Any, steps: int, where: str) -> tuple[np.ndarray, dict[str, int]]:
        """All numbers that are no images, float32 (T + 1, D), and name -> column."""
        if not hasattr(obs, "keys"):
            spec = self.spec.observation.get("state")
            names = [] if spec is None else list(spec.meanings)
            if obs.ndim != 2 or obs.shape[1] != len(names):
                raise DataError(
                    f"{where}, obs",
                    expected=f"(T + 1, {len(names)}), the flattened state of the spec",
                    got=f"{obs.shape}",
                    hint="The file was recorded with another task, robot or version of ManiSkill.",
                )
            parts = {"": require_rows(obs, steps + 1, f"{where}, obs")}
        else:
            parts = {
                path: rows_of(obs, path, steps + 1, where).reshape(steps + 1, -1)
                for path in leaf_names(obs)
                if not path.startswith(_SENSORS)
            }
            names = [name for path, part in parts.items() for name in _element_names(path, part.shape[1])]
        for path, part in parts.items():
            require_finite(part, where=f"{where}, key 'obs{'/' * bool(path)}{path}'")
        table = np.concatenate([part.astype(np.float32) for part in parts.values()], axis=1)
        return table, {name: column for column, name in enumerate(names)}

    def _success_of(self, group: Any, steps: int, where: str) -> np.ndarray:
        if "success" in group:
            return rows_of(group, "success", steps, where).astype(bool)
        if self._success == "last_step":
            return last_step_only(steps)
        if self._success == "none" or not self.spec.has_success:
            return np.zeros(steps, bool)
        raise DataError(
            where,
            expected="a success signal (success)",
            got=f"only {', '.join(sorted(group))}",
            hint="Say what is known: --success last_step (all are good demonstrations) or --success none.",
        )

    def _reward(self, group: Any, success: np.ndarray, where: str) -> np.ndarray:
        if "rewards" in group:
            reward = rows_of(group, "rewards", len(success), where).astype(np.float32)
            require_finite(reward, where=f"{where}, key 'rewards'")
            return reward
        fail = rows_of(group, "fail", len(success), where) if "fail" in group else np.zeros(len(success))
        return success.astype(np.float32) - fail.astype(np.float32)

    def _metadata(self, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        seed = entry.get("episode_seed", (entry.get("reset_kwargs") or {}).get("seed", -1))
        seed = seed[0] if isinstance(seed, list) and len(seed) == 1 else seed
        known = isinstance(seed, int) and not isinstance(seed, bool)
        return {"seed": seed if known else -1, "collector": "import", "source_episode": name}


def _check_spec(header: ManiSkillHeader, spec: EnvSpec) -> None:
    sim_config = header.env_kwargs.get("sim_config") or {}
    pairs = [
        ("env_id", spec.env_id, header.env_id),
        ("control_mode", spec.action_semantics.control_mode, header.control_mode),
        ("robot_uids", spec.robot, header.env_kwargs.get("robot_uids")),
        ("control_freq", spec.control_hz, sim_config.get("control_freq") if isinstance(sim_config, Mapping) else None),
    ]
    for name, expected, got in pairs:
        if got is not None and got != expected:
            raise DataError(
                f"{header.path.with_suffix('.json')}, {name}",
                expected=f"{expected!r}, as the spec says",
                got=repr(got),
                hint="Give the spec of the environment that recorded it (--env or --spec)"
                + (
                    f", or change the data: {replay_hint(header.path, f'-c {expected}')}"
                    if name == "control_mode"
                    else "."
                ),
            )


def _source(header: ManiSkillHeader, given: str | None) -> Source:
    where = f"{header.path.with_suffix('.json')}, source_type"
    if given is not None:
        return source_of(given, where="--source-type")
    if header.source_type not in _SOURCES:
        raise DataError(
            where,
            expected=f"one of {', '.join(_SOURCES)}",
            got=repr(header.source_type),
            hint="Say who chose the actions: --source-type teleop, scripted or policy.",
        )
    return Source[_SOURCES[str(header.source_type)]]


def _element_names(path: str, size: int) -> list[str]:
    name = path.replace("/", ".")
    return [name] if size == 1 else [f"{name}[{index}]" for index in range(size)]
