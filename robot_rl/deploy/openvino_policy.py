"""An exported policy on a CPU by OpenVINO: numpy and openvino, no torch.

As with every runtime that is not onnxruntime on the CPU, it must first give the same actions as that one, on seeded inputs
at several batch sizes, each time it is loaded (onnx_checks.check_parity).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.deploy.engine_cache import TOLERANCE, Precision
from robot_rl.deploy.onnx_checks import allowed_difference, arithmetic, check_parity, parity_hint, read_graph
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.errors import DeployError

log = logging.getLogger(__name__)

INSTALL = "pip install 'robot-rl[openvino]' (or pip install 'openvino>=2025,<2027')"
# OpenVINO's own names; without the hint a CPU that has bfloat16 uses it, and actions change by 1e-2.
PRECISION_HINT = {Precision.fp32: "f32", Precision.bf16: "bf16"}


class OpenVinoSession:
    """A graph compiled by OpenVINO for the CPU: at a batch of 1 with fixed shapes, at others with a free batch.

    Fixed shapes let it fold and plan more. The second form is compiled when it is first needed. Several threads may call `run`;
    they take turns.

    Args:
        path: an .onnx file.
        threads: of one inference.
        precision: fp32 or bf16.

    Raises:
        DeployError: no openvino package, a file that it does not take, or a precision that it does not have.
    """

    def __init__(self, path: str | Path, *, threads: int, precision: Precision = Precision.fp32) -> None:
        if precision not in PRECISION_HINT:
            raise DeployError(
                f"{path}: precision", expected="fp32 or bf16 for runtime=openvino", got=precision.value,
                hint="CPUs have no fp16 arithmetic; fp16 is for runtime=tensorrt.",
            )  # fmt: skip
        openvino = load_openvino(str(path))
        self.version = str(openvino.__version__)
        self._path, self._core = str(path), openvino.Core()
        self._properties = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": PRECISION_HINT[precision], "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        self._requests: dict[bool, Any] = {}
        # All clients of a server share this session, and a request keeps its answer in itself.
        self._lock = threading.Lock()
        self._request(alone=True)

    def run(self, names: Sequence[str], feed: dict[str, Array]) -> list[Array]:
        """Outputs `names` for the inputs `feed`, numpy, batch first."""
        batch = len(next(iter(feed.values())))
        with self._lock:
            # Compiled on the first use of another batch: a robot never asks for one.
            results = self._request(alone=batch == 1).infer(feed, share_inputs=True)
            return [np.array(results[name]) for name in names]

    def _request(self, *, alone: bool) -> Any:
        if alone not in self._requests:
            try:
                model = self._core.read_model(self._path)
                if alone:
                    model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
                self._requests[alone] = self._core.compile_model(model, "CPU", self._properties).create_infer_request()
            except RuntimeError as error:  # openvino raises nothing else
                raise DeployError(
                    self._path, expected="a model that OpenVINO can compile", got=(str(error).splitlines() or ["?"])[-1],
                    hint="Use runtime=onnx, and report it with the version of openvino.",
                ) from error  # fmt: skip
        return self._requests[alone]


class OpenVinoPolicy(OnnxPolicy):
    """A policy from one .onnx file, run by OpenVINO.

    Args:
        path: the file.
        threads: of one inference.
        precision: fp32 or bf16, of what is not int8.
        tolerance: largest allowed difference to onnxruntime on the CPU, action units; None: the precision's (TOLERANCE), or what
            an int8 file needs (onnx_checks.allowed_difference).
        max_batch: largest number of observations at once in the comparison; a larger one runs too.

    Raises:
        DeployError: not an exported policy of ours, no openvino, or actions that differ by more than `tolerance`.
    """

    runtime = "openvino"

    def __init__(
        self, path: str | Path, *, threads: int = 1, precision: Precision = Precision.fp32,
        tolerance: float | None = None, max_batch: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(path, threads=threads)
        facts, session = read_graph(path), OpenVinoSession(path, threads=threads, precision=precision)
        allowed = allowed_difference(self.metadata, TOLERANCE[precision]) if tolerance is None else tolerance
        self.parity = check_parity(
            self.session, session, facts=facts, spec=self.spec, max_batch=max_batch, tolerance=allowed,
            where=f"{self.path}: parity", hint=parity_hint("openvino", precision.value),
        )  # fmt: skip
        kind, worst = "rms" if facts.is_quantised else "at most", max(self.parity.values())
        log.info("%s: OpenVINO differs by %s %.2g action units", self.path, kind, worst)
        # onnxruntime's session ends here: from now on OpenVINO acts.
        self.session = session
        self.provider = f"OpenVINO {session.version.split('-')[0]} {arithmetic(self.metadata, precision.value)}"


def load_openvino(where: str) -> Any:
    """The module. Raises DeployError naming the pip command when it is not installed or does not load."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise DeployError(where, expected="openvino installed", got=f"no module {error.name}", hint=INSTALL) from error
    except ImportError as error:
        raise DeployError(
            where, expected="openvino to load", got=str(error), hint=f"Reinstall it: {INSTALL}"
        ) from error
    return openvino
