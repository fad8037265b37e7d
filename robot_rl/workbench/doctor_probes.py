"""Code that `doctor` runs in processes of their own, because drivers hang and crash, and packages break on import.

Each text prints one JSON object on its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# Times a batch through one layer, as a policy does it, with one thread and with torch's default.
TORCH = """
import json, time, torch
torch_threads = torch.get_num_threads()
x, w = torch.randn(64, 256), torch.randn(256, 256)
def best():
    times = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(50): torch.relu(x @ w)
        times.append(time.perf_counter() - began)
    return 1e6 * sorted(times)[len(times) // 2] / 50
many = best()
torch.set_num_threads(1)
one = best()
cuda = torch.cuda.is_available()
out = {"version": torch.__version__, "threads": torch_threads, "us_one_thread": one, "us_default_threads": many,
       "built_for_cuda": torch.version.cuda, "cuda": cuda, "gpus": []}
if cuda:
    out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    out["sum_on_gpu"] = float(torch.ones(8, device="cuda").sum())
print(json.dumps(out))
"""

# Devices of the system's Vulkan loader; struct layouts are those of vulkan_core.h (VkPhysicalDeviceProperties: five
# uint32, then a name of 256 bytes).
VULKAN = """
import ctypes, json
lib = ctypes.CDLL("libvulkan.so.1")
class Create(ctypes.Structure):
    _fields_ = [("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32),
                ("app", ctypes.c_void_p), ("layers", ctypes.c_uint32), ("layer_names", ctypes.c_void_p),
                ("extensions", ctypes.c_uint32), ("extension_names", ctypes.c_void_p)]
instance, count, create = ctypes.c_void_p(), ctypes.c_uint32(), Create(type=1)
code = lib.vkCreateInstance(ctypes.byref(create), None, ctypes.byref(instance))
names = []
if code == 0:
    lib.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * max(1, count.value))()
    lib.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    for device in devices[: count.value]:
        block = ctypes.create_string_buffer(4096)
        lib.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), block)
        names.append(ctypes.string_at(ctypes.addressof(block) + 20).decode(errors="replace"))
print(json.dumps({"code": code, "devices": names}))
"""

# A provider that is listed may still fail to load: only a session tells.
ONNXRUNTIME = """
import json, onnxruntime
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
loads = {}
for provider in onnxruntime.get_available_providers():
    try:
        loads[provider] = onnxruntime.InferenceSession(model, options, providers=[provider]).get_providers()[0] == provider
    except Exception:
        loads[provider] = False
print(json.dumps({"version": onnxruntime.__version__, "providers": loads}))
"""

TENSORRT = "import json, tensorrt; print(json.dumps({'version': tensorrt.__version__}))"
OPENVINO = (
    "import json, openvino; "
    "print(json.dumps({'version': openvino.__version__, 'devices': openvino.Core().available_devices}))"
)
RCLPY = "import json, rclpy; print(json.dumps({'file': rclpy.__file__}))"

# The environment that the stages use when none is named, whatever that is: one reset and one action.
DEFAULT_ENV = """
import json, time, torch
from robot_rl.runs.config import build, load_config
from robot_rl.stages.evaluate import EvaluateConfig
from robot_rl.types import ActionChunk
config = load_config(EvaluateConfig, [], name="evaluate")
env = build(config.env, num_envs=1, history=1)
env.reset([0])
began = time.perf_counter()
for _ in range(10):
    env.step(ActionChunk(actions=torch.zeros(1, 1, env.spec.action.size), execute=1))
print(json.dumps({"env": env.spec.env_id, "steps_per_s": 10 / (time.perf_counter() - began)}))
"""


def run_probe(code: str, *, timeout_s: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a probe printed, or {"error": one line} when it crashed, hung or printed nothing.

    Args:
        code: Python text whose last printed line is a JSON object.
        timeout_s: after which the process is killed.
        environment: variables to add.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=timeout_s,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {timeout_s:g} s"}
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": errors[-1]}
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        return {"error": f"unreadable answer {lines[-1]!r}"}
    return answer if isinstance(answer, dict) else {"error": f"unreadable answer {lines[-1]!r}"}


def run_tool(*words: str, timeout_s: float = 20.0) -> str | None:
    """Output of a program, or None when it is missing, fails or hangs."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
