"""What a loop and the process of its policy say to each other: one JSON text at the start, then numbers of fixed size."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.errors import DeployError, PolicyError, RobotRlError, missing_package
from robot_rl.specs import EnvSpec

ANSWER = struct.Struct("<QdB")  # request, seconds in the policy, an outcome; behind all but FINE a text follows
FINE, FAILED, WRONG_SHAPE, AWAY = 0, 1, 2, 3
TEXT_BYTES = 500


class WrongShapeError(PolicyError):
    """A policy gave actions of another shape than it says."""


class NoAnswerError(DeployError):
    """A policy elsewhere gave no answer in time or can't be reached; it may answer again."""


@dataclass(frozen=True)
class PolicyInfo:
    """What a loop must know of a policy.

    Attributes:
        spec: it was made for.
        keys: of the observation that it uses.
        history, horizon, execute: To, Tp, Ta.
        can_continue: whether it takes the chunk that is being played (execution=rtc).
        starts_warm: whether each decision starts from the rest of what is being played (RTI).
    """

    spec: EnvSpec
    keys: tuple[str, ...]
    history: int
    horizon: int
    execute: int
    can_continue: bool = False
    starts_warm: bool = False


def hello(info: PolicyInfo) -> bytes:
    """First message of the policy's process."""
    sizes = {name: getattr(info, name) for name in ("keys", "history", "horizon", "execute")}
    takes = {name: getattr(info, name) for name in ("can_continue", "starts_warm")}
    return json.dumps({"spec": info.spec.to_json(), **takes, **sizes}).encode()


def from_hello(plain: dict[str, Any]) -> PolicyInfo:
    """Inverse of `hello`, of its JSON.

    Raises:
        DataError: no spec.
    """
    sizes = {name: int(plain[name]) for name in ("history", "horizon", "execute")}
    spec = EnvSpec.from_json(plain["spec"], where="spec of the policy")
    return PolicyInfo(
        spec, tuple(plain["keys"]), **sizes, can_continue=bool(plain["can_continue"]),
        starts_warm=bool(plain["starts_warm"]),
    )  # fmt: skip


def failed(error: Exception) -> bytes:
    """Instead of any reply: why there is none."""
    if isinstance(error, DeployError):
        return failed_as(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return failed_as(missing_package(error.name, where="policy"))
    text = {"expected": "a policy that loads", "got": f"{type(error).__name__}: {error}"[:2000], "hint": "Correct it."}
    return json.dumps({"error": {"where": "policy", **text}}).encode()


def failed_as(error: RobotRlError) -> bytes:
    """The words of an error of ours."""
    text = {"expected": error.expected, "got": error.got, "hint": error.hint}
    return json.dumps({"error": {"where": error.where, **text}}).encode()


def read_reply(message: bytes) -> dict[str, Any]:
    """A reply's JSON.

    Raises:
        DeployError: as the process had it.
    """
    plain: dict[str, Any] = json.loads(message)
    if "error" in plain:
        said = plain["error"]
        raise DeployError(said["where"], expected=said["expected"], got=said["got"], hint=said["hint"])
    return plain


def layout_of(info: PolicyInfo) -> list[tuple[str, tuple[int, ...], str]]:
    """Shared arrays of a policy: one observation with To frames, the actions of one answer, and those to be continued."""
    specs = info.spec.observation
    layout = [(f"observation/{key}", (1, info.history, *specs[key].shape), specs[key].dtype) for key in info.keys]
    shape = (info.horizon, *info.spec.action.shape)
    plan = [("plan", shape, "float32")] if info.can_continue or info.starts_warm else []
    weights = [("weights", (info.horizon,), "float64")] if info.can_continue else []
    return [*layout, ("actions", shape, "float32"), *plan, *weights]


def checked(actions: Array, info: PolicyInfo) -> Float32[Array, "Tp A"]:
    """The actions of the one env in a chunk, as float32.

    Raises:
        WrongShapeError: another shape than the policy says.
    """
    wanted, got = (1, info.horizon, *info.spec.action.shape), np.shape(actions)
    if got != wanted:
        raise WrongShapeError("policy", expected=f"actions of shape {wanted}", got=str(got), hint="As its config says.")
    return np.asarray(actions[0], np.float32)


def outcome_of(error: Exception) -> int:
    """Which outcome an error is."""
    return WRONG_SHAPE if isinstance(error, WrongShapeError) else AWAY if isinstance(error, NoAnswerError) else FAILED
