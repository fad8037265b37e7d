"""Messages and numbers: hand-made objects without ROS; the same with the real classes where they are installed."""

from __future__ import annotations

import io
import math
import struct
import sys
from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.robot_card import GripperCard
from robot_rl.errors import DeployError
from robot_rl.hardware import ros2_messages as m
from robot_rl.hardware import ros2_pictures as pictures

GRIPPER = GripperCard(closed=0.0, open=0.08, velocity=0.1)


def tree(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def xyz(*values: float) -> SimpleNamespace:
    return tree(**dict(zip("xyzw", values, strict=False)))


def header(frame: str = "", sec: int = 0, nanosec: int = 0) -> SimpleNamespace:
    return tree(frame_id=frame, stamp=tree(sec=sec, nanosec=nanosec))


def joint_state(name: list[str], position: list[float], velocity: list[float] = ()) -> SimpleNamespace:  # type: ignore[assignment]
    return tree(header=header(), name=name, position=position, velocity=list(velocity), effort=[])


def pose(*values: float, frame: str = "base") -> SimpleNamespace:
    return tree(header=header(frame), pose=tree(position=xyz(*values[:3]), orientation=xyz(*values[3:])))


class TestJoints:
    def test_by_name_and_in_the_order_asked_for(self) -> None:
        message = joint_state(["b", "finger", "a"], [2.0, 9.0, 1.0], [20.0, 90.0, 10.0])
        joints = m.joints_of(message, ("a", "b"))
        assert joints.position.tolist() == [1, 2]
        assert joints.velocity is not None
        assert joints.velocity.tolist() == [10, 20]

    @pytest.mark.parametrize("velocity", [[], [math.nan, math.nan, 3.0]], ids=["empty", "NaN"])
    def test_velocity_that_is_not_said(self, velocity: list[float]) -> None:
        assert m.joints_of(joint_state(["a", "b", "c"], [1, 2, 3], velocity), ("a", "b")).velocity is None

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            (joint_state(["a", "c"], [1, 2]), "no b among"),
            (joint_state(["a", "b", "a"], [1, 2, 3]), "a more than once"),
            (joint_state(["a", "b"], [1]), "expected 2 numbers"),
            (joint_state(["a", "b"], []), "got none"),
            (joint_state(["a", "b"], [1, 2], [1]), "velocity: expected 2 numbers"),
        ],
    )
    def test_broken_messages_name_the_joint(self, message: Any, words: str) -> None:
        with pytest.raises(DeployError, match=words) as caught:
            m.joints_of(message, ("a", "b"))
        assert not isinstance(caught.value, m.NotFiniteError)

    def test_not_finite_matters_only_for_joints_that_are_wanted(self) -> None:
        message = joint_state(["a", "b", "c"], [1, math.inf, math.nan], [1, 2, math.nan])
        assert m.joints_of(message, ("a",)).position.tolist() == [1]
        with pytest.raises(m.NotFiniteError, match=r"b = inf, c = nan"):
            m.joints_of(message, ("a", "b", "c"))
        with pytest.raises(m.NotFiniteError, match=r"velocity.*c = nan"):
            m.joints_of(joint_state(["a", "c"], [1, 2], [1, math.nan]), ("a", "c"))


class TestPoseAndWrench:
    def test_quaternion_goes_from_xyzw_to_wxyz(self) -> None:
        assert m.pose_of(pose(1, 2, 3, 0.6, 0, 0, 0.8), frame="base").tolist() == [1, 2, 3, 0.8, 0.6, 0, 0]
        assert m.pose_of(pose(1, 2, 3, 0, 0, 0, 1.0004, frame="/base"), frame="base").tolist() == [1, 2, 3, 1, 0, 0, 0]

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            (pose(1, 2, 3, 0, 0, 0, 0), "length 0"),
            (pose(1, 2, 3, 0, 0, 0, 1.01), "length 1.01"),
            (pose(1, 2, 3, 0, 0, 0, 1, frame="tool"), "expected 'base', got 'tool'"),
            (pose(1, math.nan, 3, 0, 0, 0, 1), "y = nan"),
        ],
    )
    def test_broken_poses(self, message: Any, words: str) -> None:
        with pytest.raises(DeployError, match=words):
            m.pose_of(message, frame="base")

    def test_wrench(self) -> None:
        message = tree(header=header("tool"), wrench=tree(force=xyz(1, 2, 3), torque=xyz(4, 5, 6)))
        assert m.wrench_of(message, frames=("base", "tool")).tolist() == [1, 2, 3, 4, 5, 6]
        with pytest.raises(DeployError, match="'base' or 'flange', got 'tool'"):
            m.wrench_of(message, frames=("base", "flange"))


