"""Rank correlation of the judges of an offline run with true success, over policies of differing quality."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.arrays import Array, Float64
from robot_rl.contracts import check_is_diffusion
from robot_rl.engines.tasks import EngineKind, PlayerPlan, open_engine
from robot_rl.errors import DataError, PolicyError, RunError
from robot_rl.fitting.judges import Judges
from robot_rl.fitting.round_data import RoundData
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import read_config
from robot_rl.runs.directory import RunDirectory, read_json
from robot_rl.runs.progress import Progress
from robot_rl.runs.training import pick_device
from robot_rl.stages.offline import OfflineConfig, fitted_round, loaded_round

log = logging.getLogger(__name__)

JUDGES = ("am_q", "model_return", "fqe")
FEWEST = 3
RESAMPLES = 2_000


def calibrate(
    run: Path, policies: Sequence[str], *, env: Mapping[str, Any], seeds: range, num_envs: int,
    engine: EngineKind = EngineKind.local, workers: int = 1, address: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Score and play every policy.

    Args:
        run: of the offline stage; its first round's judges are fitted again.
        policies: runs or checkpoint folders, at least FEWEST.
        env: component.
        seeds: of the roll-outs.
        num_envs: side by side.
        engine, workers, address: who scores, a policy a task; see engines.tasks.open_engine. Changes no figure.

    Returns:
        {"title", "judge_seed", "rows" (a judge each), "policies" (a policy each)}, JSON types.

    Raises:
        RunError: no offline run, or no policies there.
        DataError: its datasets are not those of then.
        PolicyError: a policy with other features, actions or chunks than the run's.
    """
    paths = _without_twins(run, policies)
    plan = PlayerPlan(
        "robot_rl.workbench.judge_player.CheckpointJudge",
        {"run": str(run), "policies": paths, "env": dict(env), "first_seed": seeds.start, "episodes": len(seeds),
         "num_envs": num_envs},
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    with (
        open_engine(engine, plan, workers=workers, address=address) as scoring,
        Progress("judge calibrate", total=len(paths)) as progress,
    ):
        judge_seed = scoring.describe()["judge_seed"]

        def keep(row: dict[str, Any], _episode: None) -> None:
            rows.append(row)
            progress.advance(1)

        scoring.play(([place] for place in range(len(paths))), keep, is_done=lambda: False)
    truth = np.array([row["success"]["k"] / row["success"]["n"] for row in rows], dtype=np.float64)
    return {
        "title": f"Judges of {run.name} against true success",
        "note": "Intervals: bootstrap over checkpoints; the noise of the roll-outs is in them as it is.",
        "judge_seed": judge_seed,
        "rows": [
            {"judge": name, "checkpoints": len(rows)}
            | spearman(np.array([row[name] for row in rows], dtype=np.float64), truth)
            for name in JUDGES
        ],
        "policies": rows,
    }


def _without_twins(run: Path, policies: Sequence[str]) -> list[str]:
    """The policies, each once: one under two paths would count twice."""
    config = _config_of(run)
    seen: dict[str, str] = {}
    for path in policies:
        digest = weights_hash(in_mode(path, config, device=torch.device("cpu")))
        if (twin := seen.setdefault(digest, path)) != path:
            log.warning("%s has the weights of %s and is left out: it would count twice", path, twin)
    return list(seen.values())


def weights_hash(policy: Any) -> str:
    """sha256 of all weights, so that one policy under two paths counts once."""
    digest = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _config_of(run: Path) -> OfflineConfig:
    directory = RunDirectory.open(run)
    if directory.stage != "offline" or not (run / "round_00" / "fits.json").is_file():
        raise RunError(
            str(run), expected="a run of `robot-rl offline` with its first round fitted", got=f"one of {directory.stage}",
            hint="Give the offline run first, then the policies.",
        )  # fmt: skip
    return read_config(OfflineConfig, run / "config.yaml")


def rebuild(run: Path) -> tuple[OfflineConfig, Judges, Any, RoundData]:
    """The judges of the first round of an offline run, from the same data and seed, and the policy it started from.

    Raises:
        RunError: not an offline run, or one without a first round.
        DataError: a dataset has changed since.
    """
    config = _config_of(run)
    device = pick_device(config.device)
    incumbent = in_mode(config.policy, config, device=device)
    data = loaded_round(config, config.datasets, incumbent, seed=config.seed, device=device)
    recorded = read_json(run / "round_00" / "fits.json")["content_hashes"]
    if list(data.content_hashes) != recorded:
        raise DataError(
            ", ".join(config.datasets), expected="the datasets that the run was fitted on (content hashes of fits.json)",
            got="others", hint="Episodes were added since; restore the store, or run the offline stage again.",
        )  # fmt: skip
    _fits, judges = fitted_round(config, data, incumbent, seed=config.seed)
    return config, judges, incumbent, data


def in_mode(path: str, config: OfflineConfig, *, device: torch.device) -> Any:
    """A policy in the mode that the offline stage judges.

    Raises:
        PolicyError: it has no such mode.
        RunError: no checkpoint there.
    """
    policy, _spec, _checkpoint = load_policy(path, device=device)
    check_is_diffusion(policy, path, hint="Give runs of imitate, offline or online.")
    return policy.eval().with_mode(SamplingMode.eta1, sigma_min=config.sigma_min)


@torch.no_grad()
def check_same_space(path: str, policy: Any, incumbent: Any, data: RoundData) -> None:
    """Judges see features and normalised actions, so a policy with others than the incumbent's can't be scored.

    Raises:
        PolicyError: naming what differs.
    """
    window = data.windows.window(torch.arange(min(64, data.windows.num_windows)), with_next=False)
    mine, theirs = policy.encode(window.observation), incumbent.encode(window.observation)
    checks = {
        "chunk sizes": (policy.config.execute, policy.noise_shape) == (incumbent.config.execute, incumbent.noise_shape),
        "features": mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-5),
        "normalised actions": torch.allclose(
            policy.normalizer.apply("action", window.actions),
            incumbent.normalizer.apply("action", window.actions),
            atol=1e-5,
        ),
    }
    wrong = [name for name, same in checks.items() if not same]
    if wrong:
        raise PolicyError(
            path, expected="the features, normalised actions and chunk sizes of the offline run's policy",
            got=f"other {' and '.join(wrong)}",
            hint="Give checkpoints of the same imitation run, or of offline runs that began with it.",
        )  # fmt: skip


