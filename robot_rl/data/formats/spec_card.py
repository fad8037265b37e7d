"""A spec card: what a dataset does not say about its numbers, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from robot_rl.specs import ActionSemantics


class FinalObservation(str, Enum):
    """Where the observation behind the last action comes from: from the last row, whose action is then dropped, or the
    last row is repeated (every action is kept; wrong for reinforcement learning, harmless for imitation)."""

    last_row = "last_row"
    repeat = "repeat"


@dataclass(frozen=True)
class ArrayCard:
    """What one array of the spec is made of, and what it means.

    Attributes:
        keys: arrays of the source, joined in this order.
        units: one for all elements, or one per element.
        meanings: the same.
        columns: [start, stop) of the joined elements; None takes all.
        low, high: bounds per element, or None.
    """

    keys: tuple[str, ...]
    units: tuple[str, ...]
    meanings: tuple[str, ...]
    columns: tuple[int, int] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SpecCard:
    """What a foreign dataset does not say. Written by hand, as YAML or JSON.

    Attributes:
        env_id: name of the task.
        robot: name of the robot.
        control_hz: actions per second.
        max_episode_steps: time limit of the task, steps.
        joint_names: of the joints in proprio, in order; may be empty for a Cartesian robot.
        action_semantics: how an action is read.
        action: of what the action is made.
        observation: "proprio" (required), "state", "points" or "image/<camera>" -> of what it is made.
        source: who acted: teleop, scripted, policy or intervention.
        success: "last_step" (every episode is a good demonstration), "none", or a key of the source.
        reward_key: key of the source, or None for 1 at success.
        timestamp_key: key of the source, seconds, or None for a regular clock of control_hz.
        final_observation: see FinalObservation; unused where the source has it.
        empty_chunks: diffusion_policy: keys whose missing chunks do hold zeros.
        source_key: key of the source with who acted at every step (types.Source), or None for `source` at all steps.
        timestamp_from_start: the clock starts with the episode already, and its first value is kept.
        cameras: camera -> fields of a CameraSpec (specs.py), for those that are known.
        point_cloud: how "points" were cropped and sampled, as EnvSpec.point_cloud; empty: not known.
    """

    env_id: str
    robot: str
    control_hz: float
    max_episode_steps: int
    joint_names: tuple[str, ...]
    action_semantics: ActionSemantics
    action: ArrayCard
    observation: dict[str, ArrayCard]
    source: str
    success: str
    reward_key: str | None = None
    timestamp_key: str | None = None
    final_observation: FinalObservation = FinalObservation.last_row
    empty_chunks: tuple[str, ...] = field(default=())
    source_key: str | None = None
    timestamp_from_start: bool = False
    cameras: dict[str, Any] = field(default_factory=dict)
    point_cloud: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The card as JSON types, as a card file has them."""
        card: dict[str, Any] = _json_types(asdict(self))
        return card


def _json_types(value: Any) -> Any:
    """Enums by value, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _json_types(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_types(entry) for entry in value]
    return getattr(value, "value", value)
