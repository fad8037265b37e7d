"""rti.onnx: the same decisions as RTI in torch, envs that reset and jump, and the whole way through the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.warm_start import StartKind, WarmStart
from robot_rl.cli import main as robot_rl
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.deploy.noise import NoiseRule
from robot_rl.deploy.onnx_checks import read_graph
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.onnx_policy import OnnxPolicy, OnnxPolicyConfig
from robot_rl.deploy.rti_policy import RtiPolicy
from robot_rl.deploy.tensorrt_policy import open_policy
from robot_rl.errors import DeployError, PolicyError
from robot_rl.policies.denoisers import DenoiserKind
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages import export_rti
from robot_rl.stages.export import PolicyGraph, write_onnx
from robot_rl.stages.export_rti import (
    RtiOptions,
    RtiParity,
    WarmGraph,
    require_warm,
    rti_parity,
    two_values,
    write_rti,
)
from robot_rl.types import Observation

BOTH = (ExportPass.film, ExportPass.conv)
# x is bounded within its data, z never moved in it, the gripper went from 0 to 0.08.
SPEC = EnvSpec(
    env_id="Toy",
    observation={"state": ArraySpec("state", (3,)), "proprio": ArraySpec("proprio", (2,))},
    action=ArraySpec(
        "action", (4,), low=(-0.5, -9.0, -9.0, 0.0), high=(0.5, 9.0, 9.0, 0.08), meanings=("x", "y", "z", "gripper")
    ),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "base", "none", "0 closed .. 0.08 open", "toy"),
    joint_names=(), robot="none", control_hz=20.0, max_episode_steps=50,
)  # fmt: skip
CONFIG = DiffusionPolicyConfig(
    history=2, horizon=8, execute=3, observation_keys=("state", "proprio"), hidden_width=32, channels=(16, 32),
    level_embedding=16, num_steps=3,
)  # fmt: skip
WARM = WarmStart(level=34, max_jump=1.0)


def policy_of(**changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    data = {key: 2.0 + 0.5 * torch.randn(200, spec.size) for key, spec in SPEC.observation.items()}
    data["action"] = torch.stack([
        2 * torch.rand(200) - 1, 3 * torch.rand(200), torch.full((200,), 0.3), 0.08 * (torch.rand(200) > 0.5)
    ], dim=1)  # fmt: skip
    modes = dict.fromkeys(SPEC.observation, NormalizerMode.standard) | {"action": NormalizerMode.range}
    made = DiffusionPolicy(replace(CONFIG, **changes), SPEC, Normalizer.fit(data, modes))
    return made.eval().requires_grad_(False)


def observe(count: int, seed: int) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    return Observation(
        proprio=2.0 + 0.1 * torch.randn(count, 2, 2, generator=generator),
        state=2.0 + 0.1 * torch.randn(count, 2, 3, generator=generator),
    )


def metadata_of(policy: DiffusionPolicy) -> dict[str, Any]:
    return {
        "spec": SPEC.to_json(), "joint_names": [], "policy": {}, "sampling": policy.sampling, "checkpoint": "none",
        "config": {"observation_keys": ["state", "proprio"], "history": 2, "horizon": 8, "execute": 3},
        "noise": {"rule": "seeded", "seed": 0, "shape": list(policy.noise_shape)},
    }  # fmt: skip


class TorchFile(OnnxPolicy):
    """As an exported file, but its graph is run by torch: everything of a file without the seconds that an export takes."""

    def __init__(self, path: Path, graph: torch.nn.Module, names: tuple[str, ...], metadata: dict[str, Any]) -> None:
        def run(outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert outputs == ["actions"]
            assert set(feed) == set(names)
            with torch.inference_mode():
                return [graph(*(torch.from_numpy(feed[name].copy()) for name in names)).numpy()]

        self.path, self.metadata, self.spec = str(path), metadata, SPEC
        self.session, self.provider, self.threads = SimpleNamespace(run=run), "torch", 1
        self.config = OnnxPolicyConfig(("state", "proprio"), 2, 8, 3)
        self.sampling, self.noise_rule, self.noise_seed = metadata["sampling"], NoiseRule.seeded, 0
        self.noise_shape = tuple(metadata["noise"]["shape"])


def torch_files(policy: DiffusionPolicy, warm: WarmStart, folder: Path, passes: Any = BOTH) -> tuple[Any, RtiPolicy]:
    """RTI in torch, and as two files whose graphs torch runs."""
    torch_rti, plain = require_warm(policy, warm, where="toy"), json.loads(json.dumps(metadata_of(policy)))
    (folder / "policy.onnx").write_bytes(b"stands for a file")
    names = ("state", "proprio")
    full = TorchFile(folder / "policy.onnx", PolicyGraph(policy), (*names, "noise"), plain)
    cheaper, applied = torch_rti.for_export(passes)
    assert applied or not passes
    said = export_rti._said(torch_rti, full)
    names += ("guess", "noise") if torch_rti.noise_draws else ("guess",)
    # Through JSON, as through a file.
    told = json.loads(json.dumps(plain | {"sampling": torch_rti.sampling, "rti": said}))
    return torch_rti, RtiPolicy(full, TorchFile(folder / "rti.onnx", WarmGraph(cheaper), names, told))


def written_files(
    policy: DiffusionPolicy, warm: WarmStart, folder: Path, passes: Any
) -> tuple[Any, RtiPolicy, dict[str, Any]]:
    """RTI in torch, as two exported files, and what was found out about them."""
    texts = {key: json.dumps(value) for key, value in metadata_of(policy).items()}
    write_onnx(policy, folder / "policy.onnx", metadata=texts)
    torch_rti = require_warm(policy, warm, where="toy")
    cases = {"random": observe(20, 9)}
    written = write_rti(torch_rti, OnnxPolicy(folder / "policy.onnx"), texts, cases, RtiOptions(warm, passes, 1e-4))
    written.publish()
    opened = open_policy(written.path)
    assert isinstance(opened, RtiPolicy)
    return torch_rti, opened, written.told


CASES = {
    "mlp, eta0": (DenoiserKind.mlp, SamplingMode.eta0, WARM, BOTH),
    "mlp, eta1, scaled": (
        DenoiserKind.mlp,
        SamplingMode.eta1,
        replace(WARM, start=StartKind.scaled, level=50, steps=2),
        (),
    ),
    "unet, eta0, no noise": (DenoiserKind.unet, SamplingMode.eta0, replace(WARM, start=StartKind.clean), BOTH),
    "unet, eta1": (DenoiserKind.unet, SamplingMode.eta1, replace(WARM, level=50, steps=2, discrete_scale=0.5), BOTH),
}


@pytest.mark.parametrize("case", CASES)
def test_every_decision_is_that_of_torch(case: str, tmp_path: Path) -> None:
    kind, mode, warm, passes = CASES[case]
    policy = policy_of(denoiser=kind, mode=mode)
    require_same_decisions(policy, *torch_files(policy, warm, tmp_path, passes))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_decision_of_exported_files_is_that_of_torch(case: str, tmp_path: Path) -> None:
    kind, mode, warm, passes = CASES[case]
    policy = policy_of(denoiser=kind, mode=mode)
    ours, theirs, told = written_files(policy, warm, tmp_path, passes)
    names = {tensor.name for tensor in read_graph(theirs.path).inputs}
    assert names == {"state", "proprio", "guess"} | ({"noise"} if ours.noise_draws else set())
    assert told["passes"] == [
        one.value for one in BOTH if one in passes and (kind is DenoiserKind.unet or one is BOTH[0])
    ]
    assert told["max_error"] <= 1e-4
    assert told["random"]["decisions"] == told["random"]["torch_decisions"]
    assert told["random"]["flips"] == 0
    ours.counts = type(ours.counts)()
    require_same_decisions(policy, ours, theirs)


def require_same_decisions(policy: DiffusionPolicy, ours: Any, theirs: RtiPolicy) -> None:
    """Three envs, one of which begins anew, one of which jumps, one that sees NaN."""
    assert theirs.describe() == json.loads(json.dumps(ours.describe()))
    assert theirs.sampling == ours.sampling
    generator, still = torch.Generator().manual_seed(1), torch.tensor([0.3])
    for decision in range(6):
        seen, noise = observe(3, decision), torch.randn((3, *policy.noise_shape), generator=generator)
        assert seen.state is not None
        if decision == 3:
            seen.state[1, -1, 0] += 3.0
            seen.state[2, -1, 0] = torch.nan
        mask = np.array([decision == 0, decision == 0, decision in (0, 2)])
        ours.reset(torch.from_numpy(mask))
        theirs.reset(mask)
        expected = ours.act(seen, noise).actions
        got = theirs.act(seen.map(lambda array: array.numpy()), noise.numpy()).actions
        known = torch.isfinite(expected)
        torch.testing.assert_close(torch.from_numpy(got)[known], expected[known], rtol=0, atol=2e-5)
        assert torch.equal(expected[..., 2][known[..., 2]], still.expand(int(known[..., 2].sum())))
    # One env jumps and jumps back; the other sees NaN, and then a number.
    assert theirs.counts.to_json() == ours.counts.to_json() == {"warm": 10, "first": 4, "jump": 4, "full": 0}


def test_what_starts_is_what_was_returned(tmp_path: Path) -> None:
    """x is clipped to the spec's bounds before it is a guess, z is its constant, and the gripper a tenth of its sign."""
    policy = policy_of()
    shown: list[torch.Tensor] = []
    policy.denoiser.register_forward_pre_hook(lambda _module, inputs: shown.append(inputs[0]))
    rti = policy.warm_started(replace(WARM, start=StartKind.clean))
    generator = torch.Generator().manual_seed(0)
    first = rti.act(observe(4, 0), 3 * torch.randn((4, *policy.noise_shape), generator=generator)).actions
    assert (first[..., 0].abs() == 0.5).any(), "some of it was clipped"
    shown.clear()
    rti.act(observe(4, 0), torch.randn((4, *policy.noise_shape), generator=generator))
    rest = torch.cat([first[:, 3:], first[:, -1:].expand(-1, 3, -1)], dim=1)
    guess = policy.normalizer.apply("action", rest).clamp(-1, 1)
    assert guess[..., 0].abs().max() < 0.55
    assert (guess[..., 2] == 0).all()
    guess[..., 3] = torch.where(rest[..., 3] >= 0.04, 0.1, -0.1)
    torch.testing.assert_close(shown[0], guess)


def test_two_values_by_hand(tmp_path: Path) -> None:
    (two,) = two_values(require_warm(policy_of(), WARM, where="toy"))
    assert two.at == 3
    assert (two.middle, *two.starts, *two.ends) == pytest.approx((0.04, 0.0, 0.08, 0.0, 0.08))
    (two,) = two_values(require_warm(policy_of(), replace(WARM, discrete_scale=0.1), where="toy"))
    assert (two.middle, *two.starts, *two.ends) == pytest.approx((0.04, 0.036, 0.044, 0.0, 0.08))
    low, high = SPEC.action.low, SPEC.action.high
    assert low is not None
    assert high is not None
    tight = policy_of()
    tight.action_high = torch.tensor([*high[:3], 0.03])
    with pytest.raises(PolicyError, match=r"element 3.*on both sides of 0\.04, got 0 to 0\.03"):
        two_values(require_warm(tight, WARM, where="toy"))
    still = require_warm(policy_of(), replace(WARM, discrete_at=(2, 3)), where="toy")
    assert still.discrete_at == (3,), "what never moved has no two values"


def test_refusals() -> None:
    with pytest.raises(PolicyError, match="below the noisiest level, 67, got 67"):
        require_warm(policy_of(), WarmStart(level=67), where="toy")
    with pytest.raises(PolicyError, match="a diffusion policy for rti"):
        require_warm(policy_of().one_step_student(3), WARM, where="toy")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, RtiPolicy]:
    return torch_files(policy_of(), WARM, tmp_path)


