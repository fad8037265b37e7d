"""Shared by all tests: one thread, and every array annotation of robot_rl checked (shapes and dtypes)."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# Keep the context open for the whole session: plug-ins are imported lazily by the tests that need them.
_hook = install_import_hook("robot_rl", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
