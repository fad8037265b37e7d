"""Server scripts for foreign environments, asked by our client over openpi's wire from another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

import msgpack
import vla_stand_ins
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from robot_rl.data.teacher_card import require_card
from robot_rl.data.teacher_card_file import load_teacher_card
from robot_rl.deploy import wire
from robot_rl.errors import DeployError
from robot_rl.policies.teacher_client import TeacherClient, TeacherClientConfig
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ROOT / "examples" / "teacher_servers"
STAND_INS = ROOT / "tests" / "support" / "vla_stand_ins.py"
RECORDED = Path(__file__).parent / "recorded"
BRIDGE = ActionSemantics(
    ActionKind.delta, DeltaReference.measured, "base", "euler_xyz", "0 closed .. 1 open", "ee_delta_pose"
)
LIBERO = replace(BRIDGE, rotation="rotvec", gripper="1 closed .. -1 open", control_mode="osc_pose")
# Card of examples/teacher_servers, environment's action, control rate, the client's names.
MODELS: dict[str, tuple[str, ActionSemantics, float, dict[str, str]]] = {
    "openvla": ("openvla_bridge.yaml", BRIDGE, 5.0, {}),
    "openvla_oft": ("openvla_oft_libero.yaml", LIBERO, 20.0, {"proprio": "observation/state"}),
    "octo": ("octo_bridge.yaml", BRIDGE, 5.0, {}),
}


@contextmanager
def served(*words: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server process and its port; it is ended behind the block."""
    process = subprocess.Popen(
        [sys.executable, *words, "--port", "0"], stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        yield int(line.split()[-1]), process
    finally:
        process.kill()
        process.wait()


def small_spec(semantics: ActionSemantics, control_hz: float) -> EnvSpec:
    meanings = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    pictures = {f"image/{name}": ArraySpec(f"image/{name}", (8, 8, 3), "uint8") for name in ("front", "wrist")}
    return EnvSpec(
        env_id="Kitchen", observation={"proprio": ArraySpec("proprio", (8,)), **pictures},
        action=ArraySpec("action", (7,), units=("m",) * 3 + ("rad",) * 3 + ("1",), meanings=meanings),
        action_semantics=semantics, joint_names=("j",), robot="arm", control_hz=control_hz, max_episode_steps=5,
    )  # fmt: skip


def small_card(model: str, folder: Path) -> Path:
    """The shipped card, for pictures of 8 x 8."""
    text = (SERVERS / MODELS[model][0]).read_text()
    path = folder / "card.yaml"
    path.write_text(text.replace("224", "8").replace("256", "8"))
    return path


def seen(number: int = 2) -> Observation:
    rng = np.random.default_rng(3)
    images = {
        name: torch.from_numpy(rng.integers(0, 256, (number, 1, 8, 8, 3), dtype=np.uint8))
        for name in ("front", "wrist")
    }
    proprio = torch.from_numpy(rng.integers(0, 8, (number, 1, 8)).astype(np.float32)) / 8
    return Observation(proprio=proprio, images=images, instruction=(vla_stand_ins.PROMPT, "open the drawer")[:number])


def by_hand(model: str, observation: Observation) -> np.ndarray:
    """What the stand-in should say, in the environment's actions, (N, Tp, 7)."""
    chunks = []
    assert observation.instruction is not None
    for row, text in enumerate(observation.instruction):
        front, wrist = (observation.images[name][row, 0].numpy() for name in ("front", "wrist"))
        if model == "openvla":  # turned, and the prompt in its frame and in lower case
            said = f"In: What action should the robot take to {text.lower()}?\nOut:"
            chunks.append(vla_stand_ins.numbers(front[::-1, ::-1], said)[None])
        elif model == "octo":
            first = 2 * vla_stand_ins.numbers(front, text) + np.float32([0, 0, 0, 0, 0, 0, 1])
            chunks.append(np.stack([first, first + 1]))
        else:
            first = vla_stand_ins.numbers(front[::-1, ::-1][:4, :4], text)
            second = first + vla_stand_ins.numbers(wrist[::-1, ::-1][:4, :4], "")
            own = np.stack([first, second, first + observation.proprio[row, 0].numpy().sum()])
            own[:, 6] = 1 - 2 * own[:, 6]  # LIBERO's gripper
            chunks.append(own)
    return np.stack(chunks)


def frames(path: Path) -> list[tuple[str, bytes]]:
    with path.open("rb") as file:
        return [tuple(entry) for entry in msgpack.Unpacker(file)]


def said(kept: list[tuple[str, bytes]]) -> list[list[float]]:
    answers = [wire.unpack(frame) for kind, frame in kept if kind == "out"]
    return [answer["actions"].ravel().tolist() for answer in answers if "actions" in answer]


@pytest.mark.parametrize("model", MODELS)
def test_a_stand_in_of_every_script_is_asked_as_recorded(model: str, tmp_path: Path) -> None:
    """To record anew: delete tests/policies/recorded/<model>.msgpack and run this."""
    _, semantics, control_hz, names = MODELS[model]
    spec, card = small_spec(semantics, control_hz), small_card(model, tmp_path)
    require_card(load_teacher_card(card), spec)
    kept = tmp_path / "traffic"
    with served(str(STAND_INS), model, "--record", str(kept)) as (port, _process):
        config = TeacherClientConfig(uri=f"ws://127.0.0.1:{port}", card=str(card), names=names)
        teacher = TeacherClient(config, spec=spec, build=lambda *_: None, load=lambda *_: None)
        found = torch.as_tensor(teacher.label(seen()).actions).numpy()
        teacher.close()
    np.testing.assert_allclose(found, by_hand(model, seen()), atol=1e-6)
    golden = RECORDED / f"{model}.msgpack"
    if not golden.exists():
        golden.write_bytes(kept.read_bytes())
        pytest.fail(f"recorded {golden} anew; look at it and run again")
    now, then = frames(kept), frames(golden)
    assert [kind for kind, _ in now] == [kind for kind, _ in then] == ["out", "in", "out", "in", "out"]
    assert [frame for kind, frame in now if kind == "in"] == [frame for kind, frame in then if kind == "in"]
    assert said(now) == said(then)


def test_shipped_cards_name_a_wrong_gripper(tmp_path: Path) -> None:
    card = load_teacher_card(small_card("openvla_oft", tmp_path))
    require_card(card, small_spec(LIBERO, 20.0))
    with pytest.raises(Exception, match="flipped"):
        require_card(replace(card, gripper=(1.0, 0.0)), small_spec(LIBERO, 20.0))


def test_the_copied_wire_is_ours_byte_for_byte() -> None:
    sys.path.insert(0, str(SERVERS))
    import openpi_wire

    message = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [1, "x", None, True], "c": np.float64(2.5)}
    assert openpi_wire.pack(message) == wire.pack(message)
    there = openpi_wire.unpack(wire.pack(message))
    assert (there["a"] == message["a"]).all()
    assert there["c"] == 2.5
    for bad in (np.array([None]), np.array([1j]), object()):
        with pytest.raises(TypeError):
            openpi_wire.pack({"a": bad})
    objects = {b"__ndarray__": True, b"data": b"12345678", b"dtype": "|O", b"shape": [1]}
    with pytest.raises(ValueError, match="dtype"):
        openpi_wire.unpack(msgpack.packb(objects))


