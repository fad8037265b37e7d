"""Checkpoints: bit-exact, whole or absent after SIGKILL at any moment, and damage is named."""

from __future__ import annotations

import copy
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from robot_rl.errors import PolicyError, RunError
from robot_rl.runs.checkpoint import (
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    load_policy,
    mark_best,
    restore_optimizer,
    save_checkpoint,
)
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec


def save(run: Path, step: int, value: float = 0.0, **options: Any) -> Path:
    tensors = {
        "policy": {"w": torch.full((3,), value)},
        "random": {"g": torch.Generator().manual_seed(step).get_state()},
    }
    return save_checkpoint(run, step=step, tensors=tensors, documents={"spec": {"value": value}}, **options)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    group = {
        "f32": torch.randn(3, 5, generator=generator),
        "f64": torch.randn(2, dtype=torch.float64, generator=generator),
        "bf16": torch.randn(4, generator=generator).bfloat16(),
        "i64": torch.tensor(2**62 + 1),
        "bool": torch.tensor([True, False]),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "nan": torch.tensor([float("nan"), -0.0]),
        "empty": torch.zeros(0, 2),
    }
    group["shared"] = group["f32"][1:]  # the same storage twice
    documents = {"spec": {"a": [1, 0.1, None, "é"]}, "list": [1]}
    path = save_checkpoint(tmp_path, step=2000, tensors={"policy": group}, documents=documents)
    assert path == tmp_path / "checkpoints/step_002000"
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.documents, loaded.path) == (2000, documents, path)
    assert loaded.tensors["policy"].keys() == group.keys()
    for name, tensor in group.items():
        got = loaded.tensors["policy"][name]
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert (
            got.contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8))
            if tensor.ndim
            else got == tensor
        )
    assert not [p for p in path.iterdir() if p.suffix not in (".json", ".safetensors")]


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}, {"amsgrad": True}])
def test_optimizer_continues_bit_for_bit(tmp_path: Path, settings: dict[str, bool]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def make(module: nn.Module) -> torch.optim.Optimizer:
        groups = [
            {"params": module[0].parameters(), "lr": 3e-3},
            {"params": module[2].parameters(), "weight_decay": 0.1},
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), **settings)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        optimizer.zero_grad()
        module(torch.randn(16, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        for group in optimizer.param_groups:  # a schedule
            group["lr"] *= 0.9

    optimizer, generator = make(net), torch.Generator().manual_seed(1)
    for _ in range(5):
        step(net, optimizer, generator)
    save_checkpoint(
        tmp_path,
        step=5,
        tensors={
            "raw": net.state_dict(),
            "optimizer": flatten_optimizer(optimizer),
            "random": {"generator": generator.get_state()},
        },
        documents={},
    )
    loaded = load_checkpoint(tmp_path)
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(loaded.tensors["raw"])
    restored, other_generator = make(other), torch.Generator()
    restore_optimizer(restored, loaded.tensors["optimizer"])
    other_generator.set_state(loaded.tensors["random"]["generator"])
    assert repr(restored.state_dict()["param_groups"]) == repr(optimizer.state_dict()["param_groups"])
    for _ in range(3):
        step(net, optimizer, generator)
        step(other, restored, other_generator)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert flatten_optimizer(optimizer).keys() == flatten_optimizer(restored).keys()
    assert all(torch.equal(flatten_optimizer(restored)[k], v) for k, v in flatten_optimizer(optimizer).items())


def test_optimizer_of_another_network_is_refused() -> None:
    net = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    flat = flatten_optimizer(optimizer)
    with pytest.raises(RunError, match=r"expected \(2, 5\), got \(2, 4\)"):
        restore_optimizer(torch.optim.AdamW(nn.Linear(5, 2).parameters()), flat)
    with pytest.raises(RunError, match="no such parameter"):
        restore_optimizer(torch.optim.AdamW(nn.Linear(4, 2, bias=False).parameters()), flat)
    more = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"optimizer groups: expected \[4\] parameters, got \[2\]"):
        restore_optimizer(torch.optim.AdamW(more.parameters()), flat)


def test_last_best_and_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
        if step == 1:
            mark_best(tmp_path / "checkpoints/step_000001")
    assert names(tmp_path) == ["best", "last", "step_000001", "step_000002", "step_000003"]
    save(tmp_path, 1_000_000, keep=2)
    assert names(tmp_path) == ["best", "last", "step_000001", "step_000003", "step_1000000"]
    assert os.readlink(tmp_path / "checkpoints/last") == "step_1000000"
    assert load_checkpoint(tmp_path).step == 1
    assert load_checkpoint(tmp_path / "checkpoints/last").step == 1_000_000
    assert load_checkpoint(tmp_path / "checkpoints/step_000003").step == 3
    moved = tmp_path.rename(tmp_path.with_name("moved"))  # the links are relative
    assert load_checkpoint(moved).step == 1


@pytest.mark.parametrize("last", ["missing", "dangling", "old"])
def test_newest_is_found_without_the_link(tmp_path: Path, last: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    link = tmp_path / "checkpoints/last"
    link.unlink()
    if last != "missing":
        os.symlink({"dangling": "step_000009", "old": "step_000001"}[last], link)
    assert latest_checkpoint(tmp_path) == newest
    assert load_checkpoint(tmp_path).step == load_checkpoint(link).step == 2


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 1.0)
    save(tmp_path, 1, 2.0)
    assert load_checkpoint(tmp_path).documents["spec"] == {"value": 2.0}
    assert names(tmp_path) == ["last", "step_000001"]


def test_nothing_there_and_wrong_names(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for path in (tmp_path, tmp_path / "absent", tmp_path / "checkpoints/last"):
        with pytest.raises(RunError, match="a run directory or a complete checkpoint"):
            load_checkpoint(path)
    save(tmp_path, 1)
    with pytest.raises(RunError, match="Did you mean 'step_000001'"):
        load_checkpoint(tmp_path / "checkpoints/step_000002")
    with pytest.raises(RunError, match="complete checkpoint"):
        mark_best(tmp_path / "checkpoints/step_000002")
    with pytest.raises(RunError, match="no document named 'manifest'"):
        save_checkpoint(tmp_path, step=2, tensors={}, documents={"manifest": 1})
    with pytest.raises(RunError, match="keep=0"):
        save(tmp_path, 2, keep=0)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "document"])
