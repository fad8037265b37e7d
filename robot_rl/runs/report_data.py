"""What a report shows of a dataset: counts, hash, projected trajectories and film strips of a few episodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_rl.arrays import Array, Float32, UInt8
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import RobotRlError
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Episode

MAX_EPISODES = 40
STRIP_FRAMES = 8
STRIP_PIXELS = 128
MAX_CAMERAS = 3


@dataclass(frozen=True)
class Projection:
    """Two quantities of some episodes, one drawn over the other.

    Attributes:
        title: what it shows.
        x_label, y_label: with units.
        lines: one (T, 2) array an episode.
        success: of each episode.
        is_plane: both axes have the same unit, so they get the same scale.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Float32[Array, "_ 2"], ...]
    success: tuple[bool, ...]
    is_plane: bool


@dataclass(frozen=True)
class FilmStrip:
    """Frames of one camera in one episode.

    Attributes:
        camera: observation key.
        episode, seed: which.
        success: of the episode.
        steps: env step of each frame.
        image: the frames side by side, (H, W, 3).
    """

    camera: str
    episode: int
    seed: int
    success: bool
    steps: tuple[int, ...]
    image: UInt8[Array, "H W 3"]


@dataclass(frozen=True)
class DatasetFacts:
    """What a report shows of an EpisodeStore.

    Attributes:
        path: of the store.
        env_id: task it was recorded in.
        episodes, successes, steps: counts.
        content_hash: of everything in it.
        shown: how many episodes are drawn.
        projections, strips: the pictures.
    """

    path: Path
    env_id: str
    episodes: int
    successes: int
    steps: int
    content_hash: str
    shown: int
    projections: tuple[Projection, ...]
    strips: tuple[FilmStrip, ...]


def read_dataset(path: Path) -> DatasetFacts:
    """Read the counts of a store, and some of its episodes for pictures.

    Raises:
        DataError: when the store is damaged.
    """
    with EpisodeStore.open(path, mode="r") as store:
        shown = pick_episodes(np.asarray(store.success), MAX_EPISODES)
        episodes = {index: store.episode(index) for index in shown}
        firsts = [next((i for i in shown if bool(store.success[i]) is wanted), None) for wanted in (True, False)]
        return DatasetFacts(
            path=path,
            env_id=store.spec.env_id,
            episodes=len(store),
            successes=int(store.success.sum()),
            steps=int(store.lengths.sum()),
            content_hash=store.content_hash(),
            shown=len(shown),
            projections=tuple(projections(list(episodes.values()), store.spec)) if episodes else (),
            strips=tuple(s for i in firsts if i is not None for s in film_strips(episodes[i], store.spec, index=i)),
        )


def try_dataset(path: Path | None) -> tuple[DatasetFacts | None, str]:
    """`read_dataset`, or None and why not."""
    if path is None:
        return None, "No dataset was found where the configuration says, so there are no trajectories."
    try:
        return read_dataset(path), ""
    except RobotRlError as error:
        return None, f"The dataset {path} can't be read: {error}"


