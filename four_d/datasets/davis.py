"""DAVIS: foreground masks of videos, all annotated objects merged."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from four_d.datasets import files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Sequence
from four_d.ordering import in_order

LAYOUT = "{JPEGImages,Annotations}/480p/blackswan/00000.{jpg,png} and so on (Full-Resolution where there is no 480p)"
SIZES = ("480p", "Full-Resolution")
"""Folders of the resolutions, the published one first."""
FPS = 24.0
VAL_2016 = (
    *("blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows", "dance-twirl", "dog"),
    *("drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf", "libby", "motocross-jump"),
    *("paragliding-launch", "parkour", "scooter-black", "soapbox"),
)
VAL_2017 = (
    *("bike-packing", "blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows"),
    *("dance-twirl", "dog", "dogs-jump", "drift-chicane", "drift-straight", "goat", "gold-fish", "horsejump-high"),
    *("india", "judo", "kite-surf", "lab-coat", "libby", "loading", "mbike-trick", "motocross-jump"),
    *("paragliding-launch", "parkour", "pigs", "scooter-black", "shooting", "soapbox"),
)


def read_davis(
    root: Path, only: tuple[str, ...] | None = None, *, names: tuple[str, ...] | None = None
) -> list[Sequence]:
    """List the videos in ``names`` (None: all annotated ones in the folder) at 480p, or else at full resolution."""
    inner = root / "DAVIS"
    base = inner if inner.is_dir() else root
    size = next((size for size in SIZES if (base / "Annotations" / size).is_dir()), SIZES[0])
    annotated = files.folder(base / "Annotations" / size, LAYOUT)
    chosen_names = names or tuple(path.name for path in in_order(annotated.iterdir()) if path.is_dir())
    return [_video(base, size, name) for name in files.chosen(chosen_names, only)]


def _video(base: Path, size: str, name: str) -> Sequence:
    """List one video. Masks may end before the images: sets for evaluation servers annotate the first frame only."""
    images_folder = base / "JPEGImages" / size / name
    image_paths = [path for path in files.listed(images_folder, "*", LAYOUT) if files.is_image(path)]
    if not image_paths:
        raise files.missing(images_folder / "*.jpg", LAYOUT)
    masks = [base / "Annotations" / size / name / f"{path.stem}.png" for path in image_paths]
    last = max((index for index, path in enumerate(masks) if path.is_file()), default=0)
    marked = [files.file(path, LAYOUT) for path in masks[: last + 1]]
    return Sequence(
        name=name,
        frames=len(image_paths),
        times=files.frame_times(len(image_paths), FPS),
        tasks=("mask",),
        images=files.image_loader(image_paths),
        masks=partial(files.masks, marked, len(image_paths)),
        mask_frames=len(marked),
    )


DAVIS = DataSet(
    name="davis",
    title="DAVIS 2016 and 2017",
    home="davischallenge.org, 2017 TrainVal 480p",
    licences=(Licence(text="non-commercial"),),
    layout=LAYOUT,
    reader=read_davis,
    metric=False,
    notes="dynamics masks are the annotated objects, which nearly always move",
)
