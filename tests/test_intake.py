"""The one intake: order, stream, orientation, pixel shape, colours, depth of bits and times of what people bring.

Each test stands for a kind of input that was once misread without a word.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from four_d.errors import UserError
from four_d.inference import Known, Request, Selection, Video, read
from four_d.video.colour import to_srgb
from four_d.video.footage import footage, stream
from four_d.video.inputs import gather
from four_d.video.mask import as_masks
from tests.test_inference import BIKES, gradient, moving_model, write_video

av = pytest.importorskip("av", reason="the extra video is not installed")

HLG, PQ, BT2020 = 18, 16, 9
ALL = Selection(max_frames=1000)
RNG = np.random.default_rng(0)


def encode(
    path: Path,
    frames: NDArray[np.uint8] | NDArray[np.uint16],
    *,
    stamps: Sequence[int] | None = None,
    rate: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv444p",
    shape: Fraction | None = None,
    matrix: int | None = None,
    full: bool = False,
    curve: int = 2,
    primaries: int = 2,
    options: dict[str, str] | None = None,
) -> Path:
    """A video with its colour properties; ``frames`` are RGB of 8 or 16 bits, ``stamps`` in units of 1/100 s."""
    with av.open(str(path), "w") as container:
        made = container.add_stream(codec, rate=rate, options={"threads": "1", **(options or {})})
        made.height, made.width, made.pix_fmt = *frames.shape[1:3], pixels
        context = made.codec_context
        if stamps is not None:
            context.time_base = Fraction(1, 100)
        if shape is not None:
            context.sample_aspect_ratio = shape
        context.color_trc, context.color_primaries = curve, primaries
        if matrix is not None:
            context.colorspace, context.color_range = matrix, 2 if full else 1
        kind = "rgb24" if frames.dtype == np.uint8 else "rgb48le"
        for index, frame in enumerate(frames):
            given = av.VideoFrame.from_ndarray(frame, format=kind)
            if matrix is not None:
                swscale = {6: 5}.get(matrix, matrix)
                given = given.reformat(
                    format=pixels, src_colorspace=swscale, dst_colorspace=swscale, dst_color_range=2 if full else 1
                )
                given.colorspace, given.color_range = matrix, 2 if full else 1
            if stamps is not None:
                given.pts, given.time_base = stamps[index], Fraction(1, 100)
            container.mux(made.encode(given))
        container.mux(made.encode())
    return path


def flat(count: int, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """Frame i is of grey 20 i: which one it is can be read from its mean."""
    return np.stack([np.full((height, width, 3), 20 * index, np.uint8) for index in range(count)])


def numbers(video: Video) -> list[int]:
    """Indices of these frames in `flat`."""
    return np.rint(np.mean(video.frames, (1, 2, 3)) / 20).astype(int).tolist()


def save(folder: Path, pictures: dict[str, NDArray[np.generic]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name)
    return folder


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err


# order


def test_unpadded_names_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Frames, masks and depth alike: mixed padding once paired wrong ones."""
    frames = flat(12)
    folder = save(tmp_path / "frames", {f"frame_{i + 1}.{'jpg' if i % 2 else 'JPG'}": f for i, f in enumerate(frames)})
    video = read(folder)
    assert numbers(video) == list(range(12))
    masks = save(tmp_path / "masks", {f"mask{i}.png": np.full((32, 48), i == 10, np.uint8) for i in range(12)})
    assert [i for i, mask in enumerate(as_masks(masks, video)) if mask.any()] == [10]


def test_depth_pictures_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    from four_d.inference.hints import _depth  # pyright: ignore[reportPrivateUsage]
    from four_d.video.fit import fit

    video = Video(frames=list(flat(12)), times=np.arange(12) / 25, total=12)
    folder = save(tmp_path / "depth", {f"{i}.png": np.full((32, 48), i + 1, np.uint16) for i in range(12)})
    found = _depth(folder, 1.0, video, fit([(32, 48)] * 12, (32, 48), 8))
    assert found[:, 0, 0].tolist() == list(range(1, 13))


