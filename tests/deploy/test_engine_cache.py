"""The engine cache: the key's hash by hand, and every way in which an entry may be wrong, made on purpose."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from robot_rl.deploy.engine_cache import SIDECAR, EngineCache, EngineKey, Precision, file_sha256
from robot_rl.errors import DeployError

KEY = EngineKey(
    model_sha256="ab" * 32,
    gpu="NVIDIA H100",
    compute_capability="9.0",
    tensorrt="10.16.1.11",
    builder="tensorrt",
    precision=Precision.fp32,
    min_batch=1,
    max_batch=16,
)


def publish(cache: EngineCache, key: EngineKey = KEY, content: bytes = b"engine") -> Path:
    with cache.staging(key) as folder:
        (folder / "engine.plan").write_bytes(content)
        return cache.publish(key, folder, facts={"build_s": 2.5})


def test_digest_by_hand() -> None:
    text = (
        '{"builder": "tensorrt", "compute_capability": "9.0", "format": 1, "gpu": "NVIDIA H100", "max_batch": 16, '
        f'"min_batch": 1, "model_sha256": "{"ab" * 32}", "precision": "fp32", "tensorrt": "10.16.1.11"}}'
    )
    assert KEY.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "cd" * 32},
        {"gpu": "NVIDIA A100"},
        {"compute_capability": "8.0"},
        {"tensorrt": "10.16.1.12"},
        {"builder": "onnxruntime 1.31.1"},
        {"precision": Precision.fp16},
        {"min_batch": 2},
        {"max_batch": 8},
    ],
)
def test_every_field_is_another_entry(change: dict[str, object], tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    publish(cache)
    assert cache.find(KEY) == tmp_path / KEY.digest
    assert cache.find(replace(KEY, **change)) is None


def test_file_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_published_entry_is_found_and_nothing_else_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path / "deep" / "engines")
    assert cache.find(KEY) is None
    entry = publish(cache)
    assert (entry / "engine.plan").read_bytes() == b"engine"
    assert [path.name for path in cache.folder.iterdir()] == [KEY.digest]
    assert os.stat(cache.folder).st_mode & 0o777 == 0o700
    sidecar = json.loads((entry / SIDECAR).read_text())
    assert sidecar["key"]["gpu"] == "NVIDIA H100"
    assert sidecar["sha256"] == {"engine.plan": hashlib.sha256(b"engine").hexdigest()}
    assert cache.remembered(KEY) == {"build_s": 2.5}
    assert caplog.messages == []


def truncate(entry: Path) -> None:
    (entry / "engine.plan").write_bytes(b"engi")


def flip(entry: Path) -> None:
    (entry / "engine.plan").write_bytes(b"enginE")


def add(entry: Path) -> None:
    (entry / "other.engine").write_bytes(b"x")


def lose(entry: Path) -> None:
    (entry / "engine.plan").unlink()


def no_sidecar(entry: Path) -> None:
    (entry / SIDECAR).unlink()


def half_a_sidecar(entry: Path) -> None:
    text = (entry / SIDECAR).read_text()
    (entry / SIDECAR).write_text(text[: len(text) // 2])


def list_for_sidecar(entry: Path) -> None:
    (entry / SIDECAR).write_text("[1, 2]")


def foreign(entry: Path) -> None:
    """An entry of another GPU under this name, in itself intact."""
    sidecar = json.loads((entry / SIDECAR).read_text())
    sidecar["key"]["gpu"] = "NVIDIA A100"
    (entry / SIDECAR).write_text(json.dumps(sidecar))


def a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("no folder")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "engine.plan is truncated or changed"),
        (flip, "engine.plan is truncated or changed"),
        (add, "other.engine"),
        (lose, "it holds the files []"),
        (no_sidecar, "no readable entry.json"),
        (half_a_sidecar, "no readable entry.json"),
        (list_for_sidecar, "no readable entry.json"),
        (foreign, "built for gpu 'NVIDIA A100', needed is 'NVIDIA H100'"),
        (a_file, "no readable entry.json"),
    ],
)
def test_a_wrong_entry_is_not_found_says_why_once_and_is_replaced(
    damage: Callable[[Path], None], says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path)
    damage(publish(cache))
    with caplog.at_level(logging.INFO):
        assert cache.find(KEY) is None
    (message,) = caplog.messages
    assert says in message
    assert KEY.digest in message
    caplog.clear()
    entry = publish(cache, content=b"built again")
    assert cache.find(KEY) == entry
    assert (entry / "engine.plan").read_bytes() == b"built again"
    assert [path.name for path in tmp_path.iterdir()] == [KEY.digest]
    assert caplog.messages == []


def test_a_build_that_dies_leaves_nothing(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)

    def build() -> None:
        with cache.staging(KEY) as folder:
            (folder / "engine.plan").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(tmp_path.iterdir()) == []
    assert cache.find(KEY) is None


def test_a_killed_build_is_not_an_entry(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    context = cache.staging(KEY)
    folder = context.__enter__()  # kill -9: __exit__ never comes
    (folder / "engine.plan").write_bytes(b"half")
    assert cache.find(KEY) is None
    assert publish(cache) == cache.find(KEY)


def test_files_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(f"-> {b}"), rename(a, b)))
    entry = publish(EngineCache(tmp_path))
    renamed = events.index(f"-> {entry}")
    assert [Path(event).name for event in events[:2]] == ["engine.plan", SIDECAR]
    assert renamed == 3
    assert events[4:] == [str(tmp_path)]


def test_two_builders_at_once_leave_one_good_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = EngineCache(tmp_path), EngineCache(tmp_path)
    truncate(publish(first))
    rename, raced = os.rename, []

    def racing(source: str | Path, target: str | Path) -> None:
        if str(target).endswith(KEY.digest) and not raced:
            raced.append(True)
            publish(second, content=b"the winner's")  # between the two renames of the loser
        rename(source, target)

    monkeypatch.setattr(os, "rename", racing)
    entry = publish(first, content=b"the loser's")
    assert (entry / "engine.plan").read_bytes() == b"the winner's"
    assert first.find(KEY) == entry
    assert [path.name for path in tmp_path.iterdir()] == [KEY.digest]


def test_errors_that_a_user_can_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match="a folder that you may write"):
        EngineCache(tmp_path / "file" / "engines")
    cache = EngineCache(tmp_path / "engines")
    with cache.staging(KEY) as folder, pytest.raises(DeployError, match="expected a built engine, got no file"):
        cache.publish(KEY, folder, facts={})
