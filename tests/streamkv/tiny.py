"""A tiny random LLaVA-OneVision in a folder in Hugging Face format; every axis has its own size, so a swap fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 3, 6, 2, 8  # hidden 48
IMAGE_SIZE, PATCH_SIZE = 30, 6  # 5 x 5 patches, pooled to 3 x 3: 9 tokens a frame
FRAME_TOKENS = 9
WORDS = "what is the colour of red blue green bus dog where when did it leave how many a one two now before".split()
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_checkpoint(folder: Path, *, seed: int = 0, num_layers: int = NUM_LAYERS, **text: Any) -> Path:
    """Writes config, weights, tokenizer and preprocessor settings; returns the folder."""
    tokenizer = _tokenizer()
    config = _config(tokenizer, num_layers, text)
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():  # the usual 0.02 attends to all alike: differences would drown
        for name, weight in model.named_parameters():
            scale = 0.1 if "norm" in name or name.endswith("bias") else 0.25
            weight.add_(torch.randn_like(weight) * scale)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor()))
    return folder


def random_frames(
    count: int, *, seed: int = 0, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def _tokenizer() -> PreTrainedTokenizerFast:
    names = [*SPECIAL, "user", "assistant", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<image>", "<video>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _config(
    tokenizer: PreTrainedTokenizerFast, num_layers: int, text: dict[str, Any]
) -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=NUM_HEADS * HEAD_DIM,
            intermediate_size=52,
            num_hidden_layers=num_layers,
            num_attention_heads=NUM_HEADS,
            num_key_value_heads=NUM_KV_HEADS,
            max_position_embeddings=4096,
            **text,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _preprocessor() -> dict[str, Any]:
    return {
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.45, 0.4],
        "image_std": [0.5, 0.3, 0.25],
    }
