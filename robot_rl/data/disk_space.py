"""Room on the disk: how much a recording will need, and how long what is free will last while it runs.

A recorder asks `estimate` before it starts and a `DiskWatch` after each episode, which stops before the reserve is
touched: a disk that is full to the last byte takes the rest of the machine down with it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from robot_rl.data import episode_rows as er
from robot_rl.data.committed import RESERVED_DISK_BYTES
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import size_on_disk
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec

# Without a measurement nothing is taken off: camera noise and float mantissas hardly compress.
ASSUMED_COMPRESSION = 1.0
_ENOUGH_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class SpaceEstimate:
    """What a recording needs, and what there is.

    Attributes:
        path: where it is written.
        steps: planned.
        bytes_per_step: of all arrays of a step, not compressed.
        compression: bytes on the disk per byte of data.
        is_measured: whether `compression` comes from episodes of this store, or is assumed.
        journal_bytes: of one episode, which is on the disk twice while it is saved.
        free_bytes, reserve_bytes: on the disk now, and what must stay free.
    """

    path: Path
    steps: int
    bytes_per_step: int
    compression: float
    is_measured: bool
    journal_bytes: int
    free_bytes: int
    reserve_bytes: int

    @property
    def need_bytes(self) -> int:
        """For the planned steps, and the journal of one episode."""
        return round(self.steps * self.bytes_per_step * self.compression) + self.journal_bytes

    @property
    def steps_left(self) -> int:
        """Steps that fit before the reserve is touched."""
        room = self.free_bytes - self.reserve_bytes - self.journal_bytes
        return max(0, int(room / (self.bytes_per_step * self.compression)))

    def text(self) -> str:
        """One sentence for people."""
        how = "measured in this store" if self.is_measured else "assumed"
        return (
            f"{self.path}: {self.steps} steps of {self.bytes_per_step} bytes need about {self.need_bytes} bytes "
            f"(compression {self.compression:.2f}, {how}); {self.free_bytes} are free, {self.reserve_bytes} stay in reserve"
        )

    def require(self) -> None:
        """Refuse a plan that does not fit.

        Raises:
            DataError: naming path and bytes.
        """
        if self.steps_left < self.steps:
            raise DataError(
                f"{self.path}",
                expected=f"{self.need_bytes + self.reserve_bytes} bytes free for {self.steps} steps "
                f"({self.bytes_per_step} bytes a step, compression {self.compression:.2f} "
                f"{'measured' if self.is_measured else 'assumed'}, {self.reserve_bytes} in reserve)",
                got=f"{self.free_bytes} bytes, enough for {self.steps_left} steps",
                hint="Free some disk space, plan fewer episodes, or record to another disk. Nothing was written.",
            )


def bytes_per_step(spec: EnvSpec) -> int:
    """Bytes of all arrays of one step, not compressed."""
    return sum(array.row_bytes for name, array in er.array_layout(spec, Path()).items() if name.startswith("data/"))


def measured_compression(store: EpisodeStore) -> float | None:
    """Bytes on the disk per byte of data in a store; None when it holds too little to tell."""
    plain = int(store.lengths.sum()) * bytes_per_step(store.spec)
    # Below this, chunks that are not full and whole disk blocks would be all that is measured.
    return size_on_disk(store.path / "data") / plain if plain >= _ENOUGH_BYTES else None


def estimate(
    path: Path,
    spec: EnvSpec,
    *,
    steps: int,
    store: EpisodeStore | None = None,
    reserve_bytes: int = RESERVED_DISK_BYTES,
) -> SpaceEstimate:
    """What a recording of so many steps to `path` will need.

    Args:
        path: of the store, there or not.
        spec: of what is recorded.
        steps: planned: rate in Hz times planned seconds, or episodes times their time limit.
        store: with episodes of the same kind, to measure the compression; None assumes ASSUMED_COMPRESSION.
        reserve_bytes: that must stay free.
    """
    measured = None if store is None else measured_compression(store)
    size = bytes_per_step(spec)
    return SpaceEstimate(
        path=path,
        steps=steps,
        bytes_per_step=size,
        compression=ASSUMED_COMPRESSION if measured is None else measured,
        is_measured=measured is not None,
        journal_bytes=size * min(steps, spec.max_episode_steps),
        free_bytes=shutil.disk_usage(nearest_folder(path)).free,
        reserve_bytes=reserve_bytes,
    )


class DiskWatch:
    """Looks at the free space while a store is recorded.

    watch = DiskWatch(store)
    watch.require_episode()      # before each one
    store.append(episode)
    watch.left().text()
    """

    def __init__(self, store: EpisodeStore, *, reserve_bytes: int = RESERVED_DISK_BYTES) -> None:
        """Watch the disk of a store that is open for append."""
        self._store, self.reserve_bytes = store, reserve_bytes

    def left(self) -> Left:
        """What still fits, by the compression so far and the mean length of the episodes so far."""
        spec, lengths = self._store.spec, self._store.lengths
        steps = float(lengths.mean()) if len(lengths) else float(spec.max_episode_steps)
        now = estimate(self._store.path, spec, steps=0, store=self._store, reserve_bytes=self.reserve_bytes)
        # Saving an episode puts it on the disk twice for a moment.
        room = now.free_bytes - now.reserve_bytes - now.bytes_per_step * spec.max_episode_steps
        fitting = max(0.0, room / (now.bytes_per_step * now.compression))
        return Left(now.free_bytes, fitting / spec.control_hz, int(fitting / steps))

    def require_episode(self) -> None:
        """Refuse to begin an episode that may not fit: nobody should act one for nothing.

        Raises:
            DataError: naming path and bytes, when an episode of the longest allowed length might touch the reserve.
        """
        spec = self._store.spec
        need = 2 * bytes_per_step(spec) * spec.max_episode_steps
        free = shutil.disk_usage(self._store.path).free
        if free < need + self.reserve_bytes:
            raise DataError(
                f"{self._store.path}",
                expected=f"{need + self.reserve_bytes} bytes free ({need} to save an episode of {spec.max_episode_steps} "
                f"steps, {self.reserve_bytes} in reserve)",
                got=f"{free} bytes",
                hint=f"Free some disk space. The {len(self._store)} episodes so far are safe.",
            )


@dataclass(frozen=True)
class Left:
    """How long the disk will last.

    Attributes:
        free_bytes: on the disk.
        seconds: of recording until the reserve is touched.
        episodes: of the mean length so far.
    """

    free_bytes: int
    seconds: float
    episodes: int

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.free_bytes} bytes free: room for {self.episodes} episodes or {self.seconds:.0f} s"


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return path if path.exists() else nearest_folder(path.parent)