def parity(ours: Any, theirs: RtiPolicy) -> RtiParity:
    return rti_parity(ours, theirs, observe(20, 3), RtiOptions(WARM, BOTH, 1e-4, batches=(5,)))


def test_parity_sees_what_is_wrong(pair: tuple[Any, RtiPolicy]) -> None:
    """Each fault by itself: another offset, swapped ends, another jump, a guess that is not moved on, a start of 0.2."""
    ours, theirs = pair
    right = parity(ours, theirs)
    assert right.is_within(1e-4)
    assert right.decisions["warm"] > 15
    assert right.decisions["jump"] == 0
    assert right.two_valued > 120
    two, run = theirs.discrete[0], theirs.warm.session.run
    theirs.warm.session = SimpleNamespace(run=lambda names, feed: [run(names, feed)[0] + np.float32(1e-3)])
    assert parity(ours, theirs).max_error == pytest.approx(1e-3, rel=0.2)
    theirs.warm.session = SimpleNamespace(run=run)
    theirs.discrete = (replace(two, ends=two.ends[::-1]),)
    swapped = parity(ours, theirs)
    assert swapped.flips > 0.9 * swapped.two_valued or swapped.max_error > 0.01
    assert not swapped.is_within(1e-4)
    theirs.discrete = (replace(two, starts=(two.middle - 0.008, two.middle + 0.008)),)
    assert not parity(ours, theirs).is_within(1e-4)
    theirs.discrete = (two,)
    theirs._settings["max_jump"] = 0.2
    assert not parity(ours, theirs).is_within(1e-4)
    theirs._settings["max_jump"] = WARM.max_jump
    theirs.config = replace(theirs.config, execute=2)
    assert not parity(ours, theirs).is_within(1e-4)
    theirs.config = replace(theirs.config, execute=3)
    assert parity(ours, theirs).is_within(1e-4)
    one = observe(1, 0).map(lambda array: array.numpy())
    theirs.act(one, np.zeros((1, *theirs.noise_shape), np.float32))  # another number of envs than was compared


