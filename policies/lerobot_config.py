"""What a LeRobot 0.4.4 diffusion checkpoint says of itself: config.json, and the statistics of its two processors.

Read directly, without LeRobot; no file is unpickled. Values have no defaults here, for LeRobot's own change between versions:
a key that is missing, or one that 0.4.4 does not know, means another version and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from robot_rl.algorithms.diffusion import Prediction
from robot_rl.errors import PolicyError, closest

VERSION = "0.4.4"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Steps of a processor that change no number here: names, a batch dimension, the device.
NEUTRAL_STEPS = ("rename_observations_processor", "to_batch_processor", "device_processor")
# Mode of normalisation -> names of the two statistics that it maps to [-1, 1].
RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
# Keys of config.json that do not change what a trained policy answers.
IGNORED = frozenset({
    "type", "device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path",
    "drop_n_last_frames", "crop_ratio", "crop_is_random", "beta_start", "beta_end", "compile_mode", "do_mask_loss_for_padding",
    "optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "scheduler_name", "scheduler_warmup_steps",
})  # fmt: skip


@dataclass(frozen=True)
class LeRobotConfig:
    """The keys of config.json that make the policy what it is, under LeRobot's names.

    Attributes:
        n_obs_steps: To, frames seen.
        horizon: H, actions in a chunk; the first is due at the first frame seen, To - 1 steps ago.
        n_action_steps: actions played before the next decision, from the newest frame on.
        input_features, output_features: name -> {"type": STATE, ENV, VISUAL or ACTION; "shape"}; images (3, H, W).
        normalization_mapping: type -> IDENTITY, MEAN_STD, or a key of RANGES.
        vision_backbone: resnet18 or resnet34.
        resize_shape, crop_shape: (rows, columns) of an image, in this order, or None.
        pretrained_backbone_weights: what it was trained from; not read again.
        use_group_norm: in place of BatchNorm.
        spatial_softmax_num_keypoints: of a camera.
        use_separate_rgb_encoder_per_camera: one network each.
        down_dims, kernel_size, n_groups, diffusion_step_embed_dim, use_film_scale_modulation: of the U-Net.
        noise_scheduler_type: DDPM or DDIM.
        num_train_timesteps: levels of the schedule.
        beta_schedule: squaredcos_cap_v2.
        prediction_type: epsilon or sample.
        clip_sample, clip_sample_range: of the predicted clean sample.
        num_inference_steps: K, or None for all levels.
        compile_model, use_peft: False.
    """

    n_obs_steps: int
    horizon: int
    n_action_steps: int
    input_features: Mapping[str, Mapping[str, Any]]
    output_features: Mapping[str, Mapping[str, Any]]
    normalization_mapping: Mapping[str, str]
    vision_backbone: str
    resize_shape: tuple[int, ...] | None
    crop_shape: tuple[int, ...] | None
    pretrained_backbone_weights: str | None
    use_group_norm: bool
    spatial_softmax_num_keypoints: int
    use_separate_rgb_encoder_per_camera: bool
    down_dims: tuple[int, ...]
    kernel_size: int
    n_groups: int
    diffusion_step_embed_dim: int
    use_film_scale_modulation: bool
    noise_scheduler_type: str
    num_train_timesteps: int
    beta_schedule: str
    prediction_type: str
    clip_sample: bool
    clip_sample_range: float
    num_inference_steps: int | None
    compile_model: bool
    use_peft: bool

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the images, in the order in which their features are put together."""
        return tuple(name for name, feature in self.input_features.items() if feature["type"] == "VISUAL")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs in the order of the condition: state, images, state of the environment."""
        return (STATE, *self.cameras, *(name for name in (ENVIRONMENT,) if name in self.input_features))

    @property
    def action_size(self) -> int:
        """A."""
        return int(self.output_features[ACTION]["shape"][0])

    def mode_of(self, name: str) -> str:
        """How an input, or "action", is normalised; LeRobot leaves a type that the mapping lacks as it is."""
        feature = self.output_features[ACTION] if name == ACTION else self.input_features[name]
        return str(self.normalization_mapping.get(str(feature["type"]), "IDENTITY"))


def read_config(folder: Path) -> LeRobotConfig:
    """config.json of a checkpoint.

    Raises:
        PolicyError: no checkpoint of LeRobot's diffusion policy, of another version, pickled, or with values that it can't have.
    """
    path = folder / CONFIG
    data = _json(path)
    if data.get("type") != "diffusion":
        raise PolicyError(
            f"{path}: type", expected="'diffusion'", got=repr(data.get("type")),
            hint="Other LeRobot policies are served from their own environment: examples/teacher_servers/serve_lerobot.py.",
        )  # fmt: skip
    names = set(LeRobotConfig.__dataclass_fields__)
    for key in sorted(data.keys() - names - IGNORED):
        raise _other_version(path, f"the unknown key {key!r}")
    for key in sorted(names - data.keys()):
        raise _other_version(path, f"no key {key!r}")
    _check_types(data, path)
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    config = LeRobotConfig(**{key: value for key, value in {**data, **lists}.items() if key in names})
    _check(config, path)
    return config


def read_statistics(folder: Path, config: LeRobotConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Statistics as LeRobot uses them: those of the preprocessor for inputs, of the postprocessor for "action".

    Returns:
        Name -> statistic -> float32 (D,); names without normalisation are left out. "eps" (1,) is among an input's.

    Raises:
        PolicyError: a processor is missing, does more than normalise, or lacks a statistic.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for file, kind, names in (
        (PREPROCESSOR, "normalizer_processor", config.inputs),
        (POSTPROCESSOR, "unnormalizer_processor", (ACTION,)),
    ):
        step = _normalising_step(folder / file, kind)
        said = step["config"].get("norm_map")
        if said != dict(config.normalization_mapping):
            raise PolicyError(
                f"{folder / file}: norm_map", expected=f"that of {CONFIG}, {dict(config.normalization_mapping)}", got=str(said),
                hint="LeRobot would normalise by this file: were two checkpoints mixed?",
            )  # fmt: skip
        tensors = read_tensors(_beside(folder, step.get("state_file"), where=str(folder / file)))
        for name in names:
            mode = config.mode_of(name)
            if mode == "IDENTITY":
                continue
            wanted = ("mean", "std") if mode == "MEAN_STD" else RANGES[mode]
            size = _size(config, name)
            for statistic in wanted:
                value = tensors.get(f"{name}.{statistic}")
                if value is None or value.numel() != size or not bool(value.isfinite().all()):
                    raise PolicyError(
                        f"{folder / file}: {name}.{statistic}", expected=f"{size} finite numbers, for {mode}",
                        got="none" if value is None else f"shape {tuple(value.shape)}, {value.flatten()[:4].tolist()}",
                        hint="LeRobot leaves an input without statistics as it is; no policy was trained like that.",
                    )  # fmt: skip
                found.setdefault(name, {})[statistic] = value.flatten()
            found[name]["eps"] = torch.tensor([float(step["config"]["eps"])])
    return found


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """float32 tensors of a safetensors file.

    Raises:
        PolicyError: missing, no safetensors file, or another type.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except FileNotFoundError:
        others = (
            sorted(file.name for file in path.parent.iterdir() if file.suffix in PICKLES)
            if path.parent.is_dir()
            else []
        )
        raise PolicyError(
            str(path), expected="a safetensors file", got=f"none; pickled: {', '.join(others)}" if others else "none",
            hint="Pickled weights are never read, for a pickle runs code: save the policy with LeRobot's save_pretrained.",
        ) from None  # fmt: skip
    except SafetensorError as error:
        raise PolicyError(
            str(path), expected="a safetensors file", got=str(error), hint="Damaged, or pickled under another name."
        ) from error
    # A BatchNorm's counter of batches is an integer that nothing reads.
    wrong = [n for n, t in tensors.items() if t.dtype != torch.float32 and not n.endswith("num_batches_tracked")]
    if wrong:
        raise PolicyError(
            f"{path}: {wrong[0]}",
            expected="float32",
            got=str(tensors[wrong[0]].dtype),
            hint="Save the policy in float32.",
        )
    return tensors


