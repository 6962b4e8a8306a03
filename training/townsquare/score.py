"""Scores the shipped model alone, whole clip in context, with `transformers`' own generate on real H.264.

    python -m training.townsquare.score --scenes 1 4 --clips 40

Clips are of test seeds, which training never drew. Each question is asked by itself; an answer counts when the whole
of it is right. Beside each kind stands the share of its commonest answer.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from streamkv.townsquare import is_correct, make_questions, write_video
from streamkv.townsquare.script import make_scenes
from training.townsquare.bank import read_pictures
from training.townsquare.build import FRAME_TOKENS
from training.townsquare.clips import SAMPLE_S
from training.townsquare.ship import CHECKPOINT
from training.townsquare.tower import to_pixels


@torch.inference_mode()
def score(
    folder: Path, scenes: int, clips: int, questions: int, seed: int
) -> dict[str, list[tuple[bool, str]]]:
    """By kind: was it right, and what was the truth."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for k in range(clips):
        rng = random.Random(seed + k)
        world = make_scenes(rng, [float(rng.randint(8, 14)) for _ in range(scenes)], seed + k)
        with tempfile.TemporaryDirectory() as tmp:
            path = write_video(world, Path(tmp) / "clip.mp4")
            pictures = read_pictures(path, np.arange(0.0, world.duration_s - 0.2, SAMPLE_S).tolist())
        pixels = to_pixels(pictures)[None]
        video = "<video> " * (len(pictures) * FRAME_TOKENS + 1)
        for q in make_questions(world, questions, k):
            messages = [
                {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": q.question}]}
            ]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(
                text.replace("<video>\n", video), return_tensors="pt", return_token_type_ids=False
            )
            out = model.generate(**inputs, pixel_values_videos=pixels, max_new_tokens=8, do_sample=False)
            said = tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            found[q.kind].append((is_correct(said, q.answer), q.answer))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--scenes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=500_000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for scenes in args.scenes:
        found = score(args.model, scenes, args.clips, args.questions, args.seed)
        everything = [ok for rows in found.values() for ok, _ in rows]
        print(f"{scenes} scenes: {sum(everything) / len(everything):.3f} of {len(everything)} answers")
        for kind, rows in sorted(found.items()):
            common = Counter(truth for _, truth in rows).most_common(1)[0][1] / len(rows)
            right = sum(ok for ok, _ in rows) / len(rows)
            print(f"  {kind:10} {right:.3f}   commonest answer {common:.3f}   n={len(rows)}")


if __name__ == "__main__":
    main()
