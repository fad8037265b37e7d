"""How ManiSkill draws on this machine: chosen once per process, announced in one line, physics unchanged.

ManiSkill asks for a Vulkan device even when nobody looks at images. Three ways out, tried in this order:

device:    a Vulkan device that sapien accepts exists; nothing is changed.
software:  images wanted and no device: SwiftShader, the software Vulkan of Debian's chromium-common package.
none:      state observations only and no device: scenes are built without visuals. Collision shapes, masses and the
           solver stay as they are, so simulated states are bit-identical (tests/envs/test_maniskill.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from robot_rl.errors import EnvError

_log = logging.getLogger(__name__)

_STATE_MODES = ("state", "state_dict", "none")
_ICD_DIRECTORIES = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
_SWIFTSHADER = ("/usr/lib/chromium/vk_swiftshader_icd.json", "/opt/google/chrome/vk_swiftshader_icd.json")
# ManiSkill's name of a render backend, and sapien's name of the device behind it.
_BACKENDS = (("gpu", "cuda"), ("cpu", "cpu"), ("pci:0", "pci:0"))
_PROBE = f"""
import sapien, sapien.render
for backend, name in {_BACKENDS!r}:
    try:
        print("FOUND", backend, sapien.render.RenderSystem(sapien.Device(name)).device.name, sep="|")
        break
    except RuntimeError:
        pass
