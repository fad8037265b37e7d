"""New success, reward, source or instruction for recorded episodes, and fields of the dataset's card.

Success comes first: a reward rule sees the new success.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.data import episode_rows as er
from robot_rl.data.dataset_card import changed_card
from robot_rl.data.editing import edited
from robot_rl.data.rewriting import Plan, pieces_of
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError, closest
from robot_rl.types import Episode, Source

# Name -> what it does to bool (T,).
SUCCESS_RULES: Mapping[str, Callable[[Bool[Array, " T"]], Bool[Array, " T"]]] = {
    "none": np.zeros_like,
    "last_step": lambda success: np.arange(len(success)) == len(success) - 1,
    "stays": np.logical_or.accumulate,
}
SUCCESS_TEXTS = {
    "none": "no step",
    "last_step": "the last step only: a demonstration that is known to be good",
    "stays": "from the first success on, every step",
}
# Name -> what it makes of bool (T,).
REWARD_RULES: Mapping[str, Callable[[Bool[Array, " T"]], Float32[Array, " T"]]] = {
    "sparse": lambda success: success.astype(np.float32),
    "first_success": lambda success: (success & (np.cumsum(success) == 1)).astype(np.float32),
    "step_penalty": lambda success: success.astype(np.float32) - 1,
}
REWARD_TEXTS = {
    "sparse": "1 at every step with success, else 0",
    "first_success": "1 at the first step with success, else 0",
    "step_penalty": "0 at every step with success, else -1",
}
_SUCCESS, _REWARD, _SOURCE = "data/success", "data/reward", "data/source"


@dataclass(frozen=True)
class Labels:
    """What to write; None leaves it as it is.

    Attributes:
        success: name in SUCCESS_RULES.
        reward: name in REWARD_RULES; also noted in the card as `reward_rule` when all episodes get it.
        source: name of a Source, for all steps.
        instruction: text of the task, in the metadata of each episode.
        card: fields of the dataset's card, JSON types; None in one of them removes it.
    """

    success: str | None = None
    reward: str | None = None
    source: str | None = None
    instruction: str | None = None
    card: Mapping[str, Any] | None = None

    def apply(self, episode: Episode) -> Episode:
        """The episode with these labels."""
        if self.success is not None:
            episode = replace(episode, success=SUCCESS_RULES[self.success](episode.success))
        if self.reward is not None:
            episode = replace(episode, reward=REWARD_RULES[self.reward](episode.success))
        if self.source is not None:
            episode = replace(episode, source=np.full(len(episode), Source[self.source].value, np.uint8))
        if self.instruction is not None:
            episode = replace(episode, metadata={**episode.metadata, "instruction": self.instruction})
        return episode


def plan_relabel(store: EpisodeStore, episodes: Sequence[int], labels: Labels, *, target: Path | None = None) -> Plan:
    """Labels for some episodes; the others, and all other arrays, stay bit by bit.

    Args:
        store: open for append unless a `target` is given.
        episodes: indices of those to relabel.
        labels: what to write.
        target: a new store; None replaces `store`.

    Raises:
        DataError: for an unknown rule or source, or when there is nothing to write.
    """
    _require_sound(labels)
    arrays = {"success": _SUCCESS, "reward": _REWARD, "source": _SOURCE, "instruction": er.TEXT}
    given = {name: value for name, value in asdict(labels).items() if value is not None}
    may_change = frozenset(arrays[name] for name in given if name in arrays)
    pieces, chosen = pieces_of(store, range(len(store))), set(episodes)
    if may_change:
        pieces = [replace(piece, change=labels.apply) if i in chosen else piece for i, piece in enumerate(pieces)]
    plan = edited(
        store, pieces, "relabel", arguments={"episodes": sorted(chosen), **given}, target=target, may_change=may_change
    )
    card = changed_card(plan.metadata, labels.card or {})
    notes = list[str]()
    if labels.reward is not None:
        if len(chosen) == len(store):
            card["reward_rule"] = f"{labels.reward}: {REWARD_TEXTS[labels.reward]}"
        else:
            notes.append(f"only {len(chosen)} of {len(store)} episodes got this reward: it is not in the card")
    metadata = {**plan.metadata, "card": card} if card or labels.card else plan.metadata
    return replace(plan, metadata=metadata, notes=tuple(notes))


def _require_sound(labels: Labels) -> None:
    if labels == Labels():
        raise DataError(
            "relabel", expected="success, reward, source, instruction or a card field", got="nothing to write",
            hint="See `robot-rl data relabel --help`.",
        )  # fmt: skip
    for what, word, options in (
        ("success", labels.success, SUCCESS_RULES),
        ("reward", labels.reward, REWARD_RULES),
        ("source", labels.source, [source.name for source in Source]),
    ):
        if word is not None and word not in options:
            raise DataError(what, expected="a known rule", got=repr(word), hint=closest(word, options))
