"""What a policy that starts warm (RTI) keeps from one decision to the next; numpy, no torch.

policies/warm_started.py (torch) and rti_policy.py (two exported files) both decide by it, so they start warm in the same decisions.
Nothing is changed in place: a shallow copy of a policy goes on by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.errors import PolicyError


@dataclass
class WarmCounts:
    """Decisions so far, one for each env of each call. Shared by shallow copies of a policy, on purpose: it counts them all.

    Attributes:
        warm: started from the last chunk.
        first: denoised in full, for there was no chunk (first call, after a reset, or the robot held).
        jump: denoised in full, for the observation jumped or the last chunk was not finite.
        full: denoised in full, for rti.level is the noisiest level.
    """

    warm: int = 0
    first: int = 0
    jump: int = 0
    full: int = 0

    def add(self, known: Bool[Array, " N"], is_warm: Bool[Array, " N"], *, is_full: bool = False) -> None:
        """Count one decision of N envs; see WarmMemory.rows, and whether the level is the noisiest."""
        warm, first = int(is_warm.sum()), int((~known).sum())
        rest = len(known) - warm - first
        self.warm, self.first = self.warm + warm, self.first + first
        self.jump, self.full = (self.jump, self.full + rest) if is_full else (self.jump + rest, self.full)

    def to_json(self) -> dict[str, int]:
        """Plain dict of JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class WarmMemory:
    """After a decision of N envs; without arguments of none yet.

    Attributes:
        guess: what the next decision starts from, physical actions (N, past + Tp, A).
        frame: newest frame of the watched numbers (N, D), normalised.
        known: who has a guess (N,).
    """

    guess: Float32[Array, "N G A"] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    frame: Float32[Array, "N D"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    known: Bool[Array, " N"] = field(default_factory=lambda: np.zeros(0, bool))

    @classmethod
    def after(
        cls, actions: Float32[Array, "N Tp A"], frame: Float32[Array, "N D"], *, executed: int, past: int
    ) -> WarmMemory:
        """Of a decision whose actions were chosen at `frame` and of which `executed` will be played; past: see shift_chunk."""
        return cls(shift_chunk(actions, executed, past=past), frame, np.ones(len(frame), bool))

    @property
    def is_empty(self) -> bool:
        """Whether there was no decision, or all envs began anew since."""
        return not len(self.known)

    def without(self, begins: Bool[Array, " N"]) -> WarmMemory:
        """Where some envs begin anew.

        Raises:
            PolicyError: another number of envs than before, and not all of them begin anew.
        """
        if bool(begins.all()):
            return WarmMemory()
        if self.is_empty:
            return self
        self._check_rows(len(begins))
        return replace(self, known=self.known & ~begins)

    def told(self, rest: Float32[Array, "Tp A"] | None, *, past: int) -> WarmMemory:
        """Where the one env goes on from `rest`, whatever it chose last; None: from nothing. past: see shift_chunk.

        Raises:
            PolicyError: there are several envs.
        """
        if self.is_empty:
            return self  # without a frame to compare with, the decision is denoised in full anyway
        self._check_rows(1)
        guess = self.guess if rest is None else shift_chunk(np.asarray(rest, np.float32)[None], 0, past=past)
        return replace(self, guess=guess, known=np.full(1, rest is not None))

    def rows(self, frame: Float32[Array, "N D"], *, max_jump: float) -> tuple[Bool[Array, " N"], Bool[Array, " N"]]:
        """Envs with a guess, and those of them that may start from it: finite, and no element of `frame` jumped.

        Raises:
            PolicyError: another number of envs than before.
        """
        if self.is_empty:
            nobody = np.zeros(len(frame), bool)
            return nobody, nobody
        self._check_rows(len(frame))
        with np.errstate(invalid="ignore"):
            change = np.abs(frame - self.frame).max(axis=-1)
            # A comparison with NaN is False: what can't be compared is a jump.
            is_near = change <= np.float32(max_jump)
        return self.known, self.known & is_near & np.isfinite(self.guess).all(axis=(1, 2))

    def _check_rows(self, number: int) -> None:
        if number != len(self.known):
            raise PolicyError(
                "rti", expected=f"{len(self.known)} envs, as at the last decision", got=str(number),
                hint="Call reset with a mask of all True before the number of envs changes.",
            )  # fmt: skip


def shift_chunk(chunk: Float32[Array, "N Tp A"], executed: int, *, past: int = 0) -> Float32[Array, "N G A"]:
    """The rest of a chunk of which `executed` actions were played, its last action repeated.

    Args:
        chunk: the chunk.
        executed: how many of its actions were played.
        past: actions before the rest that stand in front of it, the oldest that is known repeated (of a policy that
            denoises actions of the past too).

    Returns:
        past + Tp actions; a copy.

    Raises:
        PolicyError: executed is not in 0..Tp.
    """
    horizon = chunk.shape[1]
    if not 0 <= executed <= horizon:
        raise PolicyError(
            "shift of a chunk", expected=f"0 to {horizon} executed actions", got=str(executed),
            hint="Count the actions since this chunk was chosen.",
        )  # fmt: skip
    return chunk[:, np.clip(np.arange(executed - past, executed + horizon), 0, horizon - 1)]
