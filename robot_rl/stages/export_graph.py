"""From a traced module to one .onnx file: what every file of `export` has in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from robot_rl.deploy.onnx_policy import FORMAT


def example_inputs(policy: Any) -> list[torch.Tensor]:
    """Zeros for a policy's observation keys, in their order: (2, To, ...), float32 or uint8.

    A batch of 2: torch.export makes a batch of 1 static (pytorch #133653).
    """
    specs = [policy.spec.observation[key] for key in policy.config.observation_keys]
    return [
        torch.zeros(
            2, policy.config.history, *spec.shape, dtype=torch.uint8 if spec.dtype == "uint8" else torch.float32
        )
        for spec in specs
    ]


def write_graph(
    graph: torch.nn.Module, inputs: Mapping[str, torch.Tensor], path: Path, *, metadata: Mapping[str, str]
) -> None:
    """Trace a module to one ONNX file with a dynamic batch and one output, `actions`.

    Args:
        graph: takes the inputs in their order.
        inputs: name -> example, a batch of at least 2.
        path: of the file.
        metadata: JSON texts, which go into it.
    """
    import onnx

    batch = torch.export.Dim("batch", min=1, max=4096)
    # `verbose=False`: the exporter prints its progress with emoji otherwise.
    program = torch.onnx.export(
        graph.eval(), tuple(inputs.values()), input_names=list(inputs), output_names=["actions"],
        dynamic_shapes=(tuple({0: batch} for _ in inputs),), dynamo=True, optimize=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for key, text in ({"format": FORMAT} | dict(metadata)).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))
