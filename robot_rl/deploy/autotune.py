"""Which runtime is fastest for one exported file on this machine: `runtime=auto`.

Every candidate opens the file, must give the actions of onnxruntime on one thread, and answers seeded observations at a
batch of 1 for its share of two seconds. The choice is logged with the times of all, and kept as
<engine_cache>/autotune/<sha256 of the key>.json; the key is everything that it depends on: the file, the machine, the
versions, the precision and the largest batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.deploy.engine_cache import Precision, file_sha256
from robot_rl.deploy.onnx_checks import check_parity, parity_hint, read_graph, seeded_feed
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.deploy.tensorrt_policy import EngineOptions, Runtime, open_graph
from robot_rl.errors import DeployError

log = logging.getLogger(__name__)

FORMAT = 1
BUDGET_S, ROUNDS, WARM_UP_CALLS, SEEDS = 2.0, 3, 2, 8
# A thread pool spins for a while behind its last call, and would take the next candidate's core.
REST_S = 0.02
# Within this, the candidate that comes first wins: fewer threads leave more to the loop.
ALIKE = 1.05


@dataclass(frozen=True)
class Candidate:
    """A runtime and its number of threads."""

    runtime: Runtime
    threads: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.runtime.value}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Trial:
    """What a candidate did.

    Attributes:
        runtime, threads: the candidate.
        p50_ms, p99_ms: of one answer at batch 1; None when it did not run.
        calls: that were timed.
        max_error: difference to onnxruntime on one thread, action units, the largest (of int8: the root mean square); None when it
            did not run.
        error: why it did not run, or may not act; "" otherwise.
    """

    runtime: str
    threads: int
    p50_ms: float | None = None
    p99_ms: float | None = None
    calls: int = 0
    max_error: float | None = None
    error: str = ""


def tuned_policy(path: str | Path, *, options: EngineOptions, budget_s: float = BUDGET_S) -> OnnxPolicy:
    """The policy in `path` on the fastest runtime, measured now or remembered.

    Args:
        path: an exported .onnx file.
        options: cache, precision, largest batch and allowed difference.
        budget_s: of all timed calls together; loading and parity come on top.

    Raises:
        DeployError: not an exported policy of ours, no candidate runs, or the cache can't be written.
    """
    key = tuning_key(path, options)
    file = Path(options.cache).expanduser() / "autotune" / f"{_digest(key)}.json"
    remembered = read_choice(file, key)
    if remembered is not None:
        try:
            policy = _opened(path, remembered, options)
            log.info("%s: %s, as measured before (%s)", path, remembered.name, file)
            return policy
        except DeployError as error:
            log.warning("%s: the runtime that was fastest does not run any more, measuring again: %s", path, error)
    trials = measure(path, candidates(), options=options, budget_s=budget_s)
    chosen = choose(trials, where=str(path))
    log.info("%s: runtime=auto takes %s\n%s", path, chosen.name, as_text(trials))
    write_choice(file, {"format": FORMAT, "key": key, "choice": asdict(chosen), "trials": [asdict(t) for t in trials]})
    return _opened(path, chosen, options)


def tuning_key(path: str | Path, options: EngineOptions) -> dict[str, Any]:
    """Everything that a choice depends on, as JSON types.

    Raises:
        DeployError: there is no such file.
    """
    if not Path(path).is_file():
        raise DeployError(
            str(path), expected="an .onnx file", got="nothing there", hint="Run `robot-rl export policy=<run>` first."
        )
    packages = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
    return {
        "model_sha256": file_sha256(path),
        "machine": {"cpu": _cpu_name(), "cores": _cores(), "gpu": os.path.exists("/dev/nvidia0")},
        "versions": {name: _version(name) for name in packages},
        "precision": options.precision.value,
        "max_batch": options.max_batch,
        "tolerance": options.allowed_difference({}),  # what an int8 file needs stands in the file, so in its hash
    }


def candidates() -> tuple[Candidate, ...]:
    """What may be installed here and is worth a try, in order of preference: onnxruntime and OpenVINO with 1, 2, 4, ...
    threads up to the cores that this process may use, and TensorRT where there is a GPU.
    """
    counts = [1]
    while counts[-1] < _cores():
        counts.append(min(2 * counts[-1], _cores()))
    runtimes = [Runtime.onnx] + ([Runtime.openvino] if _version("openvino") else [])
    found = [Candidate(runtime, count) for count in counts for runtime in runtimes]
    if _version("tensorrt") and os.path.exists("/dev/nvidia0"):
        found.append(Candidate(Runtime.tensorrt, 1))
    return tuple(found)


def measure(
    path: str | Path, tried: Sequence[Candidate], *, options: EngineOptions, budget_s: float
) -> tuple[Trial, ...]:
    """Open, compare and time each candidate; several short rounds, so that a slow moment falls on all of them.

    Raises:
        DeployError: the file itself is not an exported policy.
    """
    reference, facts = OnnxPolicy(path), read_graph(path)
    opened: list[Any] = []
    for candidate in tried:
        try:
            if candidate.runtime is Runtime.onnx and options.precision is not Precision.fp32:
                continue  # it has no other
            policy = _opened(path, candidate, options)
            errors = getattr(policy, "parity", None) or check_parity(
                reference.session, policy.session, facts=facts, spec=reference.spec, max_batch=options.max_batch,
                tolerance=options.allowed_difference(reference.metadata), where=f"{path}: {candidate.name}",
                hint=parity_hint(candidate.runtime.value, options.precision.value, instead="another runtime"),
            )  # fmt: skip
            opened.append((candidate, policy.session, max(errors.values())))
        except DeployError as error:
            opened.append((candidate, None, str(error)))
    feeds = [seeded_feed(facts, reference.spec, batch=1, seed=seed) for seed in range(SEEDS)]
    running = [session for _, session, _ in opened if session is not None]
    share = budget_s / (ROUNDS * max(len(running), 1))
    seconds: dict[int, list[float]] = {id(session): [] for session in running}
    for _ in range(ROUNDS):
        for session in running:
            time.sleep(REST_S)
            seconds[id(session)] += _timed(session, feeds, share)
    return tuple(
        _trial(candidate, seconds[id(session)], outcome)
        if session is not None
        else Trial(candidate.runtime.value, candidate.threads, error=outcome)
        for candidate, session, outcome in opened
    )


def choose(trials: Sequence[Trial], *, where: str) -> Candidate:
    """The fastest by the median; among those within 5 % of it, the first.

    Raises:
        DeployError: none ran.
    """
    ran = [trial for trial in trials if trial.p50_ms is not None]
    if not ran:
        raise DeployError(
            f"{where}: runtime=auto", expected="a runtime that gives the actions of onnxruntime",
            got="; ".join(trial.error for trial in trials) or "no candidate",
            hint="Name one: runtime=onnx; for precision=bf16 openvino must be installed.",
        )  # fmt: skip
    best = min(trial.p50_ms for trial in ran if trial.p50_ms is not None)
    first = next(trial for trial in ran if trial.p50_ms is not None and trial.p50_ms <= ALIKE * best)
    return Candidate(Runtime(first.runtime), first.threads)


def as_text(trials: Sequence[Trial]) -> str:
    """A line for each trial."""
    lines = []
    for trial in trials:
        name = Candidate(Runtime(trial.runtime), trial.threads).name
        if trial.p50_ms is None:
            lines.append(f"  {name:22} not used: {trial.error}")
        else:
            lines.append(
                f"  {name:22} p50 {trial.p50_ms:.3f} ms, p99 {trial.p99_ms:.3f} ms, {trial.calls} calls, differs by {trial.max_error:.1g}"
            )
    if not _version("openvino"):
        lines.append("  openvino is not installed: pip install 'robot-rl[openvino]' adds it as a candidate")
    return "\n".join(lines)


def read_choice(file: Path, key: dict[str, Any]) -> Candidate | None:
    """The choice that was kept for exactly this key; None when there is none, or (with a log line) a damaged one."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["key"] != key:
            raise ValueError("it was written for something else")
        choice = document["choice"]
        candidate = Candidate(Runtime(choice["runtime"]), int(choice["threads"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is not used, measuring again: %s", file, error or type(error).__name__)
        return None
    return candidate


def write_choice(file: Path, document: dict[str, Any]) -> None:
    """Keep a choice, whole or not at all.

    Raises:
        DeployError: the folder or file can't be written.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=file.stem[:16], suffix=".tmp", dir=file.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(document, out, indent=2)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, file)
    except OSError as error:
        raise DeployError(
            str(file), expected="a file for the choice of runtime=auto", got=str(error),
            hint="Set engine_cache to a folder that you may write, or name a runtime.",
        ) from error  # fmt: skip


def _opened(path: str | Path, candidate: Candidate, options: EngineOptions) -> OnnxPolicy:
    return open_graph(path, runtime=candidate.runtime, threads=candidate.threads, options=options)


def _timed(session: Any, feeds: Sequence[dict[str, Any]], share_s: float) -> list[float]:
    """Seconds of each answer, until `share_s` are over; at least one."""
    for call in range(WARM_UP_CALLS):
        session.run(["actions"], feeds[call % len(feeds)])
    seconds: list[float] = []
    while not seconds or sum(seconds) < share_s:
        feed = feeds[len(seconds) % len(feeds)]
        began = time.perf_counter()
        session.run(["actions"], feed)
        seconds.append(time.perf_counter() - began)
    return seconds


def _trial(candidate: Candidate, seconds: list[float], max_error: float) -> Trial:
    p50_ms, p99_ms = (1e3 * float(np.percentile(seconds, q)) for q in (50, 99))
    return Trial(candidate.runtime.value, candidate.threads, p50_ms, p99_ms, len(seconds), max_error)


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model", "CPU part"))]
    return names[0] if names else "unknown"
