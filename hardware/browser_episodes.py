"""Saved episodes for the page: read from an EpisodeStore in the server's process, so that no control loop waits for it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from robot_rl.data.element_names import names_of
from robot_rl.data.quality import collapsed, worst_first
from robot_rl.data.quality_audit import Audit
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError, RobotRlError
from robot_rl.teleop.panel import EpisodePages
from robot_rl.types import Episode, Source

MOST_FRAMES = 50  # of one answer
MOST_CHECKED = 200
IMAGE = "image/"


def episode_pages(path: str) -> EpisodePages:
    """What the page shows of the store at `path`; opened at each first use, as it may not be there yet.

    Raises:
        DataError: from each of the three, when there is no such store or episode, or it is damaged.
    """
    reader = _Reader(path)
    return EpisodePages(thumbnail=reader.thumbnail, frames=reader.frames, health=reader.health)


class _Reader:
    """One request at a time; the last episode stays in memory."""

    def __init__(self, path: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._kept: tuple[tuple[Any, ...], Episode] | None = None
        self._health: tuple[str, list[dict[str, Any]]] | None = None

    def thumbnail(self, number: int) -> np.ndarray | None:
        """Its last picture, of the first camera."""
        with self._lock, EpisodeStore.open(self._path) as store:
            self._require(store, number)
            cameras = _cameras(store)
            if not cameras:
                return None
            (episode,) = store.episodes(number, number + 1, observation=cameras[:1])
            return np.asarray(episode.observation[cameras[0]][-1])

    def frames(self, number: int, first: int, count: int) -> dict[str, Any]:
        """See EpisodePages.frames; at most MOST_FRAMES steps."""
        with self._lock, EpisodeStore.open(self._path) as store:
            self._require(store, number)
            episode, spec = self._episode(store, number), store.spec
            steps = slice(first, first + min(count, MOST_FRAMES))
            return {
                "steps": len(episode),
                "first": first,
                "times": episode.time[steps] - episode.time[0],
                "names": {"proprio": names_of(spec.observation["proprio"]), "action": names_of(spec.action)},
                "proprio": np.asarray(episode.observation["proprio"])[steps],
                "action": np.asarray(episode.action)[steps],
                "source": [Source(int(code)).name for code in episode.source[steps]],
                "success": episode.success[steps],
                "pictures": {
                    key.removeprefix(IMAGE): np.asarray(episode.observation[key])[steps] for key in _cameras(store)
                },
            }

    def health(self) -> list[dict[str, Any]]:
        """Findings, worst first, about the newest MOST_CHECKED episodes; kept until one is saved or changed."""
        with self._lock, EpisodeStore.open(self._path) as store:
            known = store.content_hash()
            if self._health is None or self._health[0] != known:
                self._health = (known, _findings(store))
            return self._health[1]

    def _episode(self, store: EpisodeStore, number: int) -> Episode:
        # A label may have been changed since.
        key = (number, store.uuids[number].tobytes(), *store.checksums(number).values())
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, store.episode(number))
        return self._kept[1]

    def _require(self, store: EpisodeStore, number: int) -> None:
        if not 0 <= number < len(store):
            raise DataError(
                f"{self._path}, episode {number}",
                expected=f"0 to {len(store) - 1}",
                got=str(number),
                hint="Reload the page.",
            )


def _cameras(store: EpisodeStore) -> list[str]:
    """Keys of pictures that a screen can show."""
    return [
        key for key, array in store.spec.observation.items()
        if key.startswith(IMAGE) and array.dtype == "uint8" and len(array.shape) == 3 and array.shape[-1] == 3
    ]  # fmt: skip


def _findings(store: EpisodeStore) -> list[dict[str, Any]]:
    audit, first = Audit(store.spec), max(0, len(store) - MOST_CHECKED)
    for number in range(first, len(store)):
        try:
            audit.add(number, store.episode(number))
        except RobotRlError as error:
            audit.damaged(number, error)
    if first == len(store):
        return []
    rows = [
        {
            "severity": finding.severity.value, "check": finding.check, "where": str(finding.place), "got": finding.got,
            "fix": finding.fix.replace("STORE", str(store.path)), "count": finding.count,
        }
        for finding in worst_first(collapsed(audit.result().findings))
    ]  # fmt: skip
    if first:
        got = f"only the newest {MOST_CHECKED} episodes were looked at"
        fix = f"robot-rl data check {store.path}"
        rows.append({"severity": "note", "check": "page", "where": "dataset", "got": got, "fix": fix, "count": 1})
    return rows
