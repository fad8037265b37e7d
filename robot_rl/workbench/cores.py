"""How many cores this process may use; for doctor and bench."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def allowed_cpus() -> list[int]:
    """Numbers of the CPUs that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> float:
    """Cores that this process may fill: its CPUs, or less by the quota of its container (cgroup v2, `cpu.max`)."""
    cores = float(len(allowed_cpus()))
    try:
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores
