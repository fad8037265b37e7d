"""A LeRobot 0.4.4 diffusion checkpoint as one of our policies: read directly, without LeRobot.

    robot-rl adopt FOLDER --env pick_cube --name observation.state=proprio --name observation.environment_state=state
    robot-rl evaluate env=pick_cube policy=FOLDER rti.level=20

Same network, same statistics, same samplers (tests/policies/test_lerobot_diffusion_peer.py: 1e-5): DDIM is mode eta0, DDPM
is mode eta1. A chunk of LeRobot begins at the oldest frame seen, ours at the newest: the first To - 1 actions are left out,
and those behind `n_action_steps` stay in. Actions are clipped to the bounds of the spec, which LeRobot does not do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.diffusion import (
    FinalAlpha,
    Prediction,
    Sampler,
    SamplingMode,
    leading_levels,
    squared_cosine_alpha_bar,
)
from robot_rl.algorithms.few_steps import sampling_text
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.arrays import Array, Float32, Int64
from robot_rl.errors import PolicyError, closest
from robot_rl.specs import EnvSpec

from .acting import ACTION, ChainPolicy
from .lerobot_config import WEIGHTS, LeRobotConfig, read_config, read_statistics, read_tensors
from .lerobot_encoder import LeRobotEncoder, LeRobotImages
from .lerobot_unet import LeRobotUNet

# DDPM adds no noise in its last step; a Sampler's smallest noise is above 0, and this one is below float32's last bit.
NO_NOISE = 1e-10
_UNET, _IMAGES = "diffusion.unet.", "diffusion.rgb_encoder."


@dataclass(frozen=True)
class LeRobotAdoption:
    """What a checkpoint does not say of itself; kept in robot_rl.json beside it.

    Attributes:
        names: LeRobot's name of every input -> key of our observation.
        num_steps: K; null: the checkpoint's own.
        mode: eta0 for DDIM, eta1 for DDPM; null: the checkpoint's own.
    """

    names: Mapping[str, str]
    num_steps: int | None = None
    mode: SamplingMode | None = None


@dataclass(frozen=True)
class LeRobotDiffusionConfig:
    """How a checkpoint acts here.

    Attributes:
        checkpoint: what its config.json says.
        names: see LeRobotAdoption.
        num_steps, mode: of the sampler.
        sigma_min: smallest noise of mode eta1, normalised action units.
    """

    checkpoint: LeRobotConfig
    names: Mapping[str, str]
    num_steps: int
    mode: SamplingMode
    sigma_min: float = NO_NOISE

    @property
    def history(self) -> int:
        """To."""
        return self.checkpoint.n_obs_steps

    @property
    def horizon(self) -> int:
        """Tp: actions from the newest frame on."""
        return self.checkpoint.horizon - self.history + 1

    @property
    def execute(self) -> int:
        """Ta."""
        return self.checkpoint.n_action_steps

    @property
    def observation_keys(self) -> tuple[str, ...]:
        """Our keys, in the order of the condition."""
        return tuple(self.names[name] for name in self.checkpoint.inputs)

    @property
    def sampler(self) -> Sampler:
        """The sampler, whose "sample" in modes eta1 and mean is that of _ClampedSample. Raises PolicyError when there is none."""
        checkpoint = self.checkpoint
        is_ddim = self.mode is SamplingMode.eta0
        return Sampler(
            levels=leading_levels(checkpoint.num_train_timesteps, self.num_steps, offset=0),
            prediction=Prediction(checkpoint.prediction_type) if is_ddim else Prediction.sample,
            num_levels=checkpoint.num_train_timesteps,
            final_alpha=FinalAlpha.one,
            sigma_min=self.sigma_min,
            sigma_max=max(1.0, self.sigma_min),
            clip_sample=checkpoint.clip_sample_range if is_ddim and checkpoint.clip_sample else None,
            mode=self.mode,
        )


class _ClampedSample(nn.Module):
    """The network as one that predicts the clean sample, clamped.

    DDPM's mean is a sum of the clamped sample and the latent, so the noise is that between the two, not the network's: which
    is what a Sampler makes of a prediction of the clean sample. DDIM keeps the network's noise, and needs no such thing.
    """

    signal: torch.Tensor
    noise: torch.Tensor

    def __init__(self, unet: LeRobotUNet, config: LeRobotConfig) -> None:
        super().__init__()
        self.unet = unet
        self.is_sample = config.prediction_type == Prediction.sample.value
        self.limit = config.clip_sample_range if config.clip_sample else None
        alpha_bar = squared_cosine_alpha_bar(config.num_train_timesteps)
        self.register_buffer("signal", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - alpha_bar).sqrt().float(), persistent=False)

    def forward(
        self, latent: Float32[Array, "B H A"], level: Int64[Array, " B"], condition: Float32[Array, "B C"]
    ) -> Float32[Array, "B H A"]:
        sample: torch.Tensor = self.unet(latent, level, condition)
        if not self.is_sample:
            signal, noise = self.signal[level][:, None, None], self.noise[level][:, None, None]
            sample = (latent - noise * sample) / signal
        return sample if self.limit is None else sample.clamp(-self.limit, self.limit)


class LeRobotDiffusionPolicy(ChainPolicy):
    """A DenoisingPolicy. It keeps nothing between calls. Latents are of LeRobot's whole horizon H.

    Args:
        config: see LeRobotDiffusionConfig.
        spec: of the environment; checked against the checkpoint.
        statistics: see read_statistics.

    Raises:
        PolicyError: names or sizes of the spec do not fit, or the network can't be built.
    """

    config: LeRobotDiffusionConfig
    still: torch.Tensor

    def __init__(
        self, config: LeRobotDiffusionConfig, spec: EnvSpec, statistics: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        super().__init__(config, spec)
        _check_names(config.checkpoint, config.names, spec)
        self.sampler = config.sampler
        self.encoder = LeRobotEncoder(config.checkpoint, config.names, statistics)
        self.unet = LeRobotUNet(config.checkpoint, action_size=spec.action.size, condition_size=self.encoder.size)
        self._clamped = _ClampedSample(self.unet, config.checkpoint)
        still = torch.zeros(spec.action.size, dtype=torch.bool)
        still[list(self.normalizer.near_constant(ACTION))] = True
        self.register_buffer("still", still, persistent=False)

    @property
    def denoiser(self) -> nn.Module:
        """The network as the sampler reads it."""
        return self.unet if self.sampler.mode is SamplingMode.eta0 else self._clamped

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(draws, H, A)."""
        return self.sampler.noise_draws, self.config.checkpoint.horizon, self.spec.action.size

    @property
    def sampling(self) -> str:
        """How it samples, for reports."""
        return f"LeRobot checkpoint, {sampling_text(self.sampler, self.config.sampler)}"

    def physical_action(self, normalized: Float32[Array, "B H A"]) -> Float32[Array, "B Tp A"]:
        """Actions from the newest frame on, in the robot's units, within the spec's bounds."""
        action = self.normalizer.invert(ACTION, normalized[:, self.config.history - 1 :])
        return torch.clamp(action, self.action_low, self.action_high)

    def normalized_chunk(self, actions: Float32[Array, "B H A"]) -> Float32[Array, "B H A"]:
        """See ActingPolicy. An element that never varied was -1 in training, and its rounding errors divided by 1e-8."""
        return super().normalized_chunk(actions).masked_fill(self.still, -1.0)

    def forward(self, arrays: dict[str, Any], noise: Float32[Array, "N draws H A"]) -> Float32[Array, "N Tp A"]:
        """The whole policy as one graph, for export; see ChainPolicy.forward. Noise is longer than what comes out."""
        return self.physical_action(self._sample(self.encoder.encode(arrays), noise))

    def with_mode(self, mode: SamplingMode, *, sigma_min: float | None = None) -> LeRobotDiffusionPolicy:
        """The same weights (shared) under another sampling mode, and another smallest noise if one is given."""
        return self._sampled(mode=mode, sigma_min=self.config.sigma_min if sigma_min is None else sigma_min)

    def with_steps(self, num_steps: int, *, mode: SamplingMode | None = None) -> LeRobotDiffusionPolicy:
        """The same weights (shared) with another number of steps, and another mode if one is given.

        Raises:
            PolicyError: more steps than levels, or none.
        """
        return self._sampled(num_steps=num_steps, mode=self.config.mode if mode is None else mode)

    def _sampled(self, **changes: Any) -> LeRobotDiffusionPolicy:
        # A shallow copy of a module shares the tables of its parameters and submodules.
        other = copy.copy(self)
        other.config = replace(self.config, **changes)
        other.sampler = other.config.sampler
        return other

    def warm_started(self, warm: WarmStart) -> Any:
        """This policy, each decision started from its last chunk (RTI); see WarmStartedPolicy, also for its errors.

        Raises:
            PolicyError: its normalised actions are not those of [-1, 1], which RTI keeps its chunks in.
        """
        from .warm_started import WarmStartedPolicy

        checkpoint = self.config.checkpoint
        mode = checkpoint.mode_of(ACTION)
        if mode != "MIN_MAX" or not checkpoint.clip_sample or checkpoint.clip_sample_range > 1:
            raise PolicyError(
                "rti on a LeRobot checkpoint", expected="actions normalised by MIN_MAX, and clip_sample to 1",
                got=f"{mode}, clip_sample={checkpoint.clip_sample} to {checkpoint.clip_sample_range}", hint="Leave rti out.",
            )  # fmt: skip
        return WarmStartedPolicy(self, warm)

    def one_step_student(self, num_steps: int = 1, *, head: str = "plain") -> nn.Module:
        """Refused: raises PolicyError."""
        raise PolicyError(
            "distill_onestep", expected="a teacher that was trained here", got="a LeRobot checkpoint",
            hint="evaluate, export, rti tune and serve take it; no stage trains it.",
        )  # fmt: skip

    def _output(self, latent: Array, level: Array, condition: Array) -> Array:
        return self.denoiser(latent, level, condition)