def test_what_is_passed_over_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "frames", {f"{i}.png": frame for i, frame in enumerate(flat(3))})
    for name in (".DS_Store", "Thumbs.db", "._0.png"):
        (folder / name).write_bytes(b"\x00")
    assert numbers(read(folder)) == [0, 1, 2]
    assert said(capfd) == ""
    (folder / "old.png").mkdir()
    for name in ("notes.txt", "IMG_1.HEIC", "b.csv", "c.csv"):
        (folder / name).write_text("")
    assert numbers(read(folder)) == [0, 1, 2]
    assert "passing over IMG_1.HEIC, b.csv, c.csv and 2 more (IMG_1.HEIC is a HEIC picture" in said(capfd)
    save(folder, {"2.jpg": flat(3)[2]})
    assert numbers(read(folder)) == [0, 1, 2, 2]
    assert "1 names stand for several pictures (2.jpg, 2.png)" in said(capfd)


def test_what_looks_like_more_than_one_sequence_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    frames = flat(3) + 30
    both: dict[str, NDArray[np.generic]] = {f"{i:03d}_color.png": frame for i, frame in enumerate(frames)}
    both |= {f"{i:03d}_depth.png": np.full((32, 48), 60000, np.uint16) for i in range(3)}
    read(save(tmp_path / "both", both))
    text = said(capfd)
    assert "names follow 2 patterns (#_color, #_depth): all are taken as one sequence" in text
    assert "3 of 6 pictures have more than 8 bits and the others 8" in text
    read(save(tmp_path / "gap", {f"{i}.png": frames[0] for i in (1, 2, 3, 7, 8)}))
    assert "numbers leave gaps (7.png follows 3.png): taken as evenly spaced, 25 frames a second" in said(capfd)
    read(save(tmp_path / "tens", {f"{i}.png": frames[0] for i in (10, 20, 30, 40)}))
    read(save(tmp_path / "words", {f"{name}.png": frames[0] for name in ("one", "three", "two")}))
    assert said(capfd) == ""