def test_an_error_is_told_and_others_go_on(tmp_path: Path) -> None:
    card, other_camera = small_card("openvla", tmp_path), tmp_path / "other.yaml"
    other_camera.write_text(card.read_text().replace("observation/image", "observation/picture"))
    spec = small_spec(BRIDGE, 5.0)
    with served(str(STAND_INS), "openvla", ROBOT_RL_SERVE_KEY="k") as (port, _process):
        with pytest.raises(InvalidStatus, match="401"):
            connect(f"ws://127.0.0.1:{port}", proxy=None)
        headers = {"Authorization": "Api-Key k"}
        with connect(f"ws://127.0.0.1:{port}", proxy=None, additional_headers=headers) as other:
            assert wire.unpack(other.recv(timeout=20)) == {"model": "openvla"}  # type: ignore[arg-type]
            other.send(wire.pack({"prompt": "x"}))
            assert "no 'observation/image'" in str(other.recv(timeout=20))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ROBOT_RL_SERVE_KEY", "k")
            teacher, lost = (
                TeacherClient(
                    TeacherClientConfig(uri=f"ws://127.0.0.1:{port}", card=str(each)),
                    spec=spec, build=lambda *_: None, load=lambda *_: None,
                )
                for each in (card, other_camera)
            )  # fmt: skip
        with pytest.raises(DeployError, match="no 'observation/image' in the observation"):
            lost.label(seen())
        assert teacher.label(seen()).actions.shape == (2, 1, 7)
        teacher.close()