class TestNumbers:
    def test_arrays_and_single_numbers(self) -> None:
        layout = tree(dim=[tree(size=2), tree(size=2)])
        assert m.numbers_of(tree(layout=layout, data=array("d", [1, 2, 3, 4]))).tolist() == [1, 2, 3, 4]
        assert m.numbers_of(tree(data=[])).shape == (0,)
        assert m.number_of(tree(data=2.5)) == 2.5
        assert m.number_of(tree(data=True)) == 1.0
        for data, words in (([1.0, 2.0], "one number"), (math.nan, "nan")):
            with pytest.raises(DeployError, match=words):
                m.number_of(tree(data=data))
        with pytest.raises(DeployError, match="expected 4 numbers"):
            m.numbers_of(tree(layout=layout, data=[1.0, 2.0]))

    def test_stamps(self) -> None:
        assert m.stamp_of(tree(data=1)) is None
        assert m.stamp_of(tree(header=header())) is None
        assert m.stamp_of(tree(header=header(sec=3, nanosec=250_000_000))) == 3.25


def image(encoding: str, rows: list[bytes], *, width: int, step: int, big: int = 0) -> SimpleNamespace:
    data = b"".join(row.ljust(step, b"\xee") for row in rows)
    return tree(encoding=encoding, height=len(rows), width=width, step=step, is_bigendian=big, data=array("B", data))


