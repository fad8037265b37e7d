"""Conversions by closed forms and round trips, what they refuse, and the command as people type it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.data.action_layout import gripper_ends, layout_of, scale_of
from robot_rl.data.conversion import Conversion, Measured, Turned
from robot_rl.data.converting import Converter, plan_convert
from robot_rl.data.rewriting import carry_out
from robot_rl.data.rotations import convert_rotations, geodesic_rad
from robot_rl.data.same_spec import require_same_spec
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode
from robot_rl.workbench import data_convert

AXES = [f"hand {axis}" for axis in "xyz"]
ABSOLUTE = ActionSemantics(
    ActionKind.absolute, DeltaReference.none, "base", "quat_wxyz", "-1 closed .. 1 open", "cartesian"
)


def pose_spec(semantics: ActionSemantics = ABSOLUTE, *, unit: str = "m", turn: str = "quat", size: int = 4) -> EnvSpec:
    """Action: x y z, a rotation of `size` numbers, a gripper. Proprio: x y z, quaternion xyzw, width."""
    names = [*AXES, *(f"hand {turn} {i}" for i in range(size)), "gripper"]
    units = (*[unit] * 3, *["rad" if size == 3 else "1"] * size, "1")
    seen = (*(f"measured {axis}" for axis in AXES), *(f"hand quat {axis}" for axis in "xyzw"), "width")
    proprio = ArraySpec("proprio", (8,), units=("m", "m", "m", "1", "1", "1", "1", "m"), meanings=seen)
    low, high = (-2.0,) * (4 + size), (2.0,) * (4 + size)
    action = ArraySpec("action", (4 + size,), low=low, high=high, units=units, meanings=tuple(names))
    return EnvSpec("Pose-v1", {"proprio": proprio}, action, semantics, (), "arm", 20.0, 400)


def joint_spec(kind: ActionKind, reference: DeltaReference, *, unit: str = "rad", frame: str = "joint") -> EnvSpec:
    semantics = ActionSemantics(kind, reference, frame, "none", "none", "joints")
    proprio = ArraySpec("proprio", (3,), units=("s", "rad", "rad"), meanings=("clock", "a", "b"))
    action = ArraySpec("action", (2,), units=(unit,), meanings=("joint a", "joint b"))
    return EnvSpec("Joints-v1", {"proprio": proprio}, action, semantics, ("a", "b"), "arm", 20.0, 400)


def episode_of(action: np.ndarray, proprio: np.ndarray) -> Episode:
    """T actions and T + 1 frames."""
    steps = len(action)
    rows = proprio.astype(np.float32)
    return Episode(
        observation={"proprio": rows[:-1]}, final_observation={"proprio": rows[-1]}, action=action.astype(np.float32),
        reward=np.zeros(steps, np.float32), success=np.zeros(steps, bool), terminated=False, truncated=True,
        source=np.zeros(steps, np.uint8), time=np.arange(steps) / 20, metadata={"seed": 1},
    )  # fmt: skip


def turns(count: int, seed: int) -> np.ndarray:
    """Rotation vectors of up to 3 rad."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(count, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True) * rng.uniform(0, 3, (count, 1))


