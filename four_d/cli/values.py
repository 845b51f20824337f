"""Converters of one argument's text to its value; argparse prints their ArgumentTypeErrors."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from four_d.errors import UserError

SYNTHETIC = "synthetic:"
"""Beginning of the name of an object of the generator."""


def path(text: str) -> Path:
    """Path with ``~`` expanded, which shells do not do in --out=~/seen and in quotes."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path; is a variable of your shell not set?")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no user of that name
        return Path(text)


def auto(text: str) -> Path | str:
    """The word auto, or a path (./auto for a file of that name)."""
    return text if text == "auto" else path(text)


def thing(text: str) -> object:
    """Path of an object's file, or an object of the generator, from synthetic:KIND@SEED."""
    if not text.startswith(SYNTHETIC):
        return path(text)
    from data_prep.synthetic.objects import parse_synthetic

    try:
        return parse_synthetic(text.removeprefix(SYNTHETIC))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def index_range(text: str) -> range:
    """Indices A to B - 1, from A:B."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with A < B, as 0:64")
    return range(int(first), int(last))


def counts(text: str) -> tuple[int, int]:
    """Two whole numbers, from A:B."""
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, as 3:5")
    return int(first), int(last)


def first_index(text: str) -> int:
    """0 or 1."""
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1")
    return int(text)


def shares(text: str) -> tuple[float, float]:
    """Two numbers, from A:B."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, as 0.1:0.5") from None
    return low, high


def names(text: str) -> tuple[str, ...]:
    """Words, from KIND,KIND."""
    return tuple(text.split(","))


def instance(text: str) -> object:
    """Keypoints of one instance, from NAME,NAME or NAME,NAME@X0,Y0,X1,Y1."""
    from four_d.inference import Instance

    asked, box, corners = text.rpartition("@")
    try:
        numbers = [float(part) for part in corners.split(",")] if box else []
        if box and len(numbers) != 4:
            raise ValueError
    except ValueError:
        told = "is not NAME,NAME or NAME,NAME@X0,Y0,X1,Y1, as nose,neck@120,40,260,310"
        raise argparse.ArgumentTypeError(f"{text!r} {told}") from None
    if box and not asked:
        raise argparse.ArgumentTypeError(f"{text!r} is a box without names; write those to find in it before the @")
    try:
        return Instance(names=names(asked or corners), box=tuple(numbers) if box else None)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def bone(text: str) -> tuple[str, str]:
    """Names of two keypoints, from NAME:NAME."""
    start, _, end = text.partition(":")
    if not (start and end):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:NAME, as left_knee:left_foot")
    return start, end


def bones(text: str) -> tuple[tuple[str, str], ...]:
    """Bones, from NAME:NAME,NAME:NAME."""
    return tuple(bone(part) for part in text.split(","))


def point(text: str) -> tuple[float, float, float]:
    """Frame, x and y, from X,Y (in frame 0) or FRAME,X,Y."""
    try:
        numbers = [float(part) for part in text.split(",")]
        frame, x, y = numbers if len(numbers) == 3 else [0.0, *numbers]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y or FRAME,X,Y, as 120,64.5") from None
    if not min(numbers) >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not in the picture: X and Y count from its top left corner")
    return frame, x, y


def pinhole(text: str) -> tuple[float, float, float, float]:
    """Focal lengths and principal point in pixels, from FX,FY,CX,CY."""
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FX,FY,CX,CY, as 500,500,320,240") from None
    return fx, fy, cx, cy


def count(text: str) -> int:
    """Positive whole number."""
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def tolerance(text: str) -> float:
    """Fraction above 0 and up to 0.2."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found <= 0.2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 0.2, as 0.05 for 5 %")
    return found


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels, from WxH or one number for both."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and (height or width).isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 128 or 160x120")
    return int(width), int(height or width)
