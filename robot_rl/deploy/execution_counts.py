"""What happened while chunks were played, on a robot and in simulation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class ExecutionCounts:
    """What happened.

    Attributes:
        questions: asked of the policy.
        steps: played.
        held: of them without an action of a chunk: waiting for the answer, or the chunk was over.
    """

    questions: int = 0
    steps: int = 0
    held: int = 0

    def to_json(self, delays: Sequence[int]) -> dict[str, Any]:
        """What reports say; JSON types.

        Args:
            delays: in steps, of the answers but the first one of an episode.
        """
        late = list(delays) or [0]
        p50, p95 = np.percentile(late, [50, 95]).tolist()
        spread = {"p50": p50, "p95": p95, "max": max(late)}
        return {"questions": self.questions, "steps": self.steps, "held_steps": self.held, "delay_steps": spread}
