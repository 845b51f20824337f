"""Reading of image files as RGB frames: a folder of images, or a file of one or more frames."""

from __future__ import annotations

import io
import re
import struct
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, features

from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.video import foreign
from four_d.video.remarks import Remarks, some

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)
IMAGE_RATE = 25.0
"""Frames per second assumed for images without times."""
SHORTEST_S = 0.02
"""Seconds below which a frame of a GIF lasts `UNTIMED_S` instead, as in browsers."""
UNTIMED_S = 0.1
NARROW = 0.5
"""Fraction of the largest value above which the smallest value of grey images becomes black."""
_NUMBER = re.compile(r"[0-9]+")
_QUIET = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx"})
_MOVING = frozenset({"GIF", "WEBP", "PNG", "AVIF", "TIFF"})
"""Formats of which further images are frames or pages; in other formats they are previews or depth maps."""
_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""EXIF orientation → (swap axes, then mirror left-right, then up-down)."""
_ORIENTATION = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

N = TypeVar("N", bound=np.generic)
T = TypeVar("T")
Pixels = NDArray[np.uint8] | NDArray[np.integer] | NDArray[np.floating]


def listed(
    folder: Path, what: str, said: Remarks | None = None, suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """Image files of a folder in natural order, without hidden files. UserError if there is none.

    Args:
        folder: must exist.
        what: expected content, in words.
        said: receives remarks on other files, which are skipped.
        suffixes: suffixes of images.

    """
    try:
        entries = in_order(path for path in folder.iterdir() if not quiet(path))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); check its permissions") from error
    found = [path for path in entries if path.suffix.lower() in suffixes and path.is_file()]
    others = [path for path in entries if path not in set(found)]
    if not found:
        instead = f" that can be read, only {_others(others)}; give that itself, or" if others else ";"
        raise UserError(f"{folder} holds no images{instead} put {what} there ({' '.join(sorted(suffixes))})")
    if said is None:
        return found
    if others:
        said.say(f"passing over {_others(others)}")
    doubled = [name for name, count in Counter(path.stem.casefold() for path in found).items() if count > 1]
    if doubled:
        named = some([path.name for path in found if path.stem.casefold() == doubled[0]])
        said.say(f"{len(doubled)} names stand for several pictures ({named}); each counts as one of its own")
    return found


def quiet(path: Path) -> bool:
    """True for hidden files, and those that operating systems leave in folders: no user means them."""
    return path.name.startswith(".") or path.name.casefold() in _QUIET


def _others(others: list[Path]) -> str:
    """Names of skipped files, with the reason for unsupported images."""
    reasons = {path: foreign.by_name(path) for path in others}
    odd = [path for path in others if reasons[path]]
    names = [path.name + ("/" if path.is_dir() else "") for path in (*odd, *(p for p in others if not reasons[p]))]
    return some(names) + (f" ({odd[0].name} {reasons[odd[0]]})" if odd else "")


def _doubt(files: list[Path], said: Remarks) -> None:
    """Report signs that files are not the frames of one video, evenly spaced in time."""
    patterns = Counter(_NUMBER.sub("#", file.stem.casefold()) for file in files)
    if 1 < len(patterns) <= len(files) / 2:
        said.say(f"names follow {len(patterns)} patterns ({some(list(patterns))}): all are taken as one sequence")
    if len(patterns) > 1:
        return
    last = [_NUMBER.findall(file.stem)[-1:] for file in files]
    numbers = [float(found[0]) for found in last if found]
    steps = np.diff(numbers) if len(numbers) == len(files) else np.zeros(0)
    gaps = np.flatnonzero(steps > 1.5 * np.median(steps)) if len(steps) > 1 else []
    if len(gaps):
        after = f"{files[gaps[0] + 1].name} follows {files[gaps[0]].name}"
        said.say(f"numbers leave gaps ({after}): taken as evenly spaced, {IMAGE_RATE:g} frames a second")


@dataclass(kw_only=True)
class ImageFolder:
    """Folder of images as the frames of a video, in natural order, `IMAGE_RATE` per second."""

    path: Path
    files: list[Path]
    said: Remarks
    exact: bool = True

    @classmethod
    def open(cls, path: Path, said: Remarks) -> ImageFolder:
        """List the files. UserError if there is none."""
        files = listed(path, "some", said)
        _doubt(files, said)
        return cls(path=path, files=files, said=said)

    @property
    def times(self) -> list[float]:
        """Seconds of every frame."""
        return [index / IMAGE_RATE for index in range(len(self.files))]

    def survey(self) -> None:
        """Do nothing: the file names determine all frames."""

    def frames(self, chosen: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield some frames; UserError for a file that does not decode or differs in size from the first."""
        levels = Levels.of(
            (self._read(index, lambda image: _deep(image, self.said)) for index in set(chosen)), self.said
        )
        first: tuple[int, ...] | None = None
        for index in chosen:
            file = self.files[index]
            frame = self._read(index, lambda image: _frame(image, levels, self.said))
            first = first or frame.shape
            if frame.shape != first:
                sizes = f"{file} is {_size(frame.shape)}, {self.files[chosen[0]].name} is {_size(first)}"
                raise UserError(f"{sizes}; make all one size")
            yield frame

    def _read(self, index: int, take: Callable[[Image.Image], T]) -> T:
        with opened(self.files[index]) as image:
            if several(image):
                name = self.files[index].name
                told = (
                    f"of pictures that hold several frames ({name}) only the first counts: give the file itself for all"
                )
                self.said.say(told, "several frames")
            return take(image)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}×{shape[0]}"


