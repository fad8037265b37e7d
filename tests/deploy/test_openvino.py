"""The cases of openvino_cases.py, in a process of their own: test processes in which OpenVINO had been loaded beside everything
else ended without a word within a minute (twice, 27 November 2026; docs/infer.md)."""

from __future__ import annotations

from pathlib import Path

from own_process import run_cases


def test_every_case_of_openvino(tmp_path: Path) -> None:
    run_cases("tests/deploy/openvino_cases.py", tmp_path)