def test_what_is_passed_over_is_said_once_by_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Arguments are checked before the model is loaded, masks are read anew for each window."""

    folder = save(tmp_path / "frames", {f"{i}.png": frame + 30 for i, frame in enumerate(flat(9))})
    masks = save(tmp_path / "masks", {"0.png": np.eye(32, 48, dtype=np.uint8)})
    for each in (folder, masks):
        (each / "notes.txt").write_text("")
    Request(video=[folder], selection=ALL, mask=masks, window=4, overlap=1, tracks=False).check()
    assert said(capfd) == ""
    moving_model()(folder, mask=masks, window=4, overlap=1)
    text = said(capfd)
    assert text.count("frames: passing over notes.txt") == text.count("masks: passing over notes.txt") == 1


# which stream


def test_a_cover_picture_is_not_the_video(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_video(tmp_path / "plain.mp4", flat(5))
    path = tmp_path / "tagged.mp4"
    picture = io.BytesIO()
    Image.new("RGB", (60, 60), (255, 0, 0)).save(picture, "PNG")
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        cover = container.add_stream("png")
        cover.width = cover.height = 60
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        copied = container.add_stream_from_template(given.streams.video[0])
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 90000)
        container.mux(packet)
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copied
                container.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    assert numbers(read(path)) == list(range(5))
    assert said(capfd) == ""


def test_several_videos_in_one_file_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for made, side in zip(streams, (32, 64), strict=True):
            made.width = made.height = side
            made.pix_fmt = "yuv420p"
        for made, side in zip(streams, (32, 64), strict=True):
            for frame in flat(3, side, side):
                container.mux(made.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(made.encode())
    video = read(path)
    assert f"holds 2 videos: taking number {1 if len(video.frames[0]) == 32 else 2}" in said(capfd)


# shape and orientation


@pytest.mark.parametrize(("shape", "shown"), [(Fraction(4, 3), (32, 64)), (Fraction(8, 9), (32, 43)), (None, (32, 48))])
def test_pixels_become_square(
    tmp_path: Path, shape: Fraction | None, shown: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    video = read(encode(tmp_path / "v.mp4", gradient(32, 48, 3), shape=shape, options={"crf": "4"}))
    assert video.frames[0].shape[:2] == shown
    reds = video.frames[0][16, :, 0].astype(int)
    np.testing.assert_allclose(reds[4:-4], (255 * np.arange(shown[1]) / shown[1])[4:-4], atol=8)
    assert ("pixels of shape" in said(capfd)) == (shape is not None)


@pytest.mark.parametrize(
    ("matrix", "swap", "step"),
    [
        ((-1, 0, 0, 1), False, (1, -1)),
        ((1, 0, 0, -1), False, (-1, 1)),
        ((0, 1, 1, 0), True, (1, 1)),
        ((0, -1, -1, 0), True, (-1, -1)),
    ],
)
def test_mirrored_videos_are_shown_so(
    tmp_path: Path, matrix: tuple[int, ...], step: tuple[int, int], *, swap: bool
) -> None:
    """As front cameras mark theirs; see test_rotation_mark_of_phones."""
    frames = gradient(32, 48, 2)
    path = write_video(tmp_path / "v.mp4", frames)
    content = path.read_bytes()
    unit = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    start = content.index(unit, content.index(b"tkhd"))
    path.write_bytes(content[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[start + 36 :])
    wanted = (frames[0].swapaxes(0, 1) if swap else frames[0])[:: step[0], :: step[1]]
    shown = read(path).frames[0].astype(int)
    assert shown.shape == wanted.shape
    assert np.abs(shown - wanted).mean() < 3


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_by_exif(tmp_path: Path, orientation: int, *, deep: bool) -> None:
    from PIL import ImageOps

    pixels = gradient(16, 24, 1)[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked = Image.fromarray(pixels)
    held = io.BytesIO()
    marked.save(held, "PNG", exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(held.getvalue()))))
    if deep:
        pixels = pixels[..., 0].astype(np.uint16) << 8
        marked, wanted = Image.fromarray(pixels), np.repeat(wanted[..., :1], 3, -1)
    marked.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path).frames[0], wanted)


# colours


def hdr(frames: NDArray[np.uint8], curve: int) -> NDArray[np.uint16]:
    """Code sRGB as HDR of 16 bits in BT.2020, diffuse white as ITU-R BT.2408 has it; written apart from ours."""
    signal = frames / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    light = (
        light @ np.linalg.inv([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]).T
    )
    if curve == HLG:
        light = light * 0.26496
        coded = np.where(
            light <= 1 / 12,
            np.sqrt(3 * light),
            0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.5599107,
        )
    else:
        power = (light * 203 / 10000) ** 0.1593017578125
        coded = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return np.rint(coded.clip(0, 1) * 65535).astype(np.uint16)


@pytest.mark.parametrize(("curve", "name"), [(HLG, "HLG"), (PQ, "PQ")])
def test_hdr_becomes_what_the_plain_video_shows(
    tmp_path: Path, curve: int, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = RNG.integers(20, 250, (2, 4, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    exact = to_srgb(hdr(plain[0], curve), curve, BT2020).astype(int)
    assert np.abs(exact - plain[0]).max() < 12, "bright ones are compressed a little"
    assert np.abs(exact - plain[0])[plain[0].max(-1) < 200].max() <= 2
    path = encode(
        tmp_path / "v.mkv",
        hdr(plain, curve),
        codec="ffv1",
        pixels="yuv444p10le",
        matrix=9,
        curve=curve,
        primaries=BT2020,
    )
    shown = np.stack(read(path).frames)
    assert abs(shown.mean() - plain.mean()) < 3
    assert abs(np.percentile(shown, 99) - np.percentile(plain, 99)) < 8
    assert f"{name} colours are converted to sRGB" in said(capfd)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_matrix_and_range_are_those_of_the_file(tmp_path: Path, matrix: int, *, full: bool) -> None:
    plain = RNG.integers(0, 256, (2, 4, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    shown = read(encode(tmp_path / "v.mkv", plain, codec="ffv1", pixels="yuv444p", matrix=matrix, full=full)).frames
    assert np.abs(np.array(shown, int) - plain).max() <= 4


# depth of bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_any_depth_fills_the_range(tmp_path: Path, bits: int, capfd: pytest.CaptureFixture[str]) -> None:
    """One factor for the whole sequence: the dark frame stays darker."""
    ramp = (np.arange(256, dtype=np.uint32).reshape(16, 16) << bits >> 8).astype(np.uint16)
    for kind in ("png", "tif"):
        folder = save(tmp_path / kind, {f"0.{kind}": ramp, f"1.{kind}": ramp // 2})
        frames = read(folder).frames
        np.testing.assert_array_equal(frames[0][..., 0].ravel(), np.arange(256))
        assert frames[1].max() == 127
        assert (f"{2**bits - 1} is taken as white" in said(capfd)) == (bits < 16)


def test_big_endian_and_floats_and_narrow_ranges(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ramp = np.arange(256).reshape(16, 16)
    cases: dict[str, tuple[NDArray[np.generic], str]] = {
        "big": ((ramp * 256).astype(">u2"), ""),
        "unit": ((ramp / 255).astype(np.float32), ""),
        "bytes": (ramp.astype(np.float32), "255 is taken as white"),
        "beyond": ((ramp * 10.0).astype(np.float32), "4095 is taken as white"),
        "signed": ((ramp - 128).astype(np.float32), "values run from -128 to 127: taken as black and white"),
        "thermal": ((7000 + ramp * 5).astype(np.uint16), "values run from 7000 to 8275: taken as black and white"),
    }
    for name, (pixels, remark) in cases.items():
        frames = read(save(tmp_path / name, {"0.tif": pixels, "1.tif": pixels})).frames
        expected = ramp * 10 * 255 / 4095 if name == "beyond" else ramp
        np.testing.assert_allclose(frames[0][..., 0], expected, atol=1, err_msg=name)
        text = said(capfd)
        assert remark in text, name
        assert remark or not text, name
    broken = (ramp / 255).astype(np.float32)
    broken[0] = np.nan
    assert (read(save(tmp_path / "nan", {"0.tif": broken})).frames[0][0] == 0).all()
    assert "values that are not finite become black" in said(capfd)


def test_colour_of_16_bits_that_uses_12(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = RNG.integers(0, 256, (16, 16, 3), np.uint16)
    plain[0, 0] = 255
    for kind, pixels in (("png", "rgb48be"), ("tiff", "rgb48le")):
        context = av.CodecContext.create(kind, "w")
        context.width, context.height, context.pix_fmt, context.time_base = 16, 16, pixels, Fraction(1, 25)
        frame = av.VideoFrame.from_ndarray(plain << 4, format="rgb48le").reformat(format=pixels)
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"frame_%03d.{kind}").write_bytes(bytes((context.encode(frame) or context.encode(None))[0]))
        np.testing.assert_array_equal(read(tmp_path / kind).frames[0], plain)
        assert "4095 is taken as white" in said(capfd)


def test_transparency_and_other_modes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    colour = gradient(20, 30, 1)[0]
    alpha = np.full((20, 30, 1), 255, np.uint8)
    folder = save(tmp_path / "a", {"0.png": np.concatenate([colour, alpha], -1)})
    np.testing.assert_array_equal(read(folder).frames[0], colour)
    said(capfd)
    alpha[:10] = 0
    folder = save(tmp_path / "b", {"0.png": np.concatenate([colour, alpha], -1)})
    found = read(folder).frames[0]
    assert (found[:10] == 0).all()
    np.testing.assert_array_equal(found[10:], colour[10:])
    assert said(capfd).count("partly transparent pictures are laid on black") == 1
    folder = save(tmp_path / "c", {"0.png": np.concatenate([colour, alpha * 0], -1)})
    np.testing.assert_array_equal(read(folder).frames[0], colour)
    assert "all transparent is dropped" in said(capfd)
    (tmp_path / "d").mkdir()
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "d" / "0.tif")
    assert np.abs(read(tmp_path / "d").frames[0].astype(int) - colour).max() <= 1
    assert "CMYK is converted" in said(capfd)


def test_photos_in_wide_gamuts_become_srgb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As phones store them; a made-up profile whose red is as that of Display P3."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = bytearray(plain.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be")))
    entry = wide.index(b"rXYZ")
    (offset,) = struct.unpack(">I", wide[entry + 4 : entry + 8])
    wide[offset + 8 : offset + 20] = struct.pack(">3i", *(round(each * 65536) for each in (0.5151, 0.2412, -0.0011)))
    picture = Image.new("RGB", (8, 8), (200, 60, 60))
    for name, profile in (("plain", plain), ("wide", bytes(wide)), ("broken", b"profile")):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png", icc_profile=profile)
        shown, text = read(tmp_path / name).frames[0][0, 0].tolist(), said(capfd)
        if name == "wide":
            assert shown[0] > 205
            assert "colours of profile wide" in text
        else:
            assert shown == [200, 60, 60]
            assert ("colour profile is damaged" in text) == (name == "broken")


# pictures of several frames


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_have_the_times_they_state(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(frame) for frame in flat(4)]
    path = tmp_path / f"a.{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[40, 80, 120, 40], lossless=True)
    video = read(path)
    assert numbers(video) == [0, 1, 2, 3]
    assert video.times.tolist() == pytest.approx([0, 0.04, 0.12, 0.24])


def test_pages_of_a_tiff_are_frames_and_a_photo_is_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = [Image.fromarray(frame) for frame in flat(4)]
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=[*pictures[1:], Image.new("RGB", (8, 8))])
    assert numbers(read(tmp_path / "a.tif")) == [0, 1, 2, 3]
    text = said(capfd)
    assert "4 pages are taken as frames" in text
    assert "passing over 1 of 5 pages" in text
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient(16, 24, 1)[0]).save(tmp_path / "photo.jpg", exif=exif)
    assert np.shape(read(tmp_path / "photo.jpg").frames) == (1, 24, 16, 3), "upright"


def test_pages_in_a_folder_and_in_a_mask_are_not_dropped_silently(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = [Image.fromarray(frame) for frame in flat(2)]
    for name in ("0.tif", "1.tif"):
        pictures[1].save(tmp_path / name, save_all=True, append_images=[pictures[0]])
    assert numbers(read(tmp_path)) == [1, 1]
    assert said(capfd).count("only the first counts: give the file itself for all") == 1
    with pytest.raises(UserError, match=r"0\.tif holds 2 pages; save them as a folder of PNGs"):
        as_masks(tmp_path / "0.tif", Video(frames=list(flat(2)), times=np.arange(2.0), total=2))


def test_pictures_in_memory_are_read_as_those_of_a_folder() -> None:
    ramp = (np.arange(256).reshape(16, 16) << 4).astype(np.uint16)
    video = gather([Image.fromarray(ramp), Image.fromarray(ramp // 2)])
    assert video.frames[0][..., 0].ravel().tolist() == list(range(256))
    assert video.frames[1].max() == 127


def test_what_is_nearly_black_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read(save(tmp_path / "dark", {f"{i}.png": np.full((8, 8, 3), 15, np.uint8) for i in range(2)}))
    assert "is nearly black: its brightest value is 15 of 255" in said(capfd)


# times


def test_times_are_those_of_the_frames_shown(tmp_path: Path) -> None:
    """An edit list hides frames that are decoded: a trimmed phone video."""
    content = bytearray(BIKES.read_bytes())
    start = content.index(b"elst")
    content[start + 12 : start + 20] = struct.pack(">Ii", 1000, 1024 + 512 * 10)
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(content)
    whole, video = read(BIKES, ALL), read(path, ALL)
    np.testing.assert_array_equal(video.frames, whole.frames[10:35])
    np.testing.assert_allclose(video.times, np.arange(25) / 25)
    assert video.total == 25


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_uneven_times_are_kept(tmp_path: Path, suffix: str) -> None:
    stamps = [7, 9, 20, 21, 60]
    video = read(encode(tmp_path / f"v.{suffix}", flat(5), stamps=stamps))
    assert numbers(video) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(video.times, [0, 0.02, 0.13, 0.14, 0.53], atol=2e-3)


def test_a_stream_without_times_says_its_rate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = encode(tmp_path / "v.h264", flat(5), options={"x264-params": "force-cfr=1"})
    assert numbers(read(path)) == [0, 1, 2, 3, 4]
    assert "has no time stamps: taken as" in said(capfd)


@pytest.mark.parametrize("streamed", [False, True])
def test_damage_leaves_gaps_and_shifts_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], *, streamed: bool
) -> None:
    content = bytearray(BIKES.read_bytes())
    with av.open(str(BIKES)) as container:
        packets = [(p.pos, p.size, p.pts) for p in container.demux(container.streams.video[0]) if p.size]
    for position, size, _ in packets[20:25]:
        content[position : position + size] = bytes(size)
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    lost = sorted(pts / 12800 for _, _, pts in packets[20:25])
    times = stream(footage(path), ALL).times if streamed else read(path, ALL).times
    assert set(np.round(times, 4)) == set(np.round(np.arange(52) / 25, 4)) - set(np.round(lost, 4))
    text = said(capfd)
    assert f"5 of 52 frames do not decode (between {lost[0]:.2f} s and {lost[-1]:.2f} s)" in text
    assert text.count("is damaged") == 1


def test_pieces_that_are_missing_from_a_broadcast_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """MPEG-TS has no index that would promise frames: the container notices what is missing."""
    noise = RNG.integers(0, 256, (12, 32, 48, 3), np.uint8)
    path = encode(tmp_path / "v.ts", noise, options={"g": "4", "crf": "4"})
    content = path.read_bytes()
    middle = len(content) // 188 // 2 * 188
    path.write_bytes(content[:middle] + content[middle + 4 * 188 :])
    assert set(np.rint(read(path).times * 10)) <= set(range(12))
    assert said(capfd).count("is damaged: ") == 1


@pytest.mark.parametrize(("suffix", "codec"), [(".flv", "libx264"), (".wmv", "wmv2")])
def test_a_short_video_that_is_whole_is_not_said_to_be_cut(
    tmp_path: Path, suffix: str, codec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first frame's delay (FLV) or the last one's duration (WMV) is a tenth of eight frames and more."""
    file = encode(tmp_path / f"short{suffix}", flat(8), codec=codec, pixels="yuv420p")
    assert len(footage(file).times) == 8
    assert "cut short" not in said(capfd)


