"""Where this machine has a Vulkan in software, for tests that render."""

from __future__ import annotations

import os
from pathlib import Path

from robot_rl.envs import headless


def software_icd() -> str | None:
    """SwiftShader's ICD file, or that of ROBOT_RL_TEST_VULKAN_ICD; None without one."""
    places = (os.environ.get("ROBOT_RL_TEST_VULKAN_ICD", ""), *headless._SWIFTSHADER)
    return next((place for place in places if place and Path(place).is_file()), None)
