"""Stand-ins with the signatures of OpenVLA, OpenVLA-OFT and Octo behind our server scripts, in a process of their own.

    python tests/support/vla_stand_ins.py openvla [--record FILE]

Their answers are sums that a test can repeat: no weights of the real models are to be had here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "teacher_servers"))

PROMPT = "Put the CARROT on the plate"


def numbers(pixels: np.ndarray, prompt: str) -> np.ndarray:
    """Seven numbers of a picture and a text: its first pixel, its last one, the text's length."""
    return np.concatenate([pixels[0, 0], pixels[-1, -1], [len(prompt)]]).astype(np.float32) / 256


class OpenVlaModel:
    """predict_action of OpenVLA's remote code."""

    def predict_action(self, input_ids: Any = None, unnorm_key: str | None = None, **kwargs: Any) -> np.ndarray:
        assert unnorm_key == "bridge_orig"
        assert kwargs.pop("do_sample") is False
        return numbers(kwargs["pixel_values"], input_ids)


def openvla() -> Any:
    import serve_openvla

    def processor(text: str, images: Any) -> dict[str, Any]:
        return {"input_ids": text, "pixel_values": np.asarray(images)}

    return serve_openvla.OpenVla(processor, OpenVlaModel(), unnorm_key="bridge_orig", turned=True)


def openvla_oft() -> Any:
    import serve_openvla_oft

    def act(own: dict[str, Any], prompt: str) -> list[np.ndarray]:
        first = numbers(own["full_image"], prompt)
        return [first, first + numbers(own["wrist_image"], ""), first + own["state"].sum()]

    images = {"full_image": "observation/image", "wrist_image": "observation/wrist_image"}
    return serve_openvla_oft.OpenVlaOft(
        act, images=images, state="observation/state", turned=True, resize=lambda pixels, size: pixels[:4, :4]
    )


class OctoModel:
    """create_tasks and sample_actions of octo.model.octo_model.OctoModel."""

    def create_tasks(self, goals: Any = None, texts: Any = None) -> dict[str, Any]:
        return {"language_instruction": list(texts)}

    def sample_actions(
        self, observations: Any, tasks: Any, unnormalization_statistics: Any = None, rng: Any = None
    ) -> np.ndarray:
        assert observations["timestep_pad_mask"].tolist() == [[True]]
        assert rng == 7
        assert observations["image_primary"].shape[:2] == (1, 1)
        first = numbers(observations["image_primary"][0, 0], tasks["language_instruction"][0])
        first = first * unnormalization_statistics["std"] + unnormalization_statistics["mean"]
        return np.stack([first, first + 1])[None]


def octo() -> Any:
    import serve_octo

    serve_octo.SIZES["image_primary"] = 8
    statistics = {"mean": np.float32([0, 0, 0, 0, 0, 0, 1]), "std": np.float32([2] * 7)}
    return serve_octo.Octo(
        OctoModel(), statistics=statistics, images={"image_primary": "observation/image"}, random_key=7
    )


def main() -> None:
    import openpi_wire

    parser = openpi_wire.options("stand-ins")
    parser.add_argument("model", choices=("openvla", "openvla_oft", "octo"))
    args = parser.parse_args()
    model = {"openvla": openvla, "openvla_oft": openvla_oft, "octo": octo}[args.model]()
    openpi_wire.serve(model, SimpleNamespace(model=args.model).__dict__, port=args.port, record=args.record)


if __name__ == "__main__":
    main()
