"""robomimic's BC-RNN and IQL (Mandlekar et al. 2021; Kostrikov et al. 2022) as learners of `robot-rl baseline`.

The library trains on an HDF5 file in its own layout, written from the EpisodeStore into a temporary folder; what comes
out is a policy of ours with the actor's weights. Numbers are normalised once, by our Normalizer, before they are written:
the file holds observations with mean 0 and deviation 1 and actions in [-1, 1], and the policy carries the maps.
The file is only as complete as these two algorithms need.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError
from robot_rl.specs import EnvSpec

from .acting import ACTION
from .baseline_mlp import BaselineMlpConfig, BaselineMlpPolicy, GaussianHead
from .baseline_rnn import BaselineRnnConfig, BaselineRnnPolicy

# Called with the gradient steps so far, the policy so far and the library's training metrics.
OnEvaluation = Callable[[int, BaselineMlpPolicy | BaselineRnnPolicy, Mapping[str, float]], None]
EXTRA = "pip install 'robot-rl[robomimic]'"


@dataclass(frozen=True)
class BcRnnConfig:
    """robomimic's BC-RNN with a Gaussian mixture; the defaults are its own.

    Attributes:
        hidden, num_layers: of the LSTM.
        sequence: steps of a training sample, and of the state in play.
        num_modes: components of the mixture.
        learning_rate: of Adam.
        batch_size: sequences a gradient step.
        only_success: leave out the episodes that did not succeed.
        observation_keys: low-dimensional keys that the network sees.
    """

    hidden: int = 400
    num_layers: int = 2
    sequence: int = 10
    num_modes: int = 5
    learning_rate: float = 1e-4
    batch_size: int = 100
    only_success: bool = True
    observation_keys: tuple[str, ...] = ("state",)


@dataclass(frozen=True)
class IqlConfig:
    """robomimic's IQL with a Gaussian actor; the defaults are its own.

    Attributes:
        hidden: widths of the hidden layers of actor and critics (ReLU).
        learning_rate: of Adam, actor and critics.
        batch_size: transitions a gradient step.
        gamma: discount per env step.
        vf_quantile: expectile of V.
        beta: temperature: weights are exp(advantage / beta).
        only_success: leave out the episodes that did not succeed.
        observation_keys: low-dimensional keys that the networks see.
    """

    hidden: tuple[int, ...] = (300, 400)
    learning_rate: float = 1e-4
    batch_size: int = 100
    gamma: float = 0.99
    vf_quantile: float = 0.9
    beta: float = 1.0
    only_success: bool = False
    observation_keys: tuple[str, ...] = ("state",)


class RobomimicLearner:
    """One algorithm of robomimic on an EpisodeStore. Use `bc_rnn` or `iql`.

    Args:
        config: of the algorithm.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: robomimic is not installed, or its torchvision does not fit the torch that is.
    """

    learns_from = "data"
    history = 1

    def __init__(self, config: BcRnnConfig | IqlConfig, *, device: str = "cpu") -> None:
        if find_spec("robomimic") is None:
            raise ConfigError(
                "algo", expected="the package robomimic", got="not installed", hint=f"Install it: {EXTRA}."
            )
        try:
            import torchvision  # noqa: F401  (robomimic loads it, though these algorithms use none of it)
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                "algo", expected="a torchvision that loads beside this torch", got=str(error),
                hint="Install torch and torchvision of one build: PyPI's torchvision does not load beside a CPU-only torch.",
            ) from error  # fmt: skip
        self.config, self.device = config, device

    def learn(
        self, store: EpisodeStore, *, num_steps: int, seed: int, evaluate_every: int, on_evaluation: OnEvaluation
    ) -> None:
        """Train for `num_steps` gradient steps.

        Args:
            store: the episodes.
            num_steps: the budget.
            seed: of networks and batches (the library takes it from torch's global generator).
            evaluate_every: gradient steps between calls of `on_evaluation`; it is called at the start and end too.
            on_evaluation: see OnEvaluation.

        Raises:
            DataError: no usable episode, or an observation key that the store does not have.
        """
        torch.manual_seed(seed)
        keys = tuple(self.config.observation_keys)
        episodes = usable_episodes(store, only_success=self.config.only_success)
        normalizer = fit_normalizer(store, episodes, keys=keys)
        # The library prints its progress; stdout belongs to the summary.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            path = Path(folder) / "episodes.hdf5"
            write_robomimic(path, store, episodes, keys=keys, normalizer=normalizer)
            model = self.build(store.spec)
            batches = self._batches(path, seed)
            on_evaluation(0, self.policy(model, store.spec, normalizer), {})
            for step in range(1, num_steps + 1):
                model.set_train()
                info = model.train_on_batch(model.process_batch_for_training(next(batches)), epoch=1)
                if step % evaluate_every == 0 or step == num_steps:
                    on_evaluation(step, self.policy(model, store.spec, normalizer), _metrics(model.log_info(info)))

    def _batches(self, path: Path, seed: int) -> Any:
        from robomimic.utils.dataset import SequenceDataset
        from torch.utils.data import DataLoader

        is_rnn = isinstance(self.config, BcRnnConfig)
        data = SequenceDataset(
            str(path), obs_keys=self.config.observation_keys, dataset_keys=("actions", "rewards", "dones"),
            seq_length=self.config.sequence if isinstance(self.config, BcRnnConfig) else 1, hdf5_cache_mode="all",
            hdf5_use_swmr=False, load_next_obs=not is_rnn,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        size = min(self.config.batch_size, len(data))
        while True:
            yield from DataLoader(data, batch_size=size, shuffle=True, drop_last=True, generator=generator)

    def build(self, spec: EnvSpec) -> Any:
        """The library's model, untrained; its weights come from torch's global generator."""
        import robomimic.utils.obs_utils as observations
        from robomimic.algo import algo_factory
        from robomimic.config import config_factory

        config, keys = self.config, list(self.config.observation_keys)
        name = "bc" if isinstance(config, BcRnnConfig) else "iql"
        theirs = config_factory(name)
        with theirs.values_unlocked():
            theirs.observation.modalities.obs.low_dim = keys
            if isinstance(config, BcRnnConfig):
                theirs.algo.optim_params.policy.learning_rate.initial = config.learning_rate
                theirs.algo.actor_layer_dims = ()
                theirs.algo.gmm.enabled, theirs.algo.gmm.num_modes = True, config.num_modes
                theirs.algo.rnn.enabled, theirs.algo.rnn.horizon = True, config.sequence
                theirs.algo.rnn.hidden_dim, theirs.algo.rnn.num_layers = config.hidden, config.num_layers
            else:
                for part in ("actor", "critic", "vf"):
                    theirs.algo.optim_params[part].learning_rate.initial = config.learning_rate
                theirs.algo.actor.layer_dims = theirs.algo.critic.layer_dims = tuple(config.hidden)
                theirs.algo.discount, theirs.algo.vf_quantile = config.gamma, config.vf_quantile
                theirs.algo.adv.beta = config.beta
        observations.initialize_obs_utils_with_config(theirs)
        shapes = OrderedDict((key, list(spec.observation[key].shape)) for key in keys)
        return algo_factory(name, theirs, shapes, spec.action.size, torch.device(self.device))

    def policy(self, model: Any, spec: EnvSpec, normalizer: Normalizer) -> BaselineMlpPolicy | BaselineRnnPolicy:
        """A copy of the model's actor as our policy, deterministic."""
        config, keys = self.config, tuple(self.config.observation_keys)
        ours: BaselineMlpPolicy | BaselineRnnPolicy
        if isinstance(config, BcRnnConfig):
            ours = BaselineRnnPolicy(
                BaselineRnnConfig(config.hidden, config.num_layers, config.sequence, config.num_modes, observation_keys=keys),
                spec, normalizer,
            )  # fmt: skip
            network = model.nets["policy"].nets["rnn"]
            heads = network.per_step_net.nets
            pairs = [(ours.lstm, network.nets), (ours.means, heads["mean"]), (ours.logits, heads["logits"])]
        else:
            head = BaselineMlpConfig(GaussianHead.bounded_mean, tuple(config.hidden), "relu", observation_keys=keys)
            ours = BaselineMlpPolicy(head, spec, normalizer)
            network = model.nets["actor"].nets
            heads = network["decoder"].nets
            pairs = [(ours.body, network["mlp"]._model), (ours.mean, heads["mean"]), (ours.spread, heads["scale"])]
        for mine, theirs in pairs:
            mine.load_state_dict(theirs.state_dict(), strict=True)
        return ours.eval()


def bc_rnn(config: BcRnnConfig, *, device: str = "cpu") -> RobomimicLearner:
    """robomimic's BC-RNN; see RobomimicLearner."""
    return RobomimicLearner(config, device=device)


def iql(config: IqlConfig, *, device: str = "cpu") -> RobomimicLearner:
    """robomimic's IQL; see RobomimicLearner."""
    return RobomimicLearner(config, device=device)


def usable_episodes(store: EpisodeStore, *, only_success: bool) -> list[int]:
    """Indices of the episodes to learn from. Raises DataError when there is none."""
    chosen = np.flatnonzero(np.asarray(store.success)) if only_success else np.arange(len(store))
    if not len(chosen):
        raise DataError(
            str(store.path), expected="at least one usable episode", got=f"{len(store)} episodes, none of them usable",
            hint="Collect demonstrations, or set algo.only_success=false.",
        )  # fmt: skip
    return [int(index) for index in chosen]


def fit_normalizer(store: EpisodeStore, episodes: list[int], *, keys: tuple[str, ...]) -> Normalizer:
    """Observations standardised and actions to [-1, 1], as the imitate stage does. Raises DataError on an unknown key."""
    played = [store.episode(index) for index in episodes]
    data = {key: torch.from_numpy(np.concatenate([each.observation[key] for each in played])) for key in keys}
    data[ACTION] = torch.from_numpy(np.concatenate([each.action for each in played]))
    return Normalizer.fit(data, dict.fromkeys(keys, NormalizerMode.standard) | {ACTION: NormalizerMode.range})


def write_robomimic(
    path: Path, store: EpisodeStore, episodes: list[int], *, keys: tuple[str, ...], normalizer: Normalizer
) -> None:
    """Write episodes as robomimic's HDF5: data/demo_<i>/{actions, rewards, dones, obs, next_obs} and mask/train.

    `dones` marks true terminations alone: a time limit must be bootstrapped (its `next_obs` is the real last frame).

    Args:
        path: the file, replaced.
        store: the episodes.
        episodes: indices to write, in this order.
        keys: low-dimensional observation keys.
        normalizer: applied to observations and actions; see the module docstring.
    """
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, index in enumerate(episodes):
            episode = store.episode(index)
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(episode)
            group["actions"] = normalizer.apply(ACTION, torch.from_numpy(np.asarray(episode.action))).numpy()
            group["rewards"] = episode.reward
            group["dones"] = (np.arange(len(episode)) == len(episode) - 1) & episode.terminated
            for key in keys:
                frames = np.concatenate([episode.observation[key], episode.final_observation[key][None]])
                normal = normalizer.apply(key, torch.from_numpy(frames)).numpy()
                group[f"obs/{key}"], group[f"next_obs/{key}"] = normal[:-1], normal[1:]
        data.attrs["total"] = sum(int(group.attrs["num_samples"]) for group in data.values())
        data.attrs["env_args"] = json.dumps({"env_name": store.spec.env_id, "type": 2, "env_kwargs": {}})
        file["mask/train"] = np.array([f"demo_{number}" for number in range(len(episodes))], dtype="S")


def _metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """What the library logged as finite numbers, names without capitals and slashes."""
    found = {str(name).lower().replace("/", "_"): float(value) for name, value in logged.items()}
    return {name: found[name] for name in sorted(found) if math.isfinite(found[name])}
