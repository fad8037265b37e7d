"""Offline RL: rounds of {critics and model, gated improvement, optional roll-outs into the data} (RL-100, algorithm 1).

Inputs: a diffusion policy (run or checkpoint) and datasets of episodes, good and bad. Output: checkpoints of the policy
that the gate kept, with the optimiser's critic, and ope/decisions.jsonl with every decision and its reasons.

A round: episodes are split in two; on the first half the optimiser's critic is fitted (IQL), on the second the judges'
critic and transition model. Then each method in turn starts from the incumbent and proposes a candidate:
    merged        plain imitation of all data          success_only  of the successful episodes
    awr           imitation weighted by advantage      ppo           PPO over the denoising steps, in gated pieces
The gate compares candidate and incumbent and keeps the candidate or restores weights and optimiser and shrinks the step.
The simulator never chooses: it is needed for collect=true alone, which plays the accepted policy into the data.

Metrics (metrics.jsonl, step = proposals made so far):
    offline/accepted              1 when the gate kept the proposal
    offline/am_q_gain             candidate minus incumbent, AM-Q (score of the judges' Q along model roll-outs)
    offline/model_return_gain     the same, discounted predicted reward
    offline/fqe_gain              the same, least-squares FQE
    offline/kl_nats               KL(start || candidate) of a decision, summed over denoising steps; start: where ppo began
    offline/kl_largest_step_nats  the same of the denoising step that moved most
    offline/clip_share            share of clipped ratios, mean over denoising steps, last update (ppo)
    offline/q_gap_sd              Q(policy) - Q(data) of the judges, standard deviations of Q(data)
    offline/optimizer_q_gap       Q(policy) - Q(data) of the critic that is optimised, units of return (P11)
    offline/effective_share       effective share of the weighted windows (imitation methods)
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.ope import GateConfig, paired_estimate
from robot_rl.algorithms.rewards import RewardConfig
from robot_rl.contracts import check_is_diffusion
from robot_rl.data.quality_gate import require_trainable
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError
from robot_rl.fitting.critic import CriticFitConfig
from robot_rl.fitting.denoising_ppo import (
    act_in_feature_space,
    executed_action,
)
from robot_rl.fitting.handover import handover_document
from robot_rl.fitting.judges import JudgeConfig, JudgedTask, Judges, compare, decide_with, guards
from robot_rl.fitting.model import ModelFitConfig
from robot_rl.fitting.proposals import (
    ImitationConfig,
    Method,
    PpoProposalConfig,
    Proposals,
    imitation_proposal,
    next_proposal,
    ppo_proposals,
)
from robot_rl.fitting.round_data import RoundData, RoundFits, fit_round, load_round
from robot_rl.rollout import EpisodeRecord, PolicyActor, rollout, summarize
from robot_rl.runs.adopted import require_trained_here
from robot_rl.runs.checkpoint import load_policy, save_checkpoint
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.runs.training import pick_device
from robot_rl.stages.evaluate import check_policy_spec
from robot_rl.types import Episode, Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfflineConfig:
    """Configuration of `robot-rl offline`.

    Attributes:
        policy: run or checkpoint directory of a DiffusionPolicy: the first incumbent.
        datasets: EpisodeStores, merged; failures belong in them (data of experts alone gives advantages no contrast).
        critic: component: the optimiser's and the judges' critic.
        dynamics: component: the judges' transition model.
        env: component, only for collect=true.
        methods: proposals of a round, in this order. `awr` is not among the default ones: in every seed it lost to
            success_only, and no judge saw it (docs/offline.md).
        rounds: how often all of it is done.
        collect: play the kept policy into `<run>/round_NN/collected.zarr` between rounds, of which there must be two or more.
        collect_episodes: how many a round, at seeds from collect_first_seed on.
        collect_first_seed: never those of an evaluation.
        gamma: discount per env step. A small one prefers quick policies to sure ones: at 0.96 judges rightly rated a policy
            with 71 % and 30 steps above one with 79 % and 34 steps. At 1 the judges have no time limit to work with.
        only_success_rewarded: rewards are 0, but 1 at most once an episode; targets are clamped to [0, 1] then.
        reward: penalties on top of the stored rewards; as in the online stage.
        critic_fit: of both critics.
        model_fit: of the judges' model.
        judge: how policies are scored.
        gate: when a proposal is kept. FQE must see a gain, AM-Q and model return may object: of the three only FQE
            ordered PickCube's imitation candidates by their true success (docs/offline.md).
        imitation: of merged, success_only and awr.
        ppo: of ppo.
        sigma_min: noise floor of mode eta1 in RL, or null for the policy's own.
        ignore_checks: checks of `robot-rl data check` whose errors in `datasets` shall not keep the training from starting;
            what they found is in the run's provenance.json.
        feature_cache: folder where features of the datasets are kept for later runs, for encoders of images and points;
            empty: they are computed in every run.
        device: of everything.
        threads: of torch on the CPU.
        seed, run_root, resume: as in every stage.
    """

    policy: str = ""
    datasets: list[str] = field(default_factory=list)
    critic: dict[str, Any] = field(default_factory=dict)
    dynamics: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    methods: list[Method] = field(default_factory=lambda: [Method.success_only, Method.ppo])
    rounds: int = 1
    collect: bool = False
    collect_episodes: int = 200
    collect_first_seed: int = 70_000
    num_envs: int = 8
    gamma: float = 0.98
    only_success_rewarded: bool = True
    reward: RewardConfig = field(default_factory=RewardConfig)
    critic_fit: CriticFitConfig = field(default_factory=CriticFitConfig)
    model_fit: ModelFitConfig = field(default_factory=ModelFitConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    gate: GateConfig = field(default_factory=lambda: GateConfig(deciding=("fqe",)))
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    ppo: PpoProposalConfig = field(default_factory=PpoProposalConfig)
    sigma_min: float | None = None
    ignore_checks: list[str] = field(default_factory=list)
    feature_cache: str = ""
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = OfflineConfig


def run(config: OfflineConfig, run: RunDirectory) -> dict[str, Any]:
    """Improve the policy for `rounds` rounds and return what the gate did.

    Everything follows from the seed, and what is slow is kept below `round_NN/`: a killed run starts over and is soon
    where it was, with the same decisions.
    """
    _check(config)
    began = time.monotonic()
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    policy, spec, saved = load_policy(Path(config.policy), device=str(device))
    require_trained_here(saved, where=config.policy)
    check_is_diffusion(policy, config.policy, hint="Improve the head's teacher, then distil again.")
    incumbent = policy.eval().with_mode(SamplingMode.eta1, sigma_min=config.sigma_min)
    checked = require_trainable(config.datasets, ignore=config.ignore_checks)
    run.write_json("provenance.json", {**run.read_json("provenance.json"), "data_check": checked})
    stores, records = list(config.datasets), list[dict[str, Any]]()
    (run.path / "ope").mkdir(exist_ok=True)
    (run.path / "ope" / "decisions.jsonl").write_text("", encoding="utf-8")
    scores: dict[str, float] = {}
    with (
        MetricsWriter(run.path / "metrics.jsonl", resume_step=0) as metrics,
        interruptible() as stop,
        Progress("offline", total=config.rounds * _proposals_a_round(config)) as progress,
    ):
        for number in range(config.rounds):
            if number and config.collect:
                stores.append(_collect(config, incumbent, run, number))
            seed = config.seed + 1000 * number
            data = loaded_round(config, stores, incumbent, seed=seed, device=device)
            with progress.share("critics and model"):
                fits, judges = fitted_round(config, data, incumbent, seed=seed)
            run.write_json(f"round_{number:02d}/fits.json", fits.report | _noise_floor(incumbent, judges))
            kept = judges.score(incumbent)
            for method in config.methods:
                proposals = proposals_of(
                    config, method, incumbent, data, fits, place=run.path / f"round_{number:02d}",
                    documents=saved.documents, seed=seed,
                )  # fmt: skip
                answer: bool | None = None
                while (proposal := next_proposal(proposals, answer)) is not None:
                    candidate, numbers = proposal
                    with progress.share("judging"):
                        found = judges.score(candidate)
                    estimates, limits = compare(found, kept), guards(found, kept, kl=numbers.get("kl_nats"))
                    decision, judged = decide_with(estimates, limits, gate_of(config, method), worthless=fits.worthless)
                    answer = decision.accepted
                    record = {"round": number, "method": method.value, "proposal": len(records), "numbers": numbers}
                    records.append(record | judged)
                    _write(run, metrics, records[-1])
                    progress.advance(1, f"{method.value} {'kept' if answer else 'rejected'}")
                    log.info("round %d, %s: %s", number, method.value, decision.reason)
                    if answer:
                        incumbent, kept = candidate, found
                    if stop.requested:
                        _save(run, len(records), incumbent, fits, config, saved.documents)
                        raise KeyboardInterrupt
            _save(run, len(records), incumbent, fits, config, saved.documents)
            scores = kept.to_json()
    accepted = [f"{r['round']}/{r['method']}/{r['proposal']}" for r in records if r["accepted"]]
    summary = {"policy": config.policy, "env": spec.env_id, "proposals": len(records), "accepted": accepted}
    summary |= {"scores": scores, "seconds": time.monotonic() - began}
    run.write_json("summary.json", summary)
    return summary


def loaded_round(
    config: OfflineConfig, stores: Sequence[str], policy: Any, *, seed: int, device: torch.device
) -> RoundData:
    """`load_round` of stores in the feature space of a policy, as this stage wants it."""
    return load_round(
        stores, policy, gamma=config.gamma, only_success_rewarded=config.only_success_rewarded, seed=seed, device=device,
        reward=config.reward, feature_cache=config.feature_cache,
    )  # fmt: skip


def fitted_round(config: OfflineConfig, data: RoundData, policy: Any, *, seed: int) -> tuple[RoundFits, Judges]:
    """Critics and model of a round, and the judges that they make for policies with the chunks and noise of `policy`."""
    fits = fit_round(
        data, config.critic, config.dynamics, critic_fit=config.critic_fit, model_fit=config.model_fit, seed=seed
    )
    task = JudgedTask(data.bounds, config.gamma**policy.config.execute, data.horizon)
    judges = Judges(
        fits.judge_critic, fits.judge_model, data.judge, config.judge, noise_shape=policy.noise_shape, task=task,
        seed=seed,
    )  # fmt: skip
    return fits, judges


def proposals_of(
    config: OfflineConfig, method: Method, incumbent: Any, data: RoundData, fits: RoundFits, *, place: Path,
    documents: Any, seed: int,
) -> Proposals:  # fmt: skip
    """What a method proposes from the incumbent; imitation keeps its checkpoints in `place/<method>`."""
    if method is Method.ppo:
        return ppo_proposals(config.ppo, incumbent, data, fits, seed=seed)
    return imitation_proposal(
        config.imitation, method, incumbent, data, fits, place=place, documents=documents, seed=seed
    )


def gate_of(config: OfflineConfig, method: Method) -> GateConfig:
    """The gate of a method: imitation stays near the data by what it is; its distance to the incumbent says nothing."""
    return config.gate if method is Method.ppo else replace(config.gate, max_kl=None)


def _check(config: OfflineConfig) -> None:
    if not config.policy or not config.datasets or not config.methods or config.rounds < 1:
        raise ConfigError(
            "offline", expected="policy=<imitate run>, datasets=[<store>, ...], at least one method and one round",
            got=f"policy={config.policy!r} datasets={config.datasets} methods={[m.value for m in config.methods]} "
            f"rounds={config.rounds}",
            hint="See `robot-rl offline --help`.",
        )  # fmt: skip
    if len(set(config.methods)) < len(config.methods):
        raise ConfigError(
            "offline.methods", expected="each method once a round (rounds=2 goes through them again)",
            got=f"{[m.value for m in config.methods]}", hint="Leave the repeated one out.",
        )  # fmt: skip
    if config.collect and (not config.env or config.rounds < 2):
        raise ConfigError(
            "offline.collect", expected="an environment and a round to learn from it in, for collect=true",
            got=f"{'an' if config.env else 'no'} env, rounds={config.rounds}", hint="Set env=<name> and rounds=2.",
        )  # fmt: skip


def _proposals_a_round(config: OfflineConfig) -> int:
    return sum(config.ppo.proposals if method is Method.ppo else 1 for method in config.methods)


def _noise_floor(incumbent: Any, judges: Judges) -> dict[str, Any]:
    """Whether the noise of mode eta1 costs success, by the judges' model: 0.1 took a policy from 60 to 23 % (measured.md)."""
    mean = incumbent.with_mode(SamplingMode.mean)
    without = judges.returns_of(lambda feature, noise: executed_action(mean, mean.sample(feature, noise[:, :1])))
    estimate = paired_estimate(without, judges.returns_of(act_in_feature_space(incumbent)))
    if estimate.low > 0.2 * abs(estimate.incumbent):
        log.warning(
            "the noise of mode eta1 (sigma_min %g) costs %.3g of %.3g in the judges' model: RL starts from a worse policy "
            "than the one you evaluated; lower sigma_min", incumbent.config.sigma_min, estimate.difference, estimate.candidate,
        )  # fmt: skip
    gain = {"difference": estimate.difference, "low": estimate.low, "high": estimate.high}
    return {"noise_floor": {"sigma_min": incumbent.config.sigma_min, "mean_path_gain": gain}}


