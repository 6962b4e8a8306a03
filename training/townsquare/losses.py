"""What the decoder is trained for: answers, finding, and where it looks while it answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.townsquare.build import FRAME_TOKENS
from training.townsquare.clips import IGNORE, PREFIX, Batch
from training.townsquare.trainee import (
    COUNT_HEAD,
    FRAME_HEADS,
    FRAME_NAMES_AT,
    MENTION_HEADS,
    MENTIONS_AT,
    Trainee,
)

ANSWER_STEPS = 3
POINTING_LAYERS = (3, 4, 5)
"""Layers in which the last prompt token looks at what is asked."""
LOOKING_LAYERS = (3, 4, 5)


def contrast_loss(batch: Batch, scores: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of finding a frame of the right scene among its rivals, mean over questions with rivals."""
    some = batch.rival.flatten(1).any(1)
    logits = (scores * (scale.exp() * 0.1)).flatten(1)[some]
    rivals = batch.rival.flatten(1)[some]
    positives = batch.positive.flatten(1)[some]
    low = torch.finfo(torch.float32).min
    everything = logits.masked_fill(~(rivals | positives), low).logsumexp(1)
    best = torch.where(positives, everything[:, None] - logits, torch.zeros(())).sum(1) / positives.sum(1)
    return best.mean()


def naming_loss(trainee: Trainee, batch: Batch) -> Tensor:
    """Cells behind the clock must know their frame's sign and clock; the last prompt token what was mentioned."""
    at, num_frames = len(PREFIX), batch.frame_scene.shape[1]
    cells = trainee.at_door[FRAME_NAMES_AT][:, at : at + num_frames * FRAME_TOKENS]
    cells = cells.unflatten(1, (num_frames, FRAME_TOKENS))[:, :, 2:]
    last = trainee.at_door[MENTIONS_AT][batch.clip_of, batch.last]
    losses = []
    for column, k in enumerate(FRAME_HEADS):
        known = cells[:, :, -1:] if k == COUNT_HEAD else cells  # only the last cell has seen all things
        truth = batch.frame_names[:, :, None, column].expand(known.shape[:3])
        losses.append(
            cross_entropy(trainee.names[k](known).flatten(0, 2), truth.flatten(), ignore_index=IGNORE)
        )
    for column, k in enumerate(MENTION_HEADS):
        if (batch.mentions[:, column] != IGNORE).any():
            losses.append(
                cross_entropy(trainee.names[k](last), batch.mentions[:, column], ignore_index=IGNORE)
            )
    return sum(losses[1:], losses[0]) / len(losses)


def pointing_loss(trainee: Trainee, batch: Batch) -> Tensor:
    """While it answers, some of the heads should look at the cells that show what is asked."""
    some = batch.focus.any(1)
    ends = torch.tensor([end for _, _, end in batch.answers])
    losses = []
    for step in range(ANSWER_STEPS):
        place = torch.minimum(batch.last + step, ends - 2)[some]
        for layer in POINTING_LAYERS:
            _, log_weights = trainee.attention(batch, layer, batch.clip_of[some], place)
            mass = log_weights.masked_fill(~batch.focus[some][:, None], -1e9).logsumexp(-1)
            losses.append((math.log(mass.shape[1]) - mass.logsumexp(1)).clamp(max=20).mean())
    return torch.stack(losses).mean()


def looking_loss(trainee: Trainee, batch: Batch) -> tuple[Tensor, Tensor]:
    """While it answers, every head of the late layers should look at frames of the right scenes alone; and those of
    the early layers, which cannot know yet which they are, at none: what they fetch is everybody's answer."""
    ends = torch.tensor([end for _, _, end in batch.answers])
    own = batch.positive[torch.arange(len(ends)), batch.clip_of].repeat_interleave(FRAME_TOKENS, 1)
    late, early = [], []
    for step in range(ANSWER_STEPS):
        place = torch.minimum(batch.last + step, ends - 2)
        for layer in range(len(trainee.queries)):
            mass, log_weights = trainee.attention(batch, layer, batch.clip_of, place)
            if layer in LOOKING_LAYERS:
                right = log_weights.masked_fill(~own[:, None], -1e9).logsumexp(-1)
                late.append(-right.clamp(min=-20).mean())
            else:
                early.append(-torch.log1p(-mass.exp().clamp(max=0.999)).mean())
    return torch.stack(late).mean(), torch.stack(early).mean()


def answer_loss(trainee: Trainee, batch: Batch, hidden: Tensor) -> Tensor:
    learnt = batch.targets != IGNORE
    return cross_entropy(trainee.model.lm_head(hidden[learnt]), batch.targets[learnt])