def load_lerobot(config: LeRobotAdoption, *, spec: EnvSpec, folder: Path) -> LeRobotDiffusionPolicy:
    """The policy of a checkpoint folder, in evaluation mode.

    Args:
        config: what the checkpoint does not say.
        spec: of the environment it acts in; observations that the checkpoint does not see are left out.
        folder: with config.json, model.safetensors and the two processors.

    Raises:
        PolicyError: another version, missing or pickled files, tensors of other names or shapes, or a spec that does not fit.
    """
    checkpoint = read_config(folder)
    is_ddim = checkpoint.noise_scheduler_type == "DDIM"
    steps = (config.num_steps, checkpoint.num_inference_steps, checkpoint.num_train_timesteps)
    asked = LeRobotDiffusionConfig(
        checkpoint, config.names, num_steps=next(number for number in steps if number is not None),
        mode=config.mode or (SamplingMode.eta0 if is_ddim else SamplingMode.eta1),
    )  # fmt: skip
    _check_names(checkpoint, config.names, spec)
    seen = {key: array for key, array in spec.observation.items() if key in config.names.values()}
    cameras = {name: camera for name, camera in spec.cameras.items() if f"image/{name}" in seen}
    policy = LeRobotDiffusionPolicy(
        asked, replace(spec, observation=seen, cameras=cameras), read_statistics(folder, checkpoint)
    )
    tensors, where = read_tensors(folder / WEIGHTS), str(folder / WEIGHTS)
    _fill(policy.unet, _behind(tensors, _UNET), where=f"{where}: {_UNET}")
    separate = checkpoint.use_separate_rgb_encoder_per_camera
    for number, network in enumerate(policy.encoder.cameras):
        prefix = f"{_IMAGES}{number}." if separate else _IMAGES
        _fill(network, LeRobotImages.our_names(_behind(tensors, prefix)), where=f"{where}: {prefix}")
    prefixes = (_UNET, _IMAGES) if checkpoint.cameras else (_UNET,)
    if unknown := [name for name in tensors if not name.startswith(prefixes)]:
        raise PolicyError(
            where, expected=f"only tensors of {' and '.join(prefixes)}", got=f"{unknown[0]} ({len(unknown)} such)",
            hint="Another version of LeRobot, or another kind of policy.",
        )  # fmt: skip
    return policy.eval()