def _size(config: LeRobotConfig, name: str) -> int:
    # An image has statistics of its three channels.
    return config.action_size if name == ACTION else int(config.input_features[name]["shape"][0])


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        is_old = path.name in (PREPROCESSOR, POSTPROCESSOR) and not path.exists()
        raise PolicyError(
            str(path), expected="a JSON file of a LeRobot checkpoint", got=str(error) if path.exists() else "none",
            hint=_MIGRATE if is_old else "Give the folder that holds config.json and model.safetensors.",
        ) from error  # fmt: skip
    if not isinstance(data, dict):
        raise PolicyError(str(path), expected="a JSON object", got=type(data).__name__, hint="The file is damaged.")
    return data


_DAMAGED = "Is the file damaged, or was it written by hand?"
_MIGRATE = (
    f"Older checkpoints keep their statistics among the weights: LeRobot {VERSION}'s "
    "lerobot.processor.migrate_policy_normalization brings them up to date."
)


def _other_version(path: Path, got: str) -> PolicyError:
    return PolicyError(
        str(path), expected=f"a checkpoint of LeRobot {VERSION}", got=got,
        hint=f"Load it and save it again with LeRobot {VERSION} (tests/peers/lerobot.sh makes an environment).",
    )  # fmt: skip


def _normalising_step(path: Path, kind: str) -> dict[str, Any]:
    steps = _json(path).get("steps")
    if not isinstance(steps, list) or not all(
        isinstance(step, dict) and isinstance(step.get("config", {}), dict) for step in steps
    ):
        raise PolicyError(
            f"{path}: steps", expected="a list of steps, each with a config", got=repr(steps)[:200], hint=_DAMAGED
        )
    names = [str(step.get("registry_name")) for step in steps]
    if names.count(kind) != 1 or set(names) - {kind, *NEUTRAL_STEPS}:
        raise PolicyError(
            f"{path}: steps", expected=f"one {kind}, and besides it only {', '.join(NEUTRAL_STEPS)}", got=", ".join(names),
            hint="This processor does something that is not written here.",
        )  # fmt: skip
    for step in steps:
        for key in ("normalize_observation_keys", "float_dtype"):
            if (value := step.get("config", {}).get(key)) is not None:
                raise PolicyError(
                    f"{path}: {key}", expected="null", got=repr(value), hint="Nothing else is written here."
                )
    found: dict[str, Any] = steps[names.index(kind)]
    eps = found.get("config", {}).get("eps")
    if type(eps) not in (int, float):
        raise PolicyError(f"{path}: config.eps of {kind}", expected="a number", got=repr(eps), hint=_DAMAGED)
    return found


