"""Features of a dataset, computed once where the encoder is frozen (offline RL) and kept in a folder for later runs.

The name of a file is the hash of everything that the features depend on: content of the datasets, weights and
configuration of the encoder, history and executed steps. Another encoder or another episode is another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robot_rl.arrays import Array, Float32
from robot_rl.data.windows import WindowSampler

log = logging.getLogger(__name__)

# Of observations that are encoded at once: a network's maps of an image take a hundred times the image.
ENCODED_BYTES = 16 * 2**20
ROWS_AT_ONCE = 4096


def encoder_hash(policy: Any) -> str:
    """SHA-256 of a policy's encoder: kind, keys, every tensor by name, bit for bit."""
    content = hashlib.sha256(f"{type(policy.encoder).__name__} {tuple(policy.encoder.keys)}".encode())
    content.update(repr(getattr(policy.encoder, "config", None)).encode())
    for name, tensor in sorted(policy.encoder.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


@torch.no_grad()
def encode_windows(sampler: WindowSampler, policy: Any) -> tuple[Float32[Array, "S F"], Float32[Array, "S F"]]:
    """Features of every window's observation, and of what it led to."""
    rows = min(ROWS_AT_ONCE, max(1, ENCODED_BYTES // sampler.bytes_per_window))
    here, there = [], []
    for first in range(0, sampler.num_windows, rows):
        window = sampler.window(torch.arange(first, min(first + rows, sampler.num_windows)))
        assert window.next_observation is not None
        here.append(policy.encode(window.observation))
        there.append(policy.encode(window.next_observation))
    return torch.cat(here), torch.cat(there)


def cached_features(
    sampler: WindowSampler, policy: Any, *, folder: str | Path, hashes: Sequence[str]
) -> tuple[Float32[Array, "S F"], Float32[Array, "S F"]]:
    """`encode_windows`, from a file of an earlier run where there is one, else computed and kept.

    A file that can't be read, or whose numbers are not those of its key, is computed again, and the log says so.

    Args:
        sampler: of all episodes of the datasets, in their order.
        policy: its encoder is frozen.
        folder: where files are kept; made if need be. Anything in it may be deleted at any time.
        hashes: content hashes of the datasets, in order.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    key = json.dumps(
        {
            "data": list(hashes),
            "encoder": encoder_hash(policy),
            "history": policy.config.history,
            "execute": policy.config.execute,
            "windows": sampler.num_windows,
        },
        sort_keys=True,
    )
    path = Path(folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            found = load_file(path)
            here, there = found["feature"], found["next_feature"]
            if here.shape == there.shape == (sampler.num_windows, policy.encoder.size):
                log.info("features of %d decisions from %s", len(here), path)
                return here.to(policy.device), there.to(policy.device)
            log.warning("%s holds features of another size: computed again", path)
        except (SafetensorError, KeyError, OSError) as error:
            log.warning("%s can't be read (%s): computed again", path, error)
    here, there = encode_windows(sampler, policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({"feature": here.cpu(), "next_feature": there.cpu()}, temporary, metadata={"key": key})
    os.replace(temporary, path)
    return here, there