def _write(run: RunDirectory, metrics: MetricsWriter, record: dict[str, Any]) -> None:
    with open(run.path / "ope" / "decisions.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    numbers, estimates = record["numbers"], record["estimates"]
    values = {"accepted": float(record["accepted"]), "q_gap_sd": record["guards"]["q_gap"]}
    values |= {f"{name}_gain": estimates[name]["difference"] for name in ("am_q", "model_return", "fqe")}
    values |= {name: numbers[name] for name in ("kl_nats", "optimizer_q_gap", "effective_share") if name in numbers}
    if "clip_share" in numbers:
        values["clip_share"] = sum(numbers["clip_share"]) / len(numbers["clip_share"])
        values["kl_largest_step_nats"] = max(numbers["kl_steps_nats"])
    metrics.write(record["proposal"] + 1, {f"offline/{name}": value for name, value in values.items()})


def _save(run: RunDirectory, step: int, incumbent: Any, fits: RoundFits, config: OfflineConfig, documents: Any) -> None:
    """The kept policy under the sampling mode that it came with, and the critic that improved it."""
    policy = dict(documents["policy"])
    policy["config"] = policy["config"] | {"sigma_min": incumbent.config.sigma_min}
    shared = {name: documents[name] for name in ("spec", "normalizer", "data") if name in documents}
    save_checkpoint(
        run.path, step=step, tensors={"policy": incumbent.state_dict(), "critic": fits.critic.state_dict()},
        documents=shared
        | {"policy": policy, "critic": config.critic, "teacher": {"path": config.policy}}
        | {"handover": handover_document(incumbent, gamma=config.gamma, reward=config.reward)},
    )  # fmt: skip


def _collect(config: OfflineConfig, policy: Any, run: RunDirectory, number: int) -> str:
    """Play the kept policy in mode eta1 into a store of its own and return its path; completed when a run was killed."""
    env = build(config.env, num_envs=min(config.num_envs, config.collect_episodes), history=policy.config.history)
    check_policy_spec(policy, env.spec, where=config.policy)
    path = str(run.path / f"round_{number:02d}" / "collected.zarr")
    first = config.collect_first_seed + number * config.collect_episodes
    actor = PolicyActor(policy, NoiseSource(rule=NoiseRule.seeded, seed=config.seed, shape=policy.noise_shape))
    with EpisodeStore.open_or_create(path, env.spec, metadata={"collector": "policy", "round": number}) as store:
        done = {int(seed) for seed in store.seeds}
        wanted = [seed for seed in range(first, first + config.collect_episodes) if seed not in done]

        def on_episode(_record: EpisodeRecord, episode: Episode | None) -> None:
            assert episode is not None
            store.append(episode)

        records = rollout(env, actor, wanted, on_episode=on_episode, source=Source.policy)
        if records:
            success = summarize(records)["success_once"]
            log.info("round %d: %d of %d collected episodes succeeded (mode eta1)", number, success["k"], success["n"])
    env.close()
    return path
