"""Look at this machine: what works, what each lack disables, and the one line that fixes it.

    robot-rl doctor [--json] [--quick] [--run-root runs] [--datasets datasets]

Exit code 0 when everything that the CPU path (`make demo`) needs works, 1 otherwise. Drivers and packages are tried in
processes of their own, with a time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robot_rl.workbench.cores import usable_cores
from robot_rl.workbench.doctor_packages import Diagnosis, State, is_installed, packages
from robot_rl.workbench.doctor_probes import (
    DEFAULT_ENV,
    ONNXRUNTIME,
    OPENVINO,
    RCLPY,
    TENSORRT,
    TORCH,
    VULKAN,
    run_probe,
    run_tool,
)

LOW_DISK_GIB, FULL_DISK_GIB = 10.0, 1.0
SLOWDOWN = 1.2
_ICD_FOLDERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
_SOFTWARE_ICDS = ("/usr/lib/chromium/vk_swiftshader_icd.json", "/opt/google/chrome/vk_swiftshader_icd.json")
_NVIDIA_VENDOR = "0x10de"


def main(words: Sequence[str]) -> int:
    """Look at everything and print it; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="robot-rl doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print diagnoses as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out the default environment, which takes longest")
    parser.add_argument("--run-root", type=Path, default=Path("runs"), help="where runs go")
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="where datasets go")
    options = parser.parse_args(list(words))
    torch = run_probe(TORCH, timeout_s=120.0)
    looks: list[Callable[[], list[Diagnosis]]] = [
        packages, lambda: [torch_cpu(torch)], lambda: [] if options.quick else [default_env(run_probe(DEFAULT_ENV, timeout_s=240.0))],
        lambda: [onnxruntime(run_probe(ONNXRUNTIME, timeout_s=120.0))], lambda: [threads(torch)],
        lambda: [disk(options.run_root, "disk of runs"), disk(options.datasets, "disk of datasets")],
        lambda: [gpu(torch)], lambda: [vulkan()], lambda: [tensorrt(run_probe(TENSORRT, timeout_s=60.0))],
        lambda: [openvino(run_probe(OPENVINO, timeout_s=60.0))], lambda: [ros2()], lambda: [cameras()],
    ]  # fmt: skip
    found = [diagnosis for look in looks for diagnosis in look()]
    fatal = [diagnosis.name for diagnosis in found if diagnosis.fatal]
    if options.json:
        print(json.dumps({"cpu_path_works": not fatal, "diagnoses": [d.to_json() for d in found]}, indent=2))
    else:
        print(as_text(found))
        print(f"CPU path: {'does not work, see ' + ', '.join(fatal) if fatal else 'works'}.")
    return 1 if fatal else 0


def as_text(found: Sequence[Diagnosis]) -> str:
    """One line a part, and below it what it disables and how to mend it."""
    lines = []
    for item in found:
        lines.append(f"{item.state.value:8} {item.name + (' (needed)' if item.needed else ''):28} {item.detail}")
        lines += [f"         disables: {item.disables}"] if item.disables else []
        lines += [f"         fix:      {item.fix}"] if item.fix else []
    return "\n".join(lines)


def torch_cpu(probe: dict[str, Any]) -> Diagnosis:
    """Whether torch computes on the CPU at all; `probe` is what TORCH printed."""
    if "error" in probe:
        return Diagnosis(
            "torch", State.broken, probe["error"], "training, evaluation of checkpoints", "pip install 'robot-rl[train]'", True
        )  # fmt: skip
    python = platform.python_version()
    return Diagnosis("torch", State.ok, f"{probe['version']} on Python {python}", needed=True)


def default_env(probe: dict[str, Any]) -> Diagnosis:
    """Whether the simulator that the stages use by default runs; `probe` is what DEFAULT_ENV printed."""
    if "error" in probe:
        return Diagnosis(
            "simulator", State.broken, probe["error"], "collect, evaluate, pipeline with the default environment",
            "pip install -c constraints/py311.txt 'robot-rl[sim]'; without Vulkan see docs/maniskill_without_gpu.md", True,
        )  # fmt: skip
    return Diagnosis(
        "simulator", State.ok, f"{probe['env']}, {probe['steps_per_s']:.0f} steps/s in 10 steps", needed=True
    )


