"""Episodes that are saved already: the list that people see, and their changes of label, notes and presence.

A change writes the whole store anew and puts the former one into `.trash` beside it (data/rewriting.py), so nothing is ever
lost and a crash changes nothing; bringing an episode back appends it from there. Carried out by the writer's thread alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data import episode_rows as er
from robot_rl.data.editing import edited
from robot_rl.data.rewriting import carry_out, pieces_of
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.types import Episode

log = logging.getLogger(__name__)

LISTED = 1000
_BLOCK = 100
_LABELS = {"edit_success": "success", "edit_failure": "failure"}
_MAY_CHANGE = frozenset({"data/success", "data/reward", "data/done", er.TEXT})


@dataclass(frozen=True)
class Edit:
    """What is to be changed.

    Attributes:
        name: of panel.EDITS.
        episode: its id, hexadecimal.
        text: of `edit_note`.
        by: who asked, for the history of the store.
        trash: `edit_restore`: the former store that still has the episode.
    """

    name: str
    episode: str
    text: str = ""
    by: str = ""
    trash: str = ""


@dataclass(frozen=True)
class Edited:
    """What became of an edit.

    Attributes:
        edit: that was asked for.
        number: of the episode, before it was deleted, or now.
        rows: of the list, of the store as it is now; empty when there was a problem.
        trash: where the former store is; "" for none.
        problem: why nothing was changed; "" when it was.
    """

    edit: Edit
    number: int = -1
    rows: tuple[dict[str, Any], ...] = ()
    trash: str = ""
    problem: str = ""


def listed(store: EpisodeStore, *, most: int = LISTED) -> tuple[dict[str, Any], ...]:
    """Rows of SessionView.episodes for the newest episodes of a store, the newest last; cameras are not read.

    Args:
        store: open.
        most: rows.
    """
    first, rows = max(0, len(store) - most), list[dict[str, Any]]()
    for begin in range(first, len(store), _BLOCK):
        numbers = range(begin, min(begin + _BLOCK, len(store)))
        try:
            episodes = store.episodes(numbers.start, numbers.stop, observation=())
        except DataError as error:
            log.warning("episodes %d to %d of %s can't be read: %s", numbers.start, numbers.stop - 1, store.path, error)
            rows += [_row(store, number, None, [f"it can't be read: {error}"]) for number in numbers]
            continue
        rows += [_row(store, number, episode, []) for number, episode in zip(numbers, episodes, strict=True)]
    return tuple(rows)


def row_of(store: EpisodeStore, number: int, episode: Episode) -> dict[str, Any]:
    """The row of one episode; see `listed`."""
    return _row(store, number, episode, [])


def _row(store: EpisodeStore, number: int, episode: Episode | None, problems: list[str]) -> dict[str, Any]:
    said = {} if episode is None else episode.metadata
    length, success = int(store.lengths[number]), bool(store.success[number])
    seconds = length / store.spec.control_hz
    if episode is not None and len(episode) > 1:
        seconds = float(episode.time[-1] - episode.time[0]) * length / (length - 1)
    # Episodes that a program recorded have no label of a person; a success of theirs is one all the same.
    return {
        "number": number, "id": store.uuids[number].tobytes().hex(), "length": length, "seconds": seconds,
        "success": success, "label": said.get("label", "success" if success else ""),
        "rate_hz": said.get("loop", {}).get("rate_hz"), "problems": [*said.get("problems", []), *problems],
        "notes": list(said.get("notes", [])), "takeover": said.get("takeover", 0.0), "thumbnail": number,
    }  # fmt: skip


def number_of(store: EpisodeStore, episode: str) -> int:
    """Number of the episode with this id.

    Raises:
        DataError: there is none.
    """
    ids = [row.tobytes().hex() for row in store.uuids]
    if episode not in ids:
        raise DataError(
            f"{store.path}, episode {episode[:8] or 'without an id'}", expected="one of its episodes", got="none with this id",
            hint="It was deleted. Reload the page.",
        )  # fmt: skip
    return ids.index(episode)


def carry_out_edit(
    store: EpisodeStore, edit: Edit, *, on_episode: Callable[[int, int], None] | None = None
) -> tuple[EpisodeStore, Edited]:
    """Do it. The store that is given back is open for append; it is the one at the same path, and is the caller's to use.

    Args:
        store: open for append; closed where another takes its place.
        edit: what to change.
        on_episode: called with (episodes done, episodes in all).

    Raises:
        DataError: no such episode, or no room; `store` is as it was then.
    """
    if edit.name == "edit_restore":
        return store, _bring_back(store, edit)
    number = number_of(store, edit.episode)
    arguments = {"episode": number, "by": edit.by, "text": edit.text}
    if edit.name == "edit_delete":
        kept = [index for index in range(len(store)) if index != number]
        plan = edited(store, pieces_of(store, kept), "delete", arguments=arguments, target=None)
    else:
        pieces = pieces_of(store, range(len(store)))
        pieces[number] = replace(pieces[number], change=lambda episode: changed(episode, edit))
        arguments["label"] = _LABELS.get(edit.name, "")
        plan = edited(store, pieces, "relabel", arguments=arguments, target=None, may_change=_MAY_CHANGE)
    (report,) = carry_out([plan], on_episode=on_episode)
    store.close()
    new = EpisodeStore.open(store.path, mode="a")
    return new, Edited(edit, number, listed(new), report.trash or "")


def changed(episode: Episode, edit: Edit) -> Episode:
    """The episode with another label or one more note.

    A success of which no step is known is that of the last step, as when it is recorded. The reward goes with it where it was
    the success itself; another one (of a simulator) stays.
    """
    metadata = dict(episode.metadata)
    if edit.name == "edit_note":
        return replace(episode, metadata={**metadata, "notes": [*metadata.get("notes", []), edit.text]})
    label = _LABELS[edit.name]
    success = np.zeros_like(episode.success)
    if label == "success":
        success = episode.success.copy() if episode.success.any() else np.arange(len(success)) == len(success) - 1
    is_plain = np.array_equal(episode.reward, episode.success.astype(episode.reward.dtype))
    return replace(
        episode, success=success, reward=success.astype(episode.reward.dtype) if is_plain else episode.reward,
        terminated=bool(success[-1]), metadata={**metadata, "label": label},
    )  # fmt: skip


def _bring_back(store: EpisodeStore, edit: Edit) -> Edited:
    """Append it from the trash; it keeps its id, and what was saved since stays."""
    if edit.episode in {row.tobytes().hex() for row in store.uuids}:
        return Edited(edit, problem="This episode is there already.")
    with EpisodeStore.open(Path(edit.trash)) as former:
        number = number_of(former, edit.episode)
        ids, videos = former.uuids[number][None], [former.videos(number)]
        (index,) = store.append_many([former.episode(number)], uuids=ids, videos=videos)
    return Edited(edit, index, listed(store))


def wording(done: Edited) -> str:
    """What people are told of it."""
    if done.problem:
        return f"Nothing was changed: {done.problem}"
    what = {
        "edit_success": "is a success now", "edit_failure": "is a failure now", "edit_note": "has your note",
        "edit_delete": "was deleted; it can be brought back", "edit_restore": "is back, as the newest",
    }[done.edit.name]  # fmt: skip
    return f"Episode {done.number} {what}."
