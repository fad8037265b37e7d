"""What the samplers and int8 files of `bench infer --policy` do in episodes: success, smoothness, distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.runs.progress import Progress
from robot_rl.workbench.bench_infer_nets import Sampled, Subject
from robot_rl.workbench.bench_timing import Options
from robot_rl.workbench.rti_settings import Setting
from robot_rl.workbench.rti_trial import distance, play

# Seeds that neither training nor `evaluate` uses by default; those of `rti tune`.
FIRST_SEED, NUM_ENVS, DISTANCE_EPISODES = 910_000, 8, 16
HEADING = (
    "sampler",
    "runtime",
    "success once",
    "difference to DDIM",
    "step rms",
    "jerk rms",
    "gripper flips",
    "distance",
)


def played(
    subject: Subject, found: Sequence[Sampled], int8: dict[str, OnnxPolicy], options: Options
) -> list[dict[str, Any]]:
    """Every sampler in torch and every int8 file in onnxruntime on the same seeds; float32 files give torch's actions.

    Args:
        subject: has an `env`.
        found: see samplers.
        int8: files by the name of their sampler.
        options: `episodes`.

    Returns:
        A row for each, JSON types: HEADING, and `low` and `high` of the difference (paired, Tango, 95 %).

    Raises:
        PolicyError: the policy is of another environment.
    """
    assert subject.env is not None
    settings = {(one.name, "torch"): Setting(one.name, "", one.policy, one.forwards) for one in found}
    settings |= {
        (one.name, "onnx int8"): Setting(f"{one.name} int8", "", int8[one.name], one.forwards) for one in found if one.name in int8
    }  # fmt: skip
    seeds = range(FIRST_SEED, FIRST_SEED + (options.episodes or 100))
    reference = settings[found[1].name, "torch"]
    first, rows = play(reference, subject.env, seeds, num_envs=NUM_ENVS), list[dict[str, Any]]()
    with Progress(f"infer {subject.name}: episodes", total=len(settings)) as progress:
        for (sampler, runtime), setting in settings.items():
            trial = first if setting is reference else play(setting, subject.env, seeds, num_envs=NUM_ENVS)
            away = distance(reference, setting, subject.env, seeds[:DISTANCE_EPISODES], num_envs=NUM_ENVS)
            compared = trial.against(first)
            rows.append({
                "sampler": sampler, "runtime": runtime, "success once": f"{trial.wins}/{trial.number}",
                "difference to DDIM": compared.difference, "low": compared.low, "high": compared.high,
                "step rms": trial.step_rms, "jerk rms": trial.jerk, "gripper flips": trial.flips, "distance": away,
            })  # fmt: skip
            progress.advance(1, f"{sampler} {runtime}: {trial.wins}/{trial.number}")
    for one in found:  # RTI keeps the chunks of the envs that it played; what is timed next is one env
        one.policy.reset(np.ones(NUM_ENVS, bool))
    return rows


def as_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of HEADING."""
    points = f"{100 * row['difference to DDIM']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    cells = {"difference to DDIM": points}
    return tuple(
        cells.get(name) or (row[name] if isinstance(row[name], str) else f"{row[name]:.3g}") for name in HEADING
    )