def pose_episode(steps: int = 200, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    quats = convert_rotations(turns(steps, seed), "rotvec", "quat_wxyz", where="")
    seen = convert_rotations(turns(steps + 1, seed + 99), "rotvec", "quat_xyzw", where="")
    action = np.concatenate([rng.uniform(-1, 1, (steps, 3)), quats, rng.choice([-1.0, 1.0], (steps, 1))], axis=1)
    return episode_of(
        action, np.concatenate([rng.uniform(-1, 1, (steps + 1, 3)), seen, np.ones((steps + 1, 1))], axis=1)
    )


def converted(spec: EnvSpec, episode: Episode, **wanted: Any) -> tuple[EnvSpec, Episode]:
    converter = Converter(spec, Conversion(**wanted), where="data")
    return converter.spec, converter.episode(episode)


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as error:
        action()
    return str(error.value)


@pytest.mark.parametrize("via", ["rotvec", "quat_xyzw", "rot6d", "matrix"])
def test_rotations_of_actions_there_and_back(via: str) -> None:
    episode, spec = pose_episode(), pose_spec()
    there_spec, there = converted(spec, episode, rotation=via)
    assert there_spec.action_semantics.rotation == via
    assert there_spec.action_semantics.control_mode == "cartesian, converted"
    np.testing.assert_array_equal(there.action[:, :3], episode.action[:, :3])
    np.testing.assert_array_equal(there.action[:, -1], episode.action[:, -1])
    back_spec, back = converted(there_spec, there, rotation="quat_wxyz")
    one, other = (np.asarray(e.action[:, 3:7], np.float64) for e in (episode, back))
    one, other = (quat / np.linalg.norm(quat, axis=1, keepdims=True) for quat in (one, other))
    assert geodesic_rad(one, other, "quat_wxyz", where="").max() < 1e-6
    assert back_spec.action.shape == spec.action.shape
    assert (back.action[1:, 3:7] * back.action[:-1, 3:7]).sum(axis=1).min() >= 0  # one sign along the episode
    size = there_spec.action.size
    assert len(there_spec.action.units) == len(there_spec.action.meanings) == len(there_spec.action.low or ()) == size
    assert there_spec.action.meanings[3] == f"rotation {via} {'x' if 'q' in via or via == 'rotvec' else '0'}"
    assert EnvSpec.from_json(there_spec.to_json()) == there_spec


def test_rotations_of_observations() -> None:
    episode, spec = pose_episode(), pose_spec()
    new, out = converted(spec, episode, observations=(Turned("proprio", 3, 7, "quat_xyzw", "rot6d"),))
    assert new.observation["proprio"].shape == (10,)
    assert new.action_semantics == spec.action_semantics
    np.testing.assert_array_equal(out.action, episode.action)
    np.testing.assert_array_equal(out.observation["proprio"][:, -1], 1)
    given = np.asarray(episode.final_observation["proprio"][None, 3:7], np.float64)
    matrix = convert_rotations(given / np.linalg.norm(given), "quat_xyzw", "matrix", where="").reshape(3, 3)
    np.testing.assert_allclose(out.final_observation["proprio"][3:9], [*matrix[:, 0], *matrix[:, 1]], atol=1e-6)
    assert new.observation["proprio"].units == ("m",) * 3 + ("1",) * 6 + ("m",)


def test_scaled_euler_angles_become_rotation_vectors() -> None:
    """ManiSkill's pd_ee_delta_pose: 1 means -0.1 rad; a turn about one axis is that angle along it."""
    semantics = replace(ABSOLUTE, kind=ActionKind.delta, delta_reference=DeltaReference.target, rotation="euler_xyz")
    spec = pose_spec(semantics, unit="1 = 0.1 m", turn="rotation", size=3)
    units = ("1 = 0.1 m",) * 3 + ("1 = -0.1 rad",) * 3 + ("1",)
    spec = replace(spec, action=replace(spec.action, units=units))
    action = np.zeros((3, 7))
    action[:, 3:6] = np.eye(3)
    action[:, 0] = 0.5
    new, out = converted(spec, episode_of(action, np.zeros((4, 8))), rotation="rotvec")
    np.testing.assert_allclose(out.action[:, 3:6], -0.1 * np.eye(3), atol=1e-7)
    np.testing.assert_array_equal(out.action[:, 0], 0.5)
    assert new.action.units == ("1 = 0.1 m",) * 3 + ("rad",) * 3 + ("1",)
    assert new.action.meanings[3] == "change of rotation rotvec x"
    assert "Euler angles are only read" in refusal(lambda: converted(new, out, rotation="euler_xyz"))


@pytest.mark.parametrize("reference", list(DeltaReference)[1:])
def test_joint_deltas_by_hand(reference: DeltaReference) -> None:
    """Measured 10, 11, 12; targets 11, 13, 12: changes 1, 2, 0 to what was measured; 1, 2, -1 to the target before."""
    measured = np.stack([np.arange(4), 10.0 + np.arange(4), np.zeros(4)], axis=1)
    targets = np.array([[11.0, 0], [13.0, 0], [12.0, 0]])
    expected = [1.0, 2.0, 0.0] if reference is DeltaReference.measured else [1.0, 2.0, -1.0]
    spec, at = joint_spec(ActionKind.absolute, DeltaReference.none), Measured("proprio", 1, 3)
    episode = episode_of(targets, measured)
    new, out = converted(spec, episode, kind="delta", reference=reference.value, measured=at)
    np.testing.assert_array_equal(out.action[:, 0], expected)
    assert new.action_semantics.delta_reference is reference
    assert new.action.meanings == ("change of joint a", "change of joint b")
    back_spec, back = converted(new, out, kind="absolute", measured=at)
    np.testing.assert_array_equal(back.action, targets)
    assert back_spec.action.meanings == spec.action.meanings
    other = next(one for one in list(DeltaReference)[1:] if one is not reference)
    _, swapped = converted(new, out, reference=other.value, measured=at)
    _, direct = converted(spec, episode, kind="delta", reference=other.value, measured=at)
    np.testing.assert_array_equal(swapped.action, direct.action)


def test_a_controllers_scale_is_undone() -> None:
    """1 means 0.1 rad: targets are what was measured and a tenth of the action, in rad."""
    spec = joint_spec(ActionKind.delta, DeltaReference.measured, unit="1 = 0.1 rad")
    measured = np.tile([0.0, 0.5, 1.5], (4, 1))
    episode = episode_of(np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 1.0]]), measured)
    new, out = converted(spec, episode, kind="absolute", measured=Measured("proprio", 1, 3))
    np.testing.assert_allclose(out.action, [[0.6, 1.4], [0.55, 1.5], [0.5, 1.6]], atol=1e-7)
    assert set(new.action.units) == {"rad"}


