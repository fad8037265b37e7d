"""`bench ros2`: the pictures tell their numbers, and a short run over real DDS gives the figures that it promises."""

from __future__ import annotations

import io

import numpy as np
import pytest

from robot_rl.hardware import ros2_echo


@pytest.mark.parametrize("number", [-1, 0, 1, 299, 65_534])
def test_a_picture_tells_its_number_through_jpeg(number: int) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = ros2_echo.picture(number)
    assert (pixels.shape, pixels.dtype) == (ros2_echo.SHAPE, np.uint8)
    assert ros2_echo.number_in(pixels) == number
    buffer = io.BytesIO()
    image_module.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    assert ros2_echo.number_in(np.array(image_module.open(buffer))) == number


def test_joint_states_come_back_as_commands() -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    found = ros2_echo.echo(50.0, seconds=2.0, domain_id=99)
    assert found["sent"] == 100
    assert 0.5 < found["handled"] <= 1.0
    assert len(found["times_s"]) == round(found["handled"] * 100)
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"] < 5000


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "reliability"), [("compressed", "best_effort"), ("raw", "reliable")])
def test_pictures_arrive(kind: str, reliability: str) -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    found = ros2_echo.camera(kind, reliability, seconds=4.0, domain_id=98)
    assert found["sent"] == 120
    assert 0.5 < found["delivered"] <= 1.0
    assert 0 < found["p50_ms"] < 1000
