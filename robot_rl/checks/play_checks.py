"""Checks that look at a recorded play of an environment: each yields what breaks the VectorEnv contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from robot_rl.checks.findings import Finding, error, warning
from robot_rl.checks.play import IDLE, Recording

BOUND_TOLERANCE = 1e-4
SECONDS_TOLERANCE = 1e-6
_DTYPES = {"rewards": "float32", "executed": "int64"}
_PER_STEP = ("rewards", "mask", "step_success")


def observation_matches_spec(recording: Recording) -> Iterator[Finding]:
    """Keys, shapes, dtypes, finite numbers and ranges of observations are those of the spec."""
    spec = recording.spec.observation
    for where, chunk in recording.chunks():
        arrays = {key: value for key, value in chunk.observation.items() if key != "time"}
        if arrays.keys() != spec.keys():
            yield error(
                f"{where}: observation", expected=f"keys {sorted(spec)}", got=f"keys {sorted(arrays)}",
                fix="Give every key of spec.observation, and no other.",
            )  # fmt: skip
        for key in arrays.keys() & spec.keys():
            value, wanted = arrays[key], spec[key]
            if value.shape[:1] + value.shape[2:] != (len(chunk.seeds), *wanted.shape) or value.dtype != wanted.dtype:
                yield error(
                    f"{where}: observation {key!r}", expected=f"{wanted.dtype} (N={len(chunk.seeds)}, To, {wanted.shape})",
                    got=f"{value.dtype} {value.shape}", fix="Correct the spec or the array.",
                )  # fmt: skip
                continue
            used = value[chunk.seeds_after != IDLE].reshape(-1, wanted.size).astype(np.float64)
            if not np.isfinite(used).all():
                yield error(
                    f"{where}: observation {key!r}", expected="finite numbers", got="NaN or infinity", fix="Find it."
                )
            elif wanted.low is not None and wanted.high is not None:
                outside = (used < np.array(wanted.low) - BOUND_TOLERANCE) | (
                    used > np.array(wanted.high) + BOUND_TOLERANCE
                )
                if outside.any():
                    row, element = np.argwhere(outside)[0]
                    yield warning(
                        f"{where}: observation {key!r}, element {element}",
                        expected=f"{wanted.low[element]} to {wanted.high[element]}", got=f"{used[row, element]:.6g}",
                        fix="Widen the bounds of the spec, or use None where a number has none.",
                    )  # fmt: skip


def result_shapes(recording: Recording) -> Iterator[Finding]:
    """Fields of StepResult have the shapes and dtypes that the type says."""
    for where, chunk in recording.chunks():
        number = len(chunk.seeds)
        for name, value in chunk.values.items():
            shape = (number, chunk.execute) if name in _PER_STEP else (number,)
            dtype = _DTYPES.get(name, "bool")
            if value.shape != shape or value.dtype != dtype:
                got = f"{value.dtype} {value.shape}"
                yield error(f"{where}: {name}", expected=f"{dtype} {shape}", got=got, fix="See StepResult in types.py.")
        for key, wanted in recording.spec.observation.items():
            frames = chunk.frames.get(key)
            if frames is None or frames.shape != (number, chunk.execute, *wanted.shape):
                yield error(
                    f"{where}: frames[{key!r}]", expected=f"shape {(number, chunk.execute, *wanted.shape)}",
                    got="nothing" if frames is None else f"shape {frames.shape}", fix="One frame after each action.",
                )  # fmt: skip


def dropped_rest(recording: Recording) -> Iterator[Finding]:
    """An env plays a chunk to its end or to the end of its episode; nothing of the rest is played or counted."""
    for where, chunk, row in recording.rows():
        values, executed = (
            {name: value[row] for name, value in chunk.values.items()},
            int(chunk.values["executed"][row]),
        )
        prefix = np.arange(chunk.execute) < executed
        if not np.array_equal(values["mask"], prefix):
            yield error(
                f"{where}: mask", expected=f"True for the {executed} executed actions, then False",
                got=str(values["mask"].tolist()), fix="mask and executed say the same.",
            )  # fmt: skip
        behind = values["rewards"][~prefix].any() or values["step_success"][~prefix].any()
        if behind:
            yield error(
                f"{where}: rewards and step_success", expected="zero and False behind `executed`", got="other values",
                fix="Count nothing that was not played.",
            )  # fmt: skip
        if not chunk.ended[row] and executed != chunk.execute:
            yield error(
                f"{where}: executed", expected=f"{chunk.execute}, as the episode goes on", got=str(executed),
                fix="Only an episode that ended drops the rest of the chunk.",
            )  # fmt: skip
        time = chunk.observation.get("time")
        if chunk.ended[row] and chunk.seeds_after[row] != IDLE and time is not None and time[row].any():
            yield error(
                f"{where}: observation after the end", expected="time 0: the rest of the chunk is dropped",
                got=f"{time[row, -1]:.4g} s into the next episode", fix="Reset the env, and play nothing until the next step.",
            )  # fmt: skip


def episode_ends(recording: Recording) -> Iterator[Finding]:
    """terminated and truncated exclude each other; truncated is the time limit and nothing else."""
    limit = recording.spec.max_episode_steps
    for number, played in recording.plays.items():
        steps = np.zeros(number, dtype=np.int64)
        for index, chunk in enumerate(played):
            steps += chunk.values["executed"]
            for row in np.flatnonzero(chunk.seeds != IDLE):
                where = f"step {index + 1} with {number} envs, env {row}, seed {chunk.seeds[row]}"
                terminated, truncated = bool(chunk.values["terminated"][row]), bool(chunk.values["truncated"][row])
                if terminated and truncated:
                    yield error(
                        where, expected="terminated or truncated", got="both", fix="An end of the task at the limit is terminated."
                    )  # fmt: skip
                if truncated and steps[row] != limit:
                    yield error(
                        f"{where}: truncated", expected=f"after max_episode_steps={limit} steps", got=f"after {steps[row]}",
                        fix="Use terminated for ends of the task, and count the steps of each env.",
                    )  # fmt: skip
                if steps[row] > limit or (steps[row] == limit and not chunk.ended[row]):
                    yield error(
                        f"{where}: length", expected=f"an end after {limit} steps", got=f"{steps[row]} steps without one",
                        fix="End the episode at the time limit, inside the chunk as well.",
                    )  # fmt: skip
            steps[chunk.ended] = 0


def final_observation(recording: Recording) -> Iterator[Finding]:
    """final_observation is what the last action led to; observation is the next episode's start where one ended."""
    for where, chunk, row in recording.rows():
        executed = int(chunk.values["executed"][row])
        for key, frames in chunk.frames.items():
            if (
                executed
                and key in chunk.final
                and not np.array_equal(chunk.final[key][row, -1], frames[row, executed - 1])
            ):
                yield error(
                    f"{where}: final_observation {key!r}", expected="the frame after the last executed action", got="another one",
                    fix="Keep the observation before the auto-reset; learners bootstrap from it.",
                )  # fmt: skip
                return
        next_seed = int(chunk.seeds_after[row])
        for key, value in chunk.observation.items():
            if not chunk.ended[row] and not np.array_equal(value[row], chunk.final[key][row]):
                yield error(
                    f"{where}: observation {key!r}", expected="equal to final_observation while the episode goes on",
                    got="another one", fix="They differ only where an episode ended.",
                )  # fmt: skip
            if chunk.ended[row] and next_seed in recording.starts:
                start = recording.starts[next_seed].get(key)
                if start is not None and not np.array_equal(value[row], start):
                    yield error(
                        f"{where}: observation {key!r}", expected=f"the first frame of seed {next_seed}, as after reset",
                        got="another one", fix="After an end, observation is that of the next episode, its history too.",
                    )  # fmt: skip