def test_numbers_beyond_the_range_count_as_the_controller_takes_them() -> None:
    """Bounds of 1 cut 3 to 1; a norm of 1 shortens (3, 4) to (0.6, 0.8): targets 0.1 rad a unit."""
    spec = joint_spec(ActionKind.delta, DeltaReference.measured, unit="1 = 0.1 rad")
    episode, at = episode_of(np.array([[3.0, 4.0]]), np.zeros((2, 3))), Measured("proprio", 1, 3)
    for unit, low, expected in (("1 = 0.1 rad", (-1.0, -1.0), 0.1), ("1 = 0.1 rad, norm <= 1", None, [0.06, 0.08])):
        high = None if low is None else (1.0, 1.0)
        given = replace(spec, action=replace(spec.action, units=(unit,), low=low, high=high))
        _, out = converted(given, episode, kind="absolute", measured=at)
        np.testing.assert_allclose(out.action, np.broadcast_to(expected, (1, 2)), atol=1e-7)


def test_tool_and_base_frames_by_hand() -> None:
    """The hand is turned by a quarter about z. A target one along base x is minus one along the tool's y."""
    half = np.sqrt(0.5)
    seen = np.tile([1.0, 0, 0, 0, 0, half, half, 0], (3, 1))
    action = np.tile([2.0, 0, 0, half, 0, 0, half, 1], (2, 1))
    at = Measured("proprio", 0, 7, "quat_xyzw")
    for frame, expected in (("base", [1.0, 0, 0]), ("tool", [0, -1.0, 0])):
        spec = pose_spec(replace(ABSOLUTE, frame=frame))
        _, out = converted(spec, episode_of(action, seen), kind="delta", reference="measured", measured=at)
        np.testing.assert_allclose(out.action[:, :3], np.tile(expected, (2, 1)), atol=1e-6)
        np.testing.assert_allclose(out.action[:, 3:7], np.tile([1.0, 0, 0, 0], (2, 1)), atol=1e-6)
        np.testing.assert_array_equal(out.action[:, 7], 1)


@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize("reference", ["measured", "target"])
@pytest.mark.parametrize("rotation", ["rotvec", "rot6d"])
def test_poses_there_and_back(frame: str, reference: str, rotation: str) -> None:
    """Sums of float32 changes do not wander off: 400 steps, below 1e-6 rad and m."""
    spec, at = pose_spec(replace(ABSOLUTE, frame=frame)), Measured("proprio", 0, 7, "quat_xyzw")
    rng = np.random.default_rng(1)
    path = np.cumsum(rng.normal(0, 0.02, (401, 3)), axis=0)
    quats = convert_rotations(np.cumsum(rng.normal(0, 0.01, (401, 3)), axis=0), "rotvec", "quat_xyzw", where="")
    proprio = np.concatenate([path, quats, np.zeros((401, 1))], axis=1)
    action = np.concatenate([path[1:], np.roll(quats[1:], 1, axis=1), np.ones((400, 1))], axis=1)
    episode = episode_of(action, proprio)
    new, out = converted(spec, episode, kind="delta", reference=reference, rotation=rotation, measured=at)
    assert np.abs(out.action[:, :3]).max() < 0.2
    _, back = converted(new, out, kind="absolute", rotation="quat_wxyz", measured=at)
    np.testing.assert_allclose(back.action[:, :3], episode.action[:, :3], atol=1e-6)
    one, other = (np.asarray(e.action[:, 3:7], np.float64) for e in (episode, back))
    one, other = (quat / np.linalg.norm(quat, axis=1, keepdims=True) for quat in (one, other))
    assert geodesic_rad(one, other, "quat_wxyz", where="").max() < 1e-6
    assert new.action.low is None


