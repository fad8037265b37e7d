"""Rotations by closed forms and round trips, and declarations that differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robot_rl.data.rotations import SIZES, continuous_quaternions, convert_rotations, geodesic_rad, rotation_size
from robot_rl.data.same_spec import declarations, require_same_spec
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, DeltaReference

HALF = np.sqrt(0.5)
# A quarter turn about z: x becomes y.
QUARTER = {
    "rotvec": [0, 0, np.pi / 2],
    "quat_xyzw": [0, 0, HALF, HALF],
    "quat_wxyz": [HALF, 0, 0, HALF],
    "rot6d": [0, 1, 0, -1, 0, 0],
    "matrix": [0, -1, 0, 1, 0, 0, 0, 0, 1],
    "euler_xyz": [0, 0, np.pi / 2],
    "euler_XYZ": [0, 0, np.pi / 2],
}


@pytest.mark.parametrize("given", QUARTER)
@pytest.mark.parametrize("wanted", SIZES)
def test_a_quarter_turn(given: str, wanted: str) -> None:
    found = convert_rotations(np.array([QUARTER[given]], float), given, wanted, where="here")
    np.testing.assert_allclose(found, [QUARTER[wanted]], atol=1e-12)
    assert found.shape[1] == rotation_size(wanted, where="here")


def test_fixed_and_moving_axes_differ() -> None:
    """Roll and yaw of a quarter each: fixed axes turn z first about x, moving ones turn about the new z."""
    angles = np.array([[np.pi / 2, 0, np.pi / 2]])
    fixed = convert_rotations(angles, "euler_xyz", "matrix", where="here").reshape(3, 3)
    moving = convert_rotations(angles, "euler_XYZ", "matrix", where="here").reshape(3, 3)
    roll, yaw = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(fixed, yaw @ roll, atol=1e-12)
    np.testing.assert_allclose(moving, roll @ yaw, atol=1e-12)


@pytest.mark.parametrize("via", SIZES)
def test_round_trips(via: str) -> None:
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(500, 3))
    turns *= (rng.uniform(0, 3.1, (500, 1))) / np.linalg.norm(turns, axis=1, keepdims=True)
    there = convert_rotations(turns, "rotvec", via, where="here")
    np.testing.assert_allclose(convert_rotations(there, via, "rotvec", where="here"), turns, atol=1e-9)
    np.testing.assert_allclose(geodesic_rad(there, there, via, where="here"), 0, atol=1e-7)


def test_rot6d_of_a_network_is_made_orthogonal() -> None:
    rough = np.array([[2.0, 0, 0, 0.3, 0.5, 0]])
    np.testing.assert_allclose(convert_rotations(rough, "rot6d", "rotvec", where="here"), [[0, 0, 0]], atol=1e-12)


def test_signs_of_quaternions_do_not_jump() -> None:
    angle = np.linspace(0, 4 * np.pi, 200)
    values = np.stack([0 * angle, 0 * angle, np.sin(angle / 2), np.cos(angle / 2)], axis=1)
    flipped = values * np.where(np.arange(200) % 3 == 0, -1.0, 1.0)[:, None]
    np.testing.assert_allclose(continuous_quaternions(flipped), values, atol=1e-12)
    assert np.abs(np.diff(continuous_quaternions(flipped), axis=0)).max() < 0.05


def test_geodesic_sees_turns_and_not_branches() -> None:
    """179 and -179 degrees of yaw are two degrees apart; q and -q are one rotation."""
    left, right = np.radians([[0, 0, 179.0]]), np.radians([[0, 0, -179.0]])
    np.testing.assert_allclose(geodesic_rad(left, right, "euler_xyz", where="here"), np.radians(2.0))
    quarter = np.array([QUARTER["quat_xyzw"]])
    np.testing.assert_allclose(geodesic_rad(quarter, -quarter, "quat_xyzw", where="here"), 0, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "given", "wanted", "text"),
    [
        ([[0, 0, 0]], "rotvec", "euler_xyz", "without branches"),
        ([[0, 0, 0]], "axis_angle", "rotvec", "representation of rotations"),
        ([[0, 0, 0]], "rotvec", "rotvek", "rotvec"),
        ([[0, 0, 0]], "quat_xyzw", "rotvec", "rows of 4"),
        ([[0, 0, 0, 1], [0, 0, 0, 2]], "quat_xyzw", "rotvec", "row 1.*unit quaternions"),
        ([[1, 0, 0, 0, 1, 0, 0, 0, -1]], "matrix", "rotvec", "determinant 1"),
        ([[1, 0, 0, 2, 0, 0]], "rot6d", "rotvec", "not parallel"),
        ([[0, np.nan, 0]], "rotvec", "matrix", "row 0.*finite"),
    ],
)
def test_what_is_no_rotation_is_named(values: list[list[float]], given: str, wanted: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        convert_rotations(np.array(values, float), given, wanted, where="here")


def test_both_declarations_are_printed() -> None:
    one = ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "rotvec", "-1 closed .. 1 open", "pd_ee")
    other = replace(one, kind=ActionKind.absolute, delta_reference=DeltaReference.none)
    lines = declarations(one, other).splitlines()
    assert lines[1].split() == ["kind", "delta", "absolute", "<-", "differs"]
    assert "differs" not in lines[3]
    env = make_env(PointReachConfig(), num_envs=1, history=1)
    spec = env.spec
    env.close()
    require_same_spec(spec, spec, where="demos.zarr")
    strange = replace(spec, action_semantics=replace(spec.action_semantics, frame="tool"), control_hz=3.0)
    with pytest.raises(DataError) as caught:
        require_same_spec(strange, spec, where="demos.zarr")
    for part in ("demos.zarr", "<- differs", "tool", "control_hz"):
        assert part in str(caught.value)
