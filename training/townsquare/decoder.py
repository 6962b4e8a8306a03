"""Trains the decoder: answers, and mean queries that find the frames of their scene.

    python -m training.townsquare.decoder --out out/decoder --minutes 40             from described cells, no pictures
    python -m training.townsquare.decoder --out out/joint --from out/decoder/last.pt --bank out/bank.pt ...

Two losses: cross-entropy of whole answers, and in each layer a contrast of the question's mean query against the
mean keys of all frames in the batch, both before rotary embedding, which is what retrieval will do. Pretrained
Video-LLMs have the second from their training; a model this small has to be taught it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from training.townsquare.bank import Bank, BankEyes
from training.townsquare.clips import Batch, ClipSpec, make_batch, make_clip, show_retrieved
from training.townsquare.losses import answer_loss, contrast_loss, looking_loss, naming_loss, pointing_loss
from training.townsquare.trainee import Trainee

LOOKED_UP = ("colour", "place", "existence")
CURRICULUM = (  # accuracy on such clips at which the next ones start, latest share of the run for that, clips
    (0.92, 0.3, ClipSpec(scenes=(1, 1), frames=(1, 1), questions=8, kinds=LOOKED_UP, refs=("none", "thing"))),
    (0.92, 0.5, ClipSpec(scenes=(1, 1), frames=(1, 1), questions=8)),
    (0.90, 0.62, ClipSpec(scenes=(2, 4), frames=(1, 2), questions=12)),
    (2.00, 1.00, ClipSpec(scenes=(1, 8), frames=(1, 3), questions=14, summary=0.5, drop=0.3)),
)
LONG = ClipSpec(scenes=(12, 36), frames=(1, 2), questions=14, drop=0.7, window=8)
"""Many scenes that differ by a minute: mean queries learn to find one of them, answers to be read among few."""
LONG_ASKS: tuple[dict[str, tuple[str, ...]], ...] = (
    {},
    {"refs": ("thing",)},
    {"kinds": ("order",)},
    {"kinds": ("order",)},
    {"refs": ("clock",)},
    {"kinds": ("number", "time", "count", "weather"), "refs": ("thing", "clock")},
)
"""What the questions of such a batch are about: what is hard to find among many gets its share."""
HARD = (("time", "number", "weather", "count", "order"), ("count", "order"))
"""Kinds that some batches of several scenes are about alone: they take longest to learn."""


@torch.no_grad()
def evaluate(
    trainee: Trainee, spec: ClipSpec, clips: int, seed: int, make=make_batch
) -> dict[str, dict[str, float]]:
    """Whole answers right, by kind, beside the commonest answer's share; and retrieval by layer.

    An answer counts when every one of its tokens is the model's first choice given the ones before it, which is
    what greedy decoding says when it is right.
    """
    trainee.eval()
    rng = random.Random(seed)
    right: dict[str, list[bool]] = defaultdict(list)
    said: dict[str, list[str]] = defaultdict(list)
    found: dict[str, list[bool]] = defaultdict(list)
    for _ in range(max(1, clips // 16)):
        batch = make(rng, spec, 16)
        hidden, scores = trainee(batch)
        if spec.scenes[0] >= LONG.scenes[0]:
            show_retrieved(rng, batch, scores)
            hidden, scores = trainee(batch)
        choice = trainee.model.lm_head(hidden).argmax(-1)
        for g, (b, first, end) in enumerate(batch.answers):
            ok = bool((choice[b, first - 1 : end - 1] == batch.targets[b, first - 1 : end - 1]).all())
            right[batch.kinds[g]].append(ok)
            said[batch.kinds[g]].append(batch.questions[g].answer)
            if batch.rival[g].any():
                seen = batch.rival[g] | batch.positive[g]
                for layer, score in enumerate(scores):
                    top = score[g].masked_fill(~seen, -1e30).argmax()
                    found[f"layer{layer}"].append(bool(batch.positive[g].flatten()[top]))
    trainee.train()

    def mean(values: list[bool]) -> float:
        return round(sum(values) / max(1, len(values)), 3)

    by_kind = {k: mean(v) for k, v in right.items()}
    baseline = {k: round(max(v.count(a) for a in set(v)) / len(v), 3) for k, v in said.items()}
    overall = mean([ok for v in right.values() for ok in v])
    return {
        "accuracy": {"all": overall, **by_kind},
        "baseline": baseline,
        "top1": {k: mean(v) for k, v in found.items()},
    }


def learning_rate(args: argparse.Namespace, step: int, share: float) -> float:
    """Warmed up, even, then falling to a thirtieth; `share` of the run is over."""
    fall = 1 if share < args.decay else max(0.03, (1 - share) / (1 - args.decay))
    return float(args.lr * min(1, (step + 1) / args.warmup) * fall)


def next_clips(rng: random.Random, args: argparse.Namespace, stage: int, size: int) -> tuple[ClipSpec, int]:
    """What the next batch is about, and how many clips it has."""
    spec = CURRICULUM[stage][2]
    asked = replace(spec, kinds=rng.choice(HARD)) if spec.scenes[1] > 1 and rng.random() < args.hard else spec
    if stage == len(CURRICULUM) - 1 and rng.random() < 0.4:
        asked = replace(asked, scenes=(1, 4), frames=(2, 6))
    if stage == len(CURRICULUM) - 1 and rng.random() < args.long:
        return replace(LONG, **rng.choice(LONG_ASKS)), max(3, size - 1)
    return asked, size


def mean_losses(sums: dict[str, float]) -> dict[str, float]:
    """Means since the last report."""
    every = {"loss": sums["answers"], "contrast": sums["contrast"], "names": sums["names"]}
    watched = {name: sums[name] for name in ("looks", "peeks", "points")}
    return {name: round(total / sums["n"], 3) for name, total in every.items()} | {
        name: round(total / max(1, sums["watched"]), 3) for name, total in watched.items()
    }


def scores_of(trainee: Trainee, spec: ClipSpec, make_held) -> dict[str, dict]:
    """On clips as they come now; where they have several scenes, on long ones and on four scenes too."""
    scores: dict[str, dict] = {"now": evaluate(trainee, spec, 48, 7, make_held)}
    if spec.scenes[1] > 1:
        four = ClipSpec(scenes=(4, 4), frames=(1, 1) if spec.frames[1] < 3 else (3, 3), questions=12)
        scores["long"] = evaluate(trainee, LONG, 32, 9, make_held)
        scores["long"].pop("baseline")
        scores["four"] = evaluate(trainee, four, 32, 8, make_held)["accuracy"]
    return scores


def train(trainee: Trainee, args: argparse.Namespace, make=make_batch, make_held=make_batch) -> None:
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    params = [p for p in trainee.parameters() if p.requires_grad]
    decay = [p for p in params if p.ndim > 1]
    other = [p for p in params if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    rng = random.Random(args.seed)
    began, step, last_eval, last_save, stage = time.time(), 0, time.time(), time.time(), args.stage
    sums: dict[str, float] = defaultdict(float)
    while (share := (time.time() - began) / (60 * args.minutes)) < 1:
        enough, latest, spec = CURRICULUM[stage]
        if share > latest:
            stage += 1
            continue
        size = args.clips if spec.scenes[1] <= 3 else max(4, args.clips // 2)
        rate = learning_rate(args, step, share)
        for group in optimizer.param_groups:
            group["lr"] = rate
        asked, size = next_clips(rng, args, stage, size)
        batch = make(rng, asked, size)
        if asked.scenes[0] >= LONG.scenes[0] and rng.random() < args.retrieved:
            with torch.no_grad():
                show_retrieved(rng, batch, trainee(batch)[1])
        hidden, scores = trainee(batch)
        answers = answer_loss(trainee, batch, hidden)
        contrast = (
            sum(contrast_loss(batch, s, trainee.contrast_scale[i]) for i, s in enumerate(scores))
            / max(1, len(scores))
            if spec.scenes[1] > 1 or not spec.refs
            else answers * 0
        )
        names = naming_loss(trainee, batch)
        loss = answers + args.contrast * contrast + args.naming * names
        if step % args.watch_every == 0:  # where attention goes: dear to compute, and soon learnt
            points = pointing_loss(trainee, batch)
            looks, peeks = looking_loss(trainee, batch)
            loss = loss + args.pointing * points + args.looking * (looks + 0.5 * peeks)
            sums["points"] += points.item()
            sums["peeks"] += peeks.item()
            sums["looks"] += looks.item()
            sums["watched"] += 1
        sums["names"] += names.item()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        sums["answers"] += answers.item()
        sums["contrast"] += contrast.item()
        sums["n"] += 1
        if time.time() - last_eval > args.eval_s:
            report = {
                "min": round((time.time() - began) / 60, 1),
                "step": step,
                "share": round(share, 3),
                "lr": rate,
                **mean_losses(sums),
                **scores_of(trainee, spec, make_held),
            }
            print(json.dumps(report), flush=True)
            stage += report["now"]["accuracy"]["all"] >= enough
            sums.clear()
            last_eval = time.time()
        if time.time() - last_save > 120:
            torch.save(trainee.state_dict(), out / "last.pt")
            last_save = time.time()
    torch.save(trainee.state_dict(), out / "last.pt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--stage", type=int, default=0, help="part of the curriculum to start at")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--contrast", type=float, default=0.8)
    parser.add_argument(
        "--described", type=float, default=0.15, help="with a bank: share of batches that are described"
    )
    parser.add_argument(
        "--table", help="with a bank: the checkpoint whose cell vectors the tower was turned to"
    )
    parser.add_argument("--hard", type=float, default=0.3, help="share of batches of the hard kinds alone")
    parser.add_argument(
        "--decay", type=float, default=0.5, help="share of the run at which the rate begins to fall"
    )
    parser.add_argument("--long", type=float, default=0.6, help="at the end: share of clips of many scenes")
    parser.add_argument(
        "--retrieved", type=float, default=0.6, help="share of those whose questions see what they find"
    )
    parser.add_argument("--looking", type=float, default=0.4)
    parser.add_argument("--naming", type=float, default=0.5)
    parser.add_argument("--pointing", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--watch-every", type=int, default=2, help="steps between the losses of attention's place"
    )
    parser.add_argument(
        "--half", action="store_true", help="bfloat16 matrix products, for a core with avx512_bf16"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-s", type=float, default=45)
    parser.add_argument("--bank", nargs="+", help="features of real video instead of described cells")
    parser.add_argument("--held", type=int, default=240, help="scenes of each bank kept for the reports")
    parser.add_argument("--mixed", type=float, default=0.8, help="share of the bank's clips that are mixed")
    parser.add_argument("--from", dest="source", help="a checkpoint to continue")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    trainee = Trainee()
    trainee.half = args.half
    if args.source:
        trainee.load_state_dict(torch.load(args.source), strict=False)
    make = make_held = make_batch
    if args.bank:
        bank = Bank(*args.bank, part=slice(None, -args.held), mixed=args.mixed)
        held = Bank(*args.bank, part=slice(-args.held, None))
        seen, described = BankEyes(bank.features), trainee.eyes
        if args.table:
            described.table.weight.data = torch.load(args.table)["eyes.table.weight"]
        described.requires_grad_(False)

        def make(rng: random.Random, spec: ClipSpec, size: int) -> Batch:
            """Of the bank, or described as it is: the bank alone has too few signs, and they are learnt by heart."""
            is_described = rng.random() < args.described
            trainee.eyes = described if is_described else seen
            return make_batch(rng, spec, size, make_clip if is_described else bank.clip)

        def make_held(rng: random.Random, spec: ClipSpec, size: int) -> Batch:
            trainee.eyes = seen
            return make_batch(rng, spec, size, held.clip)

    train(trainee, args, make, make_held)


if __name__ == "__main__":
    main()
