"""What a scripted expert remembers of the episodes it plays: their flaws, the slips still to come, the noise."""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.errors import EnvError
from robot_rl.specs import EnvSpec

from .expert_flaws import EpisodeFlaws, ExpertConfig, Slips, noise_stream


class ExpertMemory:
    """Flaws, slips and noise of the episodes of N envs; N may change between two calls of `begin`.

    Args:
        config: of the flaws.

    Attributes:
        flaws: of the episodes that are played now.
        slips: their early closings and drops.
    """

    def __init__(self, config: ExpertConfig) -> None:
        self._config = config
        self._forget(0)

    def begin(self, seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]) -> None:
        """Draw the flaws of every episode that begins.

        Args:
            seeds: int64 (N,), -1 for an idle env.
            new_episode: bool (N,), True at the first decision of an episode.

        Raises:
            EnvError: when an episode goes on that never began.
        """
        if len(self._episodes) != len(seeds):
            self._forget(len(seeds))
        for row in np.flatnonzero(new_episode & (seeds >= 0)).tolist():
            self._episodes[row] = seeds[row]
            self.flaws.draw(row, self._config, int(seeds[row]))
            self._noise[row] = noise_stream(self._config, int(seeds[row]))
            self.slips.begin(row)
        require_known(seeds, self._episodes, who="scripted expert")

    def noise(self) -> Float64[Array, "N 3"]:
        """The next noise of the three position actions, in action units."""
        if self._config.action_noise == 0.0:
            return np.zeros((len(self._noise), 3))
        return self._config.action_noise * np.stack([rng.standard_normal(3) for rng in self._noise])

    def _forget(self, num_envs: int) -> None:
        """Empty memory for N envs."""
        self._episodes = np.full(num_envs, -1, dtype=np.int64)
        self.flaws = EpisodeFlaws.none(num_envs)
        self.slips = Slips(self.flaws)
        self._noise = [noise_stream(self._config, 0) for _ in range(num_envs)]


def require_known(seeds: Int64[Array, " N"], known: Int64[Array, " N"], *, who: str) -> None:
    """Refuse an episode that goes on and never began.

    Args:
        seeds: of the episodes that are played, -1 for an idle env.
        known: of those whose beginning was seen.
        who: the expert, for the error.

    Raises:
        EnvError: naming the env.
    """
    strange = np.flatnonzero((seeds >= 0) & (seeds != known))
    if strange.size:
        row = int(strange[0])
        raise EnvError(
            f"{who}, env {row}",
            expected="new_episode at the first decision of an episode",
            got=f"episode {seeds[row]} without it (last known episode: {known[row]})",
            hint="Set new_episode wherever an episode begins, and for all envs when their number changes.",
        )


def require_task(spec: EnvSpec, *, env_id: str, control_mode: str, state_size: int, name: str) -> None:
    """Refuse an environment that an expert does not know.

    Args:
        spec: of the environment.
        env_id, control_mode, state_size: what the expert is for.
        name: of its group choice of `env`.

    Raises:
        EnvError: for another task, control mode or observation.
    """
    mode = spec.action_semantics.control_mode
    shape = spec.observation["state"].shape if "state" in spec.observation else None
    if spec.env_id != env_id or mode != control_mode or shape != (state_size,):
        raise EnvError(
            f"{name.replace('_', ' ')} expert for {spec.env_id}",
            expected=f"{env_id} with {control_mode} and a state of {state_size} numbers",
            got=f"{spec.env_id} with {mode} and state {shape}",
            hint=f"Use env={name} with its own obs_mode and control_mode.",
        )
