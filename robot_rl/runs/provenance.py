"""Where a run's numbers come from: code, packages, machine, time. No host name and no user name are recorded."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/dxg", "/dev/kfd")  # NVIDIA, Windows' Linux, AMD
PACKAGES = (
    "robot-rl",
    "torch",
    "numpy",
    "scipy",
    "mani-skill",
    "sapien",
    "gymnasium",
    "zarr",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
)


def collect(source: Path | None = None) -> dict[str, Any]:
    """Everything about code and machine that a number may depend on, as JSON types.

    Args:
        source: folder whose git commit is recorded; the one that holds robot_rl by default.

    Returns:
        git: {"commit", "dirty"}, or null outside a repository; packages: name -> version of what is installed;
        python, platform, cpu_model, cpu_count, usable_cpus, memory_gib, gpus (names, or null without torch or GPU),
        time (ISO 8601 with zone), argv.
    """
    return {
        "git": git_state(source or Path(__file__).resolve().parents[1]),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpu_names(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": sys.argv,
    }


def git_state(source: Path) -> dict[str, Any] | None:
    """Commit of the repository that tracks `source`, and whether its files were changed since; None outside one.

    A folder that git does not track (site-packages inside somebody's repository) counts as outside.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        if not git("ls-files"):
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str]:
    """Name -> version of the packages that matter here and are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> list[str] | None:
    """Names of the CUDA devices that torch sees; None without torch or without a GPU."""
    if "torch" not in sys.modules and not any(Path(place).exists() for place in _GPU_DRIVERS):
        return None  # a robot's loop must not load torch to learn that
    try:
        import torch
    except ModuleNotFoundError:
        return None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)] or None


def origin(command: str, *, seeds: str) -> dict[str, str]:
    """Where figures are from, as `robot-rl results` wants it."""
    machine = f"{cpu_model()}, {os.cpu_count()} cores, GPU: {', '.join(gpu_names() or []) or 'none'}"
    return {"command": command, "seeds": seeds, "date": date.today().isoformat(), "machine": machine}