@dataclass(kw_only=True)
class PictureFile:
    """Image, animation (GIF, WebP, APNG, AVIF) or TIFF of several pages as the frames of a video."""

    path: Path
    times: list[float]
    said: Remarks
    pages: list[int] = field(default_factory=lambda: [0])
    exact: bool = True

    @classmethod
    def open(cls, path: Path, said: Remarks) -> PictureFile:
        """Find frames and times. UserError if the file does not decode."""
        with opened(path) as image:
            count = several(image) or 1
            paged = image.format == "TIFF"
            sizes: list[tuple[int, int]] = []
            lasting: list[float] = []
            for page in range(count):
                image.seek(page)
                sizes.append(image.size)
                if count > 1 and not paged:
                    image.load()  # a WebP frame's duration is known only after loading
                seconds = 1 / IMAGE_RATE if paged else float(image.info.get("duration", 0)) / 1000
                lasting.append(seconds if seconds >= SHORTEST_S else UNTIMED_S)
        pages = [page for page, size in enumerate(sizes) if size == sizes[0]]
        if len(pages) < count:
            said.say(f"passing over {count - len(pages)} of {count} pages, which are of another size than the first")
        if paged and len(pages) > 1:
            said.say(f"{len(pages)} pages are taken as frames, {IMAGE_RATE:g} a second")
        starts = np.cumsum([0.0, *(lasting[page] for page in pages)])[:-1]
        return cls(path=path, times=starts.tolist(), said=said, pages=pages)

    def survey(self) -> None:
        """Do nothing: opening determines all frames."""

    def frames(self, chosen: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield some frames; UserError if one does not decode."""
        pages = [self.pages[index] for index in chosen]
        with opened(self.path) as image:
            levels = Levels.of((_deep(image, self.said) for _ in _turn(image, sorted(set(pages)))), self.said)
        with opened(self.path) as image:
            for _ in _turn(image, pages):
                yield _frame(image, levels, self.said)


def _turn(image: Image.Image, pages: Sequence[int]) -> Iterator[None]:
    """Seek to the pages of an opened image, yielding at each."""
    for page in pages:
        image.seek(page)
        yield


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Black and white values of images of more than 8 bits, common to a sequence."""

    black: float = 0.0
    white: float = 65535.0

    @classmethod
    def of(cls, pictures: Iterable[Pixels | None], said: Remarks) -> Levels:
        """Value range of a sequence, reported unless it is the full 16 bits; None stands for an 8-bit image."""
        low, high, floats, sound = np.inf, -np.inf, False, True
        deep = shallow = 0
        for values in pictures:
            if values is None:
                shallow += 1
                continue
            deep += 1
            floats |= np.issubdtype(values.dtype, np.floating)
            finite = values[np.isfinite(values)]
            sound &= finite.size == values.size
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if not deep:
            return cls()
        if shallow:
            told = f"{deep} of {deep + shallow} pictures have more than 8 bits and the others 8"
            said.say(f"{told}: is this one sequence, and not depth or masks beside pictures?")
        if not sound:
            said.say("values that are not finite become black")
        if not high > -np.inf:
            return cls()
        return cls._named(low, high, said, floats=floats)

    @classmethod
    def _named(cls, low: float, high: float, said: Remarks, *, floats: bool) -> Levels:
        if low < 0 or (NARROW * high < low < high and not floats):
            said.say(f"values run from {low:g} to {high:g}: taken as black and white")
            return cls(black=low, white=high if high > low else low + 1)
        if floats and high <= 1:
            return cls(white=1.0)
        white = next((float(2**bits - 1) for bits in (8, 10, 12, 14, 16) if high < 2**bits), high)
        if floats or white != 65535:
            said.say(f"values run up to {high:g}: {white:g} is taken as white")
        return cls(white=white)

    def bytes_of(self, values: Pixels) -> NDArray[np.uint8]:
        """Convert values to bytes; of integers, the upper 8 of the bits in use."""
        span = self.white - self.black
        if np.issubdtype(values.dtype, np.integer) and self.black == 0 and span <= 65535:
            return (np.clip(values, 0, 65535).astype(np.uint32) * 256 // int(span + 1)).clip(0, 255).astype(np.uint8)
        shares = (np.nan_to_num(values.astype(np.float32), nan=self.black, posinf=0, neginf=0) - self.black) / span
        return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


@contextmanager
def opened(path: Path) -> Generator[Image.Image]:
    """Open an image, turning errors into one UserError."""
    try:
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    except _BROKEN as error:
        what = foreign.what_is(path)
        why = f": it {what}" if what else f" ({error}); remove it or save it again"
        raise UserError(f"{path} does not decode as an image{why}") from error


def several(image: Image.Image) -> int:
    """Number of frames or pages of an opened image; 0 if there is one, or further ones are previews and the like."""
    count = int(getattr(image, "n_frames", 1)) if image.format in _MOVING else 1
    return count if count > 1 else 0


def orientation(path: Path) -> int:
    """EXIF orientation of an image file, 1 to 8; 1, upright, where it says none."""
    with opened(path) as image:
        return cast(int, image.getexif().get(_ORIENTATION, 1))


def size_of(path: Path, *, turn: bool) -> tuple[int, int]:
    """Height and width of an image file, from its header; ``turn`` follows the EXIF orientation."""
    with opened(path) as image:
        swap = turn and _TURNS.get(image.getexif().get(_ORIENTATION, 1), (False,))[0]
        return (image.width, image.height) if swap else (image.height, image.width)


def picture(path: Path, *, turn: bool) -> NDArray[np.uint8]:
    """Read an image file as RGB, h w 3: colours in sRGB, transparency on black; ``turn`` follows the EXIF orientation.

    UserError for grey of more than 8 bits, whose black and white nothing in one picture tells.
    """
    said = Remarks(path, silent=True)
    with opened(path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            raise UserError(f"{path} is grey of more than 8 bits; convert all pictures to 8 bits by one rule")
        image.load()
        return np.array(_rgb(_upright(image, said) if turn else image, said))


def as_arrays(pictures: Sequence[Image.Image]) -> list[NDArray[np.uint8]]:
    """Convert opened images as those of a folder are read."""
    said = Remarks("pictures")
    levels = Levels.of((_deep(picture, said) for picture in pictures), said)
    return [_frame(picture, levels, said) for picture in pictures]


def _frame(image: Image.Image, levels: Levels, said: Remarks) -> NDArray[np.uint8]:
    """Upright RGB of an opened image; more than 8 bits are reduced by ``levels``."""
    deep = _deep(image, said)
    if deep is None:
        return np.asarray(_rgb(_upright(image, said), said))
    found = levels.bytes_of(deep)
    return np.repeat(found[..., None], 3, axis=-1) if found.ndim == 2 else found


def _deep(image: Image.Image, said: Remarks) -> Pixels | None:
    """Upright image of more than 8 bits (h w or h w 3); None for 8 bits, without decoding."""
    if image.mode.startswith("I") or image.mode == "F":
        return cast(Pixels, np.asarray(_upright(image, said)))
    if image.format not in ("PNG", "TIFF") or image.tell() or ";16" not in str(getattr(image, "tile", "")):
        return None
    found = _deep_colour(Path(cast(str, image.filename)), image.format)  # pyright: ignore[reportAttributeAccessIssue]
    if found is None:
        return None
    if "A" in image.mode:
        said.say("transparency of 16-bit pictures is dropped")
    swap, left_right, up_down = _TURNS.get(image.getexif().get(_ORIENTATION, 1), (False, False, False))
    return turned(found, swap=swap, left_right=left_right, up_down=up_down)


def _deep_colour(path: Path, kind: str) -> NDArray[np.uint16] | None:
    """All bits of a 16-bit colour image, of which Pillow gives the upper 8; None if PyAV is not installed."""
    try:
        import av
    except ImportError:
        return None
    with av.open(f"file:{path}", format=f"{kind.lower()}_pipe") as container:
        frame = next(container.decode(video=0))
        return cast(NDArray[np.uint16], frame.to_ndarray(format="rgb48le"))


def turned(pixels: NDArray[N], *, swap: bool, left_right: bool, up_down: bool) -> NDArray[N]:
    """Swap rows and columns of pixels (h w …), then mirror."""
    found = pixels.swapaxes(0, 1) if swap else pixels
    return np.ascontiguousarray(found[:: -1 if up_down else 1, :: -1 if left_right else 1])


def _upright(image: Image.Image, said: Remarks) -> Image.Image:
    """Rotate and mirror by the EXIF orientation."""
    image.load()
    if _squeezed(image):
        said.say(
            "pictures carry a pixel shape that is not square; it is not applied: stretch them if they look squeezed"
        )
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        said.say("pictures whose EXIF data are damaged are taken as upright")
        return image


def _squeezed(image: Image.Image) -> bool:
    """True if a JPEG or PNG has different x and y densities without a unit, which some programs use for wide pixels."""
    density = image.info.get("aspect") or (image.info.get("jfif_unit") == 0 and image.info.get("jfif_density"))
    return isinstance(density, tuple) and len(cast(tuple[int, ...], density)) == 2 and density[0] != density[1] != 0


def _rgb(image: Image.Image, said: Remarks) -> Image.Image:
    """Convert to RGB; transparency is composited on black, unless nothing is opaque."""
    image = _in_srgb(image, said)
    if image.mode == "CMYK":
        said.say("CMYK is converted to RGB without a colour profile")
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    low, high = cast(tuple[int, int], clear.getchannel("A").getextrema())
    if high == 0:
        said.say("transparency of pictures that are all transparent is dropped")
        return clear.convert("RGB")
    if low < 255:
        said.say("partly transparent pictures are laid on black")
        clear = Image.alpha_composite(Image.new("RGBA", clear.size, (0, 0, 0, 255)), clear)
    return clear.convert("RGB")


def _in_srgb(image: Image.Image, said: Remarks) -> Image.Image:
    """Convert to sRGB by the colour profile, if it is readable and another one: phones store P3."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or image.mode not in ("RGB", "CMYK") or not features.check("littlecms2"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(own).strip()
        if "srgb" in name.casefold():
            return image
        found = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        said.say("pictures whose colour profile is damaged are taken as sRGB")
        return image
    said.say(f"colours of profile {name} are converted to sRGB")
    return image if found is None else found
