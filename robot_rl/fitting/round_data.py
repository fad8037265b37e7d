"""Data and fits of one round of offline RL: who may see which episode is decided here and nowhere else.

Episodes are split in two halves as a whole. The optimiser's critic learns on the first, the judges' critic and model on
the second; each half keeps a fifth of its episodes to stop by.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.returns import reachable_range
from robot_rl.algorithms.rewards import RewardConfig, jitter, penalised_range, shaped_rewards
from robot_rl.data.feature_cache import cached_features
from robot_rl.data.same_spec import require_same_spec
from robot_rl.data.store import EpisodeStore
from robot_rl.data.transitions import Transitions, transitions_of
from robot_rl.data.windows import StepArrays, WindowSampler, split_by_episode
from robot_rl.errors import DataError
from robot_rl.fitting.critic import CriticFitConfig, fit_critic
from robot_rl.fitting.model import ModelFitConfig, fit_model
from robot_rl.runs.config import build

log = logging.getLogger(__name__)

VALIDATION_SHARE = 0.2
FEWEST_EPISODES = 20
NO_PENALTIES = RewardConfig()


@dataclass(frozen=True)
class RoundData:
    """Everything recorded so far, in the feature space of the incumbent.

    Attributes:
        windows: of all episodes, for imitation; row i of `all_rows` is window i.
        all_rows: of all episodes.
        optimizer, optimizer_validation, judge, judge_validation: disjoint sets of episodes.
        content_hashes: of the stores.
        bounds: lowest and highest return that can be reached.
        horizon: decisions until the time limit.
    """

    windows: WindowSampler
    all_rows: Transitions
    optimizer: Transitions
    optimizer_validation: Transitions
    judge: Transitions
    judge_validation: Transitions
    content_hashes: tuple[str, ...]
    bounds: tuple[float, float]
    horizon: int


@dataclass(frozen=True)
class RoundFits:
    """Fitted networks of a round.

    Attributes:
        critic: the optimiser's.
        judge_critic, judge_model: the judges'.
        report: how the fits went, JSON types.
    """

    critic: Any
    judge_critic: Any
    judge_model: Any
    report: dict[str, Any]

    @property
    def worthless(self) -> str | None:
        """Why the judges' critic is not to be believed, or None: its fit never beat the untrained one."""
        return untrained(self.report, "judge_critic")


def untrained(report: dict[str, Any], name: str) -> str | None:
    """A sentence when no step of a critic's fit beat its untrained weights on held-out episodes, else None.

    Args:
        report: of RoundFits.
        name: "critic" or "judge_critic".
    """
    if report[name]["best_step"] > 0:
        return None
    whose = {"critic": "the optimiser's critic", "judge_critic": "the judges' critic"}[name]
    return f"{whose} is worthless: on held-out episodes none of {report[name]['steps']} steps beat the untrained one"


