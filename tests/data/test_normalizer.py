"""The normaliser against numbers worked out by hand, and the traps of constant elements."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.errors import DataError

STANDARD, RANGE = NormalizerMode.standard, NormalizerMode.range


def fitted() -> Normalizer:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(50, 4, 3, generator=generator) * torch.tensor([1.0, 1e-3, 0.3]) + torch.tensor([0.1, 7.0, -2.0])
    action = torch.rand(50, 2, generator=generator) * torch.tensor([3.0, 1e-6]) + torch.tensor([0.0, 0.7])
    return Normalizer.fit({"state": state, "action": action}, {"state": STANDARD, "action": RANGE})


def test_standard_by_hand():
    # mean 4, population std sqrt((9+1+1+9)/4) = sqrt(5)
    normalizer = Normalizer.fit({"x": torch.tensor([[1.0], [3.0], [5.0], [7.0]])}, {"x": STANDARD})
    z = normalizer.apply("x", torch.tensor([[1.0], [4.0], [4.0 + 2 * 5**0.5]]))
    torch.testing.assert_close(z, torch.tensor([[-3 / 5**0.5], [0.0], [2.0]]))
    torch.testing.assert_close(normalizer.invert("x", torch.tensor([[1.0]])), torch.tensor([[4 + 5**0.5]]))


def test_standard_clamps_to_five_and_range_does_not_clamp():
    data = torch.tensor([[0.0], [2.0]])
    far = torch.tensor([[100.0], [-100.0]])
    standard = Normalizer.fit({"x": data}, {"x": STANDARD})
    assert standard.apply("x", far).flatten().tolist() == [5.0, -5.0]
    ranged = Normalizer.fit({"x": data}, {"x": RANGE})
    assert ranged.apply("x", far).flatten().tolist() == [99.0, -101.0]


def test_range_by_hand():
    # [-2, 6] -> [-1, 1]: z = (x - 2) / 4
    normalizer = Normalizer.fit({"a": torch.tensor([[-2.0], [6.0], [1.0]])}, {"a": RANGE})
    assert normalizer.apply("a", torch.tensor([[-2.0], [6.0], [4.0]])).flatten().tolist() == [-1.0, 1.0, 0.5]
    assert normalizer.invert("a", torch.tensor([[-1.0], [1.0], [0.5]])).flatten().tolist() == [-2.0, 6.0, 4.0]


def test_floor_of_std_is_absolute():
    # std 0.001 is below the floor of 0.02: a millimetre stays small
    data = torch.tensor([[0.499], [0.501]])
    normalizer = Normalizer.fit({"x": data}, {"x": STANDARD})
    torch.testing.assert_close(normalizer.apply("x", data), torch.tensor([[-0.05], [0.05]]), atol=1e-5, rtol=0)
    assert normalizer.near_constant("x") == (0,)
    finer = Normalizer.fit({"x": data}, {"x": STANDARD}, std_floor=1e-4)
    torch.testing.assert_close(finer.apply("x", data), torch.tensor([[-1.0], [1.0]]), atol=1e-3, rtol=0)
    assert finer.near_constant("x") == ()


@pytest.mark.parametrize("mode", [STANDARD, RANGE])
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6 + 0.0625])
def test_constant_maps_to_zero_and_back_exactly(mode, constant):
    data = torch.full((1003, 1), constant)
    normalizer = Normalizer.fit({"x": data}, {"x": mode})
    assert torch.equal(normalizer.apply("x", data), torch.zeros_like(data))
    assert torch.equal(normalizer.invert("x", torch.zeros(5, 1)), torch.full((5, 1), constant))
    assert normalizer.near_constant("x") == (0,)


def test_near_constant_in_range_mode_ignores_input_and_output():
    data = torch.tensor([[0.5, 0.0], [0.5 + 5e-5, 1.0]])
    normalizer = Normalizer.fit({"a": data}, {"a": RANGE})
    assert normalizer.near_constant("a") == (0,)
    assert normalizer.apply("a", torch.tensor([9.0, 0.5])).tolist() == [0.0, 0.0]
    back = normalizer.invert("a", torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
    assert float(back[0, 0]) == float(back[1, 0]) == pytest.approx(0.500025, abs=1e-7)


def test_round_trip_inside_the_clamp():
    normalizer = fitted()
    x = torch.tensor([[0.4, 7.001, -2.5], [-1.0, 6.99, -1.8]])
    torch.testing.assert_close(normalizer.invert("state", normalizer.apply("state", x)), x)


def test_float64_arithmetic_in_fit():
    # In float32 the mean of these is off by whole units; the answer is known: alternating 16777216 +- 1 over 2e5 rows.
    data = torch.tensor([[16777215.0], [16777216.0]]).repeat(100_000, 1)
    normalizer = Normalizer.fit({"x": data}, {"x": STANDARD})
    assert float(normalizer.get_buffer("x__scale")) == pytest.approx(0.5, rel=1e-6)


def test_json_and_state_dict_are_bit_exact():
    normalizer = fitted()
    from_text = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json(), allow_nan=False)))
    file = io.BytesIO()
    torch.save(normalizer.state_dict(), file)
    file.seek(0)
    shell = Normalizer.identity({"state": 3, "action": 2})
    shell.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)) * 30
    for other in (from_text, shell):
        assert other.keys == normalizer.keys
        for name, buffer in normalizer.state_dict().items():
            assert torch.equal(other.state_dict()[name], buffer)
            assert other.state_dict()[name].dtype == buffer.dtype
        assert torch.equal(other.apply("state", x), normalizer.apply("state", x))
        assert other.near_constant("state") == normalizer.near_constant("state") == (1,)
        assert other.near_constant("action") == (1,)


def test_buffers_are_float32_and_no_parameters():
    normalizer = fitted()
    assert not list(normalizer.parameters())
    dtypes = {name.split("__")[1]: b.dtype for name, b in normalizer.named_buffers()}
    assert dtypes == dict.fromkeys(("offset", "gain", "scale", "limit"), torch.float32) | {"narrow": torch.bool}


def test_identity_changes_nothing():
    x = torch.tensor([[1e30, -3.0]])
    identity = Normalizer.identity({"x": 2})
    assert torch.equal(identity.apply("x", x), x)
    assert torch.equal(identity.invert("x", x), x)
    assert identity.near_constant("x") == ()


def test_parent_modules_can_still_initialise_their_children():
    seen: list[str] = []
    nn.Sequential(nn.Linear(2, 2), fitted()).apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Linear", "Normalizer", "Sequential"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_fit_names_key_and_element_of_a_bad_number(bad):
    data = torch.zeros(10, 4)
    data[6, 2] = bad
    with pytest.raises(DataError, match=r"'state', element 2, sample 6"):
        Normalizer.fit({"state": data}, {"state": STANDARD})


def test_refusals():
    x = torch.zeros(3, 2)
    with pytest.raises(DataError, match=r"Did you mean 'state'\? Valid: action, state"):
        fitted().apply("stat", x)
    with pytest.raises(DataError, match="Valid: action, state"):
        fitted().invert("reward", x)
    with pytest.raises(DataError, match=r"'action', 'state'.*modes for"):
        Normalizer.fit({"state": x, "action": x}, {"state": STANDARD})
    with pytest.raises(DataError, match="at least one sample"):
        Normalizer.fit({"state": torch.zeros(0, 2)}, {"state": STANDARD})
    broken = fitted().to_json()
    broken["state"]["gain"].pop()
    with pytest.raises(DataError, match=r"'state'.*same length"):
        Normalizer.from_json(broken)


class RoundTrip(nn.Module):
    """Both directions in one graph."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__()
        self.normalizer = normalizer

    def forward(self, state: torch.Tensor, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.normalizer.apply("state", state), self.normalizer.invert("action", latent)


@pytest.mark.parametrize("dynamo", [False, True])
def test_exports_to_onnx(dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = RoundTrip(fitted()).eval()
    generator = torch.Generator().manual_seed(2)
    example = (torch.randn(2, 3, generator=generator), torch.randn(2, 2, generator=generator))
    file = io.BytesIO()
    batch = {0: torch.export.Dim("batch")}
    shapes = {"dynamic_shapes": (batch, batch)} if dynamo else {"dynamic_axes": {"state": {0: "b"}, "latent": {0: "b"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, example, None if dynamo else file, input_names=["state", "latent"], dynamo=dynamo, **shapes
        )
        if dynamo:
            program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    state, latent = torch.randn(7, 3, generator=generator) * 50, torch.randn(7, 2, generator=generator)
    got = session.run(None, {"state": state.numpy(), "latent": latent.numpy()})
    expected = module(state, latent)
    assert float(expected[0].abs().max()) == 5.0  # the clamp is in the graph
    for ours, theirs in zip(expected, got, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-6, atol=1e-6)
