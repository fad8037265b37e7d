"""A planner that solves PushT without people: cross-entropy search over pushes in its own copy of the simulator.

A plan is: drive around the block to a point beside it, then push along a straight line. A push has three numbers:
where on the block's outline, at which angle to its normal, how far. Pushes are drawn at random, simulated, and redrawn
around the best ones (cross-entropy method with one small Gaussian an elite, since good pushes lie on many sides; de
Boer et al. 2005, "A Tutorial on the Cross-Entropy Method"). The best few are simulated with their way to the block;
the one that shrinks the distance to the goal fastest in time is played, and the next is planned from what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.errors import ConfigError, EnvError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

from .pusht import ENV_ID, STATE_SIZE
from .pusht_routes import free_of_block, route
from .pusht_sim import AGENT_RADIUS_PX, OUTLINE, SIZE_PX, PushSim, coverage, distance_to_goal, pose_of, to_world

_GAP_PX = 8.0
_DRIVE_PX = 28.0
_HOLD_STEPS = 2
_SUCCESS = 0.955
_DRIFT_PX = 1.0


@dataclass(frozen=True)
class PlannerConfig:
    """Budget and pace of the planner.

    Attributes:
        samples: pushes drawn at random for a decision.
        refined: pushes drawn around the elites, in each further round.
        rounds: rounds of refinement.
        elites: pushes that are kept in a round.
        finalists: pushes simulated with their way to the block.
        push_px: speed of a push, px per control step.
        longest_push_px: longest push.
        settle_steps: added to the length of every plan when plans are compared; a larger number makes longer pushes.
        seed: of the draws (with the seed of the episode).
    """

    samples: int = 96
    refined: int = 48
    rounds: int = 2
    elites: int = 8
    finalists: int = 6
    push_px: float = 18.0
    longest_push_px: float = 120.0
    settle_steps: float = 6.0
    seed: int = 0


@dataclass(frozen=True)
class _Plan:
    targets: Float64[Array, "M 2"]
    score: float


class _Episode:
    """Planner of one env: a copy of the simulator that plays every action too, and the rest of the present plan."""

    def __init__(self, config: PlannerConfig, seed: int) -> None:
        self._config = config
        self._rng = np.random.default_rng([config.seed, seed])
        self._trial, self._mirror = PushSim(), PushSim()
        self._queue: list[np.ndarray] = []
        self._begun = False

    def next_target(self, agent: Float64[Array, " 2"], block: Float64[Array, " 3"]) -> Float64[Array, " 2"]:
        """The target for the next control step, px."""
        self._follow(agent, block)
        if not self._queue:
            self._queue = list(self._plan())
        target = self._queue.pop(0).astype(np.float32).astype(np.float64)
        self._mirror.step(target)
        return target

    def _follow(self, agent: Float64[Array, " 2"], block: Float64[Array, " 3"]) -> None:
        """Keep the copy as it is where it agrees with what is seen (it knows the velocity), else set it anew."""
        seen, known = np.append(agent, block[:2]), np.append(self._mirror.agent[:2], self._mirror.block[:2])
        if self._begun and np.abs(seen - known).max() < _DRIFT_PX:
            return
        self._mirror.set(np.append(agent, np.zeros(2)), block)
        self._queue, self._begun = [], True

    def _plan(self) -> Float64[Array, "M 2"]:
        config, agent, block = self._config, self._mirror.agent, self._mirror.block
        before = distance_to_goal(block)
        pushes = self._random_pushes(before, config.samples)
        scores = np.array([self._try(push, block, before) for push in pushes])
        for _ in range(config.rounds):
            best = np.argsort(scores)[: config.elites]
            pushes, scores = pushes[best], scores[best]
            drawn = self._pushes_near(pushes, config.refined)
            pushes = np.concatenate([pushes, drawn])
            scores = np.append(scores, [self._try(push, block, before) for push in drawn])
        order = np.argsort(scores)[: config.finalists]
        plans = [self._with_route(push, agent, block, before) for push in pushes[order]]
        return min(plans, key=lambda plan: plan.score).targets

    def _random_pushes(self, distance: float, count: int) -> Float64[Array, "M 3"]:
        longest = min(self._config.longest_push_px, 2.0 * distance + 6.0)
        low, high = (0.0, -0.6, 1.0), (float(_STARTS[-1]), 0.6, longest)
        return self._rng.uniform(low, high, size=(count, 3))

    def _pushes_near(self, elites: Float64[Array, "E 3"], count: int) -> Float64[Array, "M 3"]:
        chosen = elites[self._rng.integers(len(elites), size=count)]
        noise = self._rng.standard_normal((count, 3))
        drawn: np.ndarray = chosen + noise * np.array([5.0, 0.12, 0.0])
        drawn[:, 0] %= _STARTS[-1]
        drawn[:, 2] = np.clip(chosen[:, 2] * np.exp(0.25 * noise[:, 2]), 0.5, self._config.longest_push_px)
        return drawn

    def _try(self, push: Float64[Array, " 3"], block: Float64[Array, " 3"], before: float) -> float:
        """Score of a push without the way to it: the pusher is put beside the block."""
        start, targets = _path_of(push, block, self._config.push_px)
        if not free_of_block(start, block):
            return np.inf
        return self._run(np.append(start, np.zeros(2)), block, targets, before, extra=4.0).score

    def _with_route(
        self, push: Float64[Array, " 3"], agent: Float64[Array, " 4"], block: Float64[Array, " 3"], before: float
    ) -> _Plan:
        start, targets = _path_of(push, block, self._config.push_px)
        way = route(agent[:2], start, block, step_px=_DRIVE_PX)
        whole = np.concatenate([way, np.repeat(start[None], _HOLD_STEPS, axis=0), targets])
        return self._run(agent, block, whole, before, extra=0.0)

    def _run(
        self,
        agent: Float64[Array, " 4"],
        block: Float64[Array, " 3"],
        targets: Float64[Array, "M 2"],
        before: float,
        *,
        extra: float,
    ) -> _Plan:
        """Simulate targets; the score is the rate at which the logarithm of the distance grows (lower is better)."""
        self._trial.set(agent, block)
        played = len(targets)
        solved = False
        for index, target in enumerate(targets):
            self._trial.step(target)
            after = self._trial.block
            if distance_to_goal(after) < 8.0 and coverage(after) > _SUCCESS:
                played, solved = index + 1, True
                break
        steps = played + extra + self._config.settle_steps
        if solved:
            return _Plan(targets[:played], -10.0 / steps)
        return _Plan(targets, float(np.log(max(distance_to_goal(self._trial.block), 0.5) / before)) / steps)


class PushTPlanner:
    """Expert of `robot-rl collect`; one planner an env, each with its own copy of the simulator.

    An episode's actions depend on its seed and `config.seed` alone, whatever the number of envs.

    Args:
        config: budget and pace.
        spec: of the environment; must be PushT's (envs/pusht.py), which has the corners of the block in "state".

    Raises:
        EnvError: for another environment.
        ConfigError: for a budget below 1 or a speed or length that is not positive.
    """

    def __init__(self, config: PlannerConfig, spec: EnvSpec) -> None:
        _check(config)
        if spec.env_id != ENV_ID or spec.observation["state"].shape != (STATE_SIZE,):
            raise EnvError(
                f"PushT planner for {spec.env_id}",
                expected=f"{ENV_ID} with a state of {STATE_SIZE} numbers",
                got=f"{spec.env_id} with {sorted(spec.observation)}",
                hint="Use env=pusht (robot_rl.envs.pusht.make_env).",
            )
        self.config = config
        self._episodes: dict[int, tuple[int, _Episode]] = {}

    def act(
        self,
        observation: Observation,
        *,
        episode_seeds: Int64[Array, " N"],
        new_episode: Bool[Array, " N"],
    ) -> ActionChunk:
        """Choose the next action of N envs from the newest frame of `observation.state`.

        Args:
            observation: state float32 (N, To, 18): pusher and corners of the block, px.
            episode_seeds: int64 (N,), -1 for an idle env (its action means nothing).
            new_episode: bool (N,), True where this is the first decision of an episode.

        Returns:
            A chunk of one action, float32 (N, 1, 2): target of the pusher, px.

        Raises:
            EnvError: when an episode goes on that never began.
        """
        state = torch.as_tensor(observation.state).cpu().numpy()[:, -1].astype(np.float64)
        seeds = torch.as_tensor(episode_seeds).cpu().numpy()
        fresh = torch.as_tensor(new_episode).cpu().numpy()
        actions = np.zeros((len(seeds), 1, 2), dtype=np.float32)
        for row in np.flatnonzero(seeds >= 0).tolist():
            seed = int(seeds[row])
            if fresh[row]:
                self._episodes[row] = (seed, _Episode(self.config, seed))
            known, episode = self._episodes.get(row, (-1, None))
            if episode is None or known != seed:
                raise EnvError(
                    f"PushT planner, env {row}",
                    expected="new_episode at the first decision of an episode",
                    got=f"episode {seed} without it (last known episode: {known})",
                    hint="Set new_episode wherever an episode begins.",
                )
            actions[row, 0] = episode.next_target(state[row, :2], pose_of(state[row, 2:].reshape(8, 2)))
        return ActionChunk(torch.from_numpy(actions), execute=1)


def _check(config: PlannerConfig) -> None:
    for name in ("samples", "refined", "elites", "finalists", "push_px", "longest_push_px"):
        value = getattr(config, name)
        if value < 1:
            hint = "Correct the configuration of the expert."
            raise ConfigError(f"expert.{name}", expected="1 or more", got=str(value), hint=hint)
    if config.rounds < 0 or config.settle_steps < 0:
        got = f"{config.rounds} and {config.settle_steps}"
        hint = "Correct the configuration of the expert."
        raise ConfigError("expert.rounds, settle_steps", expected="0 or more", got=got, hint=hint)


_EDGES = np.roll(OUTLINE, -1, axis=0) - OUTLINE
_STARTS = np.concatenate([[0.0], np.cumsum(np.linalg.norm(_EDGES, axis=1))])


def _path_of(
    push: Float64[Array, " 3"], block: Float64[Array, " 3"], push_px: float
) -> tuple[Float64[Array, " 2"], Float64[Array, "M 2"]]:
    """Where the pusher stands before a push, and its targets then (the last is held), world px."""
    edge = min(int(np.searchsorted(_STARTS, push[0], side="right")) - 1, len(_EDGES) - 1)
    along = _EDGES[edge] / np.linalg.norm(_EDGES[edge])
    outward = np.array([along[1], -along[0]])
    contact = OUTLINE[edge] + (push[0] - _STARTS[edge]) * along
    cos, sin = np.cos(push[1]), np.sin(push[1])
    heading = -np.array([cos * outward[0] - sin * outward[1], sin * outward[0] + cos * outward[1]])
    start = to_world((contact + outward * AGENT_RADIUS_PX - heading * _GAP_PX)[None], block)[0]
    length = _GAP_PX + push[2]
    turned = to_world(heading[None], np.array([0.0, 0.0, block[2]]))[0]
    reach = np.minimum(np.arange(1, int(np.ceil(length / push_px)) + 1) * push_px, length)
    reach = np.append(reach, np.repeat(length, _HOLD_STEPS + 1))
    return start, np.clip(start + reach[:, None] * turned, AGENT_RADIUS_PX, SIZE_PX - AGENT_RADIUS_PX)
