"""DAVIS: foreground masks of videos, all annotated objects merged."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from four_d.protocols import files
from four_d.protocols.sequence import Sequence

LAYOUT = "{JPEGImages,Annotations}/480p/blackswan/00000.{jpg,png} and so on"
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


def read(root: Path, only: tuple[str, ...] | None = None, *, names: tuple[str, ...] | None = None) -> list[Sequence]:
    """The videos of a list (None: every annotated one found) at 480p."""
    inner = root / "DAVIS"
    base = inner if inner.is_dir() else root
    annotated = files.folder(base / "Annotations" / "480p", LAYOUT)
    found = names or tuple(sorted(path.name for path in annotated.iterdir() if path.is_dir()))
    return [_video(base, name) for name in files.chosen(found, only)]


def _video(base: Path, name: str) -> Sequence:
    pictures = files.listed(base / "JPEGImages" / "480p" / name, "*.jpg", LAYOUT)
    marked = [files.file(base / "Annotations" / "480p" / name / f"{path.stem}.png", LAYOUT) for path in pictures]
    return Sequence(
        name=name,
        frames=len(pictures),
        times=files.frame_times(len(pictures), FPS),
        tasks=("mask",),
        images=partial(files.images, pictures),
        masks=partial(files.masks, marked),
    )
