"""Before a stage trains: the checks of `robot-rl data check` whose findings are errors. Training may not start on those.

All numbers of all episodes are looked at, and the cameras of a few. What only warns is for `robot-rl data check`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from robot_rl.data.episode_stream import stored_episodes
from robot_rl.data.quality import IMAGE, Finding, Severity, collapsed, finding_text, known_checks
from robot_rl.data.quality_audit import Audit
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.types import Episode

# Episodes whose cameras are looked at: unpacking all frames may take as long as an epoch.
CAMERA_EPISODES = 8
_NO_SUCCESS = "no_success"
_log = logging.getLogger(__name__)


def require_trainable(
    stores: Sequence[str], *, episodes: Sequence[int] | None = None, ignore: Sequence[str] = ()
) -> dict[str, Any]:
    """Refuse datasets in which a check finds an error.

    Args:
        stores: datasets that are trained on together. Success is needed in one of them.
        episodes: which are trained on, in a single store; None: all.
        ignore: checks (data/quality.py, CHECKS) whose errors are logged and not refused.

    Returns:
        For provenance, JSON types: `ignored_checks`, `ignored` (store -> findings), `camera_episodes` looked at a store,
        `seconds`.

    Raises:
        ConfigError: `ignore` names no check.
        DataError: with every finding, its place and its fix.
    """
    began, ignored = time.monotonic(), known_checks(ignore, where="ignore_checks")
    found = {path: _errors(path, episodes) for path in stores}
    if any(all(one.check != _NO_SUCCESS for one in errors) for errors in found.values()):
        found = {path: [one for one in errors if one.check != _NO_SUCCESS] for path, errors in found.items()}
    left = {path: [one for one in errors if one.check in ignored] for path, errors in found.items()}
    for path, errors in left.items():
        for one in errors:
            _log.warning("%s: ignored because of ignore_checks: %s", path, finding_text(one, path))
    refused = [(path, one) for path, errors in found.items() for one in errors if one.check not in ignored]
    if refused:
        names = ",".join(dict.fromkeys(one.check for _path, one in refused))
        raise DataError(
            ", ".join(dict.fromkeys(path for path, _one in refused)),
            expected="data that a policy may learn from",
            got=f"{len(refused)} kinds of errors:\n"
            + "\n".join(finding_text(one, path) for path, one in refused)
            + "\n",
            hint=f"`robot-rl data check` shows them all. If they are meant: ignore_checks=[{names}].",
        )
    seconds = time.monotonic() - began
    _log.info("%s: checked in %.1f s, training may start", ", ".join(stores), seconds)
    return {
        "ignored_checks": sorted(ignored),
        "ignored": {path: [one.to_json() for one in errors] for path, errors in left.items() if errors},
        "camera_episodes": CAMERA_EPISODES,
        "seconds": round(seconds, 3),
    }


def _errors(path: str, episodes: Sequence[int] | None) -> list[Finding]:
    with EpisodeStore.open(path, mode="r") as store:
        numbers = [key for key in store.spec.observation if not key.startswith(IMAGE)]
        audit = Audit(store.spec, compared=numbers)
        chosen = range(len(store)) if episodes is None else episodes
        for number, episode in _with_few_cameras(store, chosen, numbers):
            if isinstance(episode, DataError):
                audit.damaged(number, episode)
            else:
                audit.add(number, episode)
    return collapsed([one for one in audit.result().findings if one.severity is Severity.error])


def _with_few_cameras(
    store: EpisodeStore, chosen: Sequence[int], keys: Sequence[str]
) -> Iterator[tuple[int, Episode | DataError]]:
    """The chosen episodes in order with `keys`; a few of them, from first to last, with cameras too."""
    order, with_cameras = sorted({int(number) for number in chosen}), set[int]()
    if order and len(keys) < len(store.spec.observation):
        places = np.linspace(0, len(order) - 1, min(CAMERA_EPISODES, len(order))).round().astype(int)
        with_cameras = {order[place] for place in places}
    wanted = set(order)
    for number, episode in stored_episodes(store, observation=keys):
        if number in with_cameras:
            yield from stored_episodes(store, [number])
        elif number in wanted:
            yield number, episode