def _beside(folder: Path, name: Any, *, where: str) -> Path:
    """A file that a document names, which must lie in the folder itself."""
    if not isinstance(name, str) or Path(name).name != name:
        raise PolicyError(where, expected="state_file, a file beside it", got=repr(name), hint="The file is damaged.")
    return folder / name


def _is(kind: str, value: Any) -> bool:
    """Whether a value is of a type of LeRobotConfig, by the name in its annotation; every int of it counts something."""
    if kind.endswith(" | None"):
        return value is None or _is(kind.removesuffix(" | None"), value)
    if kind.startswith("Mapping[str, Mapping"):
        return isinstance(value, Mapping) and all(
            isinstance(each, Mapping) and _is("tuple[int, ...]", each.get("shape")) for each in value.values()
        )
    if kind.startswith("Mapping"):
        return isinstance(value, Mapping) and all(isinstance(each, str) for each in value.values())
    if kind.startswith("tuple"):
        return isinstance(value, (list, tuple)) and len(value) > 0 and all(_is("int", each) for each in value)
    types: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    return type(value) in types[kind] and (kind != "int" or value >= 1)


def _check_types(data: Mapping[str, Any], path: Path) -> None:
    named = {
        "int": "a whole number of at least 1",
        "Mapping[str, Mapping[str, Any]]": "features by name, each with its shape",
    }
    for field in fields(LeRobotConfig):
        value, kind = data[field.name], str(field.type)
        if not _is(kind, value):
            plain = kind.removesuffix(" | None")
            expected = named.get(plain, plain) + (" or null" if plain != kind else "")
            raise PolicyError(f"{path}: {field.name}", expected=expected, got=repr(value)[:200], hint=_DAMAGED)


def _check(config: LeRobotConfig, path: Path) -> None:
    choices = {
        "noise_scheduler_type": ("DDPM", "DDIM"), "beta_schedule": ("squaredcos_cap_v2",),
        "prediction_type": tuple(p.value for p in Prediction if p is not Prediction.v), "compile_model": (False,),
        "use_peft": (False,),
    }  # fmt: skip
    for key, options in choices.items():
        if getattr(config, key) not in options:
            raise PolicyError(
                f"{path}: {key}", expected=" or ".join(map(repr, options)), got=repr(getattr(config, key)),
                hint="Nothing else is written here; serve the policy from LeRobot's own environment.",
            )  # fmt: skip
    for kind, mode in config.normalization_mapping.items():
        if mode not in ("IDENTITY", "MEAN_STD", *RANGES):
            raise PolicyError(
                f"{path}: {kind}", expected="a mode", got=repr(mode), hint=closest(mode, ["MEAN_STD", *RANGES])
            )
    kinds = {name: str(feature.get("type")) for name, feature in config.input_features.items()}
    wanted = {STATE: "STATE", ENVIRONMENT: "ENV"}
    fits = kinds.get(STATE) == "STATE" and all(kind == wanted.get(name, "VISUAL") for name, kind in kinds.items())
    if not fits or len(kinds) < 2 or list(config.output_features) != [ACTION]:
        raise PolicyError(
            f"{path}: features", expected=f"inputs {STATE}, and images or {ENVIRONMENT}; output {ACTION}",
            got=f"{kinds}; {list(config.output_features)}", hint="LeRobot's diffusion policy has no others.",
        )  # fmt: skip
    last = config.n_obs_steps - 1 + config.n_action_steps
    if config.n_obs_steps < 1 or config.n_action_steps < 1 or last > config.horizon:
        raise PolicyError(
            str(path), expected="n_obs_steps - 1 + n_action_steps within horizon",
            got=f"{config.n_obs_steps}, {config.n_action_steps}, {config.horizon}", hint="Is config.json damaged?",
        )  # fmt: skip