def pick_episodes(success: np.ndarray, most: int) -> list[int]:
    """Up to `most` indices in order, evenly spread; failures get up to half of the places, for they tell more.

    Args:
        success: bool (E,).
        most: how many at most.
    """
    failed, won = np.flatnonzero(~success), np.flatnonzero(success)
    num_failed = min(len(failed), max(most // 2, most - len(won)))
    num_won = min(len(won), most - num_failed)
    picked = [part[np.linspace(0, len(part) - 1, count).round().astype(int)] if count else part[:0]
              for part, count in ((failed, num_failed), (won, num_won))]  # fmt: skip
    return sorted(int(i) for i in np.concatenate(picked))


def plane(spec: EnvSpec) -> tuple[str, list[int]]:
    """Observation key and 2 or 3 elements to project on: a position in metres if the spec names one, else the first.

    ManiSkill's "extra.tcp_pose[0..2]" is such a position; joint angles are not. Key "action" where no observation has
    two elements in one dimension.
    """
    flat = {key: array for key, array in spec.observation.items() if len(array.shape) == 1 and array.shape[0] >= 2}
    for key in sorted(flat, key=lambda name: name != "proprio"):
        for first in range(flat[key].size - 1):
            count = next((i for i in range(3) if not _is_coordinate(flat[key], first + i, i)), 3)
            if count >= 2:
                return key, list(range(first, first + count))
    if flat:
        return ("proprio" if "proprio" in flat else next(iter(flat))), [0, 1]
    return "action", [0, 1] if spec.action.size > 1 else [0, 0]


def projections(episodes: list[Episode], spec: EnvSpec) -> list[Projection]:
    """Pictures of episodes: the position from above and from the side where there is one, and actions over time."""
    success = tuple(bool(episode.success.any()) for episode in episodes)
    key, elements = plane(spec)
    array = spec.action if key == "action" else spec.observation[key]
    values = [(e.action if key == "action" else e.observation[key]).reshape(len(e.action), -1) for e in episodes]
    out = []
    for second in elements[1:]:
        pair = (elements[0], second)
        lines = tuple(np.stack([v[:, i] for i in pair], axis=1).astype(np.float32) for v in values)
        labels = [_axis(array, i) for i in pair]
        same_unit = _entry(array.units, pair[0]) == _entry(array.units, pair[1])
        out.append(Projection(f"{key}[{pair[0]}] and [{pair[1]}]", labels[0], labels[1], lines, success, same_unit))
    for element in range(min(2, spec.action.size)):
        lines = tuple(
            np.stack([e.time - e.time[0], e.action.reshape(len(e.action), -1)[:, element]], axis=1).astype(np.float32)
            for e in episodes
        )
        out.append(Projection("action over time", "time (s)", _axis(spec.action, element), lines, success, False))
    return out


def film_strips(episode: Episode, spec: EnvSpec, *, index: int) -> list[FilmStrip]:
    """One strip a colour camera of an episode: frames evenly spread from first to last, made smaller by leaving out."""
    keys = [k for k, a in spec.observation.items() if a.dtype == "uint8" and len(a.shape) == 3 and a.shape[-1] == 3]
    steps = np.unique(np.linspace(0, len(episode.action) - 1, STRIP_FRAMES).round().astype(int))
    strips = []
    for key in keys[:MAX_CAMERAS]:
        frames = np.asarray(episode.observation[key])[steps]
        stride = max(1, -(-frames.shape[1] // STRIP_PIXELS))
        image = np.concatenate(list(frames[:, ::stride, ::stride]), axis=1)
        seed = episode.metadata.get("seed", -1)
        strips.append(
            FilmStrip(
                camera=key,
                episode=index,
                seed=seed if isinstance(seed, int) else -1,
                success=bool(episode.success.any()),
                steps=tuple(int(step) for step in steps),
                image=np.ascontiguousarray(image),
            )
        )
    return strips


def _entry(texts: tuple[str, ...], element: int) -> str:
    return texts[element] if element < len(texts) else texts[0]


def _axis(array: ArraySpec, element: int) -> str:
    meaning = array.meanings[element] if len(array.meanings) == array.size else f"{array.name}[{element}]"
    unit = _entry(array.units, element)
    return meaning if unit in ("", "1") else f"{meaning} ({unit})"


def _is_coordinate(array: ArraySpec, element: int, number: int) -> bool:
    """Whether an element is coordinate `number` (0, 1, 2) of a position: in metres, and named so."""
    if element >= array.size or len(array.meanings) != array.size or _entry(array.units, element) != "m":
        return False
    meaning = array.meanings[element].lower()
    bracket = re.search(r"\[(\d+)\]$", meaning)
    return int(bracket[1]) == number if bracket else bool(re.search(rf"(^|\W){'xyz'[number]}(\W|$)", meaning))