def test_frames_and_times_are_equally_many() -> None:
    with pytest.raises(ValueError, match="there are 3 frames and 2 times"):
        Video(frames=list(flat(3)), times=np.arange(2.0), total=3)


def test_a_slower_camera_of_a_rig_repeats_its_frames(tmp_path: Path) -> None:
    """Repeated indices once collapsed, and every later frame moved up."""
    fast = encode(tmp_path / "fast.mp4", flat(12), rate=25, options={"crf": "4"})
    slow = encode(tmp_path / "slow.mp4", flat(12)[::4], rate=25, stamps=[0, 16, 32], options={"crf": "4"})
    video = gather([fast, slow], ALL)
    shown = numbers(video)
    nearest = [min((0, 4, 8), key=lambda other: abs(other - index)) for index in range(len(shown[::2]))]
    assert len(shown[::2]) >= 10
    assert shown[::2] == list(range(len(shown[::2])))
    ties = [index for index in range(len(nearest)) if index % 4 == 2]
    assert [n for i, n in enumerate(shown[1::2]) if i not in ties] == [
        n for i, n in enumerate(nearest) if i not in ties
    ]


# names


@pytest.mark.parametrize(
    "name",
    ["frame_%03d.mp4", "clip:1.mp4", "concat:a.mp4", "-x.mp4", "a*b?.mp4", "two words.mp4", "pipe:0", "v.%d.png"],
)
def test_names_are_only_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name.endswith("png"):
        Image.fromarray(flat(2)[1]).save(tmp_path / name)
        Image.fromarray(flat(3)[2]).save(tmp_path / "v.1.png")
        assert numbers(read(Path(name))) == [1]
    else:
        write_video(tmp_path / "plain.mp4", flat(3)).rename(tmp_path / name)
        assert numbers(read(Path(name))) == [0, 1, 2]


