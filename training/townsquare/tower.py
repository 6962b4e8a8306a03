"""Trains the vision tower and the projector.

    python -m training.townsquare.tower --out out/tower.pt --minutes 12                      read the cells' labels
    python -m training.townsquare.tower --out out/eyes.pt --from out/tower.pt --like out/decoder/last.pt --minutes 8
                                      then speak the decoder's language: the cell vectors that it was trained with

Each of a frame's nine tokens must tell what its own cell shows.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from streamkv.townsquare.draw import draw_scene
from streamkv.townsquare.script import TRAIN_SEED_BASE, make_scenes
from training.townsquare.attributes import CELL_SLOTS, SLOTS, attribute_ids, cell_values
from training.townsquare.build import IMAGE_SIZE, build_model, build_tokenizer


def to_pixels(pictures: np.ndarray) -> Tensor:
    """(B, IMAGE_SIZE, IMAGE_SIZE, 3) uint8 to (B, 3, IMAGE_SIZE, IMAGE_SIZE) in -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_batch(rng: random.Random, size: int) -> tuple[np.ndarray, list[list[tuple[int, ...]]], np.ndarray]:
    """Pictures, cell values and attribute ids of random moments; things on their way on or off are avoided."""
    pictures, values, ids = [], [], []
    while len(pictures) < size:
        scene = make_scenes(rng, [10.0], TRAIN_SEED_BASE).scenes[0]
        at = rng.uniform(0.0, 9.9)
        if any(
            abs(at - edge) < 0.7 for t in scene.things for edge in (t.enter_s, t.leave_s) if 0 < edge < 10
        ):
            continue
        picture = Image.fromarray(draw_scene(scene, at))
        pictures.append(np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)))
        values.append(cell_values(scene, at))
        ids.append(attribute_ids(scene, at))
    return np.stack(pictures), values, np.stack(ids)


class Eyes(nn.Module):
    """The demo model's tower and projector, with reading heads that are thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_model(build_tokenizer())
        dim = self.model.config.text_config.hidden_size
        self.heads = nn.ModuleDict({slot: nn.Linear(dim, size) for slot, size in SLOTS.items()})

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 144, 144) to (B, 9, D)."""
        video = self.model.model.get_video_features(pixels[None]).pooler_output[0]
        return video[:-1].unflatten(0, (len(pixels), -1))  # the last one is image_newline


def read_loss(
    eyes: Eyes, tokens: Tensor, values: list[list[tuple[int, ...]]], right: dict[str, list[float]]
) -> Tensor:
    loss = torch.zeros(())
    for cell, slots in enumerate(CELL_SLOTS):
        for k, slot in enumerate(slots):
            truth = torch.tensor([v[cell][k] for v in values])
            guess = eyes.heads[slot](tokens[:, cell])
            loss = loss + cross_entropy(guess, truth)
            right.setdefault(slot, []).append((guess.argmax(-1) == truth).float().mean().item())
    return loss / sum(map(len, CELL_SLOTS))


@torch.no_grad()
def turn_towards(eyes: Eyes, table: Tensor, rng: random.Random, frames: int = 1600) -> None:
    """Composes the projector's last layer with the linear map that best takes its tokens to the cell vectors.

    Pooling is linear too, so that the map may stand before it.
    """
    tokens, aims = [], []
    for _ in range(frames // 64):
        pictures, _, ids = draw_batch(rng, 64)
        tokens.append(eyes(to_pixels(pictures)).flatten(0, 1))
        aims.append(table[torch.from_numpy(ids)].sum(-2).flatten(0, 1))
    x, y = torch.cat(tokens).double(), torch.cat(aims).double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    ridge = 1e-3 * x.pow(2).mean() * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    turn = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    print(
        json.dumps(
            {"apart after turning": round(((x @ turn - y).pow(2).mean() / y.pow(2).mean()).item(), 4)}
        ),
        flush=True,
    )
    last = eyes.model.model.multi_modal_projector.linear_2
    last.bias.copy_(((last.bias.double() - x_mean) @ turn + y_mean).float())
    last.weight.copy_((turn.T @ last.weight.double()).float())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", dest="source")
    parser.add_argument("--like", help="a decoder's checkpoint, whose cell vectors are the aim")
    args = parser.parse_args()
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    eyes = Eyes()
    if args.source:
        eyes.load_state_dict(torch.load(args.source))
    table = torch.load(args.like)["eyes.table.weight"] if args.like else None
    if table is not None:
        turn_towards(eyes, table, rng)
    params = [p for n, p in eyes.named_parameters() if "language_model" not in n and "lm_head" not in n]
    optimizer = torch.optim.AdamW(params, lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
    began, step, said = time.time(), 0, time.time()
    right: dict[str, list[float]] = {}
    while (share := (time.time() - began) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = (
                args.lr * min(1, (step + 1) / 100) * (1 if share < 0.6 else max(0.02, (1 - share) / 0.4))
            )
        pictures, values, ids = draw_batch(rng, args.frames)
        pixels = to_pixels(pictures)
        pixels = pixels * (1 + 0.05 * torch.randn(len(pixels), 1, 1, 1)) + 0.03 * torch.randn_like(pixels)
        tokens = eyes(pixels)
        loss, apart = read_loss(eyes, tokens, values, right), torch.zeros(())
        if table is not None:
            aim = table[torch.from_numpy(ids)].sum(-2)
            apart = (tokens - aim).pow(2).mean() / aim.var()
            loss = apart
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        if time.time() - said > 30:
            accuracy = {k: round(sum(v[-60:]) / len(v[-60:]), 3) for k, v in right.items()}
            print(
                json.dumps(
                    {
                        "min": round((time.time() - began) / 60, 1),
                        "step": step,
                        "loss": round(loss.item(), 4),
                        "apart": round(apart.item(), 4),
                        **accuracy,
                    }
                ),
                flush=True,
            )
            torch.save(eyes.state_dict(), args.out)
            said = time.time()
    torch.save(eyes.state_dict(), args.out)


if __name__ == "__main__":
    main()
