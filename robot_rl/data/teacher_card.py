"""One YAML a teacher: what its actions mean, how they become the environment's, and how it wants its pictures.

A checkpoint or an expert of ours needs none: its card is made from the environment's spec. A teacher behind a server has
one, and every line of it is compared with the environment before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.data import action_layout
from robot_rl.data.element_names import gripper_elements, names_of
from robot_rl.data.same_cameras import POSITION_M, ROTATION_RAD, pose_differences
from robot_rl.errors import DataError, PolicyError
from robot_rl.specs import ActionSemantics, EnvSpec


class Colour(str, Enum):
    """Order of the channels that a teacher's pictures have."""

    rgb = "rgb"
    bgr = "bgr"


@dataclass(frozen=True)
class TeacherCamera:
    """How a teacher wants one camera.

    Attributes:
        source: camera of the environment (key image/<source>).
        height, width: of the picture, pixels.
        colour: order of its channels; the environment's is rgb.
        upside_down: rows from bottom to top, as some simulators store them.
        position_m, quaternion_wxyz, frame: where it stood in training, as in CameraSpec; None: not stated, so not checked.
    """

    source: str
    height: int
    width: int
    colour: Colour = Colour.rgb
    upside_down: bool = False
    position_m: tuple[float, float, float] | None = None
    quaternion_wxyz: tuple[float, float, float, float] | None = None
    frame: str = "base"


@dataclass(frozen=True)
class TeacherCard:
    """Conventions of a teacher.

    Attributes:
        name: of the teacher and its version; part of the cache's key.
        semantics: how its actions, after `scale` and `offset`, are read.
        size: of one action.
        sent_size: numbers of an action as its server sends it, where it pads them behind the action (pi0: 32); None: `size`.
        control_hz: actions per second that it was trained for.
        scale, offset: the environment's action is scale * (its action) + offset, by element; empty: 1 and 0.
        gripper: its own numbers for closed and open, or None without a gripper.
        history: frames that it sees.
        keys: low-dimensional observation keys that it needs.
        cameras: name in the teacher's input -> convention.
        needs_instruction: whether it wants a text.
    """

    name: str
    semantics: ActionSemantics
    size: int
    control_hz: float
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    gripper: tuple[float, float] | None = None
    history: int = 1
    keys: tuple[str, ...] = ()
    cameras: Mapping[str, TeacherCamera] = field(default_factory=dict)
    needs_instruction: bool = False
    sent_size: int | None = None

    def to_env(self, action: Float32[Array, "N Tp A"]) -> Array:
        """The environment's actions from the teacher's own."""
        scale = np.asarray(self.scale or (1.0,) * self.size, dtype=np.float32)
        return (action * scale + np.asarray(self.offset or (0.0,) * self.size, dtype=np.float32)).astype(np.float32)


class OwnCard(TeacherCard):
    """The card of a teacher that speaks the environment's own language: nothing is converted, the gripper neither."""


def card_of(spec: EnvSpec, *, name: str, history: int, keys: tuple[str, ...]) -> OwnCard:
    """The card of a teacher that speaks the environment's own language."""
    return OwnCard(
        name=name, semantics=spec.action_semantics, size=spec.action.size, control_hz=spec.control_hz,
        gripper=gripper_ends(spec.action_semantics.gripper), history=history, keys=keys,
    )  # fmt: skip


def gripper_ends(text: str) -> tuple[float, float] | None:
    """Numbers for closed and open of a text as "-1 closed .. 1 open" or "-1 open .. 1 closed"; None for another text."""
    try:
        return action_layout.gripper_ends(text, where="gripper")
    except (DataError, ValueError):
        return None


@dataclass(frozen=True)
class CardProblem:
    """One line of a card that does not fit an environment: which, what fits, what it says."""

    where: str
    expected: str
    got: str


def card_problems(card: TeacherCard, spec: EnvSpec) -> list[CardProblem]:
    """Every difference between a teacher's conventions and an environment, the classic ones by name."""
    return [*_action_problems(card, spec), *_observation_problems(card, spec)]


def require_card(card: TeacherCard, spec: EnvSpec) -> None:
    """Refuse a teacher whose card does not fit.

    Raises:
        PolicyError: with every problem.
    """
    problems = card_problems(card, spec)
    if problems:
        raise PolicyError(
            f"card of teacher {card.name!r}: {', '.join(p.where for p in problems)}",
            expected="; ".join(p.expected for p in problems), got="; ".join(p.got for p in problems),
            hint="Correct the card if it is wrong; otherwise choose the environment that the teacher was trained for. "
            "`robot-rl check teacher` shows more.",
        )  # fmt: skip