def test_grippers() -> None:
    """-1 closed .. 1 open to 0 open .. 1 closed: (1 - g) / 2, and back."""
    episode = pose_episode(20)
    new, out = converted(pose_spec(), episode, gripper="0 open .. 1 closed")
    np.testing.assert_allclose(out.action[:, 7], (1 - episode.action[:, 7]) / 2, atol=1e-7)
    np.testing.assert_array_equal(out.action[:, :7], episode.action[:, :7])
    assert ((new.action.low or ())[7], (new.action.high or ())[7]) == (0.0, 1.0)
    _, back = converted(new, out, gripper="-1 closed .. 1 open")
    np.testing.assert_allclose(back.action, episode.action, atol=1e-7)
    assert gripper_ends("-1 closed (-0.01 m) .. 1 open (0.04 m)", where="") == (-1.0, 1.0)
    assert gripper_ends("0 m closed .. 0.04 m open", where="") == (0.0, 0.04)


def test_units_say_their_scale() -> None:
    assert scale_of("1 = -0.1 rad") == (-0.1, 0.0, "rad")
    assert scale_of("-1 = 0 m, 1 = 0.04 m") == (0.02, 0.02, "m")
    assert scale_of("m") == (1.0, 0.0, "m")
    layout = layout_of(pose_spec().action, ABSOLUTE, where="")
    assert (layout.linear, layout.rotations, layout.grippers) == ((0, 1, 2), ((3, 7),), (7,))


def test_what_is_not_declared_is_refused() -> None:
    pose, joints = pose_spec(), joint_spec(ActionKind.absolute, DeltaReference.none)
    delta = joint_spec(ActionKind.delta, DeltaReference.measured)
    at = Measured("proprio", 1, 3)
    cases: list[tuple[EnvSpec, dict[str, Any], str]] = [
        (joints, {"rotation": "rotvec"}, "a rotation that the data declare"),
        (joints, {"gripper": "0 closed .. 1 open"}, "a gripper that the data declare"),
        (joints, {"kind": "delta", "measured": at}, "what a delta is added to"),
        (joints, {"kind": "delta", "reference": "measured"}, "an observation that measures the same"),
        (joints, {"kind": "absolute"}, "not absolute yet"),
        (delta, {"kind": "delta"}, "not delta yet"),
        (delta, {"kind": "absolute", "measured": Measured("proprio", 0, 2)}, "got s (clock)"),
        (delta, {"kind": "absolute", "measured": Measured("proprio", 0, 3)}, "2 positions"),
        (delta, {"kind": "absolute", "measured": Measured("propio", 1, 3)}, "Did you mean 'proprio'"),
        (pose, {"kind": "delta", "reference": "target", "measured": Measured("proprio", 0, 3)}, "and a rotation"),
        (pose, {"rotation": "euler_xyz"}, "Euler angles are only read"),
        (pose, {"rotation": "quat"}, "a representation of rotations"),
        (pose, {"gripper": "wide"}, "two ends"),
        (pose, {}, "something to convert"),
        (pose, {"observations": (Turned("proprio", 3, 6, "quat_xyzw", "rotvec"),)}, "4 elements of quat_xyzw"),
        (pose_spec(turn="element"), {"rotation": "rotvec"}, "--rotation-at"),
        (joint_spec(ActionKind.velocity, DeltaReference.none), {"kind": "delta", "reference": "target"}, "velocity to delta"),
        (joint_spec(ActionKind.delta, DeltaReference.target, frame="tool"), {"kind": "absolute", "measured": at}, "the tool"),
        (joint_spec(ActionKind.delta, DeltaReference.target, frame="camera"), {"kind": "absolute", "measured": at}, "'camera'"),
    ]  # fmt: skip
    for spec, wanted, words in cases:
        text = refusal(lambda spec=spec, wanted=wanted: Converter(spec, Conversion(**wanted), where="data"))  # type: ignore[misc]
        assert words in text, (words, text)
    new, _ = converted(pose_spec(turn="element"), pose_episode(5), rotation="rotvec", rotation_at=(3,))
    assert new.action.shape == (7,)


