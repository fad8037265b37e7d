"""Sabotage of the optimiser in front of an honest gate: what is kept, and is it ever worse? See judge_breaks for how.

For every seed: demonstrations, imitation, roll-outs of it, critics, model and judges, all as the offline stage makes
them. Then one honest run and one with each sabotage, from the same policy, with the same judges, methods and gate. Every
proposal is played after it was judged, kept or not; nothing of that reaches the gate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.statistics import proportion
from robot_rl.errors import RobotRlError
from robot_rl.fitting.judges import Judges, Scores, compare, decide_with, guards
from robot_rl.fitting.proposals import Method, next_proposal
from robot_rl.fitting.round_data import RoundData, RoundFits
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import config_to_yaml, load_config
from robot_rl.runs.directory import RunDirectory, read_json, write_json
from robot_rl.stages import collect, imitate
from robot_rl.stages.offline import OfflineConfig, fitted_round, gate_of, loaded_round, proposals_of
from robot_rl.workbench.judge_breaks import Sabotage, sabotage, under
from robot_rl.workbench.judge_play import against, play

# Sizes for minutes on one core; everything else is the stages' own default, but that awr is always among the methods: of
# all of them it follows the advantages furthest. Words of the user come behind and win.
COLLECT = ("num_episodes=60",)
IMITATE = (
    "only_success=false", "train.num_steps=600", "train.batch_size=64", "train.threads=1",
    "train.checkpoint_every_steps=100000",
)  # fmt: skip
OFFLINE = (
    "methods=[success_only,awr,ppo]", "critic.hidden_width=64", "dynamics.hidden_width=64", "dynamics.num_members=3",
    "critic_fit.num_steps=1000", "critic_fit.check_every_steps=100", "model_fit.num_steps=600",
    "judge.fqe_bootstrap=100", "judge.num_starts=64", "imitation.train.num_steps=300", "imitation.train.batch_size=64",
    "imitation.train.warmup_steps=20", "ppo.num_states=128", "ppo.batch_size=256", "ppo.proposals=2",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What all runs of a seed start from, as the stage makes it.

    Attributes:
        config: of the offline stage.
        seed: of everything.
        env: component.
        incumbent: the imitation policy in mode eta1.
        documents: of its checkpoint.
        data, fits, judges: of the first round.
    """

    config: OfflineConfig
    seed: int
    env: Mapping[str, Any]
    incumbent: Any
    documents: Mapping[str, Any]
    data: RoundData
    fits: RoundFits
    judges: Judges