def onnxruntime(probe: dict[str, Any]) -> Diagnosis:
    """Providers of onnxruntime that really load; `probe` is what ONNXRUNTIME printed."""
    lost = "export, evaluation of .onnx files"
    if is_installed("onnxruntime") and is_installed("onnxruntime-gpu"):
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'robot-rl[export]'"
        return Diagnosis(
            "onnxruntime", State.broken, "onnxruntime and onnxruntime-gpu overwrite each other", lost, fix, True
        )
    if "error" in probe:
        return Diagnosis("onnxruntime", State.broken, probe["error"], lost, "pip install 'robot-rl[export]'", True)
    loads = [name for name, works in probe["providers"].items() if works]
    fails = [name for name, works in probe["providers"].items() if not works]
    if "CPUExecutionProvider" not in loads:
        return Diagnosis(
            "onnxruntime", State.broken, f"{probe['version']}, the CPU provider does not load", lost,
            "pip install --force-reinstall onnxruntime", True,
        )  # fmt: skip
    detail = f"{probe['version']}, loads {', '.join(loads)}"
    if fails:
        return Diagnosis(
            "onnxruntime", State.warning, f"{detail}; listed but does not load: {', '.join(fails)}",
            f"provider={fails[0]}", "install the CUDA and cuDNN (or TensorRT) versions that this onnxruntime names", True,
        )  # fmt: skip
    return Diagnosis("onnxruntime", State.ok, detail, needed=True)


def threads(probe: dict[str, Any]) -> Diagnosis:
    """Threads against cores, and whether torch's default is slower than one thread on a policy-sized layer."""
    cores, set_to = usable_cores(), os.environ.get("OMP_NUM_THREADS", "not set")
    load = os.getloadavg()[0]
    detail = f"{cores:g} usable cores, OMP_NUM_THREADS {set_to}, load {load:.1f}"
    if "error" in probe:
        return Diagnosis("threads", State.warning, detail, "the measurement, as torch does not run", "see torch")
    one, many = probe["us_one_thread"], probe["us_default_threads"]
    detail += f"; torch uses {probe['threads']}: {many:.0f} us a layer, {one:.0f} us with one"
    slower = probe["threads"] > 1 and many > SLOWDOWN * one
    if probe["threads"] > cores or slower:
        return Diagnosis(
            "threads", State.warning, detail, "speed: threads wait for each other", "export OMP_NUM_THREADS=1"
        )
    return Diagnosis("threads", State.ok, detail)


def disk(folder: Path, name: str) -> Diagnosis:
    """Free space and write access of a folder, or of the nearest one above it that exists."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free / 2**30
    detail, option = f"{free:.1f} GiB free in {place}", "run_root=<folder>" if "runs" in name else "dataset=<path>"
    if not os.access(place, os.W_OK):
        return Diagnosis(
            name, State.broken, f"{place} can't be written", "every stage", f"choose another: {option}", True
        )
    if free < LOW_DISK_GIB:
        state = State.broken if free < FULL_DISK_GIB else State.warning
        return Diagnosis(name, state, detail, "long runs and image datasets", f"free some, or {option} elsewhere", True)
    return Diagnosis(name, State.ok, detail, needed=True)


def gpu(probe: dict[str, Any]) -> Diagnosis:
    """NVIDIA card, driver and torch's view of them; `probe` is what TORCH printed."""
    lost = "GPU training, GPU physics (env.sim_backend=physx_cuda), TensorRT; everything runs on the CPU"
    driver = run_tool("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if driver is None:
        if not _has_nvidia_card():
            return Diagnosis(
                "GPU", State.missing, "no NVIDIA card", lost, "none on this machine; use one with an NVIDIA GPU"
            )
        return Diagnosis(
            "GPU", State.broken, "a card, but nvidia-smi gives no answer", lost, "sudo ubuntu-drivers install && sudo reboot"
        )  # fmt: skip
    detail = driver.replace("\n", "; ")
    if not probe.get("cuda"):
        built = (
            f"torch is built for CUDA {probe['built_for_cuda']}" if probe.get("built_for_cuda") else "torch has no CUDA"
        )
        fix = "pip install --force-reinstall torch (its PyPI wheel has CUDA), or update the driver"
        return Diagnosis("GPU", State.broken, f"{detail}; torch sees none ({built})", lost, fix)
    return Diagnosis("GPU", State.ok, f"{detail}; torch for CUDA {probe['built_for_cuda']} computes on it")


def _has_nvidia_card() -> bool:
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text(encoding="utf-8").strip() == _NVIDIA_VENDOR for vendor in vendors)


