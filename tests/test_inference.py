"""Videos of every kind become frames, frames become a result in original pixels, and results become files."""

import dataclasses
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import four_d.inference
from four_d.backbones.dynamics import DynamicsConfig
from four_d.checkpoints import ModelInfo
from four_d.drawing import DEPTH, PROBABILITY
from four_d.errors import UserError
from four_d.formats.cameras import read_cameras, read_colmap
from four_d.formats.clouds import read_ply
from four_d.formats.depth import read_depth
from four_d.geometry import project
from four_d.heads.dynamic import DynamicHeadConfig
from four_d.heads.track import TrackHeadConfig
from four_d.inference import LoadedModel, Selection, Video, infer, load, read
from four_d.types import LENGTH, NONE, Cameras, Clip, Prediction, drawn
from four_d.video.fit import Fit, fit, resize, resize_masks
from four_d.video.inputs import as_frames
from four_d.video.mask import as_masks
from tests.helpers import colmap_tracks
from tests.test_export import RUN, TINY, tiny_model, write_run

av = pytest.importorskip("av", reason="the extra video is not installed")

BIKES = Path(__file__).parent / "data" / "bikes.mp4"


def gradient(height: int, width: int, frames: int = 4) -> NDArray[np.uint8]:
    """Frames in which red grows to the right, green downwards, blue over time."""
    y, x = np.mgrid[:height, :width]
    stack = [np.stack([255 * x / width, 255 * y / height, np.full_like(x, 40 * t)], axis=-1) for t in range(frames)]
    return np.stack(stack).astype(np.uint8)


def write_video(path: Path, frames: NDArray[np.uint8], rate: int = 10, pixels: str = "yuv444p") -> Path:
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def model(size: tuple[int, int] = (32, 48)) -> LoadedModel:
    return LoadedModel(tiny_model(), ModelInfo(model=TINY, image_size=size, frames=8))


# reading


def test_real_clip() -> None:
    video = read(BIKES, Selection(max_frames=6))
    assert np.shape(video.frames) == (6, 272, 640, 3)
    assert video.total == 52
    np.testing.assert_allclose(video.times, np.rint(np.linspace(0, 51, 6)) / 25)
    assert len({frame.tobytes() for frame in video.frames}) == 6


def test_frames_are_the_ones_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    frames = gradient(32, 48, frames=6)
    path = write_video(tmp_path / "v.mp4", frames)
    video = read(path, Selection(max_frames=2, start=0.2, fps=5.0))
    assert video.times.tolist() == pytest.approx([0.2, 0.4])
    assert np.abs(np.array(video.frames, int) - frames[[2, 4]]).mean() < 3
    assert "taking 2 frames of 0.50 s, 0.20 s to 0.40 s" in capfd.readouterr().err


def test_selection_refuses_nonsense() -> None:
    for wrong in ({"max_frames": 0}, {"start": -1.0}, {"fps": 0.0}):
        with pytest.raises(UserError):
            Selection(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [(272, 640), (640, 272), (273, 641), (1, 1), (33, 47)])
