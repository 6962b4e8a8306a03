"""The demo model's decoder as it is trained, with what stands for its tower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from streamkv.townsquare.script import COLOURS, KINDS, MAX_THINGS, SIGN_LETTERS, WEATHERS, ZONES
from training.townsquare.attributes import NUM_ATTRIBUTES, OFFSETS, SLOTS
from training.townsquare.build import FRAME_TOKENS, build_model, build_tokenizer
from training.townsquare.clips import IDS, NEWLINE, PREFIX, Batch

NAME_SIZES = (len(SIGN_LETTERS), 100, 24, 60, len(KINDS), len(COLOURS), len(WEATHERS), MAX_THINGS + 1)
"""Letter, number, hour, minute, kind, colour, weather, count."""
FRAME_HEADS, MENTION_HEADS, COUNT_HEAD = (0, 1, 2, 3, 6, 7), (0, 1, 2, 3, 4, 5), 7
FRAME_NAMES_AT, MENTIONS_AT = 2, 3
"""Layers at whose door a cell must know its frame's sign and clock, and the last prompt token what was mentioned."""


class Described(nn.Module):
    """Stands for the tower: a cell's feature is the sum of its attributes' vectors, with noise.

    The vectors start as those of the words, as a pretrained projector's do: a cell with a red bus by the gate starts
    as red + bus + gate. The clock's hour is turned, to tell it from the minute.
    """

    def __init__(self, words: Tensor):
        super().__init__()
        self.table = nn.EmbeddingBag(NUM_ATTRIBUTES, words.shape[1], mode="sum", padding_idx=0)
        nn.init.normal_(self.table.weight, std=float(words.std()))
        turn = torch.linalg.qr(torch.randn(words.shape[1], words.shape[1]))[0]
        named = {
            "kind": KINDS,
            "colour": COLOURS,
            "weather": WEATHERS,
            "letter": [c.lower() for c in SIGN_LETTERS],
        }
        with torch.no_grad():
            rows = self.table.weight
            for slot, names in named.items():
                for k, name in enumerate(names):
                    rows[OFFSETS[slot] + k] = words[IDS[name]]
            for k, zone in enumerate(ZONES):
                rows[OFFSETS["cell"] + 3 + k] = words[IDS[zone]]
            tens, ones = number_parts(words)
            for slot, part in (
                ("sign_tens", tens),
                ("sign_ones", ones),
                ("minute_tens", tens),
                ("minute_ones", ones),
                ("hour_tens", tens @ turn),
                ("hour_ones", ones @ turn),
            ):
                size = SLOTS[slot]
                rows[OFFSETS[slot] : OFFSETS[slot] + size] = part[:size]
            rows[0] = 0

    def forward(self, attributes: Tensor) -> Tensor:
        """(B, F, 9, 5) ids to (B, F, 9, D)."""
        features = self.table(attributes.flatten(0, -2)).unflatten(0, attributes.shape[:-1])
        return features + 0.05 * torch.randn_like(features) if self.training else features


