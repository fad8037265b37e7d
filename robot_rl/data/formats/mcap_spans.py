"""Where episodes of a bag begin and end: the whole bag, stated times, or what a topic says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robot_rl.data.formats.mcap_bag import Bag
from robot_rl.errors import DataError, closest


@dataclass(frozen=True)
class Span:
    """One episode.

    Attributes:
        name: for messages.
        begin_ns, end_ns: on the clock of the streams; both belong to it.
        is_success: its end was one of the words for success.
    """

    name: str
    begin_ns: int
    end_ns: int
    is_success: bool = False


@dataclass(frozen=True)
class Marks:
    """How episodes are marked.

    Attributes:
        times: (begin, end) in seconds from the first message of the bag, or None.
        topic: a std_msgs Bool (true while an episode runs) or String, or None. Goes by log time.
        begin, end: words of a String that begin and end an episode.
        success: those of `end` that mean success.
        drop: words that end an episode which is not kept.
    """

    times: tuple[tuple[float, float], ...] | None = None
    topic: str | None = None
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    success: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    @property
    def uses_log(self) -> bool:
        """Whether episodes are cut by log time."""
        return self.times is not None or self.topic is not None

    def spans(self, bag: Bag) -> tuple[list[Span], list[str]]:
        """Episodes of a bag, and notes.

        Raises:
            DataError: stated times outside of the bag, or a word that was not stated.
        """
        if self.topic is not None:
            return self._by_events(bag)
        if self.times is None:
            return _whole(bag)
        length = (bag.last_ns - bag.first_ns) / 1e9
        out = []
        for number, (begin, end) in enumerate(self.times):
            if not 0 <= begin < end <= length + 1e-6:
                raise DataError(
                    f"{bag.name}, episodes, times, {number}", expected=f"begin before end, inside 0..{length:.3f} s",
                    got=f"{begin} and {end}", hint="Seconds from the first message of the bag.",
                )  # fmt: skip
            first, last = (bag.first_ns + round(seconds * 1e9) for seconds in (begin, end))
            out.append(Span(f"{bag.name} episode {number}", first, last))
        return out, []

    def _by_events(self, bag: Bag) -> tuple[list[Span], list[str]]:
        spans, began, dropped, again = list[Span](), None, 0, 0
        for stamp, said in bag.events:
            is_begin = said if isinstance(said, bool) else said in self.begin
            if isinstance(said, str) and said not in (*self.begin, *self.end, *self.drop):
                words = [*self.begin, *self.end, *self.drop]
                raise DataError(
                    f"{bag.name}, topic {self.topic}, {(stamp - bag.first_ns) / 1e9:.3f} s", expected="a word that was stated",
                    got=repr(said), hint=closest(said, words) if words else "State begin: [...] and end: [...].",
                )  # fmt: skip
            if is_begin:
                # A Bool is said again and again while it stays; a second word is a new start.
                again += began is not None and isinstance(said, str)
                began = stamp if began is None or isinstance(said, str) else began
            elif began is not None:
                if isinstance(said, str) and said in self.drop:
                    dropped += 1
                else:
                    name = f"{bag.name} episode {len(spans) + dropped}"
                    spans.append(Span(name, began, stamp, isinstance(said, str) and said in self.success))
                began = None
        notes = [f"{bag.name}: {dropped} episodes were dropped by the operator."] if dropped else []
        if again:
            notes.append(f"{bag.name}: {again} episodes began anew before they ended; what came before is left out.")
        if began is not None:
            notes.append(
                f"{bag.name}: the episode that began at {(began - bag.first_ns) / 1e9:.3f} s never ended, left out."
            )
        if not spans:
            notes.append(f"{bag.name}: no episode.")
        return spans, notes


def marks_of(given: Any, *, bags: int, where: str) -> Marks:
    """What a user states of episodes.

    Args:
        given: "bag", {"times": ...} or {"topic": ..., ...}.
        bags: how many there are.
        where: for errors.

    Raises:
        DataError: another thing.
    """
    place = f"{where}, episodes"
    if given == "bag":
        return Marks()
    known = ("times", "topic", "begin", "end", "success", "drop")
    if not isinstance(given, Mapping) or ("times" in given) == ("topic" in given):
        raise DataError(
            place, expected="bag, {times: [[begin, end], ...]} or {topic: ...}", got=repr(given),
            hint="A bag each; seconds from its first message; or a Bool or String that marks them.",
        )  # fmt: skip
    for word in given:
        if word not in known:
            raise DataError(place, expected="an entry of episodes", got=repr(word), hint=closest(str(word), known))
    words = {name: tuple(map(str, given.get(name, ()))) for name in known[2:]}
    strange = [word for word in words["success"] if word not in words["end"]]
    if strange:
        raise DataError(f"{place}, success", expected="words of `end`", got=", ".join(strange), hint="")
    if "topic" in given:
        return Marks(None, str(given["topic"]), *words.values())
    if bags != 1:
        raise DataError(f"{place}, times", expected="one bag", got=f"{bags}", hint="Import each bag by itself.")
    try:
        return Marks(times=tuple((float(begin), float(end)) for begin, end in given["times"]))
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}, times", expected="[[begin, end], ...]", got=repr(given["times"]), hint="") from error


def _whole(bag: Bag) -> tuple[list[Span], list[str]]:
    """From when every stream has been heard to the last message of any; what a stream lacks then is a gap."""
    steady = [track for track in bag.tracks.values() if track.stream.take == "last" and track.stream.initial is None]
    tracks = steady or list(bag.tracks.values())
    firsts = {track.stream.name: int(track.stamps_ns[0]) for track in tracks}
    limited = [track for track in tracks if track.stream.max_gap_s is not None] or tracks
    name = max(firsts, key=lambda key: firsts[key])
    wait_s = (firsts[name] - min(firsts.values())) / 1e9
    notes = (
        [f"{bag.name}: begins {wait_s:.3f} s late, with the first message of stream {name!r}."] if wait_s > 1 else []
    )
    is_success = bag.record.get("success") == "true"
    if bag.record.get("success") == "not said":
        notes.append(f"{bag.name}: nobody said whether it succeeded.")
    return [Span(bag.name, firsts[name], max(int(track.stamps_ns[-1]) for track in limited), is_success)], notes