def test_a_folder_may_be_called_as_a_video(tmp_path: Path) -> None:
    assert numbers(read(save(tmp_path / "x.mp4", {"[1].png": flat(2)[1]}))) == [1]


# what cannot be used


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.mp4", b"", r"v\.mp4 .*it is empty \(0 bytes\)"),
        ("a.png", b"", r"a\.png .*it is empty \(0 bytes\)"),
        ("v.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer.*git lfs pull"),
        ("v.mp4", b"<!DOCTYPE html><html><body>404</body></html>", "is a web page; download the file itself"),
        ("v.mp4", b"PK\x03\x04" + bytes(99), "is a ZIP archive"),
        ("v.mov", b"frame 1: nothing\n" * 9, "is a text file"),
        ("v.mp4", b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(99), "does not decode as a video"),
        ("p.jpg", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(99), "is a HEIC picture"),
        ("p.dng", b"II*\x00" + bytes(99), "is a camera's raw photo; develop it"),
        ("p.tif", b"II*\x00" + bytes(99), "does not decode as an image"),
        ("p.nef", b"\x01\x02\x03\x04" + bytes(99), "is a camera's raw photo; develop it"),
        ("v.m3u8", b"#EXTM3U\nhttp://nowhere/1.ts\n", "is a playlist"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_remedy(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Not one remedy for all: "convert to H.264 MP4" for files that are."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path / name)
    assert name in str(raised.value)
    assert "H.264" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("address", ["https://example.org/v.mp4", "s3://bucket/v.mp4", "rtsp://camera/1"])
def test_addresses_are_to_be_downloaded_first(address: str) -> None:
    video = Video(frames=list(flat(1)), times=np.zeros(1), total=1)
    with pytest.raises(UserError, match=f"{address} is an address, not a file; download it first"):
        read(Path(address))
    with pytest.raises(UserError, match="is an address, not a file; download it first"):
        as_masks(address, video)


def test_patterns_are_not_filled_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="patterns are not filled in: give the folder"):
        read(tmp_path / "frame_%03d.png")


def test_folders_without_pictures_say_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no images that can be read, only IMG_1\.HEIC \(IMG_1\.HEIC is a HEIC"):
        read(tmp_path)


def test_a_folder_of_videos_or_folders_is_not_to_be_filled_with_pictures(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "cam0").mkdir()
    with pytest.raises(UserError, match=r"only cam0/, clip\.mp4; give that itself, or put some there"):
        read(tmp_path)


def test_a_mask_of_what_stands_still_is_doubted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Other programs mark what to leave alone; inverted masks teach a model that the world moves."""
    marked = np.zeros((32, 48), np.uint8)
    marked[8:16, 8:16] = 255
    for name, pixels in (("usual", marked), ("inverted", 255 - marked)):
        save(tmp_path / name, {"0.png": pixels})
        Request(video=tmp_path, mask=tmp_path / name).check_for(moving_model().abilities)
    told = said(capfd)
    assert "inverted: marks 96% of the picture as moving; invert it if it marks what stands still" in told
    assert "usual" not in told


def test_all_frames_damaged_is_no_matter_of_format(tmp_path: Path) -> None:
    content = bytearray(BIKES.read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = bytes(len(content) - start)
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"none of its frames does .*copy or record it again"):
        read(tmp_path / "v.mp4")


def test_known_paths_are_checked_alike() -> None:
    from four_d.inference.hints import _read_depth  # pyright: ignore[reportPrivateUsage]

    assert Known(depth="https://x/depth").kinds == ("depth",)
    with pytest.raises(UserError, match="is an address"):
        _read_depth(Path("https://x/depth"), 1.0, Video(frames=list(flat(1)), times=np.zeros(1), total=1))
