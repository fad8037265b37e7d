"""Checkpoints: tensors as safetensors and documents as JSON in one folder a step; no pickle anywhere.

    checkpoints/step_002000/{policy.safetensors, optimizer.safetensors, ..., normalizer.json, spec.json, manifest.json}
    checkpoints/last -> step_002000, checkpoints/best -> step_001000

A checkpoint is written to a temporary folder, synced and renamed: it is there whole or not at all. Its manifest holds
the sha256 of every file and is compared on load.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robot_rl.errors import ConfigError, DataError, PolicyError, RunError, closest
from robot_rl.runs.adopted import build_adopted, is_adopted
from robot_rl.runs.config import validate_component
from robot_rl.runs.directory import read_json, sync_folder, write_json, write_synced
from robot_rl.specs import EnvSpec

MANIFEST = "manifest.json"
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: its folder.
        step: gradient step it was saved at.
        tensors: file name without ending -> tensor name -> tensor.
        documents: file name without ending -> JSON value.
    """

    path: Path
    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    documents: Mapping[str, Any]


def save_checkpoint(
    run_dir: str | os.PathLike[str],
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    keep: int = 3,
) -> Path:
    """Save a checkpoint, point `last` at it, and remove the oldest ones.

    Args:
        run_dir: the run directory.
        step: gradient step.
        tensors: file name -> tensor name -> tensor (any device; saved from the CPU, shared storage is fine).
        documents: file name -> JSON value.
        keep: number of newest checkpoints that stay; `best` always stays.

    Raises:
        RunError: keep < 1, a document named 'manifest', or values that JSON can't hold.
        OSError: a full disk; earlier checkpoints stay whole.
    """
    if keep < 1 or "manifest" in documents:
        raise RunError(
            f"checkpoint of step {step}",
            expected="keep >= 1 and no document named 'manifest'",
            got=f"keep={keep}, documents {sorted(documents)}",
            hint="Keep at least one checkpoint; rename the document.",
        )
    folder = Path(run_dir) / "checkpoints"
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(".*"):
        _remove(leftover)
    temporary = folder / f".writing_{step}"
    try:
        _write(temporary, step, tensors=tensors, documents=documents)
    except OSError:
        _remove(temporary)  # on a full disk its space is what status.json and the log need
        raise
    target = folder / f"step_{step:06d}"
    if target.exists():  # saved before at this step, e.g. by the run that is resumed from an older checkpoint
        os.rename(target, folder / f".replaced_{step}")
    os.rename(temporary, target)
    sync_folder(folder)
    _remove(folder / f".replaced_{step}")
    _link(folder / "last", target)
    _prune(folder, keep)
    return target


def _write(
    folder: Path, step: int, *, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]
) -> None:
    from safetensors.torch import save

    folder.mkdir()
    for name, group in tensors.items():
        content = save({key: value.detach().cpu().contiguous().clone() for key, value in group.items()})
        write_synced(folder / f"{name}.safetensors", content)
    for name, document in documents.items():
        write_json(folder / f"{name}.json", document)
    files = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"step": step, "files": files})


def mark_best(path: str | Path) -> None:
    """Point `best` beside `path` at this checkpoint; it is never removed while it is the best.

    Raises:
        RunError: when `path` is no complete checkpoint.
    """
    path = Path(path)
    if not _is_complete(path):
        raise _not_a_checkpoint(path)
    _link(path.parent / "best", path)


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint with the largest step, whatever `last` says; None when there is none."""
    complete = _complete(Path(run_dir) / "checkpoints")
    return complete[-1] if complete else None


def load_checkpoint(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a checkpoint after comparing every file with its sha256.

    Args:
        path: a run directory (its best checkpoint if one is marked, else the newest), or a folder in `checkpoints/`
            (`last` means the newest complete one, even when the link is missing or dangles).
        device: where the tensors go.

    Raises:
        RunError: nothing complete there, or a file that is missing or damaged, named.
    """
    from safetensors.torch import load

    folder = _resolve(Path(path))
    manifest = read_json(folder / MANIFEST)
    tensors: dict[str, dict[str, Tensor]] = {}
    documents: dict[str, Any] = {}
    for name, digest in manifest["files"].items():
        file = folder / name
        content = file.read_bytes() if file.is_file() else b""
        if _sha256(content) != digest:
            others = [p.name for p in _complete(folder.parent) if p.name != folder.name]
            raise RunError(
                str(file), expected=f"the file that was saved (sha256 {digest[:12]}...)",
                got=f"{len(content)} bytes with another sha256" if file.is_file() else "no file",
                hint=f"Load another checkpoint of this run: {', '.join(others) or 'there is none'}.",
            )  # fmt: skip
        if file.suffix == ".safetensors":
            tensors[file.stem] = {key: value.to(device) for key, value in load(content).items()}
        else:
            documents[file.stem] = json.loads(content)
    return Checkpoint(folder, int(manifest["step"]), tensors, documents)


