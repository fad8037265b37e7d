"""Array annotations are checked while tests run: without this, a lost import hook would leave the suite green."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from robot_rl.algorithms.iql import expectile_loss


def test_a_wrong_dtype_is_refused() -> None:
    expectile_loss(torch.zeros(3), expectile=0.7)
    with pytest.raises(TypeCheckError, match="difference"):
        expectile_loss(torch.zeros(3, dtype=torch.float64), expectile=0.7)
