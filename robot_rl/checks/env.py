"""Conformance suite for VectorEnv: what every stage relies on, checked on an environment of yours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from robot_rl.checks.findings import Check, Finding, error, run_checks, skipped, to_numpy, warning
from robot_rl.checks.play import (
    FEW,
    IDLE,
    MANY,
    PlayedChunk,
    Recording,
    numpy_of,
    play,
    random_chunk,
    same,
)
from robot_rl.checks.play_checks import PLAY_CHECKS
from robot_rl.contracts import VectorEnv
from robot_rl.errors import RobotRlError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk

RETURN_TOLERANCE = 1e-4
_DRIVEN = ("step_before_reset", "contract", "protocol_is_json", "reset_determinism", "copies", "bad_actions")
ENV_CHECKS = (*_DRIVEN, "play", "seed_queue", *PLAY_CHECKS)


class EnvTrial:
    """One environment under test, built with one and with three envs.

    Args:
        make_env: builds it with the given number of envs.
        num_episodes: episodes of a play; never fewer than 4.
        first_seed: their seeds start here.
    """

    def __init__(self, make_env: Callable[[int], VectorEnv], *, num_episodes: int, first_seed: int) -> None:
        self.many, self.few = make_env(MANY), make_env(FEW)
        self.spec = self.many.spec
        self.seeds = list(range(first_seed, first_seed + max(num_episodes, MANY + 1)))
        self.recording = Recording(self.spec, self.seeds)

    def close(self) -> None:
        """Close both."""
        self.few.close()
        self.many.close()

    def play(self) -> Iterator[Finding]:
        """Fill the recording."""
        for seed in self.seeds:
            self.recording.starts[seed] = {key: value[0] for key, value in numpy_of(self.few.reset([seed])).items()}
        self.recording.plays[FEW] = play(self.few, self.seeds)
        self.recording.plays[MANY] = play(self.many, self.seeds)
        yield from ()

    def step_before_reset(self) -> Iterator[Finding]:
        """A chunk before the first reset is refused."""
        seeds = np.zeros(MANY, dtype=np.int64)
        yield from _refused(self.many, random_chunk(self.many, seeds, seeds), what="step before reset")

    def contract(self) -> Iterator[Finding]:
        """Methods and attributes are there, and the spec survives JSON."""
        env: Any = self.many
        spec = self.spec
        if not isinstance(env, VectorEnv):
            missing = [name for name in (*VectorEnv.__annotations__, *vars(VectorEnv)) if not name.startswith("_")]
            missing = [name for name in missing if not hasattr(env, name)]
            yield error(type(env).__name__, expected="all of VectorEnv", got=f"no {missing}", fix="See contracts.py.")
        if env.num_envs != MANY:
            yield error("num_envs", expected=str(MANY), got=str(env.num_envs), fix="Build as many envs as asked for.")
        if EnvSpec.from_json(json.loads(json.dumps(spec.to_json()))) != spec:
            yield error(
                "spec.to_json", expected="an equal spec back from JSON", got="another one",
                fix="Use tuples of int, float and str in the spec, no lists and no numpy numbers.",
            )  # fmt: skip
        for array in (*spec.observation.values(), spec.action):
            sizes = [len(bound) for bound in (array.low, array.high) if bound is not None]
            if any(size != array.size for size in sizes):
                yield error(
                    f"spec {array.name!r}", expected=f"{array.size} lows and highs", got=str(sizes), fix="One per element."
                )  # fmt: skip
        if not (spec.control_hz > 0 and spec.max_episode_steps >= 1):
            got = f"control_hz={spec.control_hz}, max_episode_steps={spec.max_episode_steps}"
            yield error(
                "spec", expected="control_hz above 0, max_episode_steps of at least 1", got=got, fix="Set both."
            )

    def protocol_is_json(self) -> Iterator[Finding]:
        """`protocol()` goes into reports."""
        block = self.many.protocol()
        try:
            json.dumps(block, allow_nan=False)
        except (TypeError, ValueError) as problem:
            yield error(
                "protocol()", expected="JSON types", got=str(problem), fix="Convert enums, paths, arrays and NaN to text."
            )  # fmt: skip
        if "task" not in block:
            yield warning(
                "protocol()", expected="'task'", got=str(sorted(block)), fix="Name the task; reports group by it."
            )

    def reset_determinism(self) -> Iterator[Finding]:
        """The same seeds start, and under the same actions continue, bit for bit; other seeds start elsewhere."""
        env, seeds, zero = self.many, self.seeds[:MANY], np.zeros(MANY, dtype=np.int64)
        runs = []
        for _ in range(2):
            first = numpy_of(env.reset(seeds))
            runs.append((first, numpy_of(env.step(random_chunk(env, np.array(seeds), zero)).final_observation)))
        for index, moment in enumerate(("reset", "the first chunk after reset")):
            for key, value in runs[0][index].items():
                if not same(value, runs[1][index][key]):
                    row = next(row for row in range(MANY) if not same(value[row], runs[1][index][key][row]))
                    yield error(
                        f"{moment}, key {key!r}, seed {seeds[row]}", expected="the same numbers a second time",
                        got=f"a difference of up to {_difference(value[row], runs[1][index][key][row]):.3g}",
                        fix="Take every random number of an episode from its seed, and reset all of the simulator.",
                    )  # fmt: skip
        starts = {b"".join(v[row].tobytes() for k, v in runs[0][0].items() if k != "time") for row in range(MANY)}
        if len(starts) == 1:
            yield warning(
                f"reset({seeds})", expected="different first frames", got="the same one for every seed",
                fix="Use the seed; success rates otherwise say nothing about other starts.",
            )  # fmt: skip

    def seed_queue(self) -> Iterator[Finding]:
        """Each seed is played exactly once, and the same way, with one env and with three."""
        outcomes = {}
        for number, played in self.recording.plays.items():
            ended = [int(seed) for chunk in played for seed in chunk.seeds[chunk.ended]]
            if sorted(ended) != self.seeds:
                yield error(
                    f"reset({self.seeds}) with {number} envs", expected="each of these episodes once, then idle envs",
                    got=f"{ended} ended" + ("" if (played[-1].seeds == IDLE).all() else ", and envs still play"),
                    fix="Give an env that ended the next seed of the queue, and make it idle (-1) when there is none.",
                )  # fmt: skip
            outcomes[number] = _episodes(played)
        for seed in sorted(outcomes[FEW].keys() & outcomes[MANY].keys()):
            one, three = outcomes[FEW][seed], outcomes[MANY][seed]
            if any(not same(value, three[0][key]) for key, value in one[0].items()):
                yield error(
                    f"seed {seed}", expected="the same first frame with 1 and 3 envs", got="different ones",
                    fix="An episode must depend on its seed alone, not on its slot or on episodes before it.",
                )  # fmt: skip
            elif one[1] != three[1] or abs(one[2] - three[2]) > RETURN_TOLERANCE:
                yield warning(
                    f"seed {seed}", expected="the same episode with 1 and 3 envs under the same actions",
                    got=f"{one[1]} steps with return {one[2]:.6g}, and {three[1]} with {three[2]:.6g}",
                    fix="Physics that runs on after reset or shares state between envs; batched GPU physics differs a little.",
                )  # fmt: skip

    def copies(self) -> Iterator[Finding]:
        """What was returned never changes later, and changing it does not change the env."""
        env, zero = self.many, np.zeros(MANY, dtype=np.int64)
        first = env.reset(self.seeds[:MANY])
        kept = {"reset": (first, numpy_of(first))}
        result = env.step(random_chunk(env, to_numpy(env.episode_seeds), zero))
        kept["step, observation"] = (result.observation, numpy_of(result.observation))
        kept["step, final_observation"] = (result.final_observation, numpy_of(result.final_observation))
        frames = {key: to_numpy(value) for key, value in result.frames.items()}
        env.step(random_chunk(env, to_numpy(env.episode_seeds), zero + 1))
        fix = "Return clones; simulators write into the same memory at every step."
        for where, (observation, before) in kept.items():
            for key, value in numpy_of(observation).items():
                if not same(value, before[key]):
                    yield error(
                        f"{where}, key {key!r}", expected="a copy", got="numbers that change at the next step", fix=fix
                    )
        for key, value in frames.items():
            if not same(value, to_numpy(result.frames[key])):
                yield error(f"frames[{key!r}]", expected="a copy", got="numbers that change at the next step", fix=fix)
        seeds = env.episode_seeds
        seeds[:] = 77
        if (to_numpy(env.episode_seeds) == 77).all():
            yield error("episode_seeds", expected="a copy", got="the env's own array", fix="Return a copy.")

    def bad_actions(self) -> Iterator[Finding]:
        """Chunks of a wrong size and actions that are no numbers are refused, and nothing is played."""
        env, size = self.many, self.spec.action.size
        good = random_chunk(env, np.array(self.seeds[:MANY]), np.zeros(MANY, dtype=np.int64))
        nan, infinite = good.actions.clone(), good.actions.clone()
        nan[1, 1, size - 1], infinite[0, 0, 0] = math.nan, math.inf
        chunks = {
            "NaN action": replace(good, actions=nan),
            "infinite action": replace(good, actions=infinite),
            "too few envs": replace(good, actions=good.actions[:-1]),
            "one element too many": replace(good, actions=torch.cat([good.actions, good.actions[..., :1]], dim=-1)),
            "execute=0": replace(good, execute=0),
            "execute beyond the chunk": replace(good, execute=good.actions.shape[1] + 1),
        }
        for what, chunk in chunks.items():
            env.reset(self.seeds[:MANY])
            yield from _refused(env, chunk, what=what)


def _refused(env: VectorEnv, chunk: ActionChunk, *, what: str) -> Iterator[Finding]:
    try:
        env.step(chunk)
    except RobotRlError:
        return
    except Exception as problem:  # refused, but in words that help nobody
        yield warning(
            what, expected="an EnvError that says what was expected", got=f"{type(problem).__name__}: {problem}",
            fix="Check the chunk before you play it, as HistoryEnv does.",
        )  # fmt: skip
    else:
        yield error(what, expected="an EnvError", got="it was played", fix="Check the chunk before you play it.")


def _episodes(played: list[PlayedChunk]) -> dict[int, tuple[dict[str, np.ndarray], int, float]]:
    """Seed -> (first frame by key, steps, sum of rewards)."""
    found: dict[int, tuple[dict[str, np.ndarray], int, float]] = {}
    for chunk in played:
        for row in np.flatnonzero(chunk.seeds != IDLE):
            seed = int(chunk.seeds[row])
            first = {key: value[row] for key, value in chunk.first.items()}
            old, steps, total = found.get(seed, (first, 0, 0.0))
            gained = float(chunk.values["rewards"][row].sum())
            found[seed] = (old, steps + int(chunk.values["executed"][row]), total + gained)
    return found


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())


def check_env(make_env: Callable[[int], VectorEnv], *, num_episodes: int = 5, first_seed: int = 0) -> list[Finding]:
    """Check an environment against the VectorEnv contract.

    Args:
        make_env: builds the environment with the given number of envs, e.g. `lambda n: build(node, num_envs=n,
            history=2)`; two frames of history show more than one.
        num_episodes: episodes to play with one env, and again with three; at least 4 are played.
        first_seed: their seeds start here.

    Returns:
        Findings of the checks `ENV_CHECKS`; none when the environment keeps the contract.
    """
    trial = EnvTrial(make_env, num_episodes=num_episodes, first_seed=first_seed)
    try:
        findings = run_checks({name: getattr(trial, name) for name in (*_DRIVEN, "play")})
        if len(trial.recording.plays) == 2:
            looks: dict[str, Check] = {name: partial(check, trial.recording) for name, check in PLAY_CHECKS.items()}
            return findings + run_checks({"seed_queue": trial.seed_queue, **looks})
        unseen = skipped("", expected="a play to look at", got="one that failed", fix="See the finding of `play`.")
        return findings + [replace(unseen, check=name) for name in ("seed_queue", *PLAY_CHECKS)]
    finally:
        trial.close()
