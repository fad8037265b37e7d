"""Stores with H.264 videos: every frame is the right one and good enough, and a kill or damage is never silent."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from robot_rl.data import video
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import StepArrays, WindowSampler
from robot_rl.errors import DataError
from robot_rl.specs import ArraySpec
from robot_rl.types import Episode

av = pytest.importorskip("av")

# Both the killed process and this test make their episodes with this code. Every frame carries its number as 10 black
# or white squares of 8 pixels, on a scene that moves.
CHILD = """
import sys
import numpy as np
from robot_rl.data.store import EpisodeStore
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

KEYS = {
    "proprio": ArraySpec("proprio", (4,)),
    "image/front": ArraySpec("image/front", (48, 80, 3), "uint8"),
    "image/wrist": ArraySpec("image/wrist", (33, 81, 3), "uint8"),
    "mask/front": ArraySpec("mask/front", (8, 8, 1), "uint8"),
}
SEMANTICS = ActionSemantics(ActionKind.delta, DeltaReference.target, "joint", "none", "none", "pd")
SPEC = EnvSpec("Video-v1", KEYS, ArraySpec("action", (7,)), SEMANTICS, ("a",), "none", 20.0, 100)


def painted(numbers, height, width):
    rows, columns = np.mgrid[:height, :width]
    images = np.empty((len(numbers), height, width, 3), np.uint8)
    for image, number in zip(images, numbers):
        for channel, period in enumerate((23.0, 31.0, 41.0)):
            image[..., channel] = 128 + 90 * np.sin((rows + 2 * columns + 3 * number) / period)
        for bit in range(10):
            image[:8, 8 * bit : 8 * bit + 8] = 235 if number >> bit & 1 else 20
    return images


def make_episode(number):
    rng = np.random.default_rng(number)
    steps = int(rng.integers(1, 30))
    frames = {
        "proprio": rng.standard_normal((steps + 1, 4)).astype(np.float32),
        "image/front": painted(np.arange(steps + 1) + 31 * number, 48, 80),
        "image/wrist": painted(np.arange(steps + 1) + 17 * number + 3, 33, 81),
        "mask/front": rng.integers(0, 2, (steps + 1, 8, 8, 1), dtype=np.uint8),
    }
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=rng.standard_normal((steps, 7)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=np.arange(steps) == steps - 1,
        terminated=True,
        truncated=False,
        source=np.ones(steps, np.uint8),
        time=np.arange(steps) / 20.0,
        metadata={"seed": number},
    )


if __name__ == "__main__":
    with EpisodeStore.open_or_create(sys.argv[1], SPEC, images="video_lossless") as store:
        print("ready", len(store), flush=True)
        while True:
            store.append_many([make_episode(len(store)), make_episode(len(store) + 1)])
            print(len(store), flush=True)