def require_same_observation(trained: EnvSpec, given: EnvSpec, keys: tuple[str, ...], *, where: str) -> None:
    """Refuse a teacher whose observations have another shape in the environment.

    Args:
        trained: the teacher's spec.
        given: the environment's.
        keys: that the teacher looks at.
        where: the teacher, for the error.

    Raises:
        PolicyError: naming the first such key.
    """
    for key in keys:
        wanted = trained.observation[key].shape
        got = given.observation[key].shape if key in given.observation else None
        if wanted != got:
            raise PolicyError(
                f"{where}: observation {key!r}", expected=f"{wanted}, which it was trained with",
                got=f"{got} in {given.env_id}", hint="Choose the environment that this teacher was trained in.",
            )  # fmt: skip


def _action_problems(card: TeacherCard, spec: EnvSpec) -> Iterator[CardProblem]:
    if card.size != spec.action.size:
        yield CardProblem("action size", str(spec.action.size), str(card.size))
        return
    for name in ("scale", "offset"):
        if len(getattr(card, name)) not in (0, card.size):
            yield CardProblem(name, f"{card.size} numbers or none", str(len(getattr(card, name))))
            return
    for entry in fields(ActionSemantics):
        wanted, said = (getattr(each, entry.name) for each in (spec.action_semantics, card.semantics))
        if wanted != said:
            yield CardProblem(
                f"action {entry.name}", str(getattr(wanted, "value", wanted)), str(getattr(said, "value", said))
            )
    if card.control_hz != spec.control_hz:
        yield CardProblem("control_hz", f"{spec.control_hz:g}", f"{card.control_hz:g}")
    if card.sent_size is not None and card.sent_size < card.size:
        yield CardProblem("sent_size", f"{card.size} or more, or none", str(card.sent_size))
    if not isinstance(card, OwnCard):
        yield from _gripper_problems(card, spec)


def _gripper_problems(card: TeacherCard, spec: EnvSpec) -> Iterator[CardProblem]:
    """Lines for every gripper element whose closed and open are not the environment's, or can't be compared with them."""
    text, elements = spec.action_semantics.gripper, gripper_elements(spec.action)
    if text == "none":
        return
    ends = gripper_ends(text)
    if ends is None or not elements:
        wanted = "an element whose meaning names it" if ends else 'a text as "-1 closed .. 1 open"'
        yield CardProblem("gripper of the environment", wanted, "none" if ends else repr(text))
        return
    if card.gripper is None:
        yield CardProblem("gripper", "its numbers for closed and open", "none")
        return
    for element in elements:
        scale, offset = (card.scale or (1.0,) * card.size)[element], (card.offset or (0.0,) * card.size)[element]
        mapped = tuple(scale * end + offset for end in card.gripper)
        if not np.allclose(mapped, ends, atol=1e-6):
            flipped = " (flipped)" if np.allclose(mapped, ends[::-1], atol=1e-6) else ""
            yield CardProblem(
                "gripper" if len(elements) == 1 else f"gripper, {names_of(spec.action)[element]}",
                f"closed {ends[0]:g}, open {ends[1]:g} after scale and offset",
                f"closed {mapped[0]:g}, open {mapped[1]:g}{flipped}",
            )  # fmt: skip


def _observation_problems(card: TeacherCard, spec: EnvSpec) -> Iterator[CardProblem]:
    for key in card.keys:
        if key not in spec.observation:
            yield CardProblem(
                f"observation {key}", "a key of the environment", f"none; it has {', '.join(spec.observation)}"
            )
    for name, camera in card.cameras.items():
        key = f"image/{camera.source}"
        if key not in spec.observation:
            has = [each for each in spec.observation if each.startswith("image/")]
            yield CardProblem(f"camera {name}", key, f"none; the environment has {', '.join(has) or 'no camera'}")
        elif spec.observation[key].shape != (camera.height, camera.width, 3):
            shape = spec.observation[key].shape
            yield CardProblem(f"camera {name}", f"{shape}, the environment's", f"({camera.height}, {camera.width}, 3)")
        else:
            yield from _pose_problems(name, camera, spec)


def _pose_problems(name: str, camera: TeacherCamera, spec: EnvSpec) -> Iterator[CardProblem]:
    """Lines for a camera whose card states a pose; none for another."""
    if camera.position_m is None or camera.quaternion_wxyz is None:
        return
    here = spec.cameras.get(camera.source)
    if here is None:
        yield CardProblem(
            f"camera {name}, pose", "an environment that describes this camera", f"none for {camera.source!r}"
        )
        return
    trained = replace(here, position_m=camera.position_m, quaternion_wxyz=camera.quaternion_wxyz, frame=camera.frame)
    allowed = f"the pose it was trained with, within {POSITION_M} m and {ROTATION_RAD:.3g} rad"
    for text in pose_differences(trained, here):
        yield CardProblem(f"camera {name}, pose", allowed, text)
