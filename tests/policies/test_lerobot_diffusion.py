"""A LeRobot diffusion checkpoint without LeRobot: its recorded answers, its refusals, and evaluate with RTI on its folder.

recorded/lerobot_diffusion.json is of LeRobot 0.4.4 (tests/support/tiny_lerobot_diffusion.py record): documents, names and shapes of
its tensors, and what it answers where weights, inputs and noise are waves.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from robot_rl import cli
from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.contracts import DenoisingPolicy
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.errors import PolicyError
from robot_rl.policies.lerobot_diffusion import LeRobotAdoption, LeRobotDiffusionPolicy, load_lerobot
from robot_rl.runs.checkpoint import load_policy
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages.export import write_onnx
from robot_rl.stages.export_rti import RtiOptions, require_warm, write_rti
from robot_rl.types import Observation

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded" / "lerobot_diffusion.json").read_text())
NAMES = {"observation.state": "proprio", "observation.environment_state": "state"}
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
SPEC = EnvSpec(
    env_id="Tiny",
    observation={"proprio": ArraySpec("proprio", (3,)), "state": ArraySpec("state", (4,)), "points": ArraySpec("points", (5, 3))},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "pos"),
    joint_names=(), robot="none", control_hz=10.0, max_episode_steps=20,
)  # fmt: skip


def wave(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    """As in the script that recorded."""
    count = torch.Size(shape).numel()
    return torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + phase).float().reshape(shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The recorded checkpoint, as save_pretrained wrote it."""
    where = tmp_path / "theirs"
    where.mkdir()
    for name, document in RECORDED["documents"].items():
        (where / f"{name}.json").write_text(json.dumps(document))
    for name, tensors in RECORDED["statistics"].items():
        save_file({key: torch.tensor(value) for key, value in tensors.items()}, where / name)
    shapes = RECORDED["shapes"]
    save_file(
        {name: 0.5 * wave(tuple(shapes[name]), k) for k, name in enumerate(sorted(shapes))}, where / "model.safetensors"
    )
    return where


def load(folder: Path, **changes: Any) -> LeRobotDiffusionPolicy:
    return load_lerobot(LeRobotAdoption(NAMES, **changes), spec=SPEC, folder=folder)


def condition() -> torch.Tensor:
    """Of the recorded inputs, which stand behind the normaliser."""
    return torch.cat([wave((2, 2, 3), 0.1), wave((2, 2, 4), 0.2)], dim=-1).flatten(1)


def close(found: torch.Tensor, wanted: Any) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_it_answers_what_lerobot_answered(folder: Path) -> None:
    policy, noise = load(folder), wave((2, 8, 2), 0.3)
    assert isinstance(policy, DenoisingPolicy)
    assert policy.sampling == "LeRobot checkpoint, eta0, 5 steps"
    with torch.no_grad():
        close(policy.unet(noise, torch.tensor([3, 70]), condition()), RECORDED["network"])
    close(policy.sample(condition(), noise[:, None]), RECORDED["ddim"])
    ddpm = policy.with_mode(SamplingMode.eta1)
    draws = torch.stack([noise, *(wave((2, 8, 2), 0.3 + k) for k in range(1, 5)), torch.ones(2, 8, 2)], dim=1)
    close(ddpm.sample(condition(), draws), RECORDED["ddpm"])
    assert policy.sampler.mode is SamplingMode.eta0  # the other one was a copy
    assert torch.equal(
        ddpm.chain(observe(policy), draws).latents[:, -1], ddpm.normalized_action(observe(policy), draws)
    )


def observe(policy: LeRobotDiffusionPolicy, rows: int = 2) -> Observation:
    return Observation(proprio=wave((rows, 2, 3), 0.4), state=wave((rows, 2, 4), 0.5))