def test_any_size_and_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = gradient(*size, frames=2)
    video = read(write_video(tmp_path / "v.mp4", frames))
    assert np.shape(video.frames) == frames.shape
    result = model()(np.stack(video.frames))
    assert result.depth is not None
    assert result.depth.shape[-2:] == result.fits.model
    assert all(side % 8 == 0 for side in result.fits.model)


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2), ((1, 0, 0, 1), 0)]
)
def test_rotation_mark_of_phones(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    """The track header's matrix (a b u; c d v; x y w) maps stored (x, y) to shown (ax + cy, bx + dy), y down."""
    frames = gradient(32, 48, frames=2)
    path = write_video(tmp_path / "v.mp4", frames)
    content = path.read_bytes()
    unit = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    start = content.index(unit, content.index(b"tkhd"))
    path.write_bytes(content[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[start + 36 :])
    shown = read(path).frames[0].astype(int)
    assert shown.shape == np.rot90(frames[0], turns).shape
    assert np.abs(shown - np.rot90(frames[0], turns)).mean() < 3


def test_one_frame(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = model()(write_video(tmp_path / "v.mp4", gradient(32, 48, frames=1)))
    assert result.times == [0.0]
    assert result.cameras is not None
    assert "one frame" in capfd.readouterr().err


def test_greyscale_video(tmp_path: Path) -> None:
    frames = np.repeat(gradient(32, 48)[..., :1], 3, axis=-1)
    video = read(write_video(tmp_path / "v.mp4", frames, pixels="gray"))
    assert np.abs(np.array(video.frames, int) - frames).mean() < 12, "limited-range grey may be off by a stretch"


def test_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "av.error", None)
    with pytest.raises(UserError, match=r"four_d\[video\]"):
        read(BIKES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"this is no video" * 100, "does not decode"),
        (b"\x00" * 4096, "does not decode"),
        (BIKES.read_bytes()[:600], "does not decode|no picture"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nonly subtitles\n", "does not decode"),
    ],
)
def test_undecodable(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    assert "clip.mp4" in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 2


def test_video_cut_short_is_used_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = BIKES.read_bytes()
    path = tmp_path / "clip.mp4"
    path.write_bytes(content[: len(content) // 2])
    video = read(path, Selection(max_frames=100))
    assert 2 <= len(video.frames) < 52
    assert "of its 52 frames are there" in capfd.readouterr().err


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
    with pytest.raises(UserError, match="does not decode as a video"):
        read(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nothing.mp4")
    with pytest.raises(UserError, match="holds no images"):
        read(tmp_path)
    with pytest.raises(UserError, match="no frame there"):
        read(BIKES, Selection(start=60.0))


def test_folder_of_images_of_all_kinds(tmp_path: Path) -> None:
    """Sorted by name; grey, palette, transparent and 16-bit images become RGB; others' files do not matter."""
    colour = Image.fromarray(gradient(20, 30, 1)[0])
    grey = np.asarray(colour.convert("L"))
    colour.save(tmp_path / "a.png")
    colour.convert("L").save(tmp_path / "b.png")
    colour.convert("RGBA").save(tmp_path / "c.png")
    colour.convert("P").save(tmp_path / "d.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 200).save(tmp_path / "e.png")
    colour.convert("1").save(tmp_path / "f.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    frames = read(tmp_path).frames
    assert np.shape(frames) == (6, 20, 30, 3)
    np.testing.assert_array_equal(frames[0], np.asarray(colour))
    np.testing.assert_array_equal(frames[1], np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(frames[2], np.asarray(colour))
    np.testing.assert_array_equal(frames[4], frames[1])


def test_folder_respects_exif_rotation(tmp_path: Path) -> None:
    image = Image.fromarray(gradient(16, 24, 1)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path).frames[0], np.rot90(np.asarray(image), -1))


def test_folder_of_mixed_sizes_names_the_file(tmp_path: Path) -> None:
    for name, size in (("a", (20, 30)), ("b", (20, 30)), ("c", (20, 31))):
        Image.fromarray(gradient(*size, 1)[0]).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"c\.png is 31×20, a\.png is 30×20"):
        read(tmp_path)


def test_folder_with_a_broken_image_names_it(tmp_path: Path) -> None:
    Image.fromarray(gradient(20, 30, 1)[0]).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for broken in (b"", b"no image", content[: len(content) // 2]):
        (tmp_path / "b.png").write_bytes(broken)
        with pytest.raises(UserError, match=r"b\.png does not decode"):
            read(tmp_path)


# fitting


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([8, 14, 16]), st.sampled_from([64, 112, 224]))
def test_fit_covers_and_keeps_area(height: int, width: int, patch: int, side: int) -> None:
    (chosen,) = fit([(height, width)], (side, side), patch).of_frames
    rows, columns = chosen.model
    assert rows % patch == 0
    assert columns % patch == 0
    assert chosen.left >= -1e-6
    assert chosen.top >= -1e-6
    assert min(chosen.left, chosen.top) == pytest.approx(0, abs=1e-6), "only one axis is cropped"
    assert columns / chosen.scale + 2 * chosen.left == pytest.approx(width)
    assert rows / chosen.scale + 2 * chosen.top == pytest.approx(height)
    if 0.5 < height / width < 2:
        assert 0.6 < rows * columns / side**2 < 1.6


def test_fit_of_the_trained_size_changes_nothing(generator: torch.Generator) -> None:
    same = fit([(64, 96)] * 2, (64, 96), 16)
    assert same.of_frames == (Fit(original=(64, 96), model=(64, 96), scale=1.0, left=0.0, top=0.0),) * 2
    images = torch.rand(2, 3, 64, 96, generator=generator)
    assert torch.equal(resize(list(images), same), images)


@pytest.mark.parametrize("floats", [False, True])
def test_resizing_holds_one_frame_at_full_size(*, floats: bool) -> None:
    """24 frames of 4K once took 5.8 GB."""
    frames = np.zeros((8, 400, 600, 3), np.uint8)
    given = list(torch.from_numpy(frames).permute(0, 3, 1, 2).half() if floats else frames)
    tracemalloc.start()
    try:
        resize(given, fit([(400, 600)] * 8, (32, 48), 8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * frames[0].size * 4, "bytes of one frame in float32, and what lies about"


@pytest.mark.parametrize("size", [(272, 640), (640, 273), (40, 30)])
def test_intrinsics_in_original_pixels_follow_the_image(size: tuple[int, int]) -> None:
    """A linear image stays linear when resized: reading colours at mapped pixels tells whether the map is right."""
    chosen = fit([size], (64, 64), 8)
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    plane = torch.from_numpy(np.stack([x / width, y / height, x * 0])).float()[None]
    small = resize(list(plane), chosen)[0]
    rows, columns = chosen.model
    row, column = np.mgrid[2 : rows - 2, 2 : columns - 2]
    pixels = torch.from_numpy(np.stack([column + 0.5, row + 0.5, np.ones(row.shape)]).reshape(3, -1))
    shifted = chosen.to_original(torch.eye(3, dtype=torch.float64)[None])[0] @ pixels
    torch.testing.assert_close(small[0, 2:-2, 2:-2].flatten().double(), shifted[0] / width, atol=2e-3, rtol=0)
    torch.testing.assert_close(small[1, 2:-2, 2:-2].flatten().double(), shifted[1] / height, atol=2e-3, rtol=0)


# running


def test_all_ways_to_give_frames_agree(tmp_path: Path) -> None:
    frames = gradient(33, 47)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    ways = {
        "array": frames,
        "tensor": torch.from_numpy(frames).permute(0, 3, 1, 2) / 255,
        "pictures": [Image.fromarray(frame) for frame in frames],
        "folder": tmp_path,
        "name": str(tmp_path),
    }
    results = {name: model()(way) for name, way in ways.items()}
    for result in results.values():
        torch.testing.assert_close(result.depth, results["array"].depth)
        np.testing.assert_array_equal(result.frames, frames)
        assert result.times == pytest.approx([0, 0.04, 0.08, 0.12])


def test_a_clip_gives_a_batched_prediction() -> None:
    times = torch.zeros(2, 3)
    prediction = model()(Clip(images=torch.zeros(2, 3, 3, 32, 48), times=times, camera_ids=times.long()))
    assert isinstance(prediction, Prediction)
    assert prediction.depth is not None
    assert prediction.depth.shape == (2, 3, 32, 48)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        torch.zeros(2, 8, 8, 3),
        torch.full((2, 3, 8, 8), 2.0),
        torch.full((2, 3, 8, 8), torch.nan),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        [],
        [1, 2],
        3,
        [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))],
    ],
)
def test_wrong_frames_are_refused(wrong: object) -> None:
    with pytest.raises(UserError, match=r"frames|pictures"):
        as_frames(wrong)


def test_cameras_at_both_resolutions_see_the_same(generator: torch.Generator) -> None:
    """A point lands on the same place of the picture, whether by model pixels or by original ones."""
    result = model()(gradient(100, 200, 3))
    assert result.prediction.cameras is not None
    assert result.cameras is not None
    points = torch.randn(3, 5, 3, generator=generator) + torch.tensor([0, 0, 4.0])
    own = result.fits.of_frames[0]
    small, _ = project(points, result.prediction.cameras)
    large, _ = project(points, result.cameras)
    expected = small / own.scale + torch.tensor([own.left, own.top])
    torch.testing.assert_close(large, expected, atol=1e-2, rtol=1e-4)


def test_load_run_and_export(tmp_path: Path) -> None:
    loaded = load(write_run(tmp_path / "run", tiny_model()))
    assert loaded.info.image_size == RUN.data.image_size
    torch.testing.assert_close(loaded(gradient(32, 48)).depth, model()(gradient(32, 48)).depth)


# writing


def test_infer_writes_all_that_the_model_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = infer(model(), BIKES, out, selection=Selection(max_frames=3), page=lambda _, f: (f / "x").touch())
    assert result.depth is not None
    assert result.cameras is not None
    names = {".four_d.json", "cameras.json", "colmap", "depth", "points.ply", "prediction.npz", "x"}
    assert {p.name for p in out.iterdir()} == names
    table = read_cameras(out / "cameras.json")
    torch.testing.assert_close(table.original.intrinsics, result.cameras.intrinsics.double())
    assert table.original_sizes == [(272, 640)] * 3
    assert table.model_size == result.fits.model
    depth = read_depth(out / "depth")
    np.testing.assert_allclose(depth, result.depth.numpy(), atol=float(result.depth.max()) / 65535)
    with np.load(out / "prediction.npz") as arrays:
        np.testing.assert_array_equal(arrays["depth"], result.depth.numpy())
        assert {"points", "depth_confidence", "intrinsics", "intrinsics_original", "times"} <= set(arrays)
    assert len(read_ply(out / "points.ply")) > 0
    for name, cameras, size in (
        ("model", result.prediction.cameras, result.fits.model),
        ("original", result.cameras, (272, 640)),
    ):
        read_back, sizes, names_back = read_colmap(out / "colmap" / name / "sparse" / "0")
        assert cameras is not None
        torch.testing.assert_close(read_back.intrinsics, cameras.intrinsics.double(), atol=1e-4, rtol=1e-6)
        assert sizes == [size] * 3
        with Image.open(out / "colmap" / name / "images" / names_back[0]) as image:
            assert image.size == size[::-1]
        tracks = colmap_tracks(out / "colmap" / name / "sparse" / "0")
        assert len(tracks) == len(read_ply(out / "points.ply"))
        for (error, images), own in zip(tracks, read_ply(out / "points.ply").frames.tolist(), strict=True):
            assert own + 1 in images
            assert 0 <= error < 0.01


def test_model_without_cameras_writes_what_it_has(tmp_path: Path) -> None:
    result = model()(gradient(32, 48))
    four_d.inference.write(
        four_d.inference.Result(
            prediction=Prediction(depth=result.depth),
            images=result.images,
            frames=result.frames,
            times=result.times,
            fits=result.fits,
        ),
        tmp_path,
    )
    assert {p.name for p in tmp_path.iterdir()} == {"depth", "prediction.npz"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chalked(Prediction):
    chalk: Float[Tensor, "*b f h w"] | None = dataclasses.field(
        default=None, metadata=NONE | drawn(PROBABILITY, "Chalk")
    )
    marks: Float[Tensor, "*b f h w"] | None = dataclasses.field(
        default=None, metadata=LENGTH | drawn(DEPTH, "Marks", folder="colmap")
    )
    smears: Float[Tensor, "*b f h w"] | None = dataclasses.field(
        default=None, metadata=LENGTH | drawn(DEPTH, "Smears", folder="depth")
    )


@pytest.mark.parametrize(("name", "folder"), [("marks", "colmap, as another file"), ("smears", "depth, as depth")])
def test_folders_of_two_outputs_are_refused(tmp_path: Path, name: str, folder: str) -> None:
    result = model()(gradient(32, 48))
    value: dict[str, Tensor | None] = {name: result.depth}
    prediction = Chalked(depth=result.depth, **value)
    with pytest.raises(ValueError, match=f"{name} would be written to {folder} is; give it another folder"):
        four_d.inference.write(dataclasses.replace(result, prediction=prediction), tmp_path)


def test_maps_of_ones_own_are_numbers_where_an_image_holds_them(tmp_path: Path) -> None:
    result = model()(gradient(32, 48))
    assert result.depth is not None
    chalk = torch.linspace(0, 1, result.depth.numel()).view_as(result.depth)
    four_d.inference.write(dataclasses.replace(result, prediction=Chalked(chalk=chalk)), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"chalk", "prediction.npz"}
    with Image.open(tmp_path / "chalk" / "000003.png") as image:
        np.testing.assert_allclose(np.asarray(image) / 255, chalk[3], atol=0.5 / 255 + 1e-6)


def test_the_report_is_written_unless_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("viser", reason="the extra viz is not installed")
    Image.fromarray(gradient(32, 48)[0]).save(tmp_path / "photo.png")
    infer(model(), tmp_path / "photo.png", tmp_path / "with")
    page = (tmp_path / "with" / "report.html").read_text()
    assert "<h1>photo.png</h1>" in page
    assert "<dt>model trained at</dt><dd>48 × 32</dd>" in page
    infer(model(), gradient(32, 48), tmp_path / "without", page=None)
    assert not (tmp_path / "without" / "report.html").exists()
    caplog.clear()
    monkeypatch.setitem(sys.modules, "viser", None)
    infer(model(), gradient(32, 48), tmp_path / "poor")
    assert not (tmp_path / "poor" / "report.html").exists()
    assert caplog.messages == ["no report.html: the page takes viser; pip install 'four_d[viz]'"]


def test_infer_leaves_nothing_half_written(tmp_path: Path) -> None:
    def full(result: four_d.inference.Result, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        infer(model(), BIKES, tmp_path / "out", selection=Selection(max_frames=2), page=full)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        infer(model(), BIKES, tmp_path / "file", selection=Selection(max_frames=2))


def test_known_camera_stays_out_of_the_way() -> None:
    """`Fits` keep poses, and whatever marks cameras as known."""
    cameras = Cameras(world_from_camera=torch.eye(4)[None], intrinsics=torch.eye(3)[None], known=torch.tensor([True]))
    moved = fit([(272, 640)], (64, 64), 8).original_cameras(cameras)
    assert torch.equal(moved.world_from_camera, cameras.world_from_camera)
    assert moved.known is cameras.known


# what moves

MOVING = dataclasses.replace(
    TINY,
    backbone=dataclasses.replace(TINY.backbone, dynamics=DynamicsConfig(after=0, rounds=(1, 1), hidden=8)),
    heads={**TINY.heads, "dynamic": DynamicHeadConfig()},
)


def moving_model() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(MOVING.build().eval(), ModelInfo(model=MOVING, image_size=(32, 48), frames=8))


def write_mask(path: Path, mask: NDArray[np.generic], mode: str | None = None) -> Path:
    Image.fromarray(mask.astype(np.uint8), mode).save(path)
    return path


def some_video(frames: int = 3, total: int | None = None, indices: tuple[int, ...] | None = None) -> Video:
    times = np.arange(frames) / 25
    return Video(frames=list(gradient(20, 30, frames)), times=times, total=total or frames, indices=indices)


def test_a_mask_of_each_frame_or_of_all_of_the_video_or_one_for_all(tmp_path: Path) -> None:
    masks = np.arange(6)[:, None, None] == np.ones((20, 30))[None] * np.arange(6)[:, None, None]
    masks[3, :10] = False
    masks[5] = False
    video = some_video(3, total=6, indices=(0, 3, 5))
    for index, mask in enumerate(masks):
        write_mask(tmp_path / f"{index}.png", mask)
    np.testing.assert_array_equal(as_masks(tmp_path, video), masks[[0, 3, 5]])
    np.testing.assert_array_equal(as_masks(masks, video), masks[[0, 3, 5]])
    np.testing.assert_array_equal(as_masks(torch.from_numpy(masks[:3]), video), masks[:3])
    np.testing.assert_array_equal(as_masks(masks[3], video), np.stack([masks[3]] * 3))
    np.testing.assert_array_equal(as_masks(str(tmp_path / "3.png"), video), np.stack([masks[3]] * 3))


def test_masks_of_every_kind_of_picture(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:9] = True
    label = Image.fromarray(mask.astype(np.uint8), "P")
    label.putpalette([255, 255, 255, 0, 0, 0])  # the background is white: the index counts, not the colour
    label.save(tmp_path / "p.png")
    grey = Image.fromarray(mask.astype(np.uint8) * 7)
    grey.save(tmp_path / "l.png")
    Image.merge("RGB", [grey, Image.new("L", grey.size), Image.new("L", grey.size)]).save(tmp_path / "rgb.png")
    Image.merge("LA", [grey, Image.new("L", grey.size, 255)]).save(tmp_path / "la.png")
    Image.merge("RGBA", [grey] * 3 + [Image.new("L", grey.size, 255)]).save(tmp_path / "rgba.png")
    Image.fromarray(mask).save(tmp_path / "1.png")
    Image.fromarray(mask.astype(np.uint16) * 300).save(tmp_path / "i.png")
    for file in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(as_masks(file, some_video(1))[0], mask, err_msg=file.name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.png", np.zeros((20, 31)), r"mask .*m\.png is 31×20, frame 0 is 30×20"),
        ("m.jpg", np.zeros((20, 30)), r"m\.jpg is a JPEG"),
        ("m.png", b"no image", r"m\.png does not decode"),
        (None, np.zeros((2, 20, 30), bool), "there are 2 masks, and 3 frames were taken of 9"),
        (None, np.zeros((3, 21, 30), bool), "the mask is 30×21, frame 0 is 30×20"),
        (None, np.zeros((20, 30), np.float32), "the mask is float32"),
        (None, [1], "the mask is int"),
        (None, "nowhere", "nowhere does not exist"),
        (None, Path(), "holds no images"),
    ],
)
def test_a_wrong_mask_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    video = some_video(3, total=9, indices=(0, 4, 8))
    if isinstance(content, bytes) and name is not None:
        (tmp_path / name).write_bytes(content)
    elif isinstance(content, np.ndarray) and name is not None:
        write_mask(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as raised:
        as_masks(tmp_path / name if name is not None else content, video)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("size", [(272, 640), (640, 273), (20, 30), (32, 48)])
def test_masks_go_the_way_of_the_frames(size: tuple[int, int]) -> None:
    """A mask drawn where a picture is bright covers, on the model's grid, where that picture is bright."""
    y, x = np.mgrid[: size[0], : size[1]]
    bright = (x > 0.3 * size[1]) & (y < 0.7 * size[0])
    chosen = fit([size], (32, 48), 8)
    mask = resize_masks([bright], chosen)[0]
    picture = resize([np.repeat(bright[..., None], 3, -1).astype(np.uint8) * 255], chosen)[0, 0] > 0.5
    assert mask.shape == picture.shape == chosen.model
    assert (mask != picture).float().mean() < 0.03
    assert 0.2 < mask.float().mean() < 0.8


def test_a_users_mask_reaches_the_cameras_and_stands_beside_the_models_own() -> None:
    frames = gradient(32, 48)
    mask = np.zeros((32, 48), bool)
    mask[:16] = True
    still, plain, whole = (moving_model()(frames, mask=m) for m in (mask, None, np.ones((32, 48), bool)))
    assert still.cameras is not None
    assert plain.cameras is not None
    assert whole.cameras is not None
    assert not torch.equal(still.cameras.world_from_camera, plain.cameras.world_from_camera)
    assert not torch.equal(still.cameras.world_from_camera, whole.cameras.world_from_camera)
    assert torch.equal(still.prediction.dynamic, plain.prediction.dynamic)
    assert torch.equal(still.moving, torch.from_numpy(np.stack([mask] * 4)))
    assert torch.equal(plain.moving, plain.prediction.dynamic > 0.5)
    everything, rest = still.cloud(), still.cloud(static=True)
    assert everything is not None
    assert rest is not None
    assert 0 < len(rest) < len(everything)
    nothing = whole.cloud(static=True)
    assert nothing is not None
    assert len(nothing) == 0


def test_a_mask_without_use_is_refused() -> None:
    mask = np.zeros((32, 48), bool)
    with pytest.raises(UserError, match=r"backbone\.dynamics is off"):
        model()(gradient(32, 48), mask=mask)
    with pytest.raises(UserError, match="says what moves"):
        model()(gradient(32, 48)).cloud(static=True)
    times = torch.zeros(1, 2)
    clip = Clip(images=torch.zeros(1, 2, 3, 32, 48), times=times, camera_ids=times.long())
    with pytest.raises(UserError, match="follows no points"):
        model()(gradient(32, 48), points=[(1.0, 2.0)])
    with pytest.raises(UserError, match=r"Clip\.dynamic"):
        moving_model()(clip, mask=mask)  # pyright: ignore[reportCallIssue]


def test_the_predicted_mask_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = infer(moving_model(), BIKES, out, selection=Selection(max_frames=2), static_points=True)
    assert result.prediction.dynamic is not None
    with np.load(out / "prediction.npz") as arrays:
        np.testing.assert_array_equal(arrays["dynamic"], result.prediction.dynamic.numpy())
    for index in range(2):
        with Image.open(out / "mask" / f"{index:06d}.png") as image:
            written = np.asarray(image) / 255
        np.testing.assert_allclose(written, result.prediction.dynamic[index], atol=0.5 / 255 + 1e-6)


def test_a_device_that_is_not_there_is_one_clear_error() -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(UserError, match=f"no device '{device}'") as raised:
            model().to(device)
        assert len(str(raised.value).splitlines()) == 1
    assert model().to("cpu")(gradient(32, 48, 2)).depth is not None


def test_transparent_frames_given_as_arrays_name_their_shape() -> None:
    with pytest.raises(UserError, match=r"uint8 \(2, 8, 8, 4\); give uint8 \(frames, height, width, 3\)"):
        as_frames(np.zeros((2, 8, 8, 4), np.uint8))
    with pytest.raises(UserError, match=r"\(2, 4, 8, 8\); give floats in \[0, 1\], \(frames, 3, height, width\)"):
        as_frames(torch.zeros(2, 4, 8, 8))


def test_points_are_followed_in_original_pixels(tmp_path: Path) -> None:
    track = TrackHeadConfig(channels=(8,) * 4, features=8, levels=2, radius=1, hidden=16, depth=1, heads=2, virtual=4)
    config = dataclasses.replace(TINY, heads={"track": track})
    torch.manual_seed(0)
    follower = LoadedModel(config.build().eval(), ModelInfo(model=config, image_size=(32, 48), frames=8))
    points = [(10.0, 20.5), (60.0, 33.0)]
    result = follower(gradient(64, 112), points=points)
    assert result.pixel_tracks is not None
    assert result.pixel_tracks.shape == (4, 2, 2)
    torch.testing.assert_close(result.pixel_tracks[0], torch.tensor(points), atol=1e-3, rtol=0)
    four_d.inference.write(result, tmp_path)
    with np.load(tmp_path / "prediction.npz") as arrays:
        np.testing.assert_array_equal(arrays["pixel_tracks"], result.pixel_tracks)
        assert arrays["pixel_tracks_visible"].shape == (4, 2)
    with pytest.raises(UserError, match="point 10,65 is outside what the model sees; choose x from"):
        follower(gradient(64, 112), points=[(10.0, 65.0)])
