"""Windows of a long video become one result in the first one's coordinates, in memory that the window bounds."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import fields
from four_d.abilities import Abilities, ModelModule
from four_d.checkpoints import ModelInfo
from four_d.errors import UserError
from four_d.formats.cameras import read_cameras, read_colmap
from four_d.formats.clouds import read_ply
from four_d.formats.depth import read_depth
from four_d.formats.observations import observe
from four_d.formats.tracks import read_tracks
from four_d.geometry import Similarity, make_pose, pixel_centres, rays, rotation_angle, unproject
from four_d.heads.track import TrackHeadConfig
from four_d.inference import LoadedModel, Result, Selection, Video, infer, read
from four_d.inference.output import arrays
from four_d.inference.request import Request
from four_d.inference.sinks import SHOWN
from four_d.types import LENGTH, NONE, NORMAL, POINT, Cameras, Clip, Prediction, map_tensors, nested
from four_d.video.fit import fit
from four_d.video.footage import footage, stream
from four_d.video.mask import as_masks
from four_d.windows.align import Seam, align
from four_d.windows.cut import Cut, border, owners
from four_d.windows.frames import join_frames, take_frames
from four_d.windows.join import Part, join
from tests.helpers import colmap_tracks
from tests.test_export import TINY, tiny_model
from tests.test_inference import BIKES, gradient, moving_model

av = pytest.importorskip("av", reason="the extra video is not installed")

ROOT = Path(__file__).parents[1]
AXIS = torch.tensor([0.2, 1.0, 0.1], dtype=torch.float64) / math.sqrt(1.05)
SIZE = 12, 16
RADIUS, CENTRE = 6.0, torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64)


def turn(axis: Tensor, angle: float) -> Tensor:
    return torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3, dtype=axis.dtype), axis.expand(3, 3)).mT * angle)


def truth(count: int) -> Prediction:
    """A camera that wanders and turns inside a ball, whose wall it sees: exact cameras and depth, in float64."""
    poses = []
    for index in range(count):
        centre = torch.tensor([math.sin(index / 9), 0.4 * math.sin(index / 5), index / count], dtype=torch.float64)
        poses.append(make_pose(turn(AXIS, 0.05 * index), centre))
    world = torch.stack(poses)
    world = torch.linalg.inv(world[0]) @ world
    height, width = SIZE
    intrinsics = torch.tensor([[14.0, 0, width / 2], [0, 14, height / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(world_from_camera=world, intrinsics=intrinsics.expand(count, 3, 3))
    pixels = pixel_centres(height, width, intrinsics).reshape(-1, 2)
    ways = rays(cameras.intrinsics, pixels.expand(count, -1, 2)) @ world[:, :3, :3].mT
    away = world[:, None, :3, 3] - CENTRE
    a, b, c = (ways**2).sum(-1), (ways * away).sum(-1), (away**2).sum(-1) - RADIUS**2
    depth = (-b + (b**2 - a * c).sqrt()) / a
    return Prediction(cameras=cameras, depth=depth.unflatten(-1, SIZE))


def of_window(whole: Prediction, frames: range, scale: float) -> Prediction:
    """A perfect model's prediction of some frames: in the first one's camera and its own unit."""
    assert whole.cameras is not None
    assert whole.depth is not None
    part = slice(frames.start, frames.stop)
    poses = whole.cameras.world_from_camera[part]
    poses = torch.linalg.inv(poses[0]) @ poses
    poses = torch.cat([poses[:, :3, :3], poses[:, :3, 3:] / scale], dim=-1)
    poses = make_pose(poses[:, :, :3], poses[:, :, 3])
    depth = whole.depth[part] / scale
    cameras = Cameras(world_from_camera=poses.float(), intrinsics=whole.cameras.intrinsics[part].float())
    return Prediction(cameras=cameras, depth=depth.float(), depth_confidence=torch.ones_like(depth).float())


def frames_of(prediction: Prediction, start: int, stop: int) -> Prediction:
    return take_frames(prediction, slice(start, stop))


def part_of(frames: range, prediction: Prediction) -> Part[Result]:
    count = len(frames)
    result = Result(
        prediction=prediction,
        images=torch.zeros(count, 3, *SIZE),
        frames=list(np.zeros((count, *SIZE, 3), np.uint8)),
        times=[index / 25 for index in frames],
        fits=fit([SIZE] * count, SIZE, 4),
    )
    return Part(frames=frames, value=result)


def perfect_windows(whole: Prediction, plan: list[range], seed: int = 0) -> Iterator[Part[Result]]:
    generator = torch.Generator().manual_seed(seed)
    scales = 4 ** (2 * torch.rand(len(plan), generator=generator) - 1)
    scales[0] = 1
    for frames, scale in zip(plan, scales.tolist(), strict=True):
        yield part_of(frames, of_window(whole, frames, scale))


# cutting


@given(st.integers(1, 300), st.integers(2, 40), st.integers(1, 39))
def test_every_frame_is_taken_once_from_the_window_in_whose_middle_it_lies(count: int, size: int, overlap: int) -> None:
    windows = Cut(frames=size, overlap=min(overlap, size - 1))
    plan = windows.plan(count)
    assert plan[0].start == 0
    assert plan[-1].stop == count
    if count <= size:
        assert plan == [range(count)]
        return
    assert all(len(frames) == size for frames in plan)
    assert all(later.start <= earlier.stop - windows.overlap for earlier, later in itertools.pairwise(plan))
    borders = [0, *(border(*pair) for pair in itertools.pairwise(plan)), count]
    assert borders == sorted(set(borders)), "every window gives some frame"
    for frames, start, stop in zip(plan, borders, borders[1:], strict=False):
        for frame in range(start, stop):
            away = [abs(frame - (other.start + other.stop - 1) / 2) for other in plan]
            assert frame in frames
            assert abs(frame - (frames.start + frames.stop - 1) / 2) == min(away)
    owner = owners(torch.arange(count), [(frames.start, frames.stop - 1) for frames in plan])
    assert [int((owner < index).sum()) for index in range(len(plan))] == borders[:-1], "one rule"


def test_default_windows_are_those_of_training_twice_and_never_short() -> None:
    assert Request(video="v").cut(6) == Cut(frames=24, overlap=6)
    assert Request(video="v").cut(40) == Cut(frames=80, overlap=20)
    assert Request(video="v", window=2).cut(40) == Cut(frames=2, overlap=1)


@pytest.mark.parametrize(
    ("frames", "overlap", "message"),
    [(1, 1, "window is 1; take at least 2"), (8, 8, "overlap is 8, and a window has 8"), (8, 0, "overlap is 0")],
)
def test_windows_that_cannot_be_joined_are_refused(frames: int, overlap: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Request(video="v", window=frames, overlap=overlap).cut(8)


# aligning


def test_a_perfect_models_windows_become_the_truth() -> None:
    """100 windows, each in the coordinates of its own first frame and in a unit of its own."""
    whole = truth(304)
    plan = Cut(frames=7, overlap=4).plan(304)
    seams: list[Seam] = []
    parts = list(join(perfect_windows(whole, plan), seams))
    assert len(plan) == 100
    assert [part.frames.start for part in parts[1:]] == [part.frames.stop for part in parts[:-1]]
    joined = join_frames([part.value.prediction for part in parts])
    assert joined.cameras is not None
    assert joined.depth is not None
    assert whole.cameras is not None
    assert whole.depth is not None
    torch.testing.assert_close(joined.depth.double(), whole.depth, atol=1e-4, rtol=0)
    poses, expected = joined.cameras.world_from_camera.double(), whole.cameras.world_from_camera
    torch.testing.assert_close(poses, expected, atol=1e-4, rtol=0)
    points = unproject(joined.depth, joined.cameras).double()
    torch.testing.assert_close(points, unproject(whole.depth, whole.cameras), atol=1e-4, rtol=0)
    assert all(seam.method == "points" for seam in seams)
    assert max(seam.residual or 0 for seam in seams) < 1e-4


def test_point_maps_and_motion_are_carried_along() -> None:
    whole = truth(12)
    assert whole.cameras is not None
    assert whole.depth is not None
    first, second = (of_window(whole, frames, scale) for frames, scale in ((range(8), 1.0), (range(4, 12), 2.5)))
    as_points = [
        Prediction(points=unproject(one.depth, one.cameras), points_confidence=one.depth_confidence)
        for one in (first, second)
        if one.depth is not None and one.cameras is not None
    ]
    steps = torch.randn(1, 8, *SIZE, 3, generator=torch.Generator().manual_seed(0))
    pose = whole.cameras.world_from_camera[4]
    local = (steps.double() @ pose[:3, :3] / 2.5).float()
    predictions = [as_points[0], dataclasses.replace(as_points[1], motion=local)]
    predictions[0] = dataclasses.replace(predictions[0], motion=torch.zeros_like(steps))
    seams: list[Seam] = []
    frames = [range(8), range(4, 12)]
    parts = list(join([part_of(*pair) for pair in zip(frames, predictions, strict=True)], seams))
    joined = join_frames([part.value.prediction for part in parts])
    assert joined.points is not None
    torch.testing.assert_close(joined.points.double(), unproject(whole.depth, whole.cameras), atol=1e-4, rtol=0)
    later = parts[1].value.prediction.motion
    assert later is not None
    torch.testing.assert_close(later, steps[:, 2:], atol=1e-4, rtol=0)
    assert joined.motion is None, "one window's is to another time than the next one's"
    assert seams[0].scale == pytest.approx(2.5, rel=1e-4)


def test_a_third_of_wrong_points_does_not_move_a_window() -> None:
    """Such as a thing that moves and that the two windows see differently; and what says to move counts for less."""
    whole = truth(12)
    first, second = of_window(whole, range(8), 1.0), of_window(whole, range(4, 12), 2.0)
    assert second.depth is not None
    generator = torch.Generator().manual_seed(0)
    noisy = second.depth * (1 + 0.01 * torch.randn(second.depth.shape, generator=generator))
    noisy[:, :, :5] *= 0.6
    before, after = frames_of(first, 4, 8), frames_of(dataclasses.replace(second, depth=noisy), 0, 4)
    move, seam = align(before, after)
    assert move.scale == pytest.approx(2, rel=0.01)
    assert whole.cameras is not None
    turned = rotation_angle(move.rotation @ whole.cameras.world_from_camera[4, :3, :3].mT)
    assert float(turned.rad2deg()) < 0.5
    assert seam.residual is not None
    assert seam.residual < 0.03 < (seam.residual_90 or 0)


def test_without_points_cameras_align_and_without_those_depth() -> None:
    whole = truth(12)
    first, second = of_window(whole, range(8), 1.0), of_window(whole, range(4, 12), 2.5)
    expected, _ = align(frames_of(first, 4, 8), frames_of(second, 0, 4))
    for field in ("depth", "cameras"):
        only = [Prediction(**{field: getattr(one, field)}) for one in (first, second)]
        parts = [part_of(range(8), only[0]), part_of(range(4, 12), only[1])]
        seams: list[Seam] = []
        list(join(parts, seams))
        assert seams[0].method == field
        assert seams[0].scale == pytest.approx(expected.scale, rel=1e-3)
    poses = [Prediction(cameras=one.cameras) for one in (first, second)]
    move, seam = align(frames_of(poses[0], 4, 8), frames_of(poses[1], 0, 4))
    torch.testing.assert_close(move.rotation, expected.rotation, atol=1e-3, rtol=0)
    torch.testing.assert_close(move.shift, expected.shift, atol=1e-3, rtol=0)
    assert (seam.camera_shift or 0) < 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facing(Prediction):
    normals: Float[Tensor, "*b f h w 3"] | None = dataclasses.field(default=None, metadata=NORMAL)


def test_directions_that_only_depth_aligns_are_said(capfd: pytest.CaptureFixture[str]) -> None:
    depth = torch.rand(8, *SIZE) + 1
    flat = Facing(depth=depth, normals=torch.tensor([0.0, 0.0, -1.0]).expand(8, *SIZE, 3))
    list(join([part_of(range(8), flat), part_of(range(4, 12), flat)], []))
    assert "show nothing to turn by: normals stand in the axes of each" in capfd.readouterr().err
    bare = Prediction(depth=depth)
    list(join([part_of(range(8), bare), part_of(range(4, 12), bare)], []))
    assert "turn" not in capfd.readouterr().err


def test_a_seam_with_nothing_to_align_by_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    nothing = Prediction(depth=torch.zeros(8, *SIZE))
    seams: list[Seam] = []
    parts = list(join([part_of(range(8), nothing), part_of(range(4, 12), nothing)], seams))
    assert seams == [dataclasses.replace(seams[0], method="none", scale=1.0, residual=None)]
    assert "frames 4 to 7, on which two windows meet, show nothing to align by" in capfd.readouterr().err
    assert sum(len(part.frames) for part in parts) == 12


def test_windows_that_contradict_each_other_are_said_to(capfd: pytest.CaptureFixture[str]) -> None:
    whole = truth(12)
    first, second = of_window(whole, range(8), 1.0), of_window(whole, range(4, 12), 1.0)
    generator = torch.Generator().manual_seed(0)
    depth = torch.nn.functional.interpolate(0.5 + 3 * torch.rand(1, 8, 3, 4, generator=generator), SIZE, mode="bicubic")
    seams: list[Seam] = []
    list(join([part_of(range(8), first), part_of(range(4, 12), dataclasses.replace(second, depth=depth[0]))], seams))
    assert "frames 4 to 7, on which two windows meet, fit badly" in capfd.readouterr().err


def test_a_similarity_keeps_what_a_camera_sees() -> None:
    whole = truth(3)
    rotation = turn(torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64), 0.7)
    move = Similarity(scale=3.0, rotation=rotation, shift=torch.tensor([1.0, 2, 3], dtype=torch.float64))
    moved = fields.move(whole, move)
    assert moved.depth is not None
    assert moved.cameras is not None
    assert whole.depth is not None
    assert whole.cameras is not None
    torch.testing.assert_close(
        unproject(moved.depth, moved.cameras), move.points(unproject(whole.depth, whole.cameras))
    )


# whole videos

MEMORY = """
import resource, sys, torch
from pathlib import Path
from four_d.checkpoints import ModelInfo
from four_d.inference import LoadedModel, Selection, infer
from tests.test_export import TINY, tiny_model
torch.set_num_threads(1)
model = LoadedModel(tiny_model(), ModelInfo(model=TINY, image_size=(32, 48), frames=8))
for count in (48, 144):
    infer(model, Path(sys.argv[1]), Path(sys.argv[2]), selection=Selection(max_frames=count, fps=25.0), window=12)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.fixture(autouse=True)
def fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle reads its frames' colours, which a pass without values (`memory.check_fits`) has not."""
    monkeypatch.setattr(LoadedModel, "check_fits", lambda *_: None)


class Oracle(ModelModule):
    """Knows the ball's world: a frame says which it is by its colour. Its wall turns by ``speed`` a frame.

    Every clip is seen in its first frame's coordinates and in a unit of its own. ``still``: it predicts no motion.
    """

    def __init__(self, whole: Prediction, speed: float = 0.0, *, still: bool = False) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.whole, self.speed, self.still = whole, speed, still

    @property
    def moves(self) -> bool:
        return not self.still

    @property
    def abilities(self) -> Abilities:
        moved = frozenset({"motion"} if self.moves else ())
        return Abilities(
            outputs=moved | {"cameras", "depth", "points", "dynamic"}, queried=moved, points=self.moves, multiple=4
        )

    def places(self, points: Tensor, steps: Tensor) -> Tensor:
        """Places of the wall's points so many frames later."""
        turns = torch.stack([turn(AXIS, self.speed * float(step)) for step in steps])
        return (points - CENTRE) @ turns.mT + CENTRE

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        numbers = [int(round(r * 255) + 256 * round(g * 255)) for r, g in clip.images[0, :, :2, 0, 0].tolist()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        scale = 1.0 if numbers[0] == 0 else 0.5 + (numbers[0] * 7 % 11) / 5
        frames = range(numbers[0], numbers[-1] + 1)
        part = of_window(self.whole, frames, scale)
        assert self.whole.cameras is not None
        assert self.whole.depth is not None
        poses = self.whole.cameras.world_from_camera
        points = unproject(self.whole.depth, self.whole.cameras)[frames.start : frames.stop].flatten(1, 2)
        queries = clip.times[0, :1] if clip.query_times is None else clip.query_times[0]
        for index, time in enumerate(queries):
            steps = int((clip.times[0] == time).nonzero()[0, 0]) - torch.arange(len(numbers))
            motion = (self.places(points, steps) - points) @ poses[frames.start, :3, :3] / scale
            moved = Prediction(motion=motion.unflatten(1, SIZE).float()[None])
            whole = dataclasses.replace(part, motion=moved.motion) if index == 0 and self.moves else part
            yield map_tensors(whole if index == 0 else moved, lambda tensor: tensor[None])

    def loaded(self) -> LoadedModel:
        return LoadedModel(self, ModelInfo(model=TINY, image_size=SIZE, frames=8))


def numbered(count: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Frames whose colour is their number."""
    colours = np.array([[i % 256, i // 256, 0] for i in range(count)], np.uint8)
    return np.broadcast_to(colours[:, None, None], (count, *size, 3)).copy()


def tiny() -> LoadedModel:
    return LoadedModel(tiny_model(), ModelInfo(model=TINY, image_size=(32, 48), frames=8))


def save(folder: Path, frames: NDArray[np.uint8]) -> Path:
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.png")
    return folder


def test_a_video_of_one_window_is_seen_as_ever() -> None:
    frames = gradient(32, 48, frames=6)
    whole, again = tiny()(frames), tiny()(frames, window=6, overlap=2)
    cut = tiny()(frames, window=5, overlap=2)
    assert torch.equal(whole.depth, again.depth)
    assert not torch.equal(whole.depth, cut.depth)
    assert cut.depth is not None
    assert cut.depth.shape == (6, 32, 48)
    assert cut.times == whole.times
    np.testing.assert_array_equal(cut.frames, whole.frames)
    torch.testing.assert_close(cut.images, whole.images)


def test_a_perfect_models_long_video_is_the_truth(tmp_path: Path) -> None:
    whole = truth(70)
    assert whole.cameras is not None
    folder = save(tmp_path / "video", numbered(70))
    every = Selection(max_frames=70)
    result = Oracle(whole, still=True).loaded()(folder, selection=every, window=12, overlap=3)
    assert result.depth is not None
    assert result.cameras is not None
    torch.testing.assert_close(result.depth.double(), whole.depth, atol=1e-4, rtol=0)
    poses = result.cameras.world_from_camera.double()
    torch.testing.assert_close(poses, whole.cameras.world_from_camera, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(result.frames, numbered(70))
    assert result.times == pytest.approx([i / 25 for i in range(70)])


def test_what_is_written_window_by_window_is_what_the_call_gives(tmp_path: Path) -> None:
    folder, out = save(tmp_path / "video", gradient(48, 64, frames=6).repeat(10, axis=0)), tmp_path / "out"
    every = Selection(max_frames=60)
    pages: list[Result] = []
    shown = infer(moving_model(), folder, out, selection=every, window=9, page=lambda result, _: pages.append(result))
    result = moving_model()(folder, selection=every, window=9)
    assert pages == [shown]
    assert result.prediction.cameras is not None
    with np.load(out / "prediction.npz") as written:
        expected = arrays(result)
        assert set(written) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(written[name], value, err_msg=name)
    depth = read_depth(out / "depth")
    np.testing.assert_allclose(depth, expected["depth"], atol=float(expected["depth"].max()) / 65535)
    table = read_cameras(out / "cameras.json")
    torch.testing.assert_close(table.model.world_from_camera, result.prediction.cameras.world_from_camera.double())
    for project in ("model", "original"):
        _, _, names = read_colmap(out / "colmap" / project / "sparse" / "0")
        assert sorted(p.name for p in (out / "colmap" / project / "images").iterdir()) == names
        tracks = colmap_tracks(out / "colmap" / project / "sparse" / "0")
        assert all(images and 0 <= error < 0.01 for error, images in tracks), "its own frame sees each point"
        assert {image for _, images in tracks for image in images} == set(range(1, 61))
    with Image.open(out / "colmap" / "original" / "images" / "000037.png") as image:
        np.testing.assert_array_equal(np.asarray(image), result.frames[37])
    assert len(list((out / "mask").iterdir())) == 60
    assert set(read_ply(out / "points.ply").frames.tolist()) == set(range(60))
    names = {".four_d.json", "cameras.json", "colmap", "depth", "mask", "points.ply", "prediction.npz", "windows.json"}
    assert {p.name for p in out.iterdir()} == names
    content = json.loads((out / "windows.json").read_text())
    assert content["windows"][0]["frames"] == [0, 8]
    assert content["windows"][0]["seam"] is None
    assert content["windows"][-1]["frames"] == [51, 59]
    assert {"scale", "residual", "residual_90", "camera_turn_deg"} <= set(content["windows"][1]["seam"])
    assert len(shown.times) == SHOWN
    rows = [result.times.index(time) for time in shown.times]
    torch.testing.assert_close(shown.depth, result.prediction.depth[rows] if result.depth is not None else None)


def test_a_long_video_that_breaks_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "video", gradient(32, 48, frames=5).repeat(6, axis=0))
    (folder / "00025.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"00025\.png does not decode"):
        infer(tiny(), folder, tmp_path / "out", selection=Selection(max_frames=30), window=8)
    assert {p.name for p in tmp_path.iterdir()} == {"video"}


def test_a_stream_gives_what_reading_gives(tmp_path: Path) -> None:
    choices = (Selection(max_frames=100), Selection(max_frames=7, start=0.5), Selection(max_frames=9, fps=10.0))
    folder = save(tmp_path / "video", gradient(20, 30, frames=5).repeat(6, axis=0))
    for path in (BIKES, folder):
        for choice in choices:
            streamed, held = stream(footage(path), choice), read(path, choice)
            frames = list(streamed.frames())
            np.testing.assert_array_equal(np.stack(frames), held.frames)
            np.testing.assert_array_equal(streamed.times, held.times)
            assert (streamed.indices, streamed.total) == (held.indices, held.total)
            plan = Cut(frames=5, overlap=2).plan(len(streamed))
            for part, video in zip(plan, streamed.windows(plan), strict=True):
                np.testing.assert_array_equal(video.frames, held.frames[part.start : part.stop])
                assert video.indices == (held.indices or ())[part.start : part.stop]


def test_a_long_video_cut_short_is_used_as_far_as_it_goes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = BIKES.read_bytes()
    path = tmp_path / "clip.mp4"
    path.write_bytes(content[: len(content) // 2])
    held = read(path, Selection(max_frames=100))
    capfd.readouterr()
    result = tiny()(path, selection=Selection(max_frames=100), window=4)
    assert capfd.readouterr().err.count("of its 52 frames are there") == 1
    np.testing.assert_array_equal(result.frames, held.frames)


def test_masks_of_a_window_are_those_of_its_frames() -> None:
    frames = list(gradient(20, 30, frames=3))
    part = (range(4, 7), 10)
    video = Video(frames=frames, times=np.arange(3) / 25, total=40, indices=(16, 20, 24), part=part)
    numbers = np.arange(40)[:, None, None] % 251 * np.ones((1, 20, 30), int)
    of_taken, of_all = (numbers[:count] > 19 for count in (10, 40))
    np.testing.assert_array_equal(as_masks(of_taken, video), of_taken[4:7])
    np.testing.assert_array_equal(as_masks(of_all, video), of_all[[16, 20, 24]])
    with pytest.raises(UserError, match="there are 3 masks, and 10 frames were taken of 40"):
        as_masks(of_taken[:3], video)


def test_a_users_masks_reach_every_window() -> None:
    masks = np.zeros((12, 32, 48), bool)
    masks[np.arange(12), np.arange(12)] = True
    result = moving_model()(gradient(32, 48, frames=12), mask=masks, window=5)
    assert torch.equal(result.moving, torch.from_numpy(masks))


def test_a_users_masks_reach_the_points_of_a_long_videos_colmap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = np.zeros((12, 32, 48), bool)
    masks[np.arange(12), np.arange(12)] = True
    asked: list[Callable[[int], Tensor]] = []

    def noted(*given: object, moving: Callable[[int], Tensor], **more: object) -> object:
        asked.append(moving)
        return observe(*given, moving=moving, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("four_d.inference.output.observe", noted)
    infer(moving_model(), gradient(32, 48, frames=12), tmp_path / "out", mask=masks, window=5)
    assert len(asked) == 1
    assert torch.equal(torch.stack([asked[0](frame) for frame in range(12)]), torch.from_numpy(masks))


def test_windows_of_several_cameras_hold_all_of_them() -> None:
    frames = gradient(32, 48, frames=7)
    result = tiny()([frames, 255 - frames], window=4, overlap=2)
    assert result.camera_ids == (0, 1) * 7
    np.testing.assert_array_equal(result.frames[1::2], 255 - frames)
    assert result.times[::2] == result.times[1::2] == pytest.approx([i / 25 for i in range(7)])


# followed points


def test_points_are_followed_over_many_windows() -> None:
    """The wall turns, and the camera with it: points stay in view, asked for in any frame."""
    whole = truth(80)
    assert whole.cameras is not None
    assert whole.depth is not None
    oracle = Oracle(whole, speed=0.05)
    queries = [(0.0, 8.0, 6.0), (0.0, 6.5, 7.25), (3.0, 7.0, 5.0), (41.0, 10.0, 6.5)]
    result = oracle.loaded()(numbered(80), points=queries, window=10, overlap=4)
    assert result.tracks is not None
    assert result.queries is not None
    torch.testing.assert_close(result.queries, torch.tensor(queries))
    for index, (frame, x, y) in enumerate(queries):
        start = ray_to_wall(whole, frame, x, y)
        places = oracle.places(start.expand(80, 1, 3), torch.arange(80) - frame)[:, 0]
        first = 0 if frame < 10 else 36  # a point begins in the first window that has its frame
        found = result.tracks.points[index, first:].double()
        # between pixels the wall is not quite a plane
        torch.testing.assert_close(found, places[first:], atol=0.03, rtol=0)
        assert bool((result.tracks.visible[index, first:] > 0.5).all())
        assert not bool((result.tracks.visible[index, :first] > 0).any())
    assert result.track_table is not None
    # Where all that the first picture shows moves, only what moves far more than the rest of it counts as moving.
    assert result.track_table.moving[:3].all()


def ray_to_wall(whole: Prediction, frame: float, x: float, y: float) -> Tensor:
    assert whole.cameras is not None
    pose, intrinsics = whole.cameras.world_from_camera[int(frame)], whole.cameras.intrinsics[int(frame)]
    way = pose[:3, :3] @ rays(intrinsics, torch.tensor([[x, y]], dtype=torch.float64))[0]
    away = pose[:3, 3] - CENTRE
    a, b, c = way @ way, way @ away, away @ away - RADIUS**2
    return pose[:3, 3] + (-b + (b**2 - a * c).sqrt()) / a * way


def test_points_out_of_view_are_carried_and_found_again() -> None:
    """The wall rests; the camera looks away for several windows and comes back."""
    there = truth(30)
    assert there.cameras is not None
    assert there.depth is not None
    order = [*range(30), *range(29, -1, -1)]
    cameras = there.cameras
    whole = Prediction(
        cameras=Cameras(world_from_camera=cameras.world_from_camera[order], intrinsics=cameras.intrinsics[order]),
        depth=there.depth[order],
    )
    result = Oracle(whole).loaded()(numbered(60), points=[(3.0, 6.0), (8.0, 5.0)], window=8, overlap=3)
    assert result.tracks is not None
    assert result.tracks.pixels is not None
    for index, (x, y) in enumerate([(3.0, 6.0), (8.0, 5.0)]):
        place = ray_to_wall(whole, 0, x, y)
        torch.testing.assert_close(result.tracks.points[index].double(), place.expand(60, 3), atol=0.03, rtol=0)
        assert float(result.tracks.visible[index, 27:33].max()) == 0, "nobody sees it there"
        assert float(result.tracks.visible[index, -3:].min()) > 0.5
        torch.testing.assert_close(result.tracks.pixels[index, -1], torch.tensor([x, y]), atol=0.1, rtol=0)


def test_a_grid_is_followed_where_nobody_asks_and_the_page_gets_a_part(tmp_path: Path) -> None:
    whole = truth(60)
    oracle = Oracle(whole, speed=0.05).loaded()
    folder = save(tmp_path / "video", numbered(60))
    shown = infer(oracle, folder, tmp_path / "out", selection=Selection(max_frames=60), window=10)
    table = read_tracks(tmp_path / "out" / "tracks.npz")
    assert table.points is not None
    assert table.points.shape == (len(table), 60, 3)
    assert len(table) == SIZE[0] * SIZE[1]
    assert shown.track_table is not None
    assert shown.track_table.points is not None
    rows = [round(25 * time) for time in shown.times]
    np.testing.assert_array_equal(shown.track_table.points, table.points[:, rows])
    np.testing.assert_allclose(shown.track_table.frame_times, shown.times)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked(Prediction):
    """Output of a user's own head: a length for each pixel, a point for each query."""

    reach: Float[Tensor, "*b f h w"] | None = dataclasses.field(default=None, metadata=LENGTH)
    place: Float[Tensor, "*b n 3"] | None = dataclasses.field(default=None, metadata=POINT)


class Marks(Oracle):
    """Also says `Marked`'s fields: twice the depth, and the point of the wall that a query shows."""

    @property
    def abilities(self) -> Abilities:
        able = super().abilities
        return dataclasses.replace(able, outputs=able.outputs | {"reach", "place"}, points=True)

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        for said in super().passes(clip):
            assert said.depth is not None
            assert said.cameras is not None
            place = None
            if clip.query_points is not None:
                dense = unproject(said.depth, said.cameras)[0]
                frame, x, y = clip.query_points[0].long().unbind(-1)
                place = dense[frame, y, x][None]
            yield Marked(**vars(said), reach=2 * said.depth, place=place)


def test_fields_of_a_users_own_are_moved_joined_and_written(tmp_path: Path) -> None:
    whole, queries = truth(24), [(0.0, 8.5, 6.5), (12.0, 3.5, 4.5), (20.0, 9.5, 7.5)]
    folder, every = save(tmp_path / "video", numbered(24)), Selection(max_frames=24)
    model = Marks(whole, still=True).loaded()
    result = model(folder, selection=every, points=queries, window=10, overlap=3)
    assert isinstance(result.prediction, Marked)
    assert whole.depth is not None
    assert result.prediction.reach is not None
    assert result.prediction.place is not None
    torch.testing.assert_close(result.prediction.reach.double(), 2 * whole.depth, atol=2e-4, rtol=0)
    expected = torch.stack([ray_to_wall(whole, *query) for query in queries])
    torch.testing.assert_close(result.prediction.place.double(), expected, atol=2e-4, rtol=0)
    infer(model, folder, tmp_path / "out", selection=every, points=queries, window=10, overlap=3)
    with np.load(tmp_path / "out" / "prediction.npz") as written:
        np.testing.assert_array_equal(written["reach"], result.prediction.reach)
        np.testing.assert_array_equal(written["place"], result.prediction.place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A value of a user's own."""

    rest: Float[Tensor, "*b joints 3"] = dataclasses.field(metadata=POINT)
    bent: Float[Tensor, "*b f joints 3"] = dataclasses.field(metadata=POINT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bodies(Prediction):
    """Output of another head: a nested value, truth values, an answer to each query time."""

    skeleton: Skeleton | None = dataclasses.field(default=None, metadata=nested(f="f"))
    upright: Bool[Tensor, "*b f"] | None = None
    gaits: Float[Tensor, "*b q joints"] | None = dataclasses.field(default=None, metadata=NONE)


class Body(Oracle):
    """Also says `Bodies`' fields, in the first frame's coordinates."""

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        for said in super().passes(clip):
            assert said.depth is not None
            bent = said.depth[:, :, 0, :3, None].expand(-1, -1, -1, 3)
            skeleton = Skeleton(rest=bent[:, 0], bent=bent)
            yield Bodies(**vars(said), skeleton=skeleton, upright=clip.times > -1, gaits=bent[:, :1, :, 0])


def test_nested_values_and_answers_of_a_users_own_are_written(tmp_path: Path) -> None:
    """All fields of one window; of several all but the answers to query times."""
    folder, every = save(tmp_path / "video", numbered(12)), Selection(max_frames=12)
    for name, window in (("one", None), ("several", 6)):
        model = Body(truth(12), still=True).loaded()
        found = infer(model, folder, tmp_path / name, selection=every, window=window, overlap=None).prediction
        assert isinstance(found, Bodies)
        assert found.skeleton is not None
        assert found.skeleton.bent.shape == (12, 3, 3)
        assert found.skeleton.rest.shape == (3, 3)
        with np.load(tmp_path / name / "prediction.npz") as written:
            np.testing.assert_array_equal(written["skeleton_bent"], found.skeleton.bent)
            np.testing.assert_array_equal(written["skeleton_rest"], found.skeleton.rest)
            assert written["upright"].all()
            assert written["upright"].shape == (12,)
            assert ("gaits" in written) == (name == "one")


def test_a_field_named_as_another_array_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Timed(Prediction):
        times: Float[Tensor, "*b f"] | None = dataclasses.field(default=None, metadata=NONE)

    part = part_of(range(2), Timed(times=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"prediction\.npz has another times; rename that field of Timed"):
        arrays(part.value)


def test_points_of_a_track_head_go_on_from_window_to_window(tmp_path: Path) -> None:
    track = TrackHeadConfig(channels=(8,) * 4, features=8, levels=2, radius=1, hidden=16, depth=1, heads=2, virtual=4)
    config = dataclasses.replace(TINY, heads={"track": track})
    torch.manual_seed(0)
    model = LoadedModel(config.build().eval(), ModelInfo(model=config, image_size=(32, 48), frames=8))
    folder = save(tmp_path / "video", gradient(64, 112, frames=6).repeat(2, axis=0))
    points = [(0.0, 10.0, 20.5), (9.0, 60.0, 33.0)]
    result = model(folder, points=points, window=5, overlap=2)
    assert result.pixel_tracks is not None
    assert result.pixel_tracks.shape == (12, 2, 2)
    torch.testing.assert_close(
        result.pixel_tracks[[0, 9], [0, 1]], torch.tensor([[10.0, 20.5], [60, 33]]), atol=0.01, rtol=0
    )
    seen = result.prediction.pixel_tracks_visible
    assert seen is not None
    assert not bool(seen[:6, 1].any()), "before the window in which it begins"
    infer(model, folder, tmp_path / "out", points=points, window=5, overlap=2)
    with np.load(tmp_path / "out" / "prediction.npz") as written:
        np.testing.assert_array_equal(written["pixel_tracks"], result.pixel_tracks)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((70.0, 1.0, 1.0), "frame 70 of point 1,1 is not among"),
        ((50.0, 99.0, 1.0), "point 99,1 is outside"),
    ],
)
def test_points_outside_are_refused_before_all_windows_are_done(
    point: tuple[float, float, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Oracle(truth(60)).loaded()(numbered(60), points=[point], window=10)


# memory


def run_python(code: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """96 more frames of 0.9 MB each, which the page does not show; the window is 12."""
    folder = tmp_path / "video"
    save(folder, gradient(480, 640, frames=4))
    for index in range(4, 144):
        (folder / f"{index:05d}.png").hardlink_to(folder / f"{index % 4:05d}.png")
    short, long = map(int, run_python(MEMORY, str(folder), str(tmp_path / "out")))
    assert long - short < 45, "MB"


@pytest.mark.slow
def test_a_thousand_frames_in_eight_gigabytes(tmp_path: Path) -> None:
    model = ROOT / "checkpoints" / "unified-base"
    y, x = np.mgrid[:420, :1400]
    wide = np.stack([x * y // 97 % 256, (x // 9 + y // 7) * 31 % 256, x * 255 // 1400], axis=-1).astype(np.uint8)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "20", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
        for index in range(1000):
            left, top = int(500 + 480 * math.sin(index / 120)), int(80 + 60 * math.cos(index / 70))
            cut = np.ascontiguousarray(wide[top : top + 240, left : left + 320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        container.mux(stream.encode())
    code = (
        "import resource, sys; from four_d.cli import main; assert main(sys.argv[1:]) == 0;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    values = ["infer", str(tmp_path / "v.mp4"), "--model", str(model), "--no-tracks", "--max-frames", "1000", "--out"]
    *_, gigabytes = run_python(code, *values, str(tmp_path / "out"))
    assert float(gigabytes) < 8
    with np.load(tmp_path / "out" / "prediction.npz") as written:
        assert len(written["depth"]) == len(written["world_from_camera"]) == 1000
    assert len(read_cameras(tmp_path / "out" / "cameras.json").times) == 1000
    assert (tmp_path / "out" / "report.html").stat().st_size < 50e6
