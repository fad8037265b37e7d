"""A pi0 of transformers' class, tiny and with random weights, written as a checkpoint's folder. Needs transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ("<pad>", "<eos>", "<bos>", "<unk>", "<image>", "move", "to", "the", "red", "green", "disc")
STATISTICS = {
    "state_mean": [0.1, 0.0],
    "state_std": [0.5, 1.0],
    "actions_mean": [0.1, -0.1],
    "actions_std": [0.5, 0.25],
}


def write(folder: Path) -> None:
    """config.json, model.safetensors, tokenizer files, processor_config.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PI0Config, PI0ForConditionalGeneration, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    text = {
        "model_type": "gemma", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 16,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 8, "image_size": 24, "vision_use_head": False,
    }  # fmt: skip
    vlm = {
        "model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 32,
        "image_token_id": WORDS.index("<image>"),
    }  # fmt: skip
    torch.manual_seed(0)
    model = PI0ForConditionalGeneration(
        PI0Config(
            vlm_config=vlm,
            dit_config=dict(text),
            chunk_size=3,
            max_state_dim=4,
            max_action_dim=4,
            num_inference_steps=3,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(STATISTICS))
