"""Pictures by the study's models of held-out clips, from the other camera: a row per clip, a column per model.

    python -m benchmarks.studies.dgs_lrm_pictures --rows 6 --out docs/results/dgs_lrm_pictures.png

Columns: the input frame nearest in time, static, deformable, the truth. Things that move are outlined in the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from benchmarks.studies import DATA, SIDE
from benchmarks.studies.dgs_lrm import STUDY
from four_d import checkpoints
from four_d.evaluation import EvaluationConfig, Videos
from four_d.evaluation.novel import copies, size_of
from four_d.rendering import render
from four_d.types import Cameras, Clip, Gaussians, map_tensors

RUNS = Path("runs/studies") / STUDY.name
COLUMNS = ("nearest frame", "static", "deformable", "truth")
ZOOM, GAP, TITLE = 2, 4, 16
HELD_OUT = EvaluationConfig(
    data=str(DATA / "held_out_calm"),
    frames=6,
    stride=2,
    size=(SIDE, SIDE),
    pictures=True,
    normalisation="disparity",
    hints=("intrinsics", "poses"),
)
"""Videos as the study scores them."""


def outlined(image: Tensor, mask: Tensor) -> Tensor:
    """A 3 h w picture with the border of a mask in yellow."""
    inner = -functional.max_pool2d(-mask[None, None].float(), 3, 1, 1)[0, 0]
    border = mask & (inner < 1)
    return torch.where(border, torch.tensor([1.0, 0.85, 0.1])[:, None, None], image)


def shown(gaussians: Gaussians, views: Clip, view: int) -> Tensor:
    """Take the 3 h w picture of a batch of one."""
    assert views.cameras is not None
    camera = Cameras(
        world_from_camera=views.cameras.world_from_camera[None, [view]],
        intrinsics=views.cameras.intrinsics[None, [view]],
    )
    return render(gaussians, camera, views.times[None, [view]], size_of(views)).colour[0, 0]


def row(models: Mapping[str, torch.nn.Module], inputs: Clip, clip: Clip) -> list[Tensor]:
    """The pictures of one clip, at the view of the other camera where most moves."""
    views = clip.views
    assert views is not None
    assert views.dynamic is not None
    other = ~torch.isin(views.camera_ids, clip.camera_ids)
    view = int((views.dynamic.float().mean((-1, -2)) * other).argmax())
    with torch.inference_mode():
        made = {name: shown(model(inputs).gaussians, views, view) for name, model in models.items()}
    truth = views.images[view]
    return [copies(clip, views).colour[view], made["static"], made["deformable"], outlined(truth, views.dynamic[view])]


def sheet(rows: list[list[Tensor]]) -> NDArray[np.uint8]:
    """All pictures with titles."""
    height, width = (side * ZOOM + GAP for side in rows[0][0].shape[-2:])
    page = Image.new("RGB", (width * len(COLUMNS), TITLE + height * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(COLUMNS):
        draw.text((column * width + 4, 2), title, fill="black")
        for line, pictures in enumerate(rows):
            values = (pictures[column].clamp(0, 1).movedim(0, -1).numpy() * 255).round().astype(np.uint8)
            big = Image.fromarray(values).resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
            page.paste(big, (column * width, TITLE + line * height))
    return np.asarray(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the study's runs")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    models = {name: checkpoints.read(RUNS / f"{name}-{arguments.seed}").model.eval() for name in COLUMNS[1:3]}
    rows: list[list[Tensor]] = []
    for example in Videos.open(Path(HELD_OUT.data), HELD_OUT, arguments.rows):
        for index in range(len(example.key)):
            clip = map_tensors(example.targets, lambda tensor, index=index: tensor[index])
            inputs = map_tensors(example.inputs, lambda tensor, index=index: tensor[index : index + 1])
            rows.append(row(models, inputs, clip))
    Image.fromarray(sheet(rows[: arguments.rows])).save(arguments.out)


if __name__ == "__main__":
    main()
