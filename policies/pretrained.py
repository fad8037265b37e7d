"""Pretrained weights of an image encoder from a file of the user's: checked against a card, loaded once, never trained.

The card `<weights file>.json` beside the file says what the weights are and what images they were trained on:
    {"architecture": "resnet18", "source": "where they come from", "licence": "MIT", "sha256": "<of the file>",
     "image_size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
     "entry": "r3m", "prefix": "module.convnet."}
`entry` (the dictionary inside the file) and `prefix` (of the names) may be left out. Architecture, licence, image size, mean
and std must be those of policy.encoder.images: whoever trains states them, and a checkpoint then holds weights and
preprocessing and needs neither file. Weights of torchvision's ResNets (R3M's are such) and of DINO's ViTs fit. Files of
either project were not tried: tests write files with the same names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robot_rl.errors import PolicyError

from .encoder_fusion import FusionEncoder
from .encoder_images import ImageEncoder, ImageEncoderConfig

CARD_FIELDS = ("architecture", "source", "licence", "sha256", "image_size", "mean", "std")
OPTIONAL_FIELDS = ("entry", "prefix")
# Classifiers on top of the features, and a counter that BatchNorm keeps.
LEFT_OUT = ("fc.", "head.", "num_batches_tracked")


def load_pretrained(encoder: nn.Module) -> list[dict[str, Any]]:
    """Load the weights that an encoder's configuration names into each of its image networks, in place.

    Returns:
        The card of every network that was loaded, for provenance; empty where nothing is pretrained.

    Raises:
        PolicyError: no file or card, a card that is not of this file or contradicts the configuration, or weights that do
            not fit the network.
    """
    if not isinstance(encoder, FusionEncoder) or not encoder.config.images.pretrained:
        return []
    cards = []
    for part in encoder.parts.values():
        if isinstance(part, ImageEncoder) and part.config.pretrained:  # depth has none
            card = read_card(part.config)
            _fill(part, card)
            cards.append(card)
    return cards


def read_card(config: ImageEncoderConfig) -> dict[str, Any]:
    """The card of `config.pretrained`, checked against the file and the configuration.

    Raises:
        PolicyError: naming what is missing or differs.
    """
    path = Path(config.pretrained)
    beside = path.with_name(f"{path.name}.json")
    for file in (path, beside):
        if not file.is_file():
            raise PolicyError(
                "policy.encoder.images.pretrained", expected="a file of weights and its card (JSON) beside it",
                got=f"no {file}", hint=f"The card has {', '.join(CARD_FIELDS)}; see docs/vision.md.",
            )  # fmt: skip
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PolicyError(str(beside), expected="JSON", got=str(error), hint="Correct the card.") from error
    known = (*CARD_FIELDS, *OPTIONAL_FIELDS)
    if not isinstance(card, dict) or not set(CARD_FIELDS) <= set(card) or not set(card) <= set(known):
        raise PolicyError(
            str(beside), expected=f"the fields {', '.join(CARD_FIELDS)}; perhaps {', '.join(OPTIONAL_FIELDS)}",
            got=", ".join(sorted(card)) if isinstance(card, dict) else type(card).__name__, hint="See docs/vision.md.",
        )  # fmt: skip
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    declared = {
        "sha256": digest,
        "architecture": config.backbone.value,
        "licence": config.licence,
        "image_size": config.image_size,
        "mean": list(config.mean),
        "std": list(config.std),
    }
    for name, value in declared.items():
        if card[name] != value or value == "":
            whose = "the file's own" if name == "sha256" else f"policy.encoder.images: {value!r}"
            raise PolicyError(
                f"{beside}: {name}", expected=f"{whose}" if name != "sha256" else f"{whose}, {digest}",
                got=repr(card[name]), hint="State in policy.encoder.images what the card says, or use other weights.",
            )  # fmt: skip
    return card


def _fill(part: ImageEncoder, card: Mapping[str, Any]) -> None:
    found = _read(Path(part.config.pretrained), str(card.get("entry", "")))
    prefix = str(card.get("prefix", ""))
    named = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    named = {n: v for n, v in named.items() if not n.startswith(LEFT_OUT[:2]) and not n.endswith(LEFT_OUT[2])}
    wanted = part.backbone.state_dict()
    problems = [f"no {name}" for name in wanted if name not in named]
    problems += [f"{name}, which the network lacks" for name in named if name not in wanted]
    problems += [
        f"{name} of {tuple(named[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in named and named[name].shape != value.shape
    ]
    if problems:
        raise PolicyError(
            part.config.pretrained, expected=f"the weights of a {part.config.backbone.value} of this configuration",
            got=f"{'; '.join(problems[:5])} ({len(problems)} differences)",
            hint="Check width, num_stages, num_blocks, heads, patch and image_size, and entry and prefix of the card.",
        )  # fmt: skip
    part.backbone.load_state_dict(named)


def _read(path: Path, entry: str) -> dict[str, torch.Tensor]:
    """Tensors by name; never unpickles anything but tensors and containers."""
    from safetensors.torch import load_file

    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # both libraries raise undocumented classes for what is no such file
        raise PolicyError(
            str(path), expected="safetensors, or a state_dict that torch reads with weights_only",
            got=f"{type(error).__name__}: {str(error).splitlines()[0]}", hint="Save the plain state_dict again.",
        ) from error  # fmt: skip
    content = content.get(entry) if entry and isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        inner = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise PolicyError(
            f"{path}, entry {entry!r}", expected="a dictionary of tensors", got=str(inner)[:200],
            hint="Name the entry in the card.",
        )  # fmt: skip
    return dict(content)