def _behind(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Load the tensors; names and shapes must be those of the module."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise PolicyError(
                f"{where}{name}", expected=f"shape {wanted[name]}" if name in wanted else "no such tensor",
                got=f"shape {found[name]}" if name in found else "none",
                hint="The weights do not belong to this config.json, or to another version of LeRobot.",
            )  # fmt: skip
    module.load_state_dict(tensors, strict=True)


def _check_names(checkpoint: LeRobotConfig, names: Mapping[str, str], spec: EnvSpec) -> None:
    """Every input has its own key of the environment, of the same shape, and the action its size."""
    inputs = set(checkpoint.inputs)
    for name in sorted(inputs ^ names.keys()):
        raise PolicyError(
            f"names of a LeRobot checkpoint: {name!r}", expected="a key for each of its inputs, and no others",
            got="none" if name in inputs else "no such input", hint=closest(name, inputs),
        )  # fmt: skip
    if len(set(names.values())) < len(names):
        raise PolicyError(
            "names of a LeRobot checkpoint", expected="different keys", got=str(dict(names)), hint="Correct them."
        )
    for name, key in names.items():
        shape = tuple(checkpoint.input_features[name]["shape"])
        wanted = (*shape[1:], shape[0]) if name in checkpoint.cameras else shape
        dtype = "uint8" if name in checkpoint.cameras else "float32"
        given = spec.observation.get(key)
        if given is None or tuple(given.shape) != wanted or given.dtype != dtype:
            raise PolicyError(
                f"{name} of a LeRobot checkpoint, named {key!r}", expected=f"{dtype} {wanted} in {spec.env_id}",
                got="no such key" if given is None else f"{given.dtype} {tuple(given.shape)}",
                hint=closest(key, spec.observation) if given is None else "Another camera, robot or observation mode?",
            )  # fmt: skip
    if spec.action.size != checkpoint.action_size:
        raise PolicyError(
            f"action of {spec.env_id}", expected=f"{checkpoint.action_size} numbers, as the checkpoint gives",
            got=str(spec.action.size), hint="Use the environment, and its control mode, that the checkpoint was trained for.",
        )  # fmt: skip