def test_a_flip_is_counted_and_many_are_refused() -> None:
    def found(**changes: Any) -> RtiParity:
        counts = {"warm": 1, "first": 1, "jump": 0, "full": 0}
        return replace(RtiParity(1e-5, 0, 10_000, 0, counts, dict(counts)), **changes)

    assert found(flips=10).is_within(1e-4)
    assert not found(flips=11).is_within(1e-4)
    assert not found(max_error=2e-4).is_within(1e-4)
    assert not found(max_error=float("inf")).is_within(1e-4)
    assert not found(torch_decisions={}).is_within(1e-4)


def stage(folder: Path, name: str, *words: str, code: int = 0) -> Path:
    before = set(folder.glob(f"*_{name}_*"))
    assert robot_rl([name, f"run_root={folder}", "--quiet", "--track", "none", *words]) == code
    (run,) = set(folder.glob(f"*_{name}_*")) - before
    return run


POINT = ("env=point_reach",)
RTI = ("rti.level=41", "rti.steps=2", "rti.max_jump=1.5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "data.zarr"
    stage(folder, "collect", *POINT, "expert=point_reach", "num_episodes=20", f"dataset={data}")
    words = ("train.num_steps=150", "train.checkpoint_every_steps=150", "train.batch_size=64", "policy.hidden_width=64")
    imitate = stage(folder, "imitate", *POINT, f"dataset={data}", *words, "policy.execute=2", "policy.horizon=4")
    export = stage(folder, "export", f"policy={imitate}", f"dataset={data}", "latency_calls=5", *RTI)
    return {"folder": folder, "data": data, "imitate": imitate, "export": export}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("execution", [(), ("execution=async", "latency_ms=60.0")])
def test_the_file_plays_what_torch_plays(runs: dict[str, Path], execution: tuple[str, ...]) -> None:
    file = runs["export"] / "export" / "rti.onnx"
    words = (*POINT, "num_episodes=12", "num_envs=5", *execution)
    torch_run = stage(runs["folder"], "evaluate", f"policy={runs['imitate']}", *words, *RTI)
    file_run = stage(runs["folder"], "evaluate", f"policy={file}", *words)
    for ours, theirs in zip(rows(torch_run), rows(file_run), strict=True):
        for key in ("seed", "length", "success_once", "success_at_end"):
            assert ours[key] == theirs[key], key
        assert ours["action_change_rms"] == pytest.approx(theirs["action_change_rms"], abs=1e-4)
    told = [json.loads((run / "summary.json").read_text()) for run in (torch_run, file_run)]
    assert told[0]["rti_decisions"] == told[1]["rti_decisions"]
    assert told[1]["rti_decisions"]["warm"] > told[1]["rti_decisions"]["first"] > 0
    assert told[0]["protocol"]["policy"]["rti"] == told[1]["protocol"]["policy"]["rti"]
    assert told[1]["protocol"]["policy"]["class"] == "RtiPolicy"
    full = rows(stage(runs["folder"], "evaluate", f"policy={runs['imitate']}", *words))
    assert [row["action_change_rms"] for row in full] != [row["action_change_rms"] for row in rows(torch_run)]


@pytest.mark.slow
def test_the_run_says_what_was_written(runs: dict[str, Path]) -> None:
    folder, summary = runs["export"] / "export", json.loads((runs["export"] / "summary.json").read_text())
    assert sorted(file.name for file in folder.iterdir()) == ["latency.json", "parity.json", "policy.onnx", "rti.onnx"]
    latency, found = (json.loads((folder / name).read_text()) for name in ("latency.json", "parity.json"))
    assert summary["rti"]["latency"] == latency["rti"]
    assert latency["rti"]["p50_ms"] > 0 < latency["p50_ms"]
    assert summary["rti"]["parity_max_error"] == found["rti"]["max_error"] <= 1e-4
    assert found["rti"]["settings"]["levels"] == [41, 1]
    assert set(found["rti"]) >= {"random", "recorded"}
    assert summary["onnx"].endswith("policy.onnx")
    assert "nobody has measured RTI" in (runs["export"] / "log.txt").read_text()


@pytest.mark.slow
def test_a_file_that_differs_replaces_nothing(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(*words: Any) -> RtiParity:
        return RtiParity(1.0, 0, 0, 0, {"warm": 1}, {"warm": 1})

    monkeypatch.setattr(export_rti, "rti_parity", wrong)
    words = (f"policy={runs['imitate']}", f"dataset={runs['data']}", "latency_calls=5", *RTI)
    run = stage(tmp_path, "export", *words, code=1)
    left = {file.name for file in (run / "export").iterdir()}
    assert "rti.onnx.rejected" in left
    assert not left & {"policy.onnx", "rti.onnx"}


@pytest.mark.slow
def test_servers_and_other_rti_are_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs["export"] / "export" / "rti.onnx"
    stage(tmp_path, "serve", f"policy={file}", "port=0", "seconds=1", code=1)
    assert "an rti.onnx" in capsys.readouterr().err
    stage(tmp_path, "evaluate", *POINT, f"policy={file}", "rti.level=21", code=1)
    assert "a diffusion policy for rti" in capsys.readouterr().err
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(file, moved / "rti.onnx")
    stage(tmp_path, "evaluate", *POINT, f"policy={moved / 'rti.onnx'}", code=1)
    assert "policy.onnx beside it" in capsys.readouterr().err
    with pytest.raises(DeployError, match="goes on from a last chunk"):
        OnnxPolicy(file).act(Observation(proprio=np.zeros((1, 1, 2), np.float32)), np.zeros((1, 1, 4, 2), np.float32))