def test_quaternions_in_another_order_than_declared_are_named() -> None:
    """No unit quaternion in any order shows a swap; numbers that are none do."""
    bad = pose_episode(5)
    bad.action[2, 3:7] = 0.5, 0.5, 0.5, 0.9
    assert "row 2" in refusal(lambda: converted(pose_spec(), bad, rotation="rotvec"))


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    path = tmp_path / "demos.zarr"
    with EpisodeStore.create(path, pose_spec(), metadata={"card": {"origin": "here"}}) as store:
        store.append_many([pose_episode(12, seed) for seed in range(3)])
    return path


def test_a_store_is_copied_and_says_how(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new.zarr"
    words = ["convert", str(demos), str(target), "--rotation", "rot6d", "--gripper", "0 closed .. 1 open"]
    assert data_convert.main([*words, "--dry-run"]) == 0
    assert not target.exists()
    shown = capsys.readouterr().out
    assert "Dry run" in shown
    assert "quat_wxyz" in shown
    assert "<- differs" in shown
    assert data_convert.main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["episodes"], report["changed"]) == (3, {"data/action": 3})
    with EpisodeStore.open(demos) as old, EpisodeStore.open(target) as new:
        assert report["content_hash"] == new.content_hash()
        assert new.spec.action_semantics.rotation == "rot6d"
        history = new.metadata["history"][-1]
        assert (history["command"], history["arguments"]["rotation"]) == ("convert", "rot6d")
        assert history["arguments"]["before"] == old.spec.to_json()["action_semantics"]
        assert history["arguments"]["after"] == new.spec.to_json()["action_semantics"]
        assert history["sources"][0]["content_hash"] == old.content_hash()
        assert new.metadata["card"] == {"origin": "here"}
        np.testing.assert_array_equal(new.uuids, old.uuids)
        for index in range(3):
            one, other = old.episode(index), new.episode(index)
            np.testing.assert_array_equal(one.observation["proprio"], other.observation["proprio"])
            np.testing.assert_allclose(other.action[:, -1], (one.action[:, -1] + 1) / 2, atol=1e-7)
        text = refusal(lambda: require_same_spec(new.spec, old.spec, where="new.zarr"))
        assert "rot6d" in text
        assert "quat_wxyz" in text
    assert "Nothing is ever overwritten" in refusal(lambda: data_convert.main(words))


def test_words_of_the_command(demos: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.zarr"
    words = ["convert", str(demos), str(target), "--kind", "delta", "--reference", "target", "--rotation", "rotvec"]
    words += ["--measured", "proprio=0:7:quat_xyzw", "--observation", "proprio=3:7:quat_xyzw:rot6d"]
    assert data_convert.main([*words, "--control-mode", "servo"]) == 0
    with EpisodeStore.open(target) as store:
        semantics = store.spec.action_semantics
        assert (semantics.kind.value, semantics.delta_reference.value, semantics.control_mode) == (
            "delta",
            "target",
            "servo",
        )
        assert store.spec.observation["proprio"].shape == (10,)
    for bad in (["--measured", "proprio"], ["--observation", "proprio=3:7:quat_xyzw"], ["--kind", "velocity"]):
        with pytest.raises(SystemExit) as stopped:
            data_convert.main(["convert", str(demos), str(tmp_path / "x.zarr"), *bad])
        assert stopped.value.code == 2


def test_merging_two_declarations_shows_both(demos: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.zarr"
    with EpisodeStore.open(demos) as store:
        carry_out([plan_convert(store, target, Conversion(rotation="rot6d"))])
    from robot_rl.data.editing import plan_merge

    with EpisodeStore.open(demos) as one, EpisodeStore.open(target) as other:
        text = refusal(lambda: plan_merge([one, other], tmp_path / "all.zarr"))
    assert "rot6d" in text
    assert "<- differs" in text