def spearman(score: Float64[Array, " P"], success: Float64[Array, " P"]) -> dict[str, Any]:
    """Spearman's rank correlation with a 95 % percentile bootstrap interval over the P policies.

    Returns:
        {"spearman", "low", "high"}; None where a score or success is the same for all policies. Resamples in which one
        of them does not vary have no correlation and are left out.
    """
    from scipy.stats import bootstrap, rankdata

    def correlation(first: Array, second: Array, axis: int = -1) -> Array:
        a, b = (rankdata(x, axis=axis) - (x.shape[axis] + 1) / 2 for x in (first, second))
        size = np.sqrt((a**2).sum(axis) * (b**2).sum(axis))
        return np.where(size > 0, (a * b).sum(axis) / np.where(size > 0, size, 1.0), np.nan)

    estimate = float(correlation(score, success))
    if np.isnan(estimate):
        return {"spearman": None, "low": None, "high": None}
    drawn = bootstrap(
        (score, success), correlation, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
        random_state=0,
    ).bootstrap_distribution  # fmt: skip
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"spearman": estimate, "low": float(low), "high": float(high)}


def as_text(document: Mapping[str, Any]) -> str:
    """Policies by true success, then the correlations."""
    lines = [f"{'success':>9} {'am_q':>9} {'return':>9} {'fqe':>9}  policy"]
    for row in sorted(document["policies"], key=lambda row: row["success"]["k"]):
        success = f"{row['success']['k']}/{row['success']['n']}"
        lines.append(f"{success:>9} " + " ".join(f"{row[name]:9.4g}" for name in JUDGES) + f"  {row['policy']}")
    lines += ["", f"Spearman's rank correlation with true success, {len(document['policies'])} checkpoints:"]
    for row in document["rows"]:
        shown = "undefined (no variation)"
        if row["spearman"] is not None:
            shown = f"{row['spearman']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        lines.append(f"  {row['judge']:14} {shown}")
    return "\n".join(lines)