class Player:
    """True success of policies on fixed seeds; one with the same weights is played once.

    Args:
        env: component.
        seeds: of the episodes.
        num_envs: side by side; changes nothing.
    """

    def __init__(self, env: Mapping[str, Any], seeds: Sequence[int], *, num_envs: int) -> None:
        self._env, self._seeds, self._num_envs = env, seeds, num_envs
        self._known: dict[str, list[bool]] = {}

    def __call__(self, policy: Any) -> list[bool]:
        """Success on every seed."""
        digest = hashlib.sha256()
        for name, tensor in sorted(policy.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        key = digest.hexdigest()
        if key not in self._known:
            self._known[key] = play(self._env, policy, self._seeds, num_envs=self._num_envs)
        return self._known[key]


def study(
    words: Sequence[str], seeds: Sequence[int], *, folder: Path, evaluation: Sequence[int], num_envs: int
) -> dict[str, Any]:
    """All runs of all seeds.

    Args:
        words: `env=<name>`, then more; see `routed`.
        seeds: of the runs.
        folder: where the runs lie; a seed that is finished there, with the same words, is not run again.
        evaluation: seeds of the roll-outs.
        num_envs: side by side.

    Returns:
        {"title", "note", "rows" (a kind each), "runs" (a run each, with all proposals), "kept_worse"}.

    Raises:
        RobotRlError: the honest part failed.
    """
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        place = folder / f"s{seed}"
        asked = {"words": list(words), "evaluation": [evaluation[0], evaluation[-1]]}
        saved = read_json(place / "study.json") if (place / "study.json").is_file() else {}
        if saved.get("asked") != asked:
            start = prepare(words, seed, place)
            player = Player(start.env, evaluation, num_envs=num_envs)
            found = [one_run(start, kind, player, place=place / kind.value) for kind in Sabotage]
            saved = {"asked": asked, "runs": found}
            write_json(place / "study.json", saved)
        runs += saved["runs"]
    rows = [tally(kind.value, [run for run in runs if run["sabotage"] == kind.value]) for kind in Sabotage]
    rows.append(tally("all sabotage", [run for run in runs if run["sabotage"] != Sabotage.none.value]))
    return {
        "title": f"Sabotaged optimisers in front of the gate ({words[0].partition('=')[2]}, mode eta1)",
        "note": "Worse and better: the 95 % interval of the difference on the same evaluation seeds (Tango) is without "
        "zero, so of policies that are equal one in 40 counts as worse. A proposal is compared with the incumbent that it "
        "was judged against, the kept policy with the one that its run started from.",
        "rows": rows,
        "runs": runs,
        "kept_worse": [f"{run['sabotage']}/{run['seed']}" for run in runs if run["kept"]["is_worse"]],
    }  # fmt: skip


def prepare(words: Sequence[str], seed: int, folder: Path) -> Start:
    """Demonstrations, policy, its roll-outs, critics, model and judges of a seed."""
    given = routed(words)
    demos, rollouts = (str(folder / f"{name}.zarr") for name in ("demos", "rollouts"))
    first, env, size = 10_000 * seed, [*given["env"], f"seed={seed}"], [*COLLECT, *given["size"]]
    root = f"run_root='{folder}'"
    expert = [*given["expert"], f"expert.seed={seed}", f"first_seed={first}"]
    _stage(collect, *env, *expert, *size, f"dataset='{demos}'", root)
    imitation = _stage(imitate, *env, f"dataset='{demos}'", *IMITATE, *given["learner"], root)
    player = [f"policy='{imitation}'", "mode=eta1", f"first_seed={first + 5_000}"]
    _stage(collect, *env, *player, *size, f"dataset='{rollouts}'", root)
    merged = [f"policy='{imitation}'", f"datasets=['{demos}','{rollouts}']"]
    config = load_config(OfflineConfig, [*env, *merged, *OFFLINE, *given["offline"]], name="offline")
    policy, _spec, saved = load_policy(imitation)
    incumbent = policy.eval().with_mode(SamplingMode.eta1, sigma_min=config.sigma_min)
    data = loaded_round(config, config.datasets, incumbent, seed=seed, device=torch.device("cpu"))
    fits, judges = fitted_round(config, data, incumbent, seed=seed)
    return Start(config, seed, config.env, incumbent, saved.documents, data, fits, judges)


def routed(words: Sequence[str]) -> dict[str, list[str]]:
    """Words by who reads them: "env", "expert", "size" (of both collections), "learner" (imitation), "offline"."""
    readers = {"env": "env", "expert": "expert", "num_episodes": "size", "policy": "learner", "train": "learner"}
    parts: dict[str, list[str]] = {name: [] for name in (*readers.values(), "offline")}
    for word in words:
        parts[readers.get(word.partition("=")[0].partition(".")[0], "offline")].append(word)
    return parts


def one_run(start: Start, kind: Sabotage, player: Player, *, place: Path) -> dict[str, Any]:
    """The methods in turn, each proposal judged as the stage does it, and played.

    Args:
        start: the honest round.
        kind: what is broken.
        player: true success.
        place: for the training of weighted imitation.

    Returns:
        {"sabotage", "seed", "proposals", "kept" (against the first incumbent), "stopped" (an error that ended the run,
        or None: the stage ends there too, and leaves no checkpoint, so the first incumbent is what is kept)}.
    """
    broken = sabotage(kind, start.config, start.incumbent, start.data, start.fits, seed=start.seed)
    incumbent, scores = start.incumbent, start.judges.score(start.incumbent)
    proposed: list[dict[str, Any]] = []
    stopped = None
    try:
        for method in broken.config.methods:
            proposals = proposals_of(
                broken.config, method, under(incumbent, broken.normalizer), broken.data, broken.fits, place=place,
                documents=start.documents, seed=start.seed,
            )  # fmt: skip
            answer: bool | None = None
            while (proposal := next_proposal(proposals, answer)) is not None:
                candidate, numbers = under(proposal[0], start.incumbent.normalizer), proposal[1]
                found = start.judges.score(candidate)
                record = _judged(start, method, found, scores, kl=numbers.get("kl_nats"))
                answer = record["accepted"]
                proposed.append({"method": method.value} | record | against(player(candidate), player(incumbent)))
                if answer:
                    incumbent, scores = candidate, found
    except RobotRlError as error:
        incumbent, stopped = start.incumbent, str(error)
    kept = against(player(incumbent), player(start.incumbent))
    return {"sabotage": kind.value, "seed": start.seed, "proposals": proposed, "kept": kept, "stopped": stopped}


def tally(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the table; shares as {k, n, low, high}, or None of none."""
    proposals = [proposal for run in runs for proposal in run["proposals"]]
    worse = [proposal for proposal in proposals if proposal["is_worse"]]
    better = [proposal for proposal in proposals if proposal["is_better"]]
    lower = [proposal for proposal in proposals if proposal["difference"] < 0]
    return {
        "sabotage": name,
        "runs": len(runs),
        "stopped by an error": sum(run["stopped"] is not None for run in runs),
        "proposals kept": _share([proposal["accepted"] for proposal in proposals]),
        "worse ones rejected": _share([not proposal["accepted"] for proposal in worse]),
        "lower ones (any difference) rejected": _share([not proposal["accepted"] for proposal in lower]),
        "better ones kept": _share([proposal["accepted"] for proposal in better]),
        "runs whose kept policy is worse": sum(run["kept"]["is_worse"] for run in runs),
        "runs whose kept policy is better": sum(run["kept"]["is_better"] for run in runs),
        "mean success": f"{_mean(runs, 'incumbent_k'):.1%} to {_mean(runs, 'k'):.1%}",
    }


def as_text(document: Mapping[str, Any]) -> str:
    """The catch rates and the kept policies in words."""
    lines = []
    for row in document["rows"]:
        kept, caught, better = (row[n] for n in ("proposals kept", "worse ones rejected", "better ones kept"))
        lines.append(
            f"{row['sabotage']:20} {row['runs']:3} runs, kept {_shown(kept)} proposals; of those truly worse rejected "
            f"{_shown(caught)}, of those truly better kept {_shown(better)}; kept policy worse in "
            f"{row['runs whose kept policy is worse']}, better in {row['runs whose kept policy is better']} runs "
            f"({row['mean success']})"
        )
    lines.append(f"catch rate: {_shown(document['rows'][-1]['worse ones rejected'])} over all sabotage")
    worst = ", ".join(document["kept_worse"])
    lines.append(f"kept policy worse than the incumbent beyond its interval: {worst or 'never'}")
    return "\n".join(lines)


def _judged(start: Start, method: Method, found: Scores, scores: Scores, *, kl: float | None) -> dict[str, Any]:
    """The gate's answer, its reason, and what every judge and guard said."""
    estimates, limits = compare(found, scores), guards(found, scores, kl=kl)
    gate = gate_of(start.config, method)
    decision, record = decide_with(estimates, limits, gate, worthless=start.fits.worthless)
    gains = {name: [one.difference, one.low, one.high] for name, one in estimates.items()}
    return {"accepted": decision.accepted, "reason": decision.reason, "gains": gains, "guards": record["guards"]}


def _stage(stage: Any, *words: str) -> Path:
    """Run a stage here and return its run directory."""
    name = stage.__name__.rpartition(".")[2]
    config = load_config(stage.CONFIG, words, name=name)
    run = RunDirectory.create(
        config.run_root, stage=name, task="judge", seed=config.seed, config_yaml=config_to_yaml(config),
        command=["robot-rl", name, *words],
    )  # fmt: skip
    stage.run(config, run)
    return run.path


def _share(found: Sequence[bool]) -> dict[str, Any] | None:
    if not found:
        return None
    share = proportion(sum(found), len(found))
    return {"k": share.k, "n": share.n, "low": share.low, "high": share.high}


def _shown(share: Mapping[str, Any] | None) -> str:
    return "none" if share is None else f"{share['k']}/{share['n']}"


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(run["kept"][key] / run["kept"]["n"] for run in runs)) / max(len(runs), 1)