class TestPictures:
    @pytest.mark.parametrize("step", [6, 8], ids=["tight", "padded"])
    @pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
    def test_colour(self, encoding: str, step: int) -> None:
        message = image(encoding, [bytes([1, 2, 3, 4, 5, 6]), bytes([7, 8, 9, 10, 11, 12])], width=2, step=step)
        rgb = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]], np.uint8)
        np.testing.assert_array_equal(pictures.colour_of(message), rgb if encoding == "rgb8" else rgb[..., ::-1])

    def test_mono_and_alpha(self) -> None:
        grey = pictures.colour_of(image("mono8", [bytes([5, 9])], width=2, step=4))
        assert grey.tolist() == [[[5, 5, 5], [9, 9, 9]]]
        alpha = pictures.colour_of(image("bgra8", [bytes([1, 2, 3, 255])], width=1, step=4))
        assert alpha.tolist() == [[[3, 2, 1]]]

    @pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
    @pytest.mark.parametrize("big", [0, 1])
    def test_depth_in_either_byte_order(self, encoding: str, big: int) -> None:
        rows = [struct.pack(">2H" if big else "<2H", 258, 65_535), struct.pack(">2H" if big else "<2H", 1, 0)]
        depth = pictures.depth_of(image(encoding, rows, width=2, step=6, big=big))
        assert depth.dtype == np.uint16
        assert depth.tolist() == [[258, 65_535], [1, 0]]

    @pytest.mark.parametrize(
        ("call", "message", "words"),
        [
            (pictures.colour_of, image("16UC1", [b"12"], width=1, step=2), "a colour image, got '16UC1'"),
            (pictures.depth_of, image("rgb8", [b"123"], width=1, step=3), "a depth image, got 'rgb8'"),
            (pictures.colour_of, image("rgb8", [b"12"], width=1, step=2), "rows of at least 3 bytes"),
            (pictures.colour_of, tree(encoding="rgb8", height=2, width=1, step=3, data=b"1234"), "and 4 bytes"),
            (pictures.colour_of, tree(format="jpeg", data=b"\xff\xd8 broken"), "no picture"),
            (pictures.colour_of, tree(format="jpeg", data=b""), "no picture"),
            (pictures.depth_of, tree(format="16UC1; compressedDepth png", data=b"1"), "raw depth topic"),
        ],
    )
    def test_broken_pictures(self, call: Any, message: Any, words: str) -> None:
        with pytest.raises(DeployError, match=words):
            call(message)

    @pytest.mark.parametrize("decoder", ["cv2", "pillow"])
    def test_compressed(self, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        image_module = pytest.importorskip("PIL.Image")
        if decoder == "cv2":
            pytest.importorskip("cv2")
        else:
            monkeypatch.setitem(sys.modules, "cv2", None)
        rgb = np.zeros((32, 48, 3), np.uint8)
        rgb[:, :24, 0], rgb[:, 24:, 2] = 200, 100
        for kind, tolerance in (("PNG", 0), ("JPEG", 12)):
            buffer = io.BytesIO()
            image_module.fromarray(rgb).save(buffer, format=kind, quality=95)
            message = tree(format=f"rgb8; {kind.lower()} compressed bgr8", data=array("B", buffer.getvalue()))
            got = pictures.colour_of(message).astype(int)
            assert np.abs(got[:, :16] - rgb[:, :16]).max() <= tolerance
            assert np.abs(got[:, -16:] - rgb[:, -16:]).max() <= tolerance
        depth = np.array([[0, 258], [65_535, 7]], np.uint16)
        buffer = io.BytesIO()
        image_module.fromarray(depth).save(buffer, format="PNG")
        np.testing.assert_array_equal(pictures.depth_of(tree(format="16UC1; png", data=buffer.getvalue())), depth)

    def test_a_missing_decoder_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cv2", None)
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(DeployError, match="OpenCV or Pillow"):
            pictures.colour_of(tree(format="jpeg", data=b"1"))

    def test_camera_model(self) -> None:
        message = tree(width=4, height=3, k=[5, 0, 2, 0, 6, 1, 0, 0, 1], d=[0.1, 0.2], distortion_model="plumb_bob")
        camera = pictures.camera_of(message)
        assert (camera.width, camera.height, camera.model) == (4, 3, "plumb_bob")
        assert camera.matrix.tolist() == [[5, 0, 2], [0, 6, 1], [0, 0, 1]]
        message.k = [0.0] * 9
        with pytest.raises(DeployError, match="calibrate camera"):
            pictures.camera_of(message)


def cloud(order: str, *, row_padding: int = 0) -> SimpleNamespace:
    """2 x 2 points of 20 bytes: z, x, y out of order, two bytes unused, rgb; the second was not measured."""
    rows, colour = b"", 0x00FF8000
    for number in range(4):
        x = math.nan if number == 1 else float(number)
        rows += struct.pack(f"{order}fffHIH", 10.0 + number, x, 20.0 + number, 7, colour, 9)
        rows += b"\xee" * row_padding if number % 2 else b""
    offsets = {"z": 0, "x": 4, "y": 8, "rgb": 14}
    step = struct.calcsize("<fffHIH")
    fields = [tree(name=name, offset=offset, datatype=7, count=1) for name, offset in offsets.items()]
    return tree(
        width=2, height=2, point_step=step, row_step=2 * step + row_padding, is_bigendian=order == ">", fields=fields,
        data=array("B", rows), is_dense=False,
    )  # fmt: skip


class TestCloud:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("row_padding", [0, 3])
    def test_fields_are_found_by_name_and_bad_points_dropped(self, order: str, row_padding: int) -> None:
        points = pictures.points_of(cloud(order, row_padding=row_padding))
        np.testing.assert_allclose(points[:, :3], [[0, 20, 10], [2, 22, 12], [3, 23, 13]])
        np.testing.assert_allclose(points[:, 3:], [[1, 128 / 255, 0]] * 3, rtol=1e-6)
        kept = pictures.points_of(cloud(order), keep_invalid=True)
        assert kept.shape == (4, 6)
        assert np.isnan(kept[1, :3]).all()

    def test_doubles_without_colour(self) -> None:
        fields = [tree(name=name, offset=8 * place, datatype=8, count=1) for place, name in enumerate("xyz")]
        message = tree(
            width=1,
            height=1,
            point_step=24,
            row_step=24,
            is_bigendian=False,
            fields=fields,
            data=struct.pack("<3d", 1, 2, 3),
        )
        assert pictures.points_of(message).tolist() == [[1, 2, 3]]
        fields[0].datatype = 5
        with pytest.raises(DeployError, match="'x': expected float32"):
            pictures.points_of(message)
        fields[0].datatype, fields[2].offset = 8, 17
        with pytest.raises(DeployError, match="'z': expected within 24"):
            pictures.points_of(message)
        message.data = b"short"
        with pytest.raises(DeployError, match="5 bytes"):
            pictures.points_of(message)
        with pytest.raises(DeployError, match="No z"):
            pictures.points_of(tree(**{**vars(message), "fields": fields[:2]}))


def _empty(**fields: Any) -> Any:
    """A class whose instances are fresh trees."""

    class Message(SimpleNamespace):
        def __init__(self) -> None:
            super().__init__(**{name: make() for name, make in fields.items()})

    return Message


class Float64:
    data = 0.0


class Bool:
    data = False


class Float64MultiArray:
    data: Any = None


class String:
    data = ""


class TestCommands:
    def test_joints(self) -> None:
        assert list(m.as_multi_array(Float64MultiArray, np.array([1.0, 2.0])).data) == [1, 2]
        message = m.as_joint_state(_empty(), ("a", "b"), np.array([1.0, 2.0]))
        assert (message.name, list(message.position)) == (["a", "b"], [1, 2])

    def test_trajectory_starts_now(self) -> None:
        kind = _empty(header=header)
        point_kind = _empty(time_from_start=lambda: tree(sec=0, nanosec=0), velocities=list)
        message = m.as_trajectory(kind, point_kind, ("a", "b"), np.array([1.0, 2.0]), time_s=1.25)
        (point,) = message.points
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)
        assert message.joint_names == ["a", "b"]
        assert list(point.positions) == [1, 2]
        assert (point.time_from_start.sec, point.time_from_start.nanosec) == (1, 250_000_000)
        assert list(point.velocities) == []
        moving = m.as_trajectory(kind, point_kind, ("a", "b"), np.zeros(2), time_s=1.0, velocity=np.array([3.0, 4.0]))
        assert list(moving.points[0].velocities) == [3, 4]

    def test_pose_comes_back_as_it_went(self) -> None:
        kind = _empty(header=header, pose=lambda: tree(position=xyz(0, 0, 0), orientation=xyz(0, 0, 0, 1)))
        ours = np.array([1, 2, 3, 0.8, 0.6, 0, 0])
        message = m.as_pose(kind, ours, frame="base", stamp_s=12.5)
        assert (message.pose.orientation.w, message.pose.orientation.x) == (0.8, 0.6)
        np.testing.assert_array_equal(m.pose_of(message, frame="base"), ours)
        assert m.stamp_of(message) == 12.5

    def test_twist(self) -> None:
        kind = _empty(header=header, twist=lambda: tree(linear=xyz(0, 0, 0), angular=xyz(0, 0, 0)))
        message = m.as_twist(kind, np.arange(6.0), frame="base", stamp_s=1.0)
        assert (message.twist.linear.z, message.twist.angular.x) == (2, 3)

    def test_gripper(self) -> None:
        assert m.as_gripper(Float64, 0.03, GRIPPER).data == 0.03
        assert list(m.as_gripper(Float64MultiArray, 0.03, GRIPPER).data) == [0.03]
        assert [m.as_gripper(Bool, opening, GRIPPER).data for opening in (0.0, 0.03, 0.05, 0.08)] == [
            False,
            False,
            True,
            True,
        ]
        with pytest.raises(DeployError, match="got String"):
            m.as_gripper(String, 0.03, GRIPPER)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_nothing_that_is_not_finite_leaves(self, bad: float) -> None:
        calls = (
            lambda: m.as_multi_array(Float64MultiArray, np.array([1.0, bad])),
            lambda: m.as_joint_state(None, "ab", np.array([1.0, bad])),
            lambda: m.as_trajectory(None, None, "ab", np.array([1.0, bad]), time_s=1.0),
            lambda: m.as_pose(None, np.array([0, 0, 0, 1, 0, 0, bad]), frame="", stamp_s=0.0),
            lambda: m.as_twist(None, np.array([0, 0, 0, 1, 0, bad]), frame="", stamp_s=0.0),
            lambda: m.as_gripper(Float64, bad, GRIPPER),
        )
        for call in calls:
            with pytest.raises(m.NotFiniteError):
                call()


