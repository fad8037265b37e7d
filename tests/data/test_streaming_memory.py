"""An import holds one episode (or batch) at a time: the peak of its memory does not grow with the size of the source.

Each reader family imports two sizes of the same data in processes of their own; the peak (VmHWM) of the larger one must
not be higher by more than a small part of what it read in addition. Pictures are 240 x 320 and cheap to pack, so that
gigabytes of frames need little disk. Run as a script by the tests, and by hand for 50 GB (docs/import.md):

    export PYTHONPATH=tests/support
    python tests/data/test_streaming_memory.py make robomimic 5426 FOLDER
    python tests/data/test_streaming_memory.py robomimic 5426 FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from big_sources import EPISODE_BYTES, open_reader, write

from robot_rl.data.formats.importing import import_episodes

# Family -> episodes of the small and the large source. "keyed" writes 3 GB of frames from a source that makes them.
SIZES = {"keyed": (54, 325)} | dict.fromkeys(
    ("diffusion_policy", "robomimic", "lerobot", "aloha", "minari", "dppo", "maniskill", "mcap"), (15, 75)
)
NEEDS = {
    "lerobot": ("pyarrow", "av"), "robomimic": ("h5py",), "aloha": ("h5py", "PIL"), "minari": ("h5py",),
    "maniskill": ("h5py",), "mcap": ("mcap_ros2", "std_msgs"),
}  # fmt: skip
ALLOWED_MB = 48
DECLARED = 50e9
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def peak_mb() -> float:
    """Highest resident memory of this process; ru_maxrss would hold that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def main(family: str, episodes: int, folder: Path) -> None:
    """Import, and print what it took."""
    reader = open_reader(family, folder / "source", episodes)
    before = peak_mb()
    try:
        report = import_episodes(reader, folder / "out.zarr")
    finally:
        reader.close()
    print(json.dumps({"episodes": report.episodes, "steps": report.steps, "before_mb": before, "peak_mb": peak_mb()}))


def child(family: str, episodes: int, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, family, str(episodes), str(folder)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc (Linux)")
@pytest.mark.parametrize("family", SIZES)
def test_memory_is_flat(family: str, tmp_path: Path) -> None:
    for package in NEEDS.get(family, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    peaks, read = [], []
    for episodes in SIZES[family]:
        folder = tmp_path / f"{episodes}"
        folder.mkdir()
        # In a process of its own too: what a writer leaves in this one must not be seen as the reader's.
        words = [sys.executable, __file__, "make", family, str(episodes), str(folder)]
        subprocess.run(words, check=True, env=ENVIRONMENT)
        found = child(family, episodes, folder)
        assert found["episodes"] == episodes
        peaks.append(found["peak_mb"])
        read.append(episodes * EPISODE_BYTES / 1e6)
    more, further = peaks[1] - peaks[0], read[1] - read[0]
    print(
        f"{family}: {read[0]:.0f} MB of frames: peak {peaks[0]:.0f} MB; {read[1]:.0f} MB: {peaks[1]:.0f} MB; "
        f"a line through both gives {peaks[1] + max(more, 0) / further * (DECLARED / 1e6 - read[1]):.0f} MB at 50 GB"
    )
    assert further > 8 * ALLOWED_MB
    assert more < ALLOWED_MB, f"{further:.0f} MB more of frames cost {more:.0f} MB of memory"


if __name__ == "__main__":
    *_, name, count, place = sys.argv
    if sys.argv[1] == "make":
        write(name, Path(place) / "source", int(count))
    else:
        main(name, int(count), Path(place))