"""
CAMERAS = ("image/front", "image/wrist")
NUMBERS = {"image/front": (31, 0), "image/wrist": (17, 3)}
KILLS = 6


@pytest.fixture(scope="module")
def child(tmp_path_factory) -> ModuleType:
    path = tmp_path_factory.mktemp("child") / "child.py"
    path.write_text(CHILD)
    spec = importlib.util.spec_from_file_location("video_child", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["video", "video_lossless"])
def filled(request, child, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("filled") / f"{request.param}.zarr"
    with EpisodeStore.create(path, child.SPEC, images=request.param) as store:
        assert store.append(child.make_episode(0)) == 0
        assert store.append_many([child.make_episode(i) for i in (1, 2, 3)]) == [1, 2, 3]
    return path


@pytest.fixture
def copy(filled, tmp_path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "copy.zarr"))


def read_numbers(images: np.ndarray) -> np.ndarray:
    bits = [(images[:, 1:7, 8 * bit + 1 : 8 * bit + 7].mean(axis=(1, 2, 3)) > 128) << bit for bit in range(10)]
    return np.sum(bits, axis=0)


def frames_of(episode: Episode, key: str) -> np.ndarray:
    return np.concatenate([episode.observation[key], episode.final_observation[key][None]])


def assert_episodes(store: EpisodeStore, child: ModuleType, begin: int = 0) -> None:
    """Everything but images bit-equal; images bit-equal too, or above the floor and with the number painted in them."""
    for index in range(begin, len(store)):
        got, want = store.episode(index), child.make_episode(index)
        assert got.metadata == want.metadata
        for name in ("action", "reward", "success", "source", "time"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        for key in ("proprio", "mask/front"):
            np.testing.assert_array_equal(frames_of(got, key), frames_of(want, key))
        for key in CAMERAS:
            left, right = frames_of(got, key), frames_of(want, key)
            scale, offset = NUMBERS[key]
            assert left.dtype == np.uint8
            assert read_numbers(left).tolist() == [scale * index + offset + t for t in range(len(want) + 1)]
            if store.images == "video_lossless":
                np.testing.assert_array_equal(left, right)
            else:
                assert min(video.psnr_db(*pair) for pair in zip(left, right, strict=True)) >= 30


def test_every_frame_comes_back(filled, child):
    store = EpisodeStore.open(filled)
    assert len(store) == 4
    assert_episodes(store, child)
    store.verify()
    assert not (filled / "data/image__front").exists()
    assert (filled / "data/mask__front").exists()  # one channel: no camera


def test_files_have_gop_2_and_exact_times(filled, child):
    store = EpisodeStore.open(filled)
    for index, steps in enumerate(store.lengths.tolist()):
        for key in CAMERAS:
            file = filled / "videos" / key.replace("/", "__") / f"{index:06d}.mp4"
            assert store.videos(index)[key] == file.read_bytes()
            with av.open(str(file)) as container:
                frames = list(container.decode(video=0))
            assert len(frames) == steps + 1
            assert [frame.pts * frame.time_base for frame in frames] == [Fraction(t, 20) for t in range(steps + 1)]
            assert [frame.key_frame for frame in frames] == [t % 2 == 0 for t in range(steps + 1)]


@pytest.mark.parametrize("rate", [29.97, 100 / 3, 1000.0, 0.5])
def test_odd_rates_have_exact_times_too(child, rate):
    images, fraction = child.painted(np.arange(7), 16, 80), video.frame_rate(rate)
    assert abs(float(fraction) / rate - 1) < 1e-5
    content = video.encode_video(images, fraction, video.VIDEO_FORMATS["video_lossless"], where="here")
    for first in range(7):
        into = np.empty((7 - first, 16, 80, 3), np.uint8)
        video.decode_video(content, fraction, into=into, where="here", first=first)
        np.testing.assert_array_equal(into, images[first:])


def test_load_and_windows_decode(filled, child):
    store = EpisodeStore.open(filled)
    episodes = [store.episode(i) for i in range(4)]
    loaded = store.load(["image/front", "final/image/front"])
    np.testing.assert_array_equal(
        loaded["image/front"], np.concatenate([e.observation["image/front"] for e in episodes])
    )
    np.testing.assert_array_equal(
        loaded["final/image/front"], np.stack([e.final_observation["image/front"] for e in episodes])
    )
    sizes = {
        "history": 2,
        "horizon": 4,
        "execute": 2,
        "keys": ["image/front"],
        "episodes": np.array([1, 3]),
        "device": "cpu",
    }
    left = WindowSampler(store, **sizes)
    right = WindowSampler(StepArrays.from_episodes(episodes, ["proprio", "image/front"]), **sizes)
    every = np.arange(left.num_windows)
    for side in ("observation", "next_observation"):
        got, want = (getattr(s.window(every), side).images["front"].numpy() for s in (left, right))
        np.testing.assert_array_equal(got, want)


def test_zarr_reads_the_rest_without_a_warning(filled, child):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(filled), mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(name for name, _ in root.members()) == ["data", "meta", "videos"]
    ends = root["meta/episode_ends"][:]
    assert {array.shape[0] for _, array in root["data"].arrays()} == {ends[-1]}
    said = root.attrs["images"]
    assert said["files"]["image/wrist"] == "videos/image__wrist/<episode>.mp4"
    assert (said["codec"], said["gop_frames"], said["rate"]) == ("h264", 2, "20/1")
    assert said["lossless"] == filled.name.startswith("video_lossless")
    assert said["min_psnr_db"] == (None if said["lossless"] else 30.0)
    assert said["options"]["qp" if said["lossless"] else "crf"] == ("0" if said["lossless"] else "18")
    assert root.attrs["schema_version"] == 2  # software that knows no videos refuses it


def test_a_store_of_arrays_is_as_before(child, tmp_path):
    with EpisodeStore.create(tmp_path / "a.zarr", child.SPEC) as store:
        store.append(child.make_episode(0))
        assert store.images == "arrays"
        assert store.videos(0) == {}
    attributes = json.loads((tmp_path / "a.zarr/.zattrs").read_text())
    assert attributes["schema_version"] == 1
    assert "images" not in attributes
    assert not (tmp_path / "a.zarr/videos").exists()


def test_the_hash_covers_the_files_and_is_the_same_again(filled, child, tmp_path):
    store = EpisodeStore.open(filled)

    def hash_of(name: str, images: str, **options: object) -> str:
        with EpisodeStore.create(tmp_path / name, child.SPEC, images=images) as new:
            new.append_many([child.make_episode(i) for i in range(4)])
            return new.content_hash()

    assert hash_of("again", store.images) == store.content_hash()
    assert hash_of("arrays", "arrays") != store.content_hash()
    # Decoded images go into another store without a second loss, by the files that they came from.
    with EpisodeStore.create(tmp_path / "carried", child.SPEC, images=store.images) as new:
        new.append_many([store.episode(i) for i in range(4)], videos=[store.videos(i) for i in range(4)])
        assert new.content_hash() == store.content_hash()
        # Files of other images are not believed.
        new.append_many([store.episode(1)], videos=[store.videos(2)])
        assert read_numbers(frames_of(new.episode(4), "image/front"))[0] == 31


def test_images_that_lose_too_much_are_refused(child, tmp_path):
    episode = child.make_episode(2)
    noise = np.random.default_rng(0).integers(0, 256, episode.observation["image/wrist"].shape, dtype=np.uint8)
    bad = dataclasses.replace(episode, observation={**episode.observation, "image/wrist": noise})
    with EpisodeStore.create(tmp_path / "n.zarr", child.SPEC, images="video") as store:
        store.append(child.make_episode(0))
        with pytest.raises(DataError, match=r"episode 1, camera 'wrist', frame 0.*at least 30 dB PSNR.*got 1\d\.\d dB"):
            store.append(bad)
        assert len(store) == 1
        assert len(list(tmp_path.glob("n.zarr/videos/*/*"))) == 2
        assert store.append(episode) == 1
    with EpisodeStore.create(tmp_path / "l.zarr", child.SPEC, images="video_lossless") as store:
        store.append(bad)
        np.testing.assert_array_equal(store.episode(0).observation["image/wrist"], noise)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (16, 15), (17, 16), (96, 96)])
def test_any_size_is_stored_or_refused(size):
    images = np.full((3, *size, 3), 100, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    for video_format in video.VIDEO_FORMATS.values():
        refused = nullcontext() if min(size) >= 16 else suppress(DataError)
        content = b""
        with refused:
            content = video.encode_video(images, Fraction(20), video_format, where="here")
        if not content:
            with pytest.raises(DataError, match="can encode"):
                video.encode_video(images, Fraction(20), video_format, where="here")
            continue
        into = np.empty_like(images)
        video.decode_video(content, Fraction(20), into=into, where="here")
        assert np.abs(into.astype(int) - images).max() <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:-1], "11 frames"),
        (lambda images: np.concatenate([images, images[-1:]]), "13 frames"),
        (lambda images: np.concatenate([images[1:], images[-1:]]), r"dB|neighbours"),
        (lambda images: np.concatenate([images[:1], images[:-1]]), r"dB|neighbours"),
    ],
)
def test_the_check_after_encoding_sees_lost_and_shifted_frames(child, change, message):
    images, lossy = child.painted(np.arange(12), 48, 80), video.VIDEO_FORMATS["video"]
    content = video.encode_video(change(images), Fraction(20), lossy, where="here")
    with pytest.raises(DataError, match=message):
        video._verify(content, images, Fraction(20), lossy, where="here")


def test_a_shift_of_almost_the_same_images_is_seen(child):
    """Above the floor in every frame, so that only the comparison with the neighbours can see it."""
    images, lossy = child.painted(np.arange(12) * 0, 48, 80), video.VIDEO_FORMATS["video"]
    images = images // 2 + 6 * np.arange(12, dtype=np.uint8)[:, None, None, None]
    content = video.encode_video(np.concatenate([images[1:], images[-1:]]), Fraction(20), lossy, where="here")
    with pytest.raises(DataError, match="fit their neighbours better"):
        video._verify(content, images, Fraction(20), lossy, where="here")


def swap(path: Path) -> None:
    one, two = path / "videos/image__front/000001.mp4", path / "videos/image__front/000002.mp4"
    one.rename(path / "x")
    two.rename(one)
    (path / "x").rename(two)


def edit(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


WRIST = "videos/image__wrist/000002.mp4"
DAMAGE = {
    "missing": (lambda p: (p / WRIST).unlink(), r"episode 2, camera 'wrist'.*000002\.mp4.*No such file"),
    "no folder": (lambda p: shutil.rmtree(p / "videos"), "episode 0, camera 'front'.*No such file"),
    "half": (lambda p: edit(p / WRIST, lambda b: b[: len(b) // 2]), r"episode 2, camera 'wrist'.*cut off or no video"),
    "empty": (lambda p: edit(p / WRIST, lambda b: b""), r"episode 2, camera 'wrist'.*0 bytes"),
    "zeros": (lambda p: edit(p / WRIST, lambda b: bytes(len(b))), r"episode 2, camera 'wrist'.*cut off or no video"),
    "another word": (
        lambda p: edit(p / ".zattrs", lambda b: b.replace(b'"storage": "video', b'"storage": "avi')),
        r"images: expected storage arrays, video, video_lossless, got .*avi",
    ),
    "no images": (
        lambda p: edit(p / ".zattrs", lambda b: b.replace(b'"images"', b'"imagos"')),
        "schema version 1, got 2",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_found_on_open(copy, name):
    damage, message = DAMAGE[name]
    damage(copy)
    for mode in ("r", "a", "a"):
        with pytest.raises(DataError, match=message):
            EpisodeStore.open(copy, mode=mode)


def flip(content: bytes) -> bytes:
    place = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 3
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "episode", "camera"),
    [
        (lambda p: edit(p / WRIST, flip), 2, "image/wrist"),
        (swap, 1, "image/front"),
        (lambda p: shutil.copy(p / "videos/image__front/000002.mp4", p / WRIST), 2, "image/wrist"),
    ],
)
def test_damage_found_when_read(copy, child, damage, episode, camera):
    damage(copy)
    store = EpisodeStore.open(copy)
    name = rf"{camera.replace('/', '__')}/{episode:06d}\.mp4, episode {episode}.*checksum"
    for read in (
        lambda: store.load([camera]),
        lambda: store.load([f"final/{camera}"]),
        store.verify,
        lambda: store.episode(episode),
        lambda: store.videos(episode),
    ):
        with pytest.raises(DataError, match=name):
            read()
    store.episode(0)
    store.load(["action"])


def test_a_decoder_that_fails_is_named():
    for content in (b"", b"no video", bytes(5000)):
        with pytest.raises(DataError, match=r"episode 3.*an H\.264 video"):
            video.decode_video(content, Fraction(20), into=np.empty((1, 8, 8, 3), np.uint8), where="episode 3")


def test_too_short_other_size_and_other_rate_are_named(child):
    images = child.painted(np.arange(5), 48, 80)
    content = video.encode_video(images, Fraction(20), video.VIDEO_FORMATS["video"], where="here")
    for shape, rate, message in (
        ((6, 48, 80, 3), 20, r"frames 0\.\.5, got a video that ends earlier"),
        ((5, 40, 80, 3), 20, r"frame 0 of 40 x 80 pixels, got frame 0 of 48 x 80"),
        ((5, 48, 80, 3), 10, r"frame 1 of 48 x 80 pixels, got frame 0\.5"),
    ):
        with pytest.raises(DataError, match=message):
            video.decode_video(content, Fraction(rate), into=np.empty(shape, np.uint8), where="here")


def test_the_way_of_images_is_part_of_the_schema(copy, child):
    stored = EpisodeStore.open(copy).images
    with pytest.raises(DataError, match=f"images: stored {stored}, new arrays"):
        EpisodeStore.open_or_create(copy, child.SPEC, images="arrays")
    with EpisodeStore.open_or_create(copy, child.SPEC) as store:  # None: as it is
        assert store.append(child.make_episode(4)) == 4
        assert_episodes(store, child, begin=3)
    with pytest.raises(DataError, match=r"images.*'vide'.*Did you mean 'video'"):
        EpisodeStore.create(copy.with_name("new.zarr"), child.SPEC, images="vide")
    assert not copy.with_name("new.zarr").exists()


def test_without_pyav_it_says_what_to_install(copy, child, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"PyAV.*pip install 'robot-rl\[data\]'"):
        EpisodeStore.create(copy.with_name("new.zarr"), child.SPEC, images="video")
    store = EpisodeStore.open(copy)
    assert store.load(["proprio"])["proprio"].shape[1] == 4
    with pytest.raises(DataError, match=r"PyAV.*pip install 'robot-rl\[data\]'"):
        store.load(["image/front"])


def test_sigkill_loses_no_saved_episode_and_leaves_no_half_one(child, tmp_path):
    path, rng, checked = tmp_path / "killed.zarr", np.random.default_rng(0), 0
    for kill, delay in enumerate(rng.uniform(0, 0.3, KILLS)):
        process = subprocess.Popen([sys.executable, child.__file__, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == f"ready {checked}\n"
        promised = int(process.stdout.readline()) if kill % 2 else checked
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        promised = int(printed[-1]) if printed else promised
        assert len(EpisodeStore.open(path)) >= promised
        with EpisodeStore.open(path, mode="a") as store:
            assert len(store) >= promised
            assert_episodes(store, child, begin=checked)
            checked = len(store)
        assert len(list(path.glob("videos/*/*"))) == 2 * checked
    assert checked >= KILLS // 2
    EpisodeStore.open(path).verify()


class Killed(BaseException):
    """Stands for the end of the process."""


def stopping(patch: pytest.MonkeyPatch, name: str, after: int, error: BaseException) -> list[int]:
    """Let a function of os work `after` times and fail for ever after; returns the list of calls so far."""
    real, calls = getattr(os, name), []

    def function(*args: object) -> object:
        calls.append(len(calls))
        if len(calls) > after:
            raise error
        return real(*args)

    patch.setattr(os, name, function)
    return calls


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_stop_at_any_system_call_is_repaired(child, tmp_path, name, error):
    base = tmp_path / "base.zarr"
    with EpisodeStore.create(base, child.SPEC, images="video_lossless") as store:
        store.append_many([child.make_episode(0), child.make_episode(1)])
    counted = Path(shutil.copytree(base, tmp_path / "count.zarr"))
    with pytest.MonkeyPatch.context() as patch, EpisodeStore.open(counted, mode="a") as store:
        calls = stopping(patch, name, 10**9, error)
        store.append(child.make_episode(2))
    sizes = set()
    for after in sorted({0, 1, 2, 3, 4, len(calls) // 2, len(calls) - 1}):
        path = Path(shutil.copytree(base, tmp_path / f"{after}.zarr"))
        store = EpisodeStore.open(path, mode="a")
        with pytest.MonkeyPatch.context() as patch:
            stopping(patch, name, after, error)
            with pytest.raises((Killed, DataError)) as caught:
                store.append(child.make_episode(2))
        store.close()
        assert len(EpisodeStore.open(path)) in (2, 3)
        with EpisodeStore.open(path, mode="a") as store:
            sizes.add(len(store))
            if isinstance(error, OSError):
                saved = "All episodes are safe" in str(caught.value)
                assert saved or "was not saved; the 2 episodes before it are intact" in str(caught.value)
                assert len(store) == 2 + saved
            assert len(list(path.glob("videos/*/*"))) == 2 * len(store)
            assert store.append(child.make_episode(len(store))) == len(store) - 1
            assert_episodes(store, child)
        shutil.rmtree(path)
    assert sizes == {2, 3}


def test_room_for_videos_is_asked_for(child, tmp_path, monkeypatch):
    with EpisodeStore.create(tmp_path / "s.zarr", child.SPEC, images="video") as store:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        with pytest.raises(DataError, match=r"bytes free.*got 1000000 bytes.*Nothing was written"):
            store.append(child.make_episode(0))
        assert not list(tmp_path.glob("s.zarr/videos/*/*"))


def test_a_camera_of_a_spec_is_uint8_rgb(tmp_path, child):
    spec = dataclasses.replace(
        child.SPEC,
        observation={
            "proprio": ArraySpec("proprio", (2,)),
            "image/depth": ArraySpec("image/depth", (8, 8, 1), "uint16"),
        },
    )
    with EpisodeStore.create(tmp_path / "s.zarr", spec, images="video"):
        assert (tmp_path / "s.zarr/data/image__depth").exists()
        assert not (tmp_path / "s.zarr/videos").exists()
