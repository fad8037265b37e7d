"""A folder of built engines: an engine is used only when it was built from this model, for this GPU and version.

<folder>/<sha256 of the key>/
    entry.json      the key's fields, the sha256 of every other file, and what the builder wants to remember
    engine.plan     (TensorRT) or the files that ONNX Runtime's TensorRT provider wrote

An entry is written under a temporary name, flushed to the disk and renamed, so that a killed build leaves no entry.
Everything is verified before use; what does not match is built again with one log line and is never loaded.
The hashes find damage and mix-ups, not attackers: whoever can write the folder can run code, so it is made for its
owner only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from robot_rl.errors import DeployError

log = logging.getLogger(__name__)

SIDECAR = "entry.json"
FORMAT = 1


class Precision(str, Enum):
    """Arithmetic that an engine may use inside; its inputs and outputs stay float32. bf16 is OpenVINO's, fp16 TensorRT's."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


# Largest difference to onnxruntime on the CPU, action units. Of a value, at each layer: fp16 (11 bits) loses 5e-4, bf16
# (8 bits) 4e-3.
TOLERANCE = {Precision.fp32: 1e-3, Precision.fp16: 2e-2, Precision.bf16: 5e-2}


@dataclass(frozen=True)
class EngineKey:
    """Everything that a built engine depends on.

    Attributes:
        model_sha256: of the .onnx file.
        gpu: name of the device, as CUDA gives it.
        compute_capability: e.g. "9.0".
        tensorrt: version of TensorRT, in full.
        builder: who built it: "tensorrt", or "onnxruntime <version>".
        precision: see Precision.
        min_batch, max_batch: range of the batch that the engine accepts.
    """

    model_sha256: str
    gpu: str
    compute_capability: str
    tensorrt: str
    builder: str
    precision: Precision
    min_batch: int
    max_batch: int

    def to_json(self) -> dict[str, Any]:
        """The fields and the version of this folder's format, as plain JSON types."""
        return {"format": FORMAT} | asdict(self) | {"precision": self.precision.value}

    @property
    def digest(self) -> str:
        """sha256 over all fields, in hexadecimal: the name of the entry."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class EngineCache:
    """The folder of built engines.

    Args:
        folder: made when it is missing, readable by its owner only; "~" is the home folder.

    Raises:
        DeployError: when the folder can't be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DeployError(
                str(self.folder), expected="a folder for built engines", got=str(error),
                hint="Set engine_cache to a folder that you may write.",
            ) from error  # fmt: skip

    def entry(self, key: EngineKey) -> Path:
        """Where the entry of `key` is, or would be."""
        return self.folder / key.digest

    def find(self, key: EngineKey) -> Path | None:
        """Folder of the verified entry; None when there is none, or (with one log line) when it must not be used."""
        entry = self.entry(key)
        if not entry.exists():
            return None
        fault = _fault(entry, key)
        if fault is None:
            return entry
        self.report(key, fault)
        return None

    def report(self, key: EngineKey, fault: str) -> None:
        """The one log line about an entry that is not used."""
        log.warning("engine cache: %s is not used, the engine is built again: %s", self.entry(key), fault)

    def remembered(self, key: EngineKey) -> dict[str, Any]:
        """What `publish` was given as `facts`. Raises OSError or ValueError where there is no entry."""
        facts: dict[str, Any] = json.loads((self.entry(key) / SIDECAR).read_text(encoding="utf-8"))["facts"]
        return facts

    @contextmanager
    def staging(self, key: EngineKey) -> Iterator[Path]:
        """An empty folder to build in; gone behind the `with`, unless `publish` made it the entry."""
        folder = Path(tempfile.mkdtemp(prefix=f"{key.digest[:16]}.", suffix=".building", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, key: EngineKey, folder: Path, *, facts: Mapping[str, Any]) -> Path:
        """Make the files in `folder` (from `staging`) the entry of `key`, in the place of an older one.

        Args:
            key: what they were built for.
            folder: from `staging`.
            facts: JSON types to keep in the sidecar, e.g. the parity that was measured.

        Raises:
            DeployError: when the folder holds no file, or can't be renamed.
        """
        files = _files(folder)
        if not files:
            raise DeployError(
                str(folder), expected="a built engine", got="no file",
                hint="The builder wrote nothing; look at its messages above.",
            )  # fmt: skip
        sidecar = {"key": key.to_json(), "sha256": {name: file_sha256(folder / name) for name in files}}
        (folder / SIDECAR).write_text(json.dumps(sidecar | {"facts": dict(facts)}, indent=2) + "\n", encoding="utf-8")
        for name in [*files, SIDECAR, "."]:
            _flush(folder / name)
        entry = self.entry(key)
        try:
            if entry.exists():
                with self.staging(key) as aside:
                    os.rename(entry, aside / "replaced")
            os.rename(folder, entry)
        except OSError as error:
            # Another process may have published the same engine between the two renames: its entry is as good.
            if _fault(entry, key) is None:
                return entry
            raise DeployError(
                str(entry), expected="to rename the finished build to this", got=str(error),
                hint="Check the permissions and the free space of the cache folder.",
            ) from error  # fmt: skip
        _flush(self.folder)
        return entry


def _files(folder: Path) -> list[str]:
    """Every file in a folder but the sidecar, as sorted relative names."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name != SIDECAR)


def _fault(entry: Path, key: EngineKey) -> str | None:
    """Why an entry must not be used, or None."""
    try:
        sidecar = json.loads((entry / SIDECAR).read_text(encoding="utf-8"))
        built_for, hashes = dict(sidecar["key"]), dict(sidecar["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no readable {SIDECAR} ({type(error).__name__})"
    for name, value in key.to_json().items():
        if built_for.get(name) != value:
            return f"built for {name} {built_for.get(name)!r}, needed is {value!r}"
    files = _files(entry)
    if not files or files != sorted(hashes):
        return f"it holds the files {files}, its sidecar names {sorted(hashes)}"
    try:
        damaged = [name for name in files if file_sha256(entry / name) != hashes[name]]
    except OSError as error:
        return str(error)
    return f"{damaged[0]} is truncated or changed (sha256)" if damaged else None


def _flush(path: Path) -> None:
    """Put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
