"""Slow, obvious references that the tests compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tiny import CHAT_TEMPLATE
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from streamkv.models import VideoLLM


class Generated(NamedTuple):
    token_ids: list[int]  # the answer's, with the end token if it came
    logits: Tensor  # (vocabulary,) for the first of them


def generate_with_transformers(
    folder: Path, model: VideoLLM, frames: Sequence[np.ndarray], question: str, max_new_tokens: int
) -> Generated:
    """The whole prompt as one text, the pictures as one video, `generate` from transformers."""
    hf = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = [{"type": "video"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    num_video_tokens = len(frames) * model.geometry.frame_tokens + 1  # the newline's
    ids = tokenizer(text.replace("<video>", "<video>" * num_video_tokens), return_tensors="pt")
    config = {"mean": [0.5, 0.45, 0.4], "std": [0.5, 0.3, 0.25]}
    pixels = torch.tensor(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    out = hf.generate(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        pixel_values_videos=((pixels - mean) / std)[None],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer = out.sequences[0, ids["input_ids"].shape[1] :].tolist()
    return Generated(answer, out.logits[0][0])
