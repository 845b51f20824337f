"""Pictures by the scenes of PAD3R's ladder from a camera that the video lacks: a row per object, a column per rung.

    python -m benchmarks.studies.pad3r_pictures [--coverage 40] [--turn 60] [--out docs/results/pad3r.png]

Columns: a frame of the video, the truth from ``--turn`` degrees beside it, and the same by each rung's scene of seed 0,
all at the middle time. A rung whose scene is not in ``runs`` is left white.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.pad3r import RUNS, STEPS_OF_LADDER, clip_of
from benchmarks.studies import pad3r_clips as clips
from benchmarks.studies.pad3r_scores import compare, held_out_pictures
from four_d.inference import load
from four_d.scene import DeformableScene

SIDE, GAP, TITLE = 160, 4, 16
MOMENT = clips.MOMENTS // 2


@torch.no_grad()
def row(name: str, coverage: int, turn: float) -> list[Image.Image | None]:
    """The pictures of one object; None where a rung was not fitted."""
    frames = sorted((clip_of(name, coverage) / "frames").iterdir())
    truth: Tensor | None = None
    made: list[Image.Image | None] = []
    for rung in STEPS_OF_LADDER:
        folder = RUNS / f"{rung}-{name}-{coverage}-0" / "scene"
        if not folder.is_dir():
            made.append(None)
            continue
        scene = load(folder).model
        assert isinstance(scene, DeformableScene)
        truth, found = held_out_pictures(compare(scene, name, coverage, in_world=False), turn)
        made.append(picture(found[MOMENT]))
    return [Image.open(frames[len(frames) // 2]), None if truth is None else picture(truth[MOMENT]), *made]


def picture(values: Tensor) -> Image.Image:
    """An image of 3 h w colours."""
    return Image.fromarray((values.movedim(0, -1).numpy() * 255).round().astype(np.uint8))


def sheet(rows: list[list[Image.Image | None]], titles: list[str]) -> Image.Image:
    """All pictures with titles."""
    step = SIDE + GAP
    page = Image.new("RGB", (step * len(titles), TITLE + step * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text((column * step + 4, 2), title, fill="black")
        for line, pictures in enumerate(rows):
            if (shown := pictures[column]) is not None:
                page.paste(shown.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (column * step, TITLE + line * step))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coverage", type=int, default=40)
    parser.add_argument("--turn", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("docs/results/pad3r.png"))
    arguments = parser.parse_args()
    titles = [f"video, {arguments.coverage} degrees", f"truth, {arguments.turn:.0f} degrees aside", *STEPS_OF_LADDER]
    rows = [row(name, arguments.coverage, arguments.turn) for name in clips.THINGS]
    sheet(rows, titles).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
