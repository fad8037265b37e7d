"""Two processes of torchrun (gloo) are one process with the same global batch, and rank 0 alone writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.engines.ranks import Ranks, refuse_ranks
from robot_rl.errors import ConfigError
from robot_rl.runs.checkpoint import load_policy

ONE = [sys.executable, "-m", "robot_rl"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "robot_rl"]
TRAIN = [
    "imitate", "env=point_reach", "dataset=d.zarr", "policy.observation_keys=[state]", "policy.hidden_width=32",
    "train.batch_size=48", "train.num_steps=40", "train.checkpoint_every_steps=20", "train.log_every_steps=10",
    "train.warmup_steps=10", "train.threads=1", "rollout_episodes=2",
]  # fmt: skip


def command(place: Path, *words: str, code: int = 0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": tensor for name in ("policy", "raw", "optimizer")
        for key, tensor in load_file(run / f"checkpoints/step_{step:06d}" / f"{name}.safetensors").items()
    }  # fmt: skip


def test_two_processes_are_one(tmp_path: Path) -> None:
    collect = ["collect", "env=point_reach", "expert=point_reach", "dataset=d.zarr", "num_episodes=12"]
    command(tmp_path, *ONE, *collect)
    command(tmp_path, *ONE, *TRAIN, "run_root=one")
    command(tmp_path, *TWO, *TRAIN, "run_root=two")
    (one,), (two,) = (tmp_path / "one").iterdir(), (tmp_path / "two").iterdir()
    first, second = weights(one, 40), weights(two, 40)
    assert first.keys() == second.keys()
    start = weights(one, 20)
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=0, atol=1e-5, msg=key)
    assert max(float((first[k].double() - start[k].double()).abs().max()) for k in first if k.startswith("raw/")) > 1e-3
    rows = [[json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    losses = [[row["imitate/train_loss"] for row in table if "imitate/train_loss" in row] for table in rows]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert json.loads((two / "status.json").read_text())["state"] == "finished"

    shutil.rmtree(two / "checkpoints/step_000040")
    (two / "checkpoints/last").unlink(missing_ok=True)
    command(tmp_path, *TWO, "imitate", f"resume={two}")
    again = weights(two, 40)
    assert all(torch.equal(again[key], second[key]) for key in second)

    error = command(tmp_path, *TWO, "evaluate", "env=point_reach", code=1)
    assert "expected imitate, the one stage that shares a gradient, got evaluate" in error
    parts_differ(tmp_path / "d.zarr", one)


def parts_differ(data: Path, run: Path) -> None:
    """The mean of the parts' losses and gradients is the whole batch's; each part is another."""
    policy: Any = load_policy(run)[0]
    policy.train().requires_grad_(True)
    config = policy.config
    with EpisodeStore.open(data, mode="r") as store:
        windows = WindowSampler(
            store, history=config.history, horizon=config.horizon, execute=config.execute, keys=("proprio", "state"),
            episodes=torch.arange(len(store)).numpy(), device="cpu",
        )  # fmt: skip

    def gradient(part: slice | None) -> tuple[float, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        policy.zero_grad()
        value, _ = policy.loss(windows.sample(30, generator), generator, part=part)
        value.backward()
        return float(value.detach()), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    whole, whole_gradient = gradient(None)
    parts = [gradient(Ranks(rank=rank, count=3).part(30)) for rank in range(3)]
    values, gradients = zip(*parts, strict=True)
    assert len(set(values)) == 3
    assert sum(values) / 3 == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(torch.stack(gradients).mean(0), whole_gradient, rtol=1e-4, atol=1e-6)


def test_parts_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks().part(7) is None
    assert Ranks(rank=1, count=2).part(8) == slice(4, 8)
    with pytest.raises(ConfigError, match="a multiple of torchrun's 2 processes, got 7"):
        Ranks(rank=1, count=2).part(7)
    assert Ranks(rank=5, count=8, local=1).device("cuda") == "cuda:1"
    assert Ranks().device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "2")  # some schedulers set it for other ends
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Ranks.of_environment() == Ranks()
    refuse_ranks(SimpleNamespace(), "evaluate")
