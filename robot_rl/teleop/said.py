"""What is said of an episode that is not saved yet: it is put aside and brought back with the episode."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Said:
    """Of one episode.

    Attributes:
        labels: success and failure, the newest last.
        problems: what the session found out.
        marks: subtasks and notes of people: (event, text), the newest last.
    """

    labels: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    marks: list[tuple[str, str]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Newest label; "" for none."""
        return self.labels[-1] if self.labels else ""

    @property
    def subtask(self) -> str:
        """The one that goes on; "" for none."""
        return next((text for event, text in reversed(self.marks) if event == "subtask"), "")