"""


class RenderingKind(str, Enum):
    """Where images come from."""

    device = "device"
    none = "none"
    software = "software"


@dataclass(frozen=True)
class RenderingChoice:
    """The outcome of `prepare_rendering`.

    Attributes:
        kind: see RenderingKind.
        render_backend: what to hand to ManiSkill as `render_backend`.
        detail: device or reason, for logs and reports.
    """

    kind: RenderingKind
    render_backend: str
    detail: str


_process_choice: RenderingChoice | None = None
_process_icd: str | None = None


def prepare_rendering(obs_mode: str, *, vulkan_icd: str | None) -> RenderingChoice:
    """Choose how to draw and make ManiSkill follow. Call it before the first environment is built.

    sapien reads its devices once per process, so the first choice holds; later calls return it.

    Args:
        obs_mode: ManiSkill's observation mode; "state", "state_dict" and "none" need no images.
        vulkan_icd: path of a Vulkan ICD json to use instead of whatever the machine has, or None.

    Raises:
        EnvError: images are wanted and nothing can draw; `vulkan_icd` does not work; or an earlier choice of this
            process rules the wish out.
    """
    global _process_choice, _process_icd
    wants_images = obs_mode not in _STATE_MODES
    if _process_choice is None:
        _process_choice, _process_icd = _choose(wants_images, vulkan_icd), vulkan_icd
        _log.info("ManiSkill rendering: %s (%s)", _process_choice.kind.value, _process_choice.detail)
    elif wants_images and _process_choice.kind is RenderingKind.none:
        raise EnvError(
            f"obs_mode={obs_mode}",
            expected="a renderer",
            got="a process that already runs state-only, without visuals",
            hint="Build the environment with images first, or in a process of its own.",
        )
    elif vulkan_icd is not None and vulkan_icd != _process_icd:
        raise EnvError(
            f"vulkan_icd={vulkan_icd}",
            expected=f"{_process_icd}, which this process began with",
            got="another one",
            hint="sapien reads its Vulkan devices once; use a new process.",
        )
    return _process_choice


def _choose(wants_images: bool, vulkan_icd: str | None) -> RenderingChoice:
    if vulkan_icd is not None:
        found = _probe(vulkan_icd) if Path(vulkan_icd).is_file() else None
        if found is None:
            raise EnvError(
                f"vulkan_icd={vulkan_icd}",
                expected="a Vulkan ICD json whose driver sapien accepts",
                got="no such file" if not Path(vulkan_icd).is_file() else "no device that sapien accepts",
                hint="Correct the path, or leave vulkan_icd empty.",
            )
        return _use(found, icd=vulkan_icd)
    found = _probe(None) if _may_have_device() else None
    if found is not None:
        return _use(found, icd=None)
    if not wants_images:
        _build_without_visuals()
        return RenderingChoice(RenderingKind.none, "none", "state-only without Vulkan")
    for icd in _SWIFTSHADER:
        found = _probe(icd) if Path(icd).is_file() else None
        if found is not None:
            return _use(found, icd=icd)
    raise EnvError(
        "ManiSkill with images",
        expected="a Vulkan device or the software renderer SwiftShader",
        got="neither (looked for Vulkan drivers and for " + " and ".join(_SWIFTSHADER) + ")",
        hint="Run `apt-get install chromium-common`, name its json as vulkan_icd, or use obs_mode=state.",
    )


def _may_have_device() -> bool:
    """Whether a probe is worth its half second."""
    if os.environ.get("VK_ICD_FILENAMES") or os.environ.get("VK_DRIVER_FILES") or shutil.which("nvidia-smi"):
        return True
    return any(icd for directory in _ICD_DIRECTORIES for icd in Path(directory).glob("*.json"))


def _probe(icd: str | None) -> tuple[str, str] | None:
    """(render backend, device name) that sapien can draw with, or None.

    In a process of its own: a driver may crash, and sapien would remember a failed search.
    """
    environment = dict(os.environ) | ({} if icd is None else {"VK_ICD_FILENAMES": icd})
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND|")]
    return tuple(lines[0].split("|")[1:3]) if lines else None  # type: ignore[return-value]


def _use(found: tuple[str, str], *, icd: str | None) -> RenderingChoice:
    backend, name = found
    if icd is not None:
        os.environ["VK_ICD_FILENAMES"] = icd
    sapien = _import_sapien()
    try:
        sapien.render.RenderSystem(sapien.Device(dict(_BACKENDS)[backend]))
    except RuntimeError as error:
        raise EnvError(
            f"render device {name}",
            expected="sapien's renderer not yet started in this process",
            got=str(error),
            hint="Something used sapien before; build the environment first.",
        ) from error
    if backend.startswith("pci"):
        _keep_pci_names_whole()
    is_software = any(word in name.lower() for word in ("swiftshader", "llvmpipe"))
    return RenderingChoice(RenderingKind.software if is_software else RenderingKind.device, backend, name)


def _import_sapien() -> Any:
    with warnings.catch_warnings():
        # sapien brings a Vulkan loader of its own; that the system has none is no news.
        warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
        import sapien
        import sapien.render
    return sapien


def _keep_pci_names_whole() -> None:
    """ManiSkill splits "pci:0" at the colon, as if 0 were a CUDA index, and then finds no device "pci"."""
    _import_sapien()
    from mani_skill.envs.utils.system import backend

    original = backend.parse_backend_device_id

    def parse(name: str) -> Any:
        return (name, None) if name.startswith("pci:") else original(name)

    backend.parse_backend_device_id = parse


class _Inert:
    """Stands in for render materials and textures: takes anything, draws nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set_"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)


def _build_without_visuals() -> None:
    sapien = _import_sapien()
    import mani_skill.envs.sapien_env as sapien_env
    import sapien.wrapper.urdf_loader as urdf_loader
    from mani_skill.envs.tasks.tabletop import push_t
    from mani_skill.envs.utils.system import backend
    from mani_skill.utils.building import _mjcf_loader
    from mani_skill.utils.building.actor_builder import ActorBuilder
    from mani_skill.utils.scene_builder.table import TableSceneBuilder

    for module in (sapien.render, sapien.pysapien.render, urdf_loader, _mjcf_loader):
        module.RenderMaterial = module.RenderTexture2D = _Inert

    def add_nothing(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    for builder in (sapien.ActorBuilder, ActorBuilder):
        for name in [n for n in vars(builder) if n.startswith("add_") and "_visual" in n]:
            setattr(builder, name, add_nothing)

    original = backend.parse_sim_and_render_backend

    def parse(sim_backend: str, render_backend: str) -> Any:
        return original(sim_backend, "none")

    backend.parse_sim_and_render_backend = sapien_env.parse_sim_and_render_backend = parse
    # PushT whitens the textures of its table after building it; there are none.
    push_t.WhiteTableSceneBuilder.build = TableSceneBuilder.build
