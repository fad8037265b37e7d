"""Shared by all tests: one thread, and every array annotation of robot_rl checked (shapes and dtypes)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

# Keep the context open for the whole session: plug-ins are imported lazily by the tests that need them.
_hook = install_import_hook("robot_rl", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told when it happens: of a run that is cut off later the summary never comes."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when}) failed:\n{report.longreprtext}", file=sys.__stderr__, flush=True)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The cli sets up logging for its process; in-process calls must not leave that to the tests behind them."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
