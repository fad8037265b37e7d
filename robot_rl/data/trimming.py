"""Cut steps from the beginning and end of episodes: so many, or those in which nothing moves.

Row t of `observation` is what action t answered to, and `final_observation` what the last action led to: behind a cut
at step `stop`, that is row `stop`. An ending that is cut off is neither terminated nor truncated, unless it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.editing import edited
from robot_rl.data.recorded_columns import cut_columns
from robot_rl.data.rewriting import Piece, Plan, pieces_of
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError, closest
from robot_rl.types import Episode


@dataclass(frozen=True)
class Trim:
    """What to cut off.

    Attributes:
        begin, end: steps from the beginning and the end.
        idle: then also the first and last steps in which no element of `key` changes by more than this, in its unit;
            None cuts none. Idle steps in between stay.
        key: observation key that says whether something moves.
        columns: (start, stop) of the elements of `key` that count; None for all.
        keep_ending: the last step that is left takes reward, success and the way the episode ended from the last step
            that was cut off: right when nothing happened in between.
    """

    begin: int = 0
    end: int = 0
    idle: float | None = None
    key: str = "proprio"
    columns: tuple[int, int] | None = None
    keep_ending: bool = False

    def span(self, episode: Episode) -> tuple[int, int]:
        """First step that stays, and the one behind the last; nothing stays when they are equal or crossed."""
        begin, stop = self.begin, len(episode) - self.end
        if self.idle is None or begin >= stop:
            return begin, stop
        frames = np.concatenate([episode.observation[self.key], episode.final_observation[self.key][None]])
        flat = frames.reshape(len(frames), -1).astype(np.float64)
        if self.columns is not None:
            flat = flat[:, slice(*self.columns)]
        moving = np.flatnonzero(np.abs(np.diff(flat, axis=0)).max(axis=1)[begin:stop] > self.idle)
        return (begin + int(moving[0]), begin + int(moving[-1]) + 1) if moving.size else (stop, stop)


def trim_episode(episode: Episode, begin: int, stop: int, *, keep_ending: bool) -> Episode:
    """Steps [begin, stop) of an episode; time counts from the first of them.

    Args:
        episode: of T steps.
        begin, stop: 0 <= begin < stop <= T.
        keep_ending: see Trim.
    """
    if (begin, stop) == (0, len(episode)):
        return episode
    is_cut = stop < len(episode)
    reward, success = episode.reward[begin:stop].copy(), episode.success[begin:stop].copy()
    final = {key: rows[stop] for key, rows in episode.observation.items()} if is_cut else episode.final_observation
    if is_cut and keep_ending:
        reward[-1], success[-1] = episode.reward[-1], episode.success[stop - 1 :].any()
    return replace(
        episode,
        observation={key: rows[begin:stop] for key, rows in episode.observation.items()},
        final_observation=final,
        action=episode.action[begin:stop],
        reward=reward,
        success=success,
        terminated=episode.terminated and (keep_ending or not is_cut),
        truncated=episode.truncated and (keep_ending or not is_cut),
        source=episode.source[begin:stop],
        time=episode.time[begin:stop] - (episode.time[begin] if begin else 0.0),
        metadata=cut_columns(episode.metadata, begin, stop),
    )


def plan_trim(store: EpisodeStore, episodes: Sequence[int], trim: Trim, *, target: Path | None = None) -> Plan:
    """Cut steps from some episodes; the others stay bit by bit. Reads these episodes once to find what would be cut.

    Args:
        store: open for append unless a `target` is given.
        episodes: indices of those to trim.
        trim: what to cut.
        target: a new store; None replaces `store`.

    Raises:
        DataError: a key or columns that do not exist, a negative number, or, all of them named, episodes of which
            nothing would be left or which would lose their success.
    """
    _require_sound(store, trim)
    spans, empty, failed = dict[int, tuple[int, int]](), list[int](), list[int]()
    for index in episodes:
        episode = store.episode(index)
        begin, stop = trim.span(episode)
        if begin >= stop:
            empty.append(index)
        elif (
            episode.success.any() and not trim_episode(episode, begin, stop, keep_ending=trim.keep_ending).success.any()
        ):
            failed.append(index)
        elif (begin, stop) != (0, len(episode)):
            spans[index] = (begin, stop)
    for bad, what, hint in (
        (empty, "have no step left", "Cut less, or delete them first."),
        (failed, "lose the success that they have", "Keep it with --keep-ending, or cut less."),
    ):
        if bad:
            raise DataError(
                f"{store.path}, episodes {', '.join(map(str, bad))}",
                expected="every episode to keep at least one step and its success",
                got=f"{len(bad)} that {what}",
                hint=f"{hint} Nothing was changed.",
            )
    arguments: dict[str, Any] = {"episodes": list(episodes), **_arguments(trim)}
    pieces = _pieces(store, spans, keep_ending=trim.keep_ending)
    lengths = store.lengths
    gone = sum(int(lengths[index]) - (stop - begin) for index, (begin, stop) in spans.items())
    note = f"{len(spans)} episodes trimmed, {gone} of {int(lengths.sum())} steps cut off"
    return edited(store, pieces, "trim", arguments=arguments, target=target, notes=(note,))


def _pieces(store: EpisodeStore, spans: Mapping[int, tuple[int, int]], *, keep_ending: bool) -> list[Piece]:
    def changed(piece: Piece, span: tuple[int, int]) -> Piece:
        return replace(piece, change=lambda episode: trim_episode(episode, *span, keep_ending=keep_ending))

    pieces = pieces_of(store, range(len(store)))
    return [changed(piece, spans[index]) if index in spans else piece for index, piece in enumerate(pieces)]


def _arguments(trim: Trim) -> dict[str, Any]:
    out: dict[str, Any] = {"begin": trim.begin, "end": trim.end, "keep_ending": trim.keep_ending}
    if trim.idle is not None:
        out |= {"idle": trim.idle, "key": trim.key, "columns": None if trim.columns is None else list(trim.columns)}
    return out


def _require_sound(store: EpisodeStore, trim: Trim) -> None:
    numbers = {"begin": trim.begin, "end": trim.end, "idle": trim.idle or 0.0}
    negative = [name for name, value in numbers.items() if not value >= 0]
    if negative or not (trim.begin or trim.end or trim.idle is not None):
        raise DataError(
            "trim", expected="begin, end or idle, none of them negative", got=f"{numbers}", hint="Nothing was changed."
        )
    if trim.key not in store.spec.observation:
        raise DataError(
            f"{store.path}", expected="an observation key of this store", got=repr(trim.key),
            hint=closest(trim.key, store.spec.observation),
        )  # fmt: skip
    size, (start, stop) = store.spec.observation[trim.key].size, trim.columns or (0, 1)
    if not 0 <= start < stop <= size:
        raise DataError(
            f"{store.path}, key {trim.key!r}", expected=f"columns 0 <= start < stop <= {size}", got=f"{start}:{stop}",
            hint="Nothing was changed.",
        )  # fmt: skip