def vulkan() -> Diagnosis:
    """Vulkan devices of the system's loader, else the software renderer that environments may use by its json."""
    named = os.environ.get("VK_ICD_FILENAMES") or os.environ.get("VK_DRIVER_FILES")
    files = [str(path) for folder in _ICD_FOLDERS for path in sorted(Path(folder).glob("*.json"))]
    software = next((icd for icd in _SOFTWARE_ICDS if Path(icd).is_file()), None)
    probe = run_probe(VULKAN, timeout_s=30.0)
    if probe.get("devices"):
        return Diagnosis("Vulkan", State.ok, ", ".join(probe["devices"]))
    lost = "camera images and point clouds of simulators (state observations work without)"
    why = probe.get("error") or f"no device (code {probe['code']})"
    detail = f"{why}; drivers: {named or ', '.join(files) or 'none'}"
    if software:
        return Diagnosis(
            "Vulkan", State.warning, f"{detail}; software renderer {software}", "fast images", "none needed for tests"
        )
    return Diagnosis("Vulkan", State.missing, detail, lost, "sudo apt-get install chromium-common (software, slow)")


def tensorrt(probe: dict[str, Any]) -> Diagnosis:
    """`probe` is what TENSORRT printed."""
    if "error" in probe:
        fix = "pip install 'tensorrt>=10,<11' (needs an NVIDIA GPU)"
        return Diagnosis(
            "TensorRT", _absent(probe), probe["error"], "TensorRT engines; ONNX Runtime works without", fix
        )
    return Diagnosis("TensorRT", State.ok, probe["version"])


def openvino(probe: dict[str, Any]) -> Diagnosis:
    """`probe` is what OPENVINO printed."""
    if "error" in probe:
        lost = "OpenVINO on Intel CPUs and GPUs; ONNX Runtime's CPU provider works without"
        return Diagnosis("OpenVINO", _absent(probe), probe["error"], lost, "pip install openvino")
    return Diagnosis("OpenVINO", State.ok, f"{probe['version']}, devices {', '.join(probe['devices'])}")


def _absent(probe: dict[str, Any]) -> State:
    return State.missing if probe["error"].startswith("ModuleNotFoundError") else State.broken


def ros2() -> Diagnosis:
    """Whether ROS 2 is installed, sourced, and of the Python that runs this."""
    lost = "robots and cameras over ROS 2 (simulation works without)"
    installed = sorted(path.parent.name for path in Path("/opt/ros").glob("*/setup.bash"))
    distribution = os.environ.get("ROS_DISTRO")
    probe = run_probe(RCLPY, timeout_s=30.0)
    if "error" not in probe:
        return Diagnosis("ROS 2", State.ok, f"{distribution or 'unnamed distribution'}, rclpy from {probe['file']}")
    if distribution:
        return Diagnosis(
            "ROS 2", State.broken, f"{distribution} is sourced, but: {probe['error']}", lost,
            f"use the distribution's own Python (this is {platform.python_version()})",
        )  # fmt: skip
    if installed:
        return Diagnosis(
            "ROS 2",
            State.missing,
            f"{installed[-1]} is not sourced",
            lost,
            f"source /opt/ros/{installed[-1]}/setup.bash",
        )
    fix = "sudo apt install ros-jazzy-ros-base (first add packages.ros.org, see docs.ros.org/en/jazzy)"
    return Diagnosis("ROS 2", State.missing, "nothing in /opt/ros", lost, fix)


def cameras() -> Diagnosis:
    """Video devices of the kernel, and whether this user may read them."""
    devices = sorted(Path("/dev").glob("video*"))
    lost = "USB cameras of a real robot"
    if not devices:
        return Diagnosis(
            "cameras", State.missing, "no /dev/video*", lost, "plug one in; in a container, pass --device /dev/video0"
        )
    closed = [str(path) for path in devices if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        fix = "sudo usermod -aG video $USER, then log in again"
        return Diagnosis("cameras", State.broken, f"not readable: {', '.join(closed)}", lost, fix)
    return Diagnosis("cameras", State.ok, ", ".join(map(str, devices)))