def test_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2, 2.0)
    file = path / ("spec.json" if damage == "document" else "policy.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        content[-2] ^= 1
        file.write_bytes(content)
    with pytest.raises(RunError, match=rf"step_000002/{file.name}.*step_000001"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints/step_000001").step == 1


CALLS = ("fsync", "rename", "replace", "symlink", "mkdir")


def kill_at(call: int, run: Path, step: int) -> bool:
    """Save in a child that SIGKILLs itself at its `call`-th file operation; whether it was killed."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(real: Any) -> Any:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return wrapped

        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        try:
            save(run, step, float(step), keep=2)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("again", [False, True])
def test_sigkill_at_every_file_operation_of_a_save(tmp_path: Path, again: bool) -> None:
    call, steps = 0, set()
    while True:
        call += 1
        run = tmp_path / str(call)
        run.mkdir()
        save(run, 1, 1.0)
        save(run, 2, 2.0)
        killed = kill_at(call, run, 2 if again else 3)
        found = load_checkpoint(run / "checkpoints/last")
        assert found.documents["spec"] == {"value": float(found.step)}
        assert torch.equal(found.tensors["policy"]["w"], torch.full((3,), float(found.step)))
        steps.add(found.step)
        save(run, 4, 4.0)  # the next save cleans up
        assert load_checkpoint(run).step == 4
        assert not [name for name in names(run) if name.startswith(".")]
        if not killed:
            break
    assert call > 15, "the save was not interrupted where it matters"
    # Saving step 2 again moves the old one aside for a moment; then step 1 is the newest.
    assert steps == ({1, 2} if again else {2, 3})


@dataclass(frozen=True)
class TinyConfig:
    width: int = 2
    sizes: tuple[int, ...] = (1,)


class TinyPolicy(nn.Module):
    def __init__(self, config: TinyConfig, spec: EnvSpec, normalizer: nn.Module) -> None:
        super().__init__()
        self.config, self.spec, self.normalizer = config, spec, normalizer
        self.layer = nn.Linear(config.width, 1)


class TinyNormalizer(nn.Module):
    def __init__(self, mean: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))

    @classmethod
    def from_json(cls, data: dict[str, float]) -> TinyNormalizer:
        return cls(data["mean"])


SPEC = EnvSpec(
    env_id="Tiny-v0",
    observation={"proprio": ArraySpec("proprio", (2,))},
    action=ArraySpec("action", (1,), low=(-1.0,), high=(1.0,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "pd"),
    joint_names=("a", "b"),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy under an importable name, and a normaliser in the place of the real one."""
    policies, normalizer = ModuleType("tiny_policies"), ModuleType("robot_rl.data.normalizer")
    policies.TinyPolicy = TinyPolicy  # type: ignore[attr-defined]
    normalizer.Normalizer = TinyNormalizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_policies", policies)
    monkeypatch.setitem(sys.modules, "robot_rl.data.normalizer", normalizer)


def save_policy(run: Path, trained: nn.Module, **changes: Any) -> None:
    documents = {
        "policy": {"_target_": "tiny_policies.TinyPolicy", "config": {"width": 2, "sizes": [3, 4]}},
        "normalizer": {"mean": 0.25},
        "spec": SPEC.to_json(),
    } | changes
    documents = {name: value for name, value in documents.items() if value is not None}
    save_checkpoint(run, step=1, tensors={"policy": trained.state_dict()}, documents=documents)


@pytest.mark.usefixtures("plugin")
def test_load_policy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = TinyPolicy(TinyConfig(), SPEC, TinyNormalizer(0.25))
    save_policy(tmp_path, trained)
    policy, spec, checkpoint = load_policy(tmp_path)
    assert isinstance(policy, TinyPolicy)
    assert (policy.config, spec, policy.spec, checkpoint.step) == (TinyConfig(sizes=(3, 4)), SPEC, SPEC, 1)
    assert torch.equal(policy.layer.weight, trained.layer.weight)
    assert float(policy.normalizer.mean) == 0.25
    assert not policy.training


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": {"_target_": "tiny_policies.TinyPolicy", "config": {"width": 3}}}, "size mismatch"),
        ({"policy": {"_target_": "tiny_policies.TinyPolicy", "config": {"widht": 3}}}, "Did you mean 'width'"),
        ({"policy": {"_target_": "tiny_policies.TinyPolcy", "config": {}}}, "TinyPolcy"),
        ({"policy": {"config": {}}}, "_target_"),
        ({"normalizer": None, "spec": None}, "no normalizer, spec in it"),
        ({"spec": {}}, "DataError: .*all fields of EnvSpec"),
    ],
)
def test_load_policy_refuses_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    save_policy(tmp_path, TinyPolicy(TinyConfig(), SPEC, TinyNormalizer(0.25)), **changes)
    with pytest.raises(PolicyError, match=says) as caught:
        load_policy(tmp_path)
    assert "step_000001" in caught.value.where


def test_a_folder_of_runs_is_no_policy_and_names_them(tmp_path: Path) -> None:
    (tmp_path / "imitate" / "one_run").mkdir(parents=True)
    (tmp_path / "imitate" / "one_run" / "status.json").write_text("{}")
    with pytest.raises(RunError, match="holds runs; give one of them: one_run"):
        load_checkpoint(tmp_path / "imitate")
