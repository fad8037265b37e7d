"""What every export does alike: it appears whole or not at all, says how its store comes back, and is read back against it."""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.episode_stream import whole_episodes
from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.keyed import KeyedSource
from robot_rl.data.formats.spec_card import ArrayCard, SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Episode


@contextmanager
def appears_whole(target: Path, *, what: str) -> Iterator[Path]:
    """A hidden path beside `target` to write and verify at; renamed to it at the end, removed when anything fails.

    Raises:
        DataError: something is at `target`, or the system can't write.
    """
    refuse_existing(target)
    unfinished = target.with_name(f".{target.name}.exporting-{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        refuse_existing(target)
        os.rename(unfinished, target)
    except OSError as error:
        raise DataError(
            f"{target}", expected=f"to write the {what}", got=f"{error.strerror or error}",
            hint="Check permissions and free disk space. Nothing was left at the target.",
        ) from error  # fmt: skip
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def refuse_existing(target: Path) -> None:
    """Raise DataError where something is at `target`."""
    if target.exists():
        raise DataError(
            f"{target}", expected="a path with nothing there", got="a file or directory",
            hint="Nothing is ever overwritten: choose another target.",
        )  # fmt: skip


def require_exportable(store: EpisodeStore) -> None:
    """Raise DataError for a store without episodes, or with an observation that no import could bring back."""
    for key in store.spec.observation:
        if key not in ("proprio", "state", "points") and not key.startswith("image/"):
            raise DataError(
                f"{store.path}, {key}", expected="proprio, state, points and image/<camera>", got=key,
                hint="The format has no place for it: `robot-rl data convert` makes points of depths; or copy the store.",
            )  # fmt: skip
    if not len(store):
        raise DataError(
            f"{store.path}", expected="at least one episode", got="none", hint="Record or import some first."
        )


def card_for(
    spec: EnvSpec, names: Mapping[str, str], *, action: str, success: str, reward: str, time: str, source: str
) -> SpecCard:
    """The card with which `spec` comes back.

    Args:
        spec: of the store.
        names: observation of ours -> key of the export.
        action, success, reward, time, source: keys of the export; time begins with the episode.
    """

    def part(array: ArraySpec, key: str) -> ArrayCard:
        return ArrayCard((key,), array.units, array.meanings, low=array.low, high=array.high)

    return SpecCard(
        env_id=spec.env_id,
        robot=spec.robot,
        control_hz=spec.control_hz,
        max_episode_steps=spec.max_episode_steps,
        joint_names=spec.joint_names,
        action_semantics=spec.action_semantics,
        action=part(spec.action, action),
        observation={key: part(array, names[key]) for key, array in spec.observation.items()},
        source="teleop",
        success=success if spec.has_success else "none",
        reward_key=reward,
        timestamp_key=time,
        source_key=source,
        timestamp_from_start=True,
        cameras={name: asdict(camera) for name, camera in spec.cameras.items()},
        point_cloud=dict(spec.point_cloud),
    )


def verify_export(
    store: EpisodeStore,
    source: KeyedSource,
    card: SpecCard,
    *,
    hint: str,
    may_differ: Callable[[str], bool] = lambda key: False,
) -> Iterator[tuple[str, Episode, Episode]]:
    """Read an export as an import would and compare every episode with the store; closes the source.

    Args:
        store: that was exported.
        source: of the export.
        card: see `card_for`.
        hint: for a store that no card can describe.
        may_differ: observations that a codec changed; not compared here.

    Yields:
        Name, episode of the store, episode of the export; for what is left to compare.

    Raises:
        DataError: the card can't describe the store, or an episode differs.
    """
    reader = CardReader(source, card)
    try:
        if reader.spec != store.spec:
            raise DataError(
                f"{store.path}, spec", expected="arrays that a card can describe: flat float32, points and uint8 images",
                got="another kind", hint=f"Nothing was written. {hint}",
            )  # fmt: skip
        for index, episode in whole_episodes(store):
            back, name = reader.read(index), reader.names[index]
            if differences := _differences(episode, back, may_differ):
                raise DataError(
                    f"{source.path}, {name}", expected="what the store holds", got=f"others: {', '.join(differences)}",
                    hint="Nothing was written. The disk, or robot-rl, is at fault.",
                )  # fmt: skip
            yield name, episode, back
    finally:
        reader.close()


def _differences(ours: Episode, theirs: Episode, may_differ: Callable[[str], bool]) -> list[str]:
    pairs = [
        (key, getattr(ours, key), getattr(theirs, key)) for key in ("action", "reward", "success", "source", "time")
    ]
    kept = [key for key in ours.observation if not may_differ(key)]
    pairs += [(key, ours.observation[key], theirs.observation[key]) for key in kept]
    pairs += [(f"final {key}", value, theirs.final_observation[key]) for key, value in ours.final_observation.items()]
    plain = [key for key in ("terminated", "truncated") if getattr(ours, key) != getattr(theirs, key)]
    plain += ["metadata"] * (dict(ours.metadata) != dict(theirs.metadata))
    return plain + [
        name for name, a, b in pairs if a.dtype != b.dtype or a.shape != b.shape or not np.array_equal(a, b)
    ]


def checksum(array: Array) -> int:
    """CRC-32 of the elements in C order; of another dtype or shape it is another one."""
    kind = f"{array.dtype.str}{array.shape}".encode()
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, zlib.crc32(kind))


def require_checksum(rows: Array, expected: int | None, *, where: str, hint: str) -> None:
    """Compare what was read with what was written; nothing to do without a checksum.

    Raises:
        DataError: they differ.
    """
    if expected is not None and checksum(rows) != expected:
        raise DataError(where, expected="the numbers that were exported (checksum)", got="others", hint=hint)