def idle_envs(recording: Recording) -> Iterator[Finding]:
    """An env without an episode executes nothing, earns nothing and ends nothing."""
    for where, chunk in recording.chunks():
        for row in np.flatnonzero(chunk.seeds == IDLE):
            busy = [name for name, value in chunk.values.items() if value[row].any()]
            if busy:
                yield error(
                    f"{where}, idle env {row}", expected="zero and False everywhere", got=f"something in {busy}",
                    fix="Leave out envs whose episode_seeds is -1.",
                )  # fmt: skip
            if chunk.seeds_after[row] != IDLE:
                yield error(
                    f"{where}, idle env {row}", expected="idle until the next reset", got=f"seed {chunk.seeds_after[row]}",
                    fix="The queue is empty: there is no next episode.",
                )  # fmt: skip


def success_flags(recording: Recording) -> Iterator[Finding]:
    """success is success at any executed step of the chunk, success_at_end that at the last one."""
    for where, chunk, row in recording.rows():
        steps = chunk.values["step_success"][row][: int(chunk.values["executed"][row])]
        wanted = {"success": bool(steps.any()), "success_at_end": bool(steps.size and steps[-1])}
        for name, value in wanted.items():
            if bool(chunk.values[name][row]) != value:
                yield error(
                    f"{where}: {name}", expected=f"{value}, from step_success {steps.astype(int).tolist()}", got=str(not value),
                    fix="Derive both flags from step_success.",
                )  # fmt: skip
        if steps.any() and not recording.spec.has_success:
            yield error(
                f"{where}: step_success", expected="False, as spec.has_success is False", got="True", fix="Set has_success."
            )  # fmt: skip


def time_passes(recording: Recording) -> Iterator[Finding]:
    """Time is 0 at the first frame, does not fall inside the history, and counts executed steps over control_hz."""
    hz = recording.spec.control_hz
    elapsed: dict[tuple[int, int], int] = {}
    for where, chunk, row in recording.rows():
        seed, number = int(chunk.seeds[row]), len(chunk.seeds)
        if "time" not in chunk.final:
            yield warning(
                f"{where}: time", expected="seconds since the episode began", got="None", fix="Give the time."
            )
            return
        to, steps = chunk.final["time"][row], elapsed.get((number, seed), 0)
        if steps == 0 and chunk.first["time"][row].any():
            got = str(chunk.first["time"][row].tolist())
            yield error(
                f"{where}: time at the first frame", expected="0", got=got, fix="Count from the episode's start."
            )
        executed = int(chunk.values["executed"][row])
        steps += executed
        elapsed[number, seed] = steps
        if (np.diff(to) < 0).any() or (executed and to[-1] <= chunk.first["time"][row, -1]):
            yield error(
                f"{where}: time of final_observation", expected="later than before, frame by frame", got=str(to.tolist()),
                fix="time = executed steps of this episode / control_hz.",
            )  # fmt: skip
        elif abs(to[-1] - steps / hz) > SECONDS_TOLERANCE * max(1.0, steps / hz):
            yield warning(
                f"{where}: time of final_observation", expected=f"{steps / hz:.6g} s, as {steps} steps at {hz:g} Hz",
                got=f"{to[-1]:.6g} s", fix="Correct spec.control_hz or the clock.",
            )  # fmt: skip


PLAY_CHECKS: dict[str, Callable[[Recording], Iterator[Finding]]] = {
    check.__name__: check
    for check in (
        observation_matches_spec, result_shapes, dropped_rest, episode_ends, final_observation, idle_envs,
        success_flags, time_passes,
    )
}  # fmt: skip