def load_policy(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> tuple[Any, EnvSpec, Checkpoint]:
    """Rebuild the policy of a checkpoint, in evaluation mode.

    Needs documents "policy" ({"_target_", "config"}), "normalizer" and "spec", and tensors "policy".

    Args:
        path: as for `load_checkpoint`, or the folder of another project's policy (adopted.py; step 0, no tensors).
        device: of the policy.

    Returns:
        The policy, the EnvSpec it was trained with, and the checkpoint.

    Raises:
        RunError: no checkpoint there, or a damaged one.
        PolicyError: a document is missing, or config and weights do not fit the code.
    """
    from robot_rl.data.normalizer import Normalizer

    if is_adopted(Path(path)):
        policy, document = build_adopted(Path(path))
        return policy.to(device).eval(), policy.spec, Checkpoint(Path(path), 0, {}, document)
    checkpoint = load_checkpoint(path)
    missing = {"policy", "normalizer", "spec"} - set(checkpoint.documents)
    if missing or "policy" not in checkpoint.tensors:
        raise PolicyError(
            str(checkpoint.path), expected="a policy's checkpoint",
            got=f"no {', '.join(sorted(missing)) or 'policy.safetensors'} in it",
            hint="Give the run directory of `imitate` or `distill_onestep`.",
        )  # fmt: skip
    document = checkpoint.documents["policy"]
    try:
        spec = EnvSpec.from_json(checkpoint.documents["spec"], where=f"{checkpoint.path}/spec.json")
        node = {"_target_": document["_target_"], **document["config"]}
        target, config = validate_component(node, where=f"{checkpoint.path}/policy.json")
        policy = target(config, spec=spec, normalizer=Normalizer.from_json(checkpoint.documents["normalizer"]))
        policy.load_state_dict(checkpoint.tensors["policy"], strict=True)
    except (ConfigError, DataError, RuntimeError, KeyError, TypeError) as error:
        raise PolicyError(
            str(checkpoint.path), expected="a policy that this version of the code can build",
            got=f"{type(error).__name__}: {error}",
            hint="Use the code of the commit in the run's provenance.json, or train again.",
        ) from error  # fmt: skip
    return policy.to(device).eval(), spec, checkpoint


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything an optimiser holds, as named tensors: state exactly, settings as JSON in a uint8 tensor.

    Raises:
        RunError: a setting that JSON can't hold exactly (a tensor as learning rate).
    """
    state = optimizer.state_dict()
    out = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if value is not None:
                out[f"state.{index}.{name}"] = torch.as_tensor(value)
    try:
        text = json.dumps(state["param_groups"])
    except TypeError as error:
        raise RunError(
            "optimizer settings", expected="numbers and text", got=str(error), hint="Give the learning rate as a float."
        ) from error
    out["param_groups"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return out


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `flatten_optimizer`, bit by bit, for an optimiser over the same parameters in the same order.

    Raises:
        RunError: number or shape of the parameters differ.
    """
    groups = json.loads(bytes(tensors["param_groups"].cpu().numpy()))
    for group in groups:
        group.update({key: tuple(v) for key, v in group.items() if isinstance(v, list) and key != "params"})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name == "param_groups":
            continue
        _, index, key = name.split(".", 2)
        state.setdefault(int(index), {})[key] = tensor
        fits = int(index) < len(parameters) and (tensor.ndim == 0 or tensor.shape == parameters[int(index)].shape)
        if not fits:
            shape = tuple(parameters[int(index)].shape) if int(index) < len(parameters) else "no such parameter"
            raise RunError(
                f"optimizer state {name!r}", expected=str(shape), got=str(tuple(tensor.shape)),
                hint="The checkpoint belongs to another network configuration.",
            )  # fmt: skip
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups]:
        raise RunError(
            "optimizer groups", expected=f"{[len(g['params']) for g in optimizer.param_groups]} parameters",
            got=str([len(g["params"]) for g in groups]),
            hint="The checkpoint belongs to another network configuration.",
        )  # fmt: skip
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _resolve(path: Path) -> Path:
    """The checkpoint folder that `path` means."""
    if (path / "config.yaml").is_file() or (path / "checkpoints").is_dir():
        best = path / "checkpoints" / "best"
        found = best.resolve() if _is_complete(best) else latest_checkpoint(path)
        if found is not None:
            return found
    elif path.name == "last":
        complete = _complete(path.parent)
        if complete:
            return complete[-1]
    elif _is_complete(path):
        return path.resolve()
    raise _not_a_checkpoint(path)


def _not_a_checkpoint(path: Path) -> RunError:
    near = [p.name for p in _complete(path / "checkpoints" if (path / "checkpoints").is_dir() else path.parent)]
    hint = closest(path.name, near) if near else "Give runs/<run> or runs/<run>/checkpoints/step_<n>."
    runs = sorted(p.parent.name for p in path.glob("*/status.json"))[-8:]
    if runs:
        hint = f"This folder holds runs; give one of them: {', '.join(runs)}."
    return RunError(str(path), expected="a run directory or a complete checkpoint", got="none there", hint=hint)


def _is_complete(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    steps = [(int(match.group(1)), path) for path in folder.glob("step_*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(steps) if _is_complete(path)]


def _prune(folder: Path, keep: int) -> None:
    best = (folder / "best").resolve()
    for path in _complete(folder)[:-keep]:
        if path.resolve() != best:
            doomed = folder / f".removing_{path.name}"
            os.rename(path, doomed)
            _remove(doomed)


def _link(link: Path, target: Path) -> None:
    """Point a relative symlink at a sibling folder in one step."""
    temporary = link.with_name(f".{link.name}")
    _remove(temporary)
    os.symlink(target.name, temporary)
    os.replace(temporary, link)
    sync_folder(link.parent)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
