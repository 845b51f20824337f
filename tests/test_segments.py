"""Gaussians of videos that are longer or shorter than what a model's Gaussian head is made for."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import config, fields
from four_d.abilities import UNITS, Abilities, ModelModule
from four_d.checkpoints import ModelInfo
from four_d.errors import UserError
from four_d.evaluation.runs import Run, RunInputs, run_tracks
from four_d.formats.tracks import read_tracks
from four_d.geometry import Similarity, conjugate, make_pose, quaternion_product
from four_d.heads.gaussian import GaussianHeadConfig
from four_d.inference import Known, LoadedModel, Result, Selection, infer, segments
from four_d.inference.segments import read_segments, write_segments
from four_d.inference.units import to_model
from four_d.model import ModelConfig
from four_d.rendering import render
from four_d.rendering.scene import means_at, quats_at
from four_d.types import Cameras, Clip, Gaussians, Prediction, Segment, map_tensors, segment_at
from four_d.video.fit import fit
from four_d.windows.cut import Cut
from four_d.windows.frames import take_frames
from four_d.windows.join import Part
from four_d.windows.segments import Segments, stretches, times_apart
from tests.formats.scene import SIZE, cameras, moving, standing

COUNT = 4
TINY = [
    *("model.backbone.width=32", "model.backbone.rounds=2", "model.backbone.heads=2", "model.backbone.patch_size=8"),
    *("model.heads.camera.width=32", "model.heads.camera.heads=2", "model.backbone.dynamics.rounds=[1,1]"),
    *("model.backbone.dynamics.after=0", "data.image_size=[24,24]", "data.sources.boxes.path=none"),
    *("model.heads.motion.decoder.width=32", "model.heads.motion.decoder.depth=1"),
    *("model.heads.depth.rounds=null", "model.heads.points.rounds=null", "model.heads.gaussian.hidden=16"),
]
POSED = [
    *("model.backbone.width=32", "model.backbone.depth=1", "model.backbone.heads=2", "model.backbone.patch_size=8"),
    *("model.backbone.checkpointing=false", "model.backbone.attention=matmul", "data.image_size=[24,24]"),
    "data.sources.boxes.path=none",
]


def poses(count: int) -> Tensor:
    """A camera that goes to the right and turns; the first is the world."""
    angle = 0.03 * torch.arange(count)
    zero, one = torch.zeros(count), torch.ones(count)
    rows = [angle.cos(), zero, angle.sin(), zero, one, zero, -angle.sin(), zero, angle.cos()]
    centre = torch.stack([0.1 * torch.arange(count), 0.02 * torch.arange(count) ** 1.5, zero], dim=-1)
    return make_pose(torch.stack(rows, dim=-1).unflatten(-1, (3, 3)), centre)


def truth(times: Tensor) -> Tensor:
    """Places of three points, t 3 3: each goes its way, one of them round a circle."""
    start = torch.tensor([[0.0, 0, 3], [1, 0, 4], [-1, 0.5, 2]])
    way = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.2], [0, 0, 0]])
    round_about = torch.stack([torch.zeros_like(times), (9 * times).sin(), (9 * times).cos()], dim=-1)
    return start + times[:, None, None] * way + round_about[:, None] * torch.tensor([0.0, 0, 0.3])[:, None]


def spin(times: Tensor) -> Tensor:
    """True rotation of everything at these times."""
    return torch.stack([times.cos(), 0 * times, 0.6 * times.sin(), 0.8 * times.sin()], dim=-1)


def depth(count: int) -> Tensor:
    """Something that tells the unit."""
    return 1 + torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(0))


class Perfect:
    """Prediction of a model that knows the truth, in its own coordinates and a unit that changes from call to call."""

    def __init__(self, times: NDArray[np.float64]) -> None:
        self.world, self.times, self.calls = poses(len(times)), torch.tensor(times, dtype=torch.float32), 0
        self.asked: list[list[int]] = []

    def __call__(self, part: Part[Result], moments: Sequence[range]) -> Result:
        rows = [row for moment in moments for row in moment]
        pictures = [part.value.frames[row - part.frames.start] for row in rows]
        assert [picture[0, 0, 0] for picture in pictures] == rows, "each row's own picture"
        self.asked.append(rows)
        self.calls += 1
        scale = 0.5 + self.calls
        move = Similarity(scale=scale, rotation=torch.eye(3).double(), shift=torch.zeros(3).double())
        here = torch.linalg.inv(self.world[rows[0]])
        lens = torch.eye(3).expand(len(rows), 3, 3)
        local = fields.move(Cameras(world_from_camera=here @ self.world[rows], intrinsics=lens), move)
        places = (truth(self.times[rows]) @ here[:3, :3].mT + here[:3, 3]) * scale
        count = places.shape[1]
        axes = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(here[:3, :3]))
        quats = quaternion_product(axes, spin(self.times[rows]))
        gaussians = Gaussians(
            means=places[0],
            quats=quats[0].expand(count, 4),
            scales=torch.full((count, 3), 0.1 * scale),
            opacities=torch.ones(count),
            harmonics=torch.zeros(count, 1, 3),
            offsets=places - places[0],
            offset_times=torch.arange(len(rows)).float(),
            turns=quaternion_product(quats, conjugate(quats[0]))[:, None].expand(-1, count, 4),
        )
        said = Prediction(cameras=local, depth=depth(len(self.times))[rows] * scale, gaussians=gaussians)
        return dataclasses.replace(part.value, prediction=said)


def made(
    count: int, pieces: tuple[int, ...] = (), times: NDArray[np.float64] | None = None
) -> tuple[tuple[Segment, ...], Perfect, NDArray[np.float64]]:
    """The segments of a video of ``count`` frames that comes in pieces ending at these frames."""
    times = np.linspace(0, 1, count) ** 1.2 if times is None else times
    frames = [np.full((4, 4, 3), index, np.uint8) for index in range(count)]
    model = Perfect(times)
    maker = Segments(model, COUNT, times.tolist(), [range(index, index + 1) for index in range(count)])
    whole = Cameras(world_from_camera=model.world, intrinsics=torch.eye(3).expand(count, 3, 3))
    for start, stop in itertools.pairwise((0, *pieces, count)):
        part = slice(start, stop)
        result = Result(
            prediction=take_frames(Prediction(cameras=whole, depth=depth(count)), part),
            images=torch.zeros(stop - start, 3, 4, 4),
            frames=frames[start:stop],
            times=times[part].tolist(),
            fits=fit([(4, 4)] * (stop - start), (4, 4), 1),
        )
        maker.add(Part(frames=range(start, stop), value=result))
    return maker.end(), model, times


@pytest.mark.parametrize("count", range(COUNT + 1, 4 * COUNT))
def test_a_frame_in_the_middle_of_an_overlap_is_shown_by_the_later_segment(count: int) -> None:
    """Also where times are rounded to single precision, so that the mean of two is not quite the one between them."""
    times = (np.arange(count) / 30).astype(np.float32).astype(np.float64)
    segments = made(count, times=times)[0]
    spans = stretches(COUNT).plan(count)
    for before, after, segment in zip(spans, spans[1:], segments[1:], strict=False):
        if (before.stop - after.start) % 2:
            assert segment.start == times[(after.start + before.stop - 1) // 2]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10, 11, 24])
@pytest.mark.parametrize("pieces", [(), (1,), (3, 5)])
def test_at_every_frame_things_are_where_they_are(count: int, pieces: tuple[int, ...]) -> None:
    found, _, times = made(count, tuple(p for p in pieces if p < count))
    starts = [segment.start for segment in found]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    for time in times:
        shown = map_tensors(segment_at(found, time).gaussians, lambda tensor: tensor[None])
        places = means_at(shown, torch.tensor([[time]], dtype=torch.float32))[0, 0]
        torch.testing.assert_close(places, truth(torch.tensor([time], dtype=torch.float32))[0], atol=2e-4, rtol=0)
        torch.testing.assert_close(shown.scales[0], torch.full((3, 3), 0.1), atol=1e-4, rtol=0)
        quats = quats_at(shown, torch.tensor([[time]], dtype=torch.float32))[0, 0]
        alike = (quats * spin(torch.tensor([time], dtype=torch.float32))).sum(-1).abs()
        torch.testing.assert_close(alike, torch.ones(3), atol=1e-5, rtol=0)


def test_between_frames_things_go_straight_on_over_seams_too() -> None:
    found, _, times = made(11)
    middle = torch.tensor((times[1:] + times[:-1]) / 2, dtype=torch.float32)
    ends = truth(torch.tensor(times, dtype=torch.float32))
    for index, time in enumerate(middle):
        shown = map_tensors(segment_at(found, float(time)).gaussians, lambda tensor: tensor[None])
        expected = (ends[index] + ends[index + 1]) / 2
        torch.testing.assert_close(means_at(shown, time[None, None])[0, 0], expected, atol=2e-4, rtol=0)


def test_stretches_share_one_frame_and_the_last_ends_with_the_video() -> None:
    assert made(11)[1].asked == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [7, 8, 9, 10]]
    assert made(10)[1].asked == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_a_short_video_is_made_longer_by_repeating_frames(capsys: pytest.CaptureFixture[str]) -> None:
    found, model, times = made(3)
    assert model.asked == [[0, 0, 1, 2]]
    assert found[0].gaussians.offset_times is not None
    np.testing.assert_allclose(found[0].gaussians.offset_times, times, atol=1e-6)
    told = capsys.readouterr().err
    assert told == "this model makes Gaussians of 4 times, there are 3: frames are repeated for them\n"


def test_repeated_frames_get_times_of_their_own() -> None:
    np.testing.assert_allclose(times_apart(np.array([0, 0, 1, 3, 3.0]), 1), [0, 0.5, 1, 3, 3.75])
    np.testing.assert_allclose(times_apart(np.array([2, 2, 2, 2.0]), 2), [2, 2, 2.02, 2.02])
    apart = np.array([0, 0, 0.5, 0.5, 0.7, 0.7])
    assert times_apart(apart, 2) is apart


def test_what_does_not_fit_into_memory_is_said_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = r"becomes 8 times 1,024 Gaussians, for which about 0\.001.* GB are needed .* GB are free; take fewer frames"
    monkeypatch.setattr(segments, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(UserError, match=told):
        segments.check_memory(1024, COUNT, 24)
    segments.check_memory(1024, COUNT, 4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(segments, "free_bytes", lambda _: None)
    segments.check_memory(1 << 20, COUNT, 4)
    assert capsys.readouterr().err == (
        "this video becomes 1,048,576 Gaussians: about 0.57 GB besides the model's own memory\n"
    )


@pytest.mark.parametrize("count", [6, 40])
def test_a_model_says_what_it_needs_before_it_sees_anything(
    unified: LoadedModel, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = next(h for h in unified.info.model.heads.values() if isinstance(h, GaussianHeadConfig))
    asked: list[tuple[int, int, int]] = []

    def note(*numbers: int) -> None:
        asked.append(numbers)  # pyright: ignore[reportArgumentType]
        raise UserError("too many")

    monkeypatch.setattr(segments, "check_memory", note)
    with pytest.raises(UserError, match="too many"):
        unified(pictures(count))
    assert head.every is not None
    assert asked == [(-(-head.frames // head.every) * 24 * 24, head.frames, count)]


def test_moved_gaussians_look_the_same_to_moved_cameras() -> None:
    turn = torch.tensor([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]], dtype=torch.float64)
    move = Similarity(scale=3.0, rotation=turn, shift=torch.tensor([1.0, -2, 0.5], dtype=torch.float64))
    scene = moving(degree=0)

    def seen(gaussians: Gaussians, views: Cameras) -> Tensor:
        batch, each = (map_tensors(value, lambda tensor: tensor[None]) for value in (gaussians, views))
        return render(batch, each, torch.tensor([[0.05, 0.2]]), SIZE, backend="torch").colour

    torch.testing.assert_close(
        seen(fields.move(scene, move), fields.move(cameras(), move)), seen(scene, cameras()), atol=1e-4, rtol=0
    )
    with pytest.raises(UserError, match="degree 0"):
        fields.move(moving(degree=1), move)


def test_segments_are_files_and_back(tmp_path: Path) -> None:
    given = (Segment(gaussians=moving(), start=0.0), Segment(gaussians=standing(20), start=0.3))
    write_segments(tmp_path / "gaussians", given)
    back = read_segments(tmp_path / "gaussians")
    assert [segment.start for segment in back] == [0.0, 0.3]
    assert [len(segment.gaussians.means) for segment in back] == [300, 20]
    index = tmp_path / "gaussians" / "gaussians.json"
    index.write_text(index.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(UserError, match="format 9"):
        read_segments(tmp_path / "gaussians")
    index.write_text("{}")
    with pytest.raises(UserError, match="does not say which files"):
        read_segments(tmp_path / "gaussians")


@pytest.fixture(scope="module")
def unified() -> LoadedModel:
    return loaded(["overlays/unified_mini"], TINY)


def loaded(files: list[str], values: list[str]) -> LoadedModel:
    torch.manual_seed(0)
    run = config.load(files, values)
    info = ModelInfo(model=run.model, image_size=(24, 24), frames=6, normalisation=run.data.normalisation)
    return LoadedModel(run.model.build().eval(), info)


def pictures(count: int) -> NDArray[np.uint8]:
    wide = np.kron(np.random.default_rng(0).random((3, 4 + count // 8, 3)), np.ones((8, 8, 1)))
    return np.stack([(wide[:24, i : i + 24] * 255).astype(np.uint8) for i in range(count)])


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index, picture in enumerate(pictures(count)):
        Image.fromarray(picture).save(folder / f"{index:03d}.png")
    return folder


@pytest.mark.parametrize(("count", "number"), [(1, 1), (2, 1), (6, 1), (7, 2)])
def test_any_number_of_frames_gives_all_outputs(unified: LoadedModel, count: int, number: int) -> None:
    result = unified(pictures(count), tracks=False)
    plain = unified.without("gaussians")(pictures(count), tracks=False)
    assert len(result.gaussians) == number
    assert (result.prediction.gaussians is not None) == (number == 1)
    for name in ("depth", "points", "dynamic"):
        torch.testing.assert_close(getattr(result.prediction, name), getattr(plain.prediction, name))
    assert len(result.prediction.depth if result.prediction.depth is not None else []) == count
    assert segment_at(result.gaussians, result.times[-1]).gaussians.means.isfinite().all()


@pytest.mark.parametrize(("count", "number"), [(6, 1), (8, 2)])
def test_layers_of_key_frames_are_merged_in_every_segment(count: int, number: int) -> None:
    """They begin on one plane, and its camera goes to the right: most of it is seen by both key frames."""
    model = loaded(["overlays/dgs_lrm_mini"], POSED)
    whole, fewer = (model(pictures(count), known=given(count), merge=each) for each in (0.0, 0.3))
    assert len(whole.gaussians) == len(fewer.gaussians) == number
    for before, after in zip(whole.gaussians, fewer.gaussians, strict=True):
        assert 0.5 < after.gaussians.means.shape[0] / before.gaussians.means.shape[0] < 0.8
        assert after.gaussians.opacities.min() > 0
    with pytest.raises(UserError, match="merge is 1; choose a share of the depth below 1"):
        model(pictures(count), known=given(count), merge=1.0)


@pytest.mark.slow
def test_a_long_video_becomes_files_of_all_its_times(unified: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra video is not installed")
    video = write_pictures(tmp_path / "video", 14)
    selection = Selection(max_frames=14)
    found = infer(unified, video, tmp_path / "out", selection=selection, window=8, overlap=2, tracks=False)
    back = read_segments(tmp_path / "out" / "gaussians")
    np.testing.assert_allclose([segment.start for segment in back], [0, 0.2, 0.36])
    assert len(found.gaussians) == 3
    torch.testing.assert_close(back[1].gaussians.means, found.gaussians[1].gaussians.means)
    assert (tmp_path / "out" / "novel_views.mp4").stat().st_size > 0
    assert len(json.loads((tmp_path / "out" / "windows.json").read_text())["windows"]) == 2
    assert not (tmp_path / "out" / "gaussians.glb").exists()
    for name, frames in (("long", 14), ("short", 6)):
        few = Selection(max_frames=frames)
        infer(unified, video, tmp_path / name, selection=few, window=8, overlap=2, tracks=False, novel_views=False)
        assert (tmp_path / name / "gaussians.ply").exists()
        assert not (tmp_path / name / "novel_views.mp4").exists()
    whole = unified(video, selection=selection, window=8, overlap=2, tracks=False)
    torch.testing.assert_close(whole.gaussians[2].gaussians.means, found.gaussians[2].gaussians.means)


def test_a_photo_has_no_video_of_novel_views(unified: LoadedModel, tmp_path: Path) -> None:
    infer(unified, write_pictures(tmp_path / "photo", 1), tmp_path / "out", tracks=False)
    assert (tmp_path / "out" / "gaussians.glb").exists()
    assert not (tmp_path / "out" / "novel_views.mp4").exists()


def given(count: int, depth: float | None = 2.0) -> Known:
    world = make_pose(torch.eye(3), torch.tensor([5.0, 5, 5])) @ poses(count)
    lens = torch.tensor([[24.0, 0, 12], [0, 24, 12], [0, 0, 1]]).expand(count, 3, 3)
    maps = None if depth is None else np.full((count, 24, 24), depth, np.float32)
    return Known(cameras=Cameras(world_from_camera=world, intrinsics=lens), depth=maps)


def test_a_posed_model_says_what_it_needs() -> None:
    model = loaded(["overlays/dgs_lrm_mini"], POSED)
    with pytest.raises(UserError, match=r"camera of every frame and how far .* \(--cameras, --depth\)"):
        model(pictures(7))
    with pytest.raises(UserError, match=r"give depth \(--depth\)"):
        model(pictures(7), known=given(7, depth=None))
    with pytest.raises(UserError, match=r"set data\.hints\.poses=1, or take other parts"):
        config.load(["dgs_lrm"], ["data.sources.a.path=x", "data.hints.poses=0.5"])


def test_depth_without_a_valid_pixel_is_named_as_such() -> None:
    depth = torch.zeros(1, 2, 4, 4)
    lens = torch.eye(3).expand(1, 2, 3, 3)
    clip = Clip(
        images=torch.zeros(1, 2, 3, 4, 4),
        times=torch.arange(2.0)[None],
        camera_ids=torch.zeros(1, 2, dtype=torch.long),
        cameras=Cameras(world_from_camera=poses(2)[None], intrinsics=lens),
        depth=depth,
        valid=depth > 0,
    )
    with pytest.raises(UserError, match=r"no pixel of the given depth is valid .* \(--depth\)"):
        to_model(clip, "disparity")


@pytest.mark.parametrize("count", [2, 6, 13])
def test_a_posed_model_keeps_to_the_given_cameras(count: int, tmp_path: Path) -> None:
    model = loaded(["overlays/dgs_lrm_mini"], POSED)
    result = model(pictures(count), known=given(count), window=8)
    assert result.unit == model.unit == UNITS["disparity"]
    assert result.prediction.cameras is not None
    torch.testing.assert_close(result.prediction.cameras.world_from_camera, poses(count), atol=1e-4, rtol=0)
    # static Gaussians lie on the rays of their key frame: the first of each stretch is seen again at its pixels
    last = result.gaussians[-1].gaussians
    first = max(count - 6, 0)
    pixels = (last.means[: 24 * 24] - poses(count)[first, :3, 3]) @ poses(count)[first, :3, :3]
    pixels = pixels[:, :2] / pixels[:, 2:] * 24 + 12
    rows, columns = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    torch.testing.assert_close(pixels, torch.stack([columns, rows], dim=-1).flatten(0, 1), atol=0.02, rtol=0)


@pytest.mark.parametrize("count", [6, 13])
def test_points_are_followed_through_gaussians_and_scored_as_they_are_delivered(count: int, tmp_path: Path) -> None:
    model, points = loaded(["overlays/dgs_lrm_mini"], POSED), [(12.5, 9.5), (5.0, 14.0, 6.0)]
    result = model(pictures(count), known=given(count), points=points, window=8)
    assert result.tracks is not None
    assert result.tracks.points.shape == (2, count, 3)
    assert result.tracks.pixels is not None
    queries = torch.tensor([(0.0, 12.5, 9.5), (5.0, 14.0, 6.0)])
    assert torch.equal(result.tracks.queries, queries)
    torch.testing.assert_close(result.tracks.pixels[[0, 1], [0, 5]], queries[:, 1:], atol=1e-3, rtol=0)
    lens = torch.tensor([[24.0, 0, 12], [0, 24, 12], [0, 0, 1]]).expand(count, 3, 3)
    clip = Clip(
        images=result.images,
        times=torch.tensor(result.times),
        camera_ids=torch.zeros(count, dtype=torch.long),
        cameras=Cameras(world_from_camera=poses(count), intrinsics=lens),
        depth=torch.full((count, 24, 24), 2.0),
        valid=torch.ones(count, 24, 24, dtype=torch.bool),
    )
    inputs = RunInputs(normalisation="disparity", hints=("intrinsics", "poses", "depth"))
    scored = run_tracks(model, Run(key="same", clip=clip), queries, inputs, Cut.of(6, 8))
    assert scored is not None
    torch.testing.assert_close(scored.points, result.tracks.points, atol=1e-3, rtol=1e-3)
    infer(
        model, write_pictures(tmp_path / "video", count), tmp_path / "out", known=given(count), points=points, window=8
    )
    np.testing.assert_allclose(read_tracks(tmp_path / "out" / "tracks.npz").points, result.tracks.points, atol=1e-4)


def test_points_through_gaussians_of_several_cameras_are_refused() -> None:
    model = loaded(["overlays/dgs_lrm_mini"], POSED)
    known = given(6)
    with pytest.raises(UserError, match="of one camera's video, and there are several cameras; leave points out"):
        model([pictures(3), pictures(3)], known=known, points=[(3.0, 3.0)])


class Still(ModelModule):
    """A model without parts whose Gaussians are of whatever it sees: a red one where its first camera is, in front."""

    def __init__(self, *, cameras: bool = True, moving: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.cameras, self.moving = cameras, moving

    @property
    def abilities(self) -> Abilities:
        cameras = {"cameras"} if self.cameras else set[str]()
        return Abilities(outputs=frozenset({"depth", "gaussians", *cameras}), multiple=4)

    def forward(self, clip: Clip) -> Prediction:
        batch, count, _, height, width = clip.images.shape
        lens = torch.tensor([[float(width), 0, width / 2], [0, width, height / 2], [0, 0, 1]])
        number = (255 * clip.images[0, :, 0, 0, 0]).round()
        pose = torch.eye(4).repeat(batch, count, 1, 1)
        pose[..., 0, 3] = number - number[0]
        gaussians = Gaussians(
            means=torch.tensor([[[0.0, 0, 2]]]),
            quats=torch.tensor([[[1.0, 0, 0, 0]]]),
            scales=torch.full((1, 1, 3), 0.1),
            opacities=torch.ones(1, 1),
            harmonics=torch.zeros(1, 1, 1, 3),
            offsets=torch.zeros(1, count, 1, 3) if self.moving else None,
            offset_times=clip.times if self.moving else None,
        )
        depth = torch.full((batch, count, height, width), 2.0)
        cameras = Cameras(world_from_camera=pose, intrinsics=lens.expand(1, count, 3, 3))
        return Prediction(depth=depth, gaussians=gaussians, cameras=cameras if self.cameras else None)


def still(*, cameras: bool = True, moving: bool = False) -> LoadedModel:
    info = ModelInfo(model=ModelConfig(), image_size=(16, 16), frames=8)
    return LoadedModel(Still(cameras=cameras, moving=moving), info)


def stepping(count: int) -> NDArray[np.uint8]:
    """Frames whose red is their number."""
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    frames[..., 0] = np.arange(count)[:, None, None]
    return frames


@pytest.mark.parametrize("moving", [False, True])
def test_gaussians_of_any_number_of_times_are_a_segment_of_each_window(tmp_path: Path, moving: bool) -> None:
    model, frames = still(moving=moving), stepping(10)
    assert len(model(frames, window=10).gaussians) == 1
    result = infer(model, frames, tmp_path / "out", window=4, overlap=2, novel_views=False)
    starts = [round(segment.start * 25) for segment in result.gaussians]
    assert starts == [0, 3, 5, 7]
    places = torch.cat([segment.gaussians.means for segment in result.gaussians])
    torch.testing.assert_close(places, torch.tensor([[float(first), 0, 2] for first in (0, 2, 4, 6)]))
    written = read_segments(tmp_path / "out" / "gaussians")
    assert [segment.start for segment in written] == [segment.start for segment in result.gaussians]
    for segment, first in zip(result.gaussians, (0, 2, 4, 6), strict=True):
        times = segment.gaussians.offset_times
        assert (times is not None) == moving
        if times is not None:
            torch.testing.assert_close(times, torch.arange(first, first + 4) / 25)


def test_points_go_through_gaussians_of_any_number_of_times() -> None:
    tracks = still(moving=True)(stepping(10), points=[(0.0, 8.0, 8.0), (6.0, 8.0, 8.0)], window=4, overlap=2).tracks
    assert tracks is not None
    assert tracks.points.shape == (2, 10, 3)
    torch.testing.assert_close(tracks.points[:, 0], torch.tensor([[0.0, 0, 2], [6, 0, 2]]), atol=0.2, rtol=0)
    with pytest.raises(UserError, match="no cameras are known"):
        still(cameras=False)(stepping(4), points=[(0.0, 4.0, 4.0)])


def test_points_outside_are_refused_before_gaussians_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def predicted(_: Still, clip: Clip) -> Prediction:
        raise AssertionError(f"{clip.images.shape} were predicted first")

    monkeypatch.setattr(Still, "forward", predicted)
    with pytest.raises(UserError, match="point 8,99 is outside"):
        still(moving=True)(stepping(4), points=[(0.0, 8.0, 99.0)])
