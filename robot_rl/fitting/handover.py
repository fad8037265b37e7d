"""What must be the same when a policy goes from one RL stage to the next, and what is refused otherwise.

A critic knows a policy's features, discount and reward; PPO's ratios know one sampler. Users lost policies (success 0.6 to
0, RL-100 issue 7) because two stages differed in one of them and nothing said so (P18, P26).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robot_rl.algorithms.comparison import barnard_p
from robot_rl.algorithms.rewards import RewardConfig
from robot_rl.algorithms.statistics import Proportion
from robot_rl.errors import PolicyError
from robot_rl.runs.directory import read_json

CHANCE = 0.01


def handover_document(policy: Any, *, gamma: float, reward: RewardConfig) -> dict[str, Any]:
    """What the next stage must find again, JSON types.

    Args:
        policy: a DiffusionPolicy in the mode of RL.
        gamma: discount per env step.
        reward: penalties.
    """
    sampler = policy.sampler
    normalizer = json.dumps(policy.normalizer.to_json(), sort_keys=True).encode()
    return {
        "family": sampler.prediction.value,
        "num_levels": sampler.num_levels,
        "levels": list(sampler.levels),
        "mode": sampler.mode.value,
        "final_alpha": sampler.final_alpha.value,
        "sigma_min": sampler.sigma_min,
        "sigma_max": sampler.sigma_max,
        "clip_sample": sampler.clip_sample,
        "history": policy.config.history,
        "execute": policy.config.execute,
        "normalizer": hashlib.sha256(normalizer).hexdigest(),
        "gamma": gamma,
        "reward": asdict(reward),
    }


def check_handover(found: Mapping[str, Any], left: Mapping[str, Any], *, where: str) -> None:
    """Compare what a stage has with what the stage before it left.

    Args:
        found: `handover_document` now.
        left: the one in the checkpoint.
        where: of the checkpoint.

    Raises:
        PolicyError: naming every entry that differs, with both values.
    """
    wrong = [name for name in sorted(set(found) | set(left)) if found.get(name) != left.get(name)]
    if wrong:
        raise PolicyError(
            f"{where}, hand-over", expected="; ".join(f"{name} {left.get(name)!r}" for name in wrong),
            got="; ".join(f"{name} {found.get(name)!r}" for name in wrong),
            hint="The critic and the log-probabilities belong to the values of the stage before: set the same here, or run "
            "that stage again.",
        )  # fmt: skip


def check_reproduced(score: Proportion, evaluation: str, *, document: Mapping[str, Any]) -> None:
    """Compare the success of the first batch with an earlier evaluation of the same policy.

    Args:
        score: of the first batch, before any update.
        evaluation: run of `robot-rl evaluate`; empty: only zero success is refused.
        document: `handover_document`, for the sampling mode.

    Raises:
        PolicyError: no success at all, an evaluation in another mode, or a score that differs (Barnard's exact test,
            p < 0.01).
    """
    if score.k == 0:
        raise PolicyError(
            "first batch", expected="at least one success to learn from (the reward is sparse)",
            got=f"0 of {score.n}", hint="Start from a better policy: imitate longer, or run the offline stage first.",
        )  # fmt: skip
    if not evaluation:
        return
    before = read_json(Path(evaluation) / "summary.json")
    mode = str(before.get("protocol", {}).get("sampling", ""))
    if not mode.startswith(document["mode"]):
        raise PolicyError(
            evaluation, expected=f"an evaluation in mode {document['mode']}", got=mode or "no mode",
            hint=f"Evaluate with mode={document['mode']}: RL acts in that mode.",
        )  # fmt: skip
    k, n = before["success_once"]["k"], before["success_once"]["n"]
    if barnard_p((score.k, score.n), (k, n)) < CHANCE:
        raise PolicyError(
            "first batch", expected=f"the success of {evaluation}: {k} of {n}", got=f"{score.k} of {score.n}",
            hint="Sampler, normaliser, environment or time limit differ from that evaluation.",
        )  # fmt: skip
