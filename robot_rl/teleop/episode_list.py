"""The list of saved episodes that people see and change while a session runs."""

from __future__ import annotations

import logging
from typing import Any

from robot_rl.teleop.episode_machine import Transition
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.saved_episodes import LISTED, Edit, listed, row_of, wording
from robot_rl.teleop.writing import Outcome

log = logging.getLogger(__name__)


class EpisodeList:
    """Rows of SessionView.episodes: what the dataset had, and what this session saves, changes and deletes.

    Args:
        recorder: of the dataset; its thread carries edits out, so that none is beside a save.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.rows = listed(recorder.store)
        self._trash: dict[str, str] = {}
        self._saved = set[str]()

    @property
    def deleted(self) -> list[str]:
        """Ids of episodes that can be brought back, the newest last."""
        return list(self._trash)

    @property
    def of_session(self) -> list[dict[str, Any]]:
        """Rows of what this session saved and did not delete."""
        return [row for row in self.rows if row["id"] in self._saved]

    def saved(self, outcome: Outcome) -> None:
        """Add an episode that was saved."""
        assert outcome.episode is not None
        row = row_of(self._recorder.store, outcome.index, outcome.episode)
        self._saved.add(row["id"])
        self.rows = (*self.rows, row)[-LISTED:]

    def ask(self, transition: Transition) -> str:
        """Have an edit carried out; gives what is said meanwhile.

        Args:
            transition: of one of panel.EDITS.
        """
        edit = Edit(
            transition.event, transition.episode, transition.text.strip(), transition.by,
            self._trash.get(transition.episode, ""),
        )  # fmt: skip
        if edit.name == "edit_restore" and not edit.trash:
            return "Nothing was changed: this session has not deleted that episode."
        if edit.name == "edit_note" and not edit.text:
            return "Nothing was changed: a note has a text."
        self._recorder.edit(edit)
        return "The saved episodes are being changed; the robot holds."

    def ended(self) -> str:
        """Take in the edits that have ended since the last call; gives what is said of the last one, "" for none."""
        said = ""
        for done in self._recorder.poll_edits():
            said = wording(done)
            log.info("%s%s", said, f" The former dataset is {done.trash}." if done.trash else "")
            if done.problem:
                continue
            self.rows = done.rows
            if done.edit.name == "edit_delete":
                self._trash[done.edit.episode] = done.trash
            elif done.edit.name == "edit_restore":
                del self._trash[done.edit.episode]
        return said

    def progress(self) -> str:
        """How far the edit is that is under way; "" for none."""
        done, total = self._recorder.edit_progress
        return (
            f"The saved episodes are being changed: {done} of {total} are written; the robot holds."
            if total > 1
            else ""
        )