def load_round(
    stores: Sequence[str],
    policy: Any,
    *,
    gamma: float,
    only_success_rewarded: bool,
    seed: int,
    device: torch.device,
    reward: RewardConfig = NO_PENALTIES,
    feature_cache: str = "",
) -> RoundData:
    """Read and merge the stores, and split their episodes.

    Args:
        stores: paths of EpisodeStores with the policy's spec.
        policy: a DiffusionPolicy; gives features, normaliser and chunk sizes.
        gamma: discount per env step.
        only_success_rewarded: see OfflineConfig.
        seed: of the split.
        device: where the data lives.
        reward: penalties on top of the stored rewards.
        feature_cache: folder of features that earlier runs computed (data/feature_cache.py); "": none.

    Raises:
        DataError: a store that is missing, damaged or of another spec, too few episodes, or mixed rewards.
    """
    config = policy.config
    keys = list(dict.fromkeys(["proprio", *config.observation_keys]))
    arrays, hashes = _read(stores, policy, keys, only_success_rewarded=only_success_rewarded)
    number = len(arrays.lengths)
    if number < FEWEST_EPISODES:
        raise DataError(
            ", ".join(stores), expected=f"at least {FEWEST_EPISODES} episodes (two halves, each with a validation part)",
            got=str(number), hint="Collect more.",
        )  # fmt: skip
    largest_jitter = float(jitter(arrays.action, window=reward.jitter_window).max())
    low, high = (0.0, 1.0) if only_success_rewarded else (float(arrays.reward.min()), float(arrays.reward.max()))
    arrays = replace(arrays, reward=_shaped(arrays, reward))
    windows = WindowSampler(
        arrays, history=config.history, horizon=config.horizon, execute=config.execute, keys=keys,
        episodes=np.arange(number), device=device, gamma=gamma,
    )  # fmt: skip
    features = cached_features(windows, policy, folder=feature_cache, hashes=hashes) if feature_cache else None
    rows = transitions_of(windows, policy, gamma=gamma, features=features)
    first, second = split_by_episode(number, 0.5, seed)
    sets = []
    for half in (first, second):
        train, validation = split_by_episode(len(half), VALIDATION_SHARE, seed)
        sets += [half[train], half[validation]]
    limit = policy.spec.max_episode_steps or int(arrays.lengths.max())
    bounds = reachable_range(low, high, gamma=gamma, max_steps=limit, only_once=only_success_rewarded)
    bounds = penalised_range(bounds, config=reward, max_steps=limit, largest_jitter=largest_jitter)
    mask = [torch.isin(rows.episode, torch.as_tensor(chosen, device=rows.episode.device)) for chosen in sets]
    optimizer, optimizer_validation, judge, judge_validation = (rows.rows(chosen) for chosen in mask)
    return RoundData(
        windows=windows, all_rows=rows, optimizer=optimizer, optimizer_validation=optimizer_validation, judge=judge,
        judge_validation=judge_validation, content_hashes=tuple(hashes), bounds=bounds,
        horizon=-(-limit // config.execute),
    )  # fmt: skip


def _shaped(arrays: StepArrays, config: RewardConfig) -> np.ndarray:
    ends = np.cumsum(arrays.lengths)[:-1]
    pieces = zip(np.split(arrays.reward, ends), np.split(arrays.action, ends), strict=True)
    return np.concatenate([shaped_rewards(reward, action, config) for reward, action in pieces])


def _read(
    stores: Sequence[str], policy: Any, keys: Sequence[str], *, only_success_rewarded: bool
) -> tuple[StepArrays, list[str]]:
    """All episodes of the stores, and the stores' content hashes."""
    parts, hashes = [], []
    for path in stores:
        with EpisodeStore.open(path, mode="r") as store:
            require_same_spec(store.spec, policy.spec, where=path)
            parts.append(StepArrays.from_store(store, keys))
            hashes.append(store.content_hash())
    arrays = StepArrays.concatenate(parts)
    if only_success_rewarded and not np.isin(arrays.reward, (0.0, 1.0)).all():
        # Dense rewards of one store beside relabelled ones of another make nonsense of every advantage (P22).
        raise DataError(
            ", ".join(stores), expected="rewards of 0 and 1 in every store (only_success_rewarded=true)",
            got=f"rewards from {arrays.reward.min():.3g} to {arrays.reward.max():.3g}",
            hint="Relabel the data, or set only_success_rewarded=false when all stores have the same dense reward.",
        )  # fmt: skip
    rewarded = np.add.reduceat(arrays.reward, np.cumsum(arrays.lengths) - arrays.lengths)
    if only_success_rewarded and (rewarded > 1).any():
        # Targets and FQE are clamped to [0, 1]: returns above it would all look alike, and nothing would say so (P8).
        raise DataError(
            ", ".join(stores), expected="a reward of 1 at most once an episode (only_success_rewarded=true)",
            got=f"{int((rewarded > 1).sum())} of {len(rewarded)} episodes with more, up to {rewarded.max():.0f}",
            hint="`robot-rl data relabel <store> --reward first_success`, or set only_success_rewarded=false.",
        )  # fmt: skip
    return arrays, hashes


def fit_round(
    data: RoundData,
    critic: dict[str, Any],
    dynamics: dict[str, Any],
    *,
    critic_fit: CriticFitConfig,
    model_fit: ModelFitConfig,
    seed: int,
) -> RoundFits:
    """Fit the optimiser's critic, and the judges' critic and model on the other half.

    Args:
        data: of the round.
        critic: component of both critics.
        dynamics: component of the judges' model.
        critic_fit: of both critics.
        model_fit: of the model.
        seed: the judges' weights and batches come from seed + 1.

    A critic that learned nothing is logged as a warning; see RoundFits.worthless.
    """
    device = data.all_rows.feature.device
    mine, mine_report = fit_optimizer_critic(data, critic, config=critic_fit, seed=seed)
    judge, judge_report = _fitted_critic(
        critic, data.judge, data.judge_validation, config=critic_fit, bounds=data.bounds, seed=seed + 1
    )
    torch.manual_seed(seed + 1)
    model = build(dynamics, **_sizes(data.judge)).to(device)
    generator = torch.Generator(device=device).manual_seed(seed + 1)
    model_report = fit_model(model, data.judge, data.judge_validation, config=model_fit, generator=generator)
    report: dict[str, Any] = {
        "critic": mine_report,
        "judge_critic": judge_report,
        "judge_model": model_report.to_json(),
    }
    report |= {"episodes": int(data.all_rows.episode.max()) + 1, "content_hashes": list(data.content_hashes)}
    for name in ("critic", "judge_critic"):
        if (why := untrained(report, name)) is not None:
            log.warning("%s", why)
    return RoundFits(mine, judge, model.eval().requires_grad_(False), report)


def fit_optimizer_critic(
    data: RoundData, critic: dict[str, Any], *, config: CriticFitConfig, seed: int
) -> tuple[Any, dict[str, Any]]:
    """The optimiser's critic alone, as `fit_round` makes it, and its report in JSON types."""
    return _fitted_critic(
        critic, data.optimizer, data.optimizer_validation, config=config, bounds=data.bounds, seed=seed
    )


def _fitted_critic(
    component: dict[str, Any],
    train: Transitions,
    validation: Transitions,
    *,
    config: CriticFitConfig,
    bounds: tuple[float, float],
    seed: int,
) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(seed)
    network = build(component, **_sizes(train)).to(train.feature.device)
    generator = torch.Generator(device=train.feature.device).manual_seed(seed)
    low, high = bounds
    report = fit_critic(network, train, validation, config=config, generator=generator, low=low, high=high)
    return network.eval().requires_grad_(False), report.to_json()


def _sizes(rows: Transitions) -> dict[str, int]:
    return {"feature_size": rows.feature.shape[1], "action_size": rows.action.shape[1]}
