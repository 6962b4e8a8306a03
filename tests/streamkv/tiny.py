"""A tiny random LLaVA-OneVision in Hugging Face format, and data. Each axis has its size: a swap fails."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from streamkv.types import Geometry, LayerBlocks, Segment, SegmentKV

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 3, 6, 2, 8  # hidden 48
IMAGE_SIZE, PATCH_SIZE = 30, 6  # 5 x 5 patches, pooled to 3 x 3: 9 tokens a frame
FRAME_TOKENS = 9
WORDS = [
    *("what", "is", "the", "colour", "of", "red", "blue", "green", "bus", "dog", "where", "when", "did"),
    *("it", "leave", "how", "many", "a", "one", "two", "now", "before"),
]
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    num_layers: int = NUM_LAYERS,
    dtype: torch.dtype = torch.float32,
    **text: Any,
) -> Path:
    """Writes config, weights, tokenizer and preprocessor settings. `text`: more settings of the decoder."""
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
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor()))
    return folder


def random_frames(
    count: int, *, seed: int = 0, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def segment_of(features_nND: Tensor, *, segment_no: int = 0, start_s: float = 0.0) -> Segment:
    """A closed segment of frames that each last 2 seconds."""
    n = len(features_nND)
    spans = tuple((start_s + 2.0 * i, start_s + 2.0 * (i + 1)) for i in range(n))
    return Segment(segment_no, features_nND, spans, (1.0,) * n, n, spans[-1][1])


def random_segment_kv(
    geometry: Geometry,
    segment_no: int,
    *,
    num_frames: int = 4,
    kept: Sequence[int] | None = None,
    seed: int = 0,
) -> SegmentKV:
    """Random blocks; `kept` counts those of each layer (default: all frames); the last is the summary."""
    generator = torch.Generator().manual_seed(1000 * seed + segment_no)
    shape = (geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim)
    start_s, layers = 8.0 * segment_no, []
    for count in kept or [num_frames] * geometry.num_layers:
        keys, values = torch.randn(2, count, *shape, generator=generator)
        spans = tuple((start_s + 2.0 * i, start_s + 2.0 * i + 2) for i in range(count))
        layers.append(LayerBlocks(keys, values, tuple(range(count)), spans))
    return SegmentKV(
        segment_no=segment_no,
        start_s=start_s,
        end_s=start_s + 8.0,
        num_frames=num_frames,
        num_source_frames=num_frames,
        resume_s=start_s + 8.0,
        layers=tuple(layers),
        summary_vectors=torch.stack([b.mean_keys()[-1] for b in layers]),
    )


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
