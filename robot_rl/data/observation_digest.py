"""A digest of what each env of an observation shows: the key of a cache, and the seed of noise that belongs to a state."""

from __future__ import annotations

import hashlib

import numpy as np

from robot_rl.types import Observation


def row_digests(observation: Observation) -> list[bytes]:
    """16 bytes for each of the N envs, of all arrays (not of `time`) and of the instruction; equal for equal bits."""
    arrays = {
        key: np.ascontiguousarray(array.detach().cpu().numpy() if hasattr(array, "detach") else array)
        for key, array in sorted(observation.arrays().items())
    }
    out = []
    for row in range(len(next(iter(arrays.values())))):
        digest = hashlib.blake2b(digest_size=16)
        for key, array in arrays.items():
            digest.update(key.encode() + str(array.shape[1:]).encode())
            digest.update(array[row].tobytes())
        if observation.instruction is not None:
            digest.update(observation.instruction[row].encode())
        out.append(digest.digest())
    return out