def test_normalisation_and_the_part_of_the_chunk_by_hand(folder: Path) -> None:
    """MIN_MAX to [-1, 1] and back; the state of the environment as it is; actions from the newest of two frames on."""
    policy, observation = load(folder), observe(load(folder))
    low, high = (
        torch.tensor(RECORDED["statistics"][STATISTICS][f"observation.state.{name}"]) for name in ("min", "max")
    )
    seen = policy.encode(observation).reshape(2, 2, 7)
    close(seen[..., :3], (2 * (observation.proprio - low) / (high - low) - 1).tolist())
    close(seen[..., 3:], observation.state.tolist())  # type: ignore[union-attr]
    low, high = (torch.tensor(RECORDED["statistics"][STATISTICS][f"action.{name}"]) for name in ("min", "max"))
    noise = wave((2, 1, 8, 2), 0.3)
    chunk = policy.act(observation, noise)
    whole = (policy.normalized_action(observation, noise) + 1) / 2 * (high - low) + low
    assert (chunk.execute, policy.config.horizon) == (4, 7)
    close(chunk.actions, whole[:, 1:].tolist())
    narrow = replace(SPEC, action=replace(SPEC.action, low=(0.0, 0.0), high=(0.1, 0.1)))
    bounded = load_lerobot(LeRobotAdoption(NAMES), spec=narrow, folder=folder).act(observation, noise).actions
    close(bounded, whole[:, 1:].clamp(0, 0.1).tolist())


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in document.items() if value != "DROP"}))

    return apply


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name)

    return apply


def pickled(name: str, *, drop: bool) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        if drop:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps({"a": 1}))

    return apply


