"""The cases of ray_cases.py, in a process of their own: Ray ends the process of a driver whose node is gone, without an exception."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from own_process import run_cases

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra `ray`", allow_module_level=True)


def test_every_case_of_ray(tmp_path: Path) -> None:
    run_cases("tests/engines/ray_cases.py", tmp_path)
