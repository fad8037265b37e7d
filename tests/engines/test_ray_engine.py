"""The cases of ray_cases.py, in a process of their own: Ray ends the process of a driver whose node is gone, without an exception."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from own_process import run_cases

from robot_rl.engines.ray_workers import RayEngine

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra `ray`", allow_module_level=True)


def test_every_case_of_ray(tmp_path: Path) -> None:
    run_cases("tests/engines/ray_cases.py", tmp_path)


def test_players_are_made_at_the_same_time() -> None:
    """Every worker is asked before an answer is waited for."""
    engine, asked = RayEngine.__new__(RayEngine), list[int]()

    def worker(number: int) -> Any:
        return SimpleNamespace(describe=SimpleNamespace(remote=lambda: asked.append(number) or {"pid": number, "a": 1}))

    def get(answers: Any) -> Any:
        assert asked == [0, 1, 2]
        return answers

    engine._workers, engine._ray = [worker(number) for number in range(3)], SimpleNamespace(get=get)
    assert engine.describe() == {"a": 1}
    asked.clear()
    assert engine.process_ids() == [0, 1, 2]