BIAS = "diffusion.unet.mid_modules.0.conv1.block.0.bias"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (edit("config.json", type="act"), "expected 'diffusion', got 'act'"),
    "a newer version": (edit("config.json", gradient_checkpointing=False), "LeRobot 0.4.4, got the unknown key"),
    "an older version": (edit("config.json", resize_shape="DROP"), "LeRobot 0.4.4, got no key 'resize_shape'"),
    "another schedule": (edit("config.json", beta_schedule="linear"), "squaredcos_cap_v2"),
    "a compiled network": (edit("config.json", compile_model=True), "expected False, got True"),
    "a chunk too short": (edit("config.json", n_action_steps=8), "within horizon"),
    "channels that the groups do not divide": (edit("config.json", n_groups=5), "divide"),
    "statistics among the weights": (lambda f: (f / "policy_preprocessor.json").unlink(), "migrate_policy_normalization"),
    "a damaged document": (lambda f: (f / "config.json").write_text("{"), "expected a JSON file"),
    "a step that is not known": (
        edit("policy_preprocessor.json", steps=[{"registry_name": "relative_actions"}]), "one normalizer_processor",
    ),
    "a file elsewhere": (
        edit("policy_postprocessor.json", steps=[
            {"registry_name": "unnormalizer_processor", "state_file": "../x.safetensors", "config": {
                "norm_map": RECORDED["documents"]["config"]["normalization_mapping"], "eps": 1e-8}}]),
        "a file beside it",
    ),
    "a statistic that is missing": (tensors(STATISTICS, lambda t: t.pop("observation.state.max")), "3 finite numbers"),
    "a statistic that is no number": (
        tensors(STATISTICS, lambda t: t["observation.state.max"].fill_(float("nan"))), "3 finite numbers",
    ),
    "a tensor that is missing": (tensors("model.safetensors", lambda t: t.pop(BIAS)), r"expected shape \(16,\), got none"),
    "a tensor of another shape": (
        tensors("model.safetensors", lambda t: t.update({BIAS: torch.zeros(17)})), r"expected shape \(16,\), got shape \(17,\)",
    ),
    "a tensor too many": (
        tensors("model.safetensors", lambda t: t.update({"diffusion.unet.more": torch.zeros(1)})), "expected no such tensor",
    ),
    "a tensor of another part": (
        tensors("model.safetensors", lambda t: t.update({"normalize_inputs.x": torch.zeros(1)})), "only tensors of diffusion.unet.",
    ),
    "half precision": (tensors("model.safetensors", lambda t: t.update({BIAS: t[BIAS].half()})), "expected float32"),
    "a pickle": (pickled("pytorch_model.bin", drop=True), "pickled: pytorch_model.bin. Pickled weights are never read"),
    "a pickle under another name": (pickled("model.safetensors", drop=False), "pickled under another name"),
    "a horizon in quotes": (edit("config.json", horizon="8"), "config.json: horizon: expected a whole number"),
    "a feature without a shape": (
        edit("config.json", output_features={"action": {"type": "ACTION"}}), "output_features: expected features",
    ),
    "no groups": (edit("config.json", n_groups=0), "n_groups: expected a whole number"),
    "no modes": (edit("config.json", normalization_mapping=None), "normalization_mapping: expected"),
    "no steps of denoising": (edit("config.json", num_inference_steps=0), "num_inference_steps: expected .* or null, got 0"),
    "a step without a configuration": (
        edit("policy_preprocessor.json", steps=[{"registry_name": "normalizer_processor"}]), "config.eps of normalizer_processor",
    ),
    "no list of steps": (edit("policy_preprocessor.json", steps=3), "steps: expected a list"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "expected a safetensors file, got none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_a_checkpoint_of_this_version_is_refused(case: str, folder: Path) -> None:
    change, words = REFUSED[case]
    change(folder)
    with pytest.raises(PolicyError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("names", "spec", "words"),
    [
        ({"observation.state": "proprio"}, SPEC, "environment_state.*got none"),
        (NAMES | {"observation.images.top": "image/top"}, SPEC, "no such input"),
        (dict.fromkeys(NAMES, "proprio"), SPEC, "different keys"),
        (NAMES | {"observation.state": "velocity"}, SPEC, "got no such key"),
        ({"observation.state": "state", "observation.environment_state": "proprio"}, SPEC, r"float32 \(3,\) in Tiny, got float32 \(4,\)"),
        (NAMES, replace(SPEC, action=ArraySpec("action", (7,))), "expected 2 numbers"),
    ],
)  # fmt: skip
def test_names_and_sizes_must_fit_the_environment(
    names: dict[str, str], spec: EnvSpec, words: str, folder: Path
) -> None:
    with pytest.raises(PolicyError, match=words):
        load_lerobot(LeRobotAdoption(names), spec=spec, folder=folder)


def test_rti_starts_from_the_rest_of_the_whole_chunk(folder: Path) -> None:
    """LeRobot's chunk begins To - 1 steps before the first action that is played; it moves on by what was executed all the same."""
    policy, shown = load(folder), list[tuple[int, torch.Tensor]]()
    policy.unet.register_forward_pre_hook(lambda _module, inputs: shown.append((int(inputs[1][0]), inputs[0])))
    rti = policy.warm_started(WarmStart(level=20, steps=2))
    noise = wave((1, 1, 8, 2), 0.3)
    rti.act(observe(policy, 1), noise)
    last = policy.normalized_action(observe(policy, 1), noise)
    shown.clear()
    assert rti.act(observe(policy, 1), noise).actions.shape == (1, 7, 2)
    assert [level for level, _ in shown] == [20, 0]
    guess = torch.cat([last[:, 4:], last[:, -1:].expand(-1, 4, -1)], dim=1)
    alpha_bar = (
        torch.cos(torch.tensor((0.21 + 0.008) / 1.008 * torch.pi / 2)) ** 2
        / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2
    )
    close(shown[0][1], (alpha_bar.sqrt() * guess + (1 - alpha_bar).sqrt() * noise[:, 0]).tolist())
    edit("config.json", clip_sample=False)(folder)
    with pytest.raises(PolicyError, match="rti on a LeRobot checkpoint"):
        load(folder).warm_started(WarmStart(level=20))


@pytest.mark.slow
def test_rti_as_exported_files(folder: Path, tmp_path: Path) -> None:
    """Its chunk begins before the first action that is played, so a guess is one action longer than what is returned."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    policy = load(folder).requires_grad_(False)
    warm = require_warm(policy, WarmStart(level=40, steps=2, max_jump=100.0), where="theirs")
    config = {"observation_keys": list(policy.config.observation_keys), "history": 2, "horizon": 7, "execute": 4}
    plain = {
        "spec": policy.spec.to_json(), "config": config, "sampling": policy.sampling,
        "noise": {"rule": "seeded", "seed": 0, "shape": list(policy.noise_shape)},
    }  # fmt: skip
    metadata = {key: json.dumps(value) for key, value in plain.items()}
    write_onnx(policy, tmp_path / "policy.onnx", metadata=metadata)
    seen = Observation(proprio=wave((6, 2, 3), 0.4), state=wave((6, 2, 4), 0.5))
    options = RtiOptions(warm.warm, tuple(ExportPass), 1e-4, batches=(1, 3))
    written = write_rti(warm, OnnxPolicy(tmp_path / "policy.onnx"), metadata, {"random": seen}, options)
    assert written.policy.noise_shape == (1, 8, 2)
    assert written.told["max_error"] <= 1e-5
    assert written.told["random"]["decisions"] == {"warm": 12, "first": 12, "jump": 0, "full": 0}


def fit_point_reach(folder: Path) -> None:
    """The recorded checkpoint with a state of two numbers, as PointReach has it."""
    for name in ("config", "policy_preprocessor"):
        text = (folder / f"{name}.json").read_text()
        (folder / f"{name}.json").write_text(text.replace('"STATE", "shape": [3]', '"STATE", "shape": [2]'))
    tensors(
        STATISTICS, lambda t: t.update({k: v[:2].clone() for k, v in t.items() if k.startswith("observation.state.")})
    )(folder)
    # The embedding is 16 wide and the condition 2 * 7: drop the third number of either frame.
    kept = [column for column in range(30) if column not in (16 + 2, 16 + 7 + 2)]
    ends = "cond_encoder.1.weight"
    tensors("model.safetensors", lambda t: t.update({k: v[:, kept].clone() for k, v in t.items() if k.endswith(ends)}))(
        folder
    )


def test_adopt_and_evaluate_with_and_without_rti(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    fit_point_reach(folder)
    play = ["evaluate", "env=point_reach", f"policy={folder}", "num_episodes=3", "num_envs=2", "--track=none", "--json"]
    assert cli.main(play) == 1  # nobody has said what the numbers mean
    assert "robot-rl adopt" in capsys.readouterr().err
    adopt = ["adopt", str(folder), "--env", "point_reach", "--name", "observation.environment_state=state"]
    assert cli.main(adopt) == 1
    assert "'observation.state'" in capsys.readouterr().err
    assert not (folder / "robot_rl.json").exists()
    named = [*adopt, "--name", "observation.state=proprio"]
    assert cli.main([*named, "--name", "observation.state=state"]) == 2
    assert "every input once" in capsys.readouterr().err
    assert cli.main([*named, "--steps", "0"]) == 1
    assert not (folder / "robot_rl.json").exists()
    assert cli.main([*adopt, "--name", "observation.state=proprio"]) == 0
    assert cli.main([*adopt, "--name", "observation.state=proprio"]) == 2  # there is one already
    assert "PointReach" in capsys.readouterr().out
    policy, spec, checkpoint = load_policy(folder)
    assert (spec.env_id, checkpoint.step, dict(checkpoint.tensors)) == ("PointReach", 0, {})
    assert policy.sampling == "LeRobot checkpoint, eta0, 5 steps"
    for train in (lambda: policy.one_step_student(1), lambda: checkpoint.documents["policy"]["config"]):
        with pytest.raises(PolicyError, match="trained here"):
            train()

    for stage in (["offline", "datasets=[none.zarr]"], ["online", "env=point_reach"]):
        assert cli.main([*stage, f"policy={folder}", "--track=none"]) == 1
        assert "no stage trains it" in capsys.readouterr().err

    assert cli.main(play) == 0
    plain = json.loads(capsys.readouterr().out)["protocol"]["policy"]
    assert (plain["class"], plain["history"], plain["execute"]) == ("LeRobotDiffusionPolicy", 2, 4)
    assert cli.main([*play, "rti.level=20"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["protocol"]["policy"]["rti"]["levels"] == [20, 0]
    assert summary["rti_decisions"]["warm"] > summary["rti_decisions"]["first"] > 0

    document = json.loads((folder / "robot_rl.json").read_text())
    document["spec"]["control_hz"] = 50.0
    (folder / "robot_rl.json").write_text(json.dumps(document))
    assert cli.main(play) == 1
    assert "control_hz" in capsys.readouterr().err
    (folder / "robot_rl.json").write_text(json.dumps(document | {"format": "robot-rl adopted policy 9"}))
    with pytest.raises(PolicyError, match="adopted policy 1"):
        load_policy(folder)
