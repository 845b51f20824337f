"""Sheets of real videos: depth, what moves, trails and a novel view of a model beside those of the model before it.

    python benchmarks/real_videos.py [--model NAME] [--previous NAME]

The videos are those of ``../shared/samples``. Those whose licence allows pictures go into
``docs/images/real_videos.jpg``, all of them into ``runs/real/videos.jpg``. The models are named as for
``benchmarks/real.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - this script is run by its path
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.real import CHECKPOINTS, described, named, write_picture  # noqa: E402
from four_d import drawing  # noqa: E402
from four_d.checkpoints import best_reference  # noqa: E402
from four_d.inference import LoadedModel, Selection  # noqa: E402
from four_d.inference.request import Asked  # noqa: E402
from four_d.inference.stills import stills  # noqa: E402
from tests.data import excerpts  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "real_videos.jpg"
SHEET = Path("runs/real/videos.jpg")
FRAMES, RATE = 12, 8.0
"""Frames of a video that the models see, and how many a second."""
VIDEOS = excerpts.SAMPLES / "videos"
DAVIS = excerpts.SAMPLES / "davis_bmx-trees" / "frames"


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A video, and whether its licence allows pictures of it in docs."""

    frames: Callable[[], Path | NDArray[np.uint8]]
    start: float = 0.0
    """Seconds before what is seen of a file."""
    shown: bool = False


EXCERPTS: dict[str, Excerpt] = {
    "pedestrian": Excerpt(frames=lambda: VIDEOS / "bikes.mp4", start=8.0, shown=True),  # BSD
    "cyclist": Excerpt(frames=lambda: VIDEOS / "bikes.mp4", start=4.3, shown=True),
    "alley": Excerpt(frames=lambda: excerpts.sintel().images, shown=True),  # CC BY 3.0, (c) Blender Foundation
    "office": Excerpt(frames=lambda: excerpts.hololens().images, shown=True),  # MIT
    "bmx-trees": Excerpt(frames=lambda: DAVIS),
    "lady-running": Excerpt(frames=lambda: VIDEOS / "lady-running.mp4"),
    "camel": Excerpt(frames=lambda: VIDEOS / "camel.mp4"),
    "apple": Excerpt(frames=lambda: VIDEOS / "apple.mp4"),
    "pstudio": Excerpt(frames=lambda: VIDEOS / "pstudio.mp4"),
}


def rows_of(name: str, models: dict[str, LoadedModel]) -> dict[str, dict[str, drawing.RgbImage]]:
    """Stills of one video by each model, which see the same frames."""
    frames = EXCERPTS[name].frames()
    seen = Selection(max_frames=FRAMES, fps=RATE, start=EXCERPTS[name].start)
    asked: Asked = {"selection": seen} if isinstance(frames, Path) else {}
    return {f"{name}: {row}": stills(model(frames, **asked)) for row, model in models.items()}


def sheet(rows: dict[str, dict[str, drawing.RgbImage]]) -> Image.Image:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[row.get(column, np.full_like(row["picture"], 255)) for column in columns] for row in rows.values()]
    return Image.fromarray(drawing.grid(cells, list(rows), columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name in checkpoints/, or whatever four_d.load takes (default: the best one)")
    parser.add_argument("--previous", help="the model before it (default: none beside it)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = named(given.model or best_reference([CHECKPOINTS])[1].name)
    models = {"model": model}
    if given.previous is not None and described(previous := named(given.previous)) != described(model):
        models["previous"] = previous
    rows = {name: rows_of(name, models) for name in EXCERPTS}
    for path, names in ((PICTURE, [name for name in EXCERPTS if EXCERPTS[name].shown]), (SHEET, list(EXCERPTS))):
        write_picture(sheet({label: row for name in names for label, row in rows[name].items()}), path)


if __name__ == "__main__":
    main()
