"""Slow, obvious references that the tests compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tiny import CHAT_TEMPLATE
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from streamkv.attention import KV, attend
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


def rotate(x_d: Tensor, position: int, inv_freq: Tensor) -> Tensor:
    """One vector, as complex numbers in float64."""
    half = x_d.shape[0] // 2
    pairs = torch.complex(x_d[:half].double(), x_d[half:].double())
    turned = pairs * torch.polar(torch.ones(half, dtype=torch.float64), position * inv_freq.double())
    return torch.cat((turned.real, turned.imag)).float()


def attend_stream_slowly(
    q_THd: Tensor, system: KV, stream: KV, inv_freq: Tensor, *, num_past: int, n_local: int
) -> Tensor:
    """(T, H, d). `stream` holds all tokens since the stream began; each pair is looked at by itself."""
    T, H, d = q_THd.shape
    heads_per_group = H // stream.keys_TGd.shape[1]
    S, out = system.num_tokens, torch.zeros(T, H, d)
    for t in range(T):
        now = S + num_past + t
        for h in range(H):
            g, scores, values = h // heads_per_group, [], []
            for s in range(S):
                distance = now - s if not n_local else min(now - s, n_local)
                query = rotate(q_THd[t, h], distance, inv_freq)
                scores.append(float(query @ system.keys_TGd[s, g]) / d**0.5)
                values.append(system.values_TGd[s, g])
            for j in range(num_past + t + 1):
                distance = num_past + t - j
                if not n_local or distance < n_local:
                    query = rotate(q_THd[t, h], distance, inv_freq)
                    scores.append(float(query @ stream.keys_TGd[j, g]) / d**0.5)
                    values.append(stream.values_TGd[j, g])
            out[t, h] = torch.tensor(scores).softmax(0) @ torch.stack(values)
    return out


def expanded_scores(q_THd: Tensor, keys_bNGd: Tensor, similarity: str) -> Tensor:
    """(b,): mean query and mean keys as vectors of all H heads, keys repeated; one block at a time."""
    heads_per_group, query = q_THd.shape[1] // keys_bNGd.shape[2], q_THd.mean(dim=0).flatten()
    scores = []
    for keys_NGd in keys_bNGd:
        key = torch.cat([head for head in keys_NGd.mean(dim=0) for _ in range(heads_per_group)])
        lengths = float(query.norm() * key.norm()) if similarity == "cosine" else 1.0
        scores.append(float(query @ key) / lengths)
    return torch.tensor(scores)


Number = TypeVar("Number", Fraction, float)


def count_at_mass(mass: Sequence[Number], p: Number) -> int:
    """The least k whose k first shares hold p."""
    held = p - p
    for k, share in enumerate(mass, start=1):
        held += share
        if held >= p:
            return k
    return len(mass)


def counts_by_search(masses: Sequence[Sequence[Fraction]], total: int) -> list[int] | None:
    """Counts that sum to total at one mass p, in exact arithmetic; None where ties leave no such p."""
    edges = {sum(mass[:k], Fraction(0)) for mass in masses for k in range(1, len(mass) + 1)}
    for p in sorted(edges):
        counts = [count_at_mass(mass, p) for mass in masses]
        if sum(counts) == total:
            return counts
    return None


def targets_by_bisection(
    scores: Sequence[Sequence[float]], total: int, lo: float, hi: float | None, *, zscore: bool
) -> list[float] | None:
    """Section 6 step by step: softmax, one mass by bisection, counts rescaled to lo and hi; None: no such mass."""
    masses = []
    for layer in scores:
        mean = math.fsum(layer) / len(layer)
        squares = math.fsum((s - mean) ** 2 for s in layer)
        deviation = (squares / (len(layer) - 1)) ** 0.5 if zscore and squares else 1.0
        raised = sorted((math.exp((s - mean) / deviation) for s in layer), reverse=True)
        masses.append([x / math.fsum(raised) for x in raised])
    low, high = 0.0, 1.0
    for _ in range(100):
        p = (low + high) / 2
        counts = [count_at_mass(mass, p) for mass in masses]
        if sum(counts) == total:
            break
        low, high = (p, high) if sum(counts) < total else (low, p)
    else:
        return None
    if hi is None:
        return [float(c) for c in counts]
    mean = total / len(counts)
    widest = [((lo if c < mean else hi) - mean) / (c - mean) for c in counts if c != mean]
    return [mean + min(widest, default=0.0) * (c - mean) for c in counts]


def closed_segments(
    features: Sequence[Tensor], min_frames: int, theta: float, max_seconds: float = 0.0, step_s: float = 2.0
) -> list[list[int]]:
    """Frame numbers of each semantic segment, the last one open; without merging. Frames last `step_s`."""
    means = [f.mean(dim=0) for f in features]
    runs: list[list[int]] = [[0]]
    for t in range(1, len(features)):
        similar = torch.cosine_similarity(means[t], means[t - 1], dim=0) > theta
        has_time = not max_seconds or step_s * (t + 1 - runs[-1][0]) <= max_seconds
        if has_time and (len(runs[-1]) < min_frames or similar):
            runs[-1].append(t)
        else:
            runs.append([t])
    return runs


def merged_frames(features: Sequence[Tensor], max_frames: int) -> list[tuple[Tensor, list[int]]]:
    """One segment's frames and what each is made of: whenever there are too many, all pairs are looked at."""
    frames: list[tuple[Tensor, list[int]]] = []
    for t, new in enumerate(features):
        frames.append((new, [t]))
        if len(frames) > max_frames:
            pairs = [
                float(torch.cosine_similarity(a.mean(dim=0), b.mean(dim=0), dim=0))
                for (a, _), (b, _) in pairwise(frames)
            ]
            i = pairs.index(max(pairs))
            (a, of_a), (b, of_b) = frames[i : i + 2]
            frames[i : i + 2] = [((a + b) / 2, of_a + of_b)]
    return frames


@torch.inference_mode()
def whole_forward_kv(model: VideoLLM, tokens_TD: Tensor) -> list[WholeLayer]:
    """Every layer of one plain causal forward, each token at its own position."""
    positions = torch.arange(len(tokens_TD))
    layers, hidden = [], tokens_TD
    for layer in range(model.num_layers):
        q, k, v = model.qkv(layer, hidden)
        layers.append(WholeLayer(q, k, v))
        attended = attend(model.rope(q, positions), model.rope(k, positions), v)
        hidden = model.finish_layer(layer, hidden, attended)
    return layers


class WholeLayer(NamedTuple):
    """Before rotary embedding."""

    queries_THd: Tensor
    keys_TGd: Tensor
    values_TGd: Tensor