def test_real_classes_there_and_back() -> None:
    """Through the serialisation of ROS, so that a wrong type of a field would show."""
    serialization = pytest.importorskip("rclpy.serialization", reason="ROS 2 is not installed")
    from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState, PointCloud2, PointField
    from std_msgs.msg import Bool, Float64, Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    def sent(message: Any) -> Any:
        return serialization.deserialize_message(serialization.serialize_message(message), type(message))

    ours = np.array([1, 2, 3, 0.8, 0.6, 0, 0])
    np.testing.assert_array_equal(
        m.pose_of(sent(m.as_pose(PoseStamped, ours, frame="base", stamp_s=1.7e9)), frame="base"), ours
    )
    twist = sent(m.as_twist(TwistStamped, np.arange(6.0), frame="base", stamp_s=2.5)).twist
    assert (twist.linear.y, twist.angular.z) == (1, 5)
    state = sent(m.as_joint_state(JointState, ["b", "a"], np.array([2.0, 1.0])))
    joints = m.joints_of(state, ("a", "b"))
    assert (joints.position.tolist(), joints.velocity) == ([1, 2], None)
    numbers = m.numbers_of(sent(m.as_multi_array(Float64MultiArray, np.array([1.5, 2.5]))))
    assert numbers.tolist() == [1.5, 2.5]
    trajectory = sent(
        m.as_trajectory(JointTrajectory, JointTrajectoryPoint, "ab", np.arange(2.0), time_s=0.5, velocity=np.ones(2))
    )
    assert trajectory.points[0].velocities.tolist() == [1, 1]
    assert [m.number_of(sent(m.as_gripper(kind, 0.08, GRIPPER))) for kind in (Float64, Bool, Float64MultiArray)] == [
        0.08,
        1,
        0.08,
    ]
    wrench = WrenchStamped()
    wrench.wrench.torque.y = 4.0
    assert m.wrench_of(sent(wrench)).tolist() == [0, 0, 0, 0, 4, 0]
    raw = Image(height=1, width=2, step=8, encoding="bgr8", data=array("B", [1, 2, 3, 4, 5, 6, 0, 0]))
    assert pictures.colour_of(sent(raw)).tolist() == [[[3, 2, 1], [6, 5, 4]]]
    assert pictures.depth_of(
        sent(Image(height=1, width=1, step=2, encoding="16UC1", data=array("B", [2, 1])))
    ).tolist() == [[258]]
    with pytest.raises(DeployError):
        pictures.colour_of(sent(CompressedImage(format="jpeg", data=b"123")))
    info = CameraInfo(width=4, height=3, k=[5.0, 0, 2, 0, 6, 1, 0, 0, 1], d=[0.1], distortion_model="plumb_bob")
    assert pictures.camera_of(sent(info)).matrix[1, 1] == 6
    fake = cloud("<")
    fields = [PointField(name=field.name, offset=field.offset, datatype=7, count=1) for field in fake.fields]
    real = PointCloud2(
        width=2, height=2, point_step=fake.point_step, row_step=fake.row_step, fields=fields, data=fake.data
    )
    np.testing.assert_array_equal(pictures.points_of(sent(real)), pictures.points_of(fake))


def test_ros_is_not_needed() -> None:
    import subprocess

    code = "import sys; sys.modules['rclpy'] = sys.modules['sensor_msgs'] = None; import robot_rl.hardware.ros2_robot"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
