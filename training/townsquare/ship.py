"""Puts the trained tower and decoder together as the Hugging Face folder that the project ships.

python -m training.townsquare.ship --eyes out/eyes.pt --decoder out/joint/last.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.townsquare.build import save
from training.townsquare.tower import Eyes
from training.townsquare.trainee import Trainee

CHECKPOINT = Path(__file__).resolve().parents[2] / "streamkv" / "townsquare" / "checkpoint"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--eyes", required=True)
    parser.add_argument("--decoder", required=True)
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    args = parser.parse_args()
    eyes, trainee = Eyes(), Trainee()
    eyes.load_state_dict(torch.load(args.eyes))
    trainee.load_state_dict(torch.load(args.decoder), strict=False)
    model = trainee.model
    model.model.vision_tower = eyes.model.model.vision_tower
    model.model.multi_modal_projector = eyes.model.model.multi_modal_projector
    save(model.half(), args.out)
    print(f"{args.out}: {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