def test_it_serves_this_machine_alone_without_a_key() -> None:
    code = "import openpi_wire; openpi_wire.serve(lambda o: None, {}, host='0.0.0.0', port=0)"
    environment = {name: value for name, value in os.environ.items() if name != "ROBOT_RL_SERVE_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SERVERS, capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode != 0
    assert "ROBOT_RL_SERVE_KEY" in done.stderr


VLA_CARD = """
name: tiny pi0
size: 2
control_hz: 10
semantics: {kind: delta, delta_reference: measured, frame: base, rotation: none, gripper: none, control_mode: delta_position}
keys: [proprio]
cameras: {observation/image: {source: top, height: 20, width: 20}}
needs_instruction: true
"""


def test_a_small_pi0_of_transformers_teaches_from_another_process(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import tiny_pi0

    from robot_rl.envs.point_reach import PointReachConfig, make_env

    folder = tmp_path / "pi0"
    tiny_pi0.write(folder)
    assert not list(folder.glob("*.bin"))
    card = tmp_path / "card.yaml"
    card.write_text(VLA_CARD)
    env = make_env(PointReachConfig(image_size=20), num_envs=2, history=1)
    require_card(load_teacher_card(card), env.spec)
    observation = env.reset(range(2))
    with served(str(SERVERS / "serve_pi0.py"), "--folder", str(folder), HF_HUB_OFFLINE="1") as (port, _process):
        config = TeacherClientConfig(
            uri=f"ws://127.0.0.1:{port}", card=str(card), names={"proprio": "observation/state"}, answer_s=60.0
        )
        teacher = TeacherClient(config, spec=env.spec, build=lambda *_: None, load=lambda *_: None)
        texts = [("move to the red disc", text) for text in ("move to the red disc", "move to the green disc")]
        same, other = (torch.as_tensor(teacher.label(replace(observation, instruction=each)).actions) for each in texts)
        teacher.close()
    assert same.shape == (2, 3, 2)
    assert torch.equal(same[0], other[0])
    assert not torch.allclose(same[1], other[1], atol=1e-4)  # another instruction
    assert torch.allclose(same, _transformers_alone(folder, observation), atol=1e-5)


def _transformers_alone(folder: Path, observation: Observation) -> torch.Tensor:
    """The red disc's answer, without our script: token numbers, padding and statistics written out for this checkpoint."""
    from transformers import PI0ForConditionalGeneration

    model = PI0ForConditionalGeneration.from_pretrained(folder)
    ids = [4] * 9 + [2, 5, 6, 7, 8, 10] + [0] * 42  # nine patches, <bos> move to the red disc, padding to 9 + 48
    picture = observation.images["top"][:, 0].permute(0, 3, 1, 2).float()
    picture = torch.nn.functional.interpolate(picture, (24, 24), mode="bicubic", antialias=True).round().clamp(0, 255)
    state = torch.nn.functional.pad(
        (observation.proprio[:, 0] - torch.tensor([0.1, 0.0])) / torch.tensor([0.5, 1.0]), (0, 2)
    )
    noise = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    chunk = model.eval().sample_actions(
        state=state, input_ids=torch.tensor([ids, ids]), attention_mask=torch.tensor([[1] * 15 + [0] * 42] * 2),
        pixel_values=(picture / 127.5 - 1)[:, None], pixel_attention_mask=torch.ones(2, 1, dtype=torch.bool),
        noise=noise.expand(2, -1, -1),
    )  # fmt: skip
    return chunk[..., :2] * torch.tensor([0.5, 0.25]) + torch.tensor([0.1, -0.1])


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import tiny_pi0
    from safetensors.torch import load_file, save_file

    tiny_pi0.write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["action_out_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    sys.path.insert(0, str(SERVERS))
    import serve_pi0

    with pytest.raises(ValueError, match=r"action_out_proj\.weight"):
        serve_pi0.Pi0(str(tmp_path), images=["i"], state="s", device="cpu")