def number_parts(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two tables (10, D) of tens and of ones, whose sums are about the vectors of the words 00 to 99."""
    grid = words[IDS["00"] : IDS["99"] + 1].unflatten(0, (10, 10))
    tens = grid.mean(1)
    return tens, grid.mean(0) - tens.mean(0)


def start_words(model: nn.Module) -> Tensor:
    """Spreads the word vectors, makes each number the sum of its digits, and returns the table (vocabulary, D)."""
    words: Tensor = model.get_input_embeddings().weight
    with torch.no_grad():
        nn.init.normal_(words, std=0.12)
        tens, ones = torch.randn(2, 10, words.shape[1]) * 0.09
        words[IDS["00"] : IDS["99"] + 1] = (tens[:, None] + ones[None]).flatten(0, 1)
    return words.detach()


def start_alike(model: nn.Module, gain: float = 2.0) -> None:
    """In each layer and head group, one query head starts as its key head: a token first attends to its likes.

    Looking a thing up by its word is what every answer needs; from random weights it is the slowest step to learn.
    """
    text = model.config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    group = text.num_attention_heads // text.num_key_value_heads
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            keys = layer.self_attn.k_proj.weight.unflatten(0, (-1, head_dim)) * gain
            layer.self_attn.k_proj.weight.copy_(keys.flatten(0, 1))
            queries = layer.self_attn.q_proj.weight.unflatten(0, (-1, head_dim))
            queries[::group] = keys


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@contextmanager
def caught_queries_and_keys(language_model: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The outputs of every layer's query and key projection (B, T, heads * d) of the forwards inside."""
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    hooks = []
    for layer in language_model.layers:
        hooks.append(
            layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: queries.append(out.float()))
        )
        hooks.append(
            layer.self_attn.k_proj.register_forward_hook(lambda _m, _i, out: keys.append(out.float()))
        )
    try:
        yield queries, keys
    finally:
        for hook in hooks:
            hook.remove()


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention in three matrix products: with a mask, and backwards, faster on a CPU than the fused one."""
    size, num_heads, length, dim = query.shape
    shape = (size, key.shape[1], -1, dim)
    scores = (query * scaling).reshape(shape) @ key.transpose(-1, -2)
    weights = (scores.view(size, num_heads, length, -1) + attention_mask.to(scores.dtype)).softmax(-1)
    out = weights.to(value.dtype).reshape(size, key.shape[1], -1, weights.shape[-1]) @ value
    return out.view(size, num_heads, length, dim).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", plain_attention)
AttentionMaskInterface.register("plain", sdpa_mask)


class Trainee(nn.Module):
    """The demo model's decoder with whatever gives its frames' features."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_model(build_tokenizer())
        start_alike(self.model)
        self.model.set_attn_implementation({"text_config": "plain"})
        self.eyes: nn.Module = Described(start_words(self.model))
        text = self.model.config.text_config
        self.head_dim = text.hidden_size // text.num_attention_heads
        self.num_kv_heads = text.num_key_value_heads
        self.names = nn.ModuleList(nn.Linear(text.hidden_size, size) for size in NAME_SIZES)
        self.contrast_scale = nn.Parameter(torch.zeros(text.num_hidden_layers))
        self.half = False
        """Train with bfloat16 matrix products: several times faster on a core that has them, far slower on others."""

    def embed(self, batch: Batch) -> Tensor:
        """(B, T, D): system prompt, video and questions in their places."""
        tokens = batch.tokens
        embeds = self.model.get_input_embeddings()(tokens.clamp(min=0))
        embeds = torch.where((tokens == NEWLINE)[..., None], self.model.model.image_newline, embeds)
        frames = self.eyes(batch.attributes)
        frames = torch.einsum("bfg,bgnd->bfnd", batch.mean_of, frames)
        at = len(PREFIX)
        video = frames.flatten(1, 2)
        return torch.cat([embeds[:, :at], video, embeds[:, at + video.shape[1] :]], dim=1)

    def forward(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (B, T, D), and for each layer the scores (Q, B, F) of mean queries against frames."""
        lm = self.model.model.language_model
        bias = torch.zeros(batch.mask.shape).masked_fill_(~batch.mask, torch.finfo(torch.float32).min)
        self.at_door: dict[int, Tensor] = {}

        def keep(layer: int, args: tuple[Tensor, ...]) -> None:
            self.at_door[layer] = args[0].float()

        doors = [
            lm.layers[k].register_forward_pre_hook(lambda _m, args, k=k: keep(k, args))
            for k in (FRAME_NAMES_AT, MENTIONS_AT)
        ]
        with (
            caught_queries_and_keys(lm) as (queries, keys),
            torch.autocast("cpu", torch.bfloat16, enabled=self.half and self.training),
        ):
            hidden = lm(
                inputs_embeds=self.embed(batch),
                attention_mask=bias,
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
        for door in doors:
            door.remove()
        self.queries, self.keys = queries, keys
        return hidden.float(), [self._scores(batch, q, k) for q, k in zip(queries, keys, strict=True)]

    def _grouped(self, queries: Tensor) -> Tensor:
        """(Q, H * d) to (Q, G * d): summed over the heads of each group."""
        return queries.unflatten(-1, (self.num_kv_heads, -1, self.head_dim)).sum(2).flatten(1)

    def attention(self, batch: Batch, layer: int, clip: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Log of a token's attention on video in all (len(place), H), and among the video's tokens (.., H, F * 9)."""
        queries, keys = self.queries[layer], self.keys[layer]
        cos, sin = self.model.model.language_model.rotary_emb(keys, batch.positions)
        q = queries[clip, place].unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        q = _turn(q, cos[clip, place][:, None, None], sin[clip, place][:, None, None])
        k = _turn(keys.unflatten(-1, (self.num_kv_heads, self.head_dim)), cos[:, :, None], sin[:, :, None])
        scores = torch.einsum("qghd,qtgd->qght", q, k[clip]).flatten(1, 2) * self.head_dim**-0.5
        everything = scores.masked_fill(~batch.mask[clip, 0, place][:, None], -1e9).log_softmax(-1)
        video = everything[..., len(PREFIX) : len(PREFIX) + batch.focus.shape[1]]
        mass = video.logsumexp(-1)
        return mass, video - mass[..., None]

    def _scores(self, batch: Batch, queries: Tensor, keys: Tensor) -> Tensor:
        size, num_frames = batch.frame_scene.shape
        at = len(PREFIX)
        frames = keys[:, at : at + num_frames * FRAME_TOKENS].unflatten(1, (num_frames, FRAME_TOKENS)).mean(2)
        mean_query = torch.einsum("qt,qtd->qd", batch.query_of, queries[batch.clip_of])
        return (self._grouped(mean_query) @ frames.flatten(0, 1).T).unflatten(1, (size, num_frames))
