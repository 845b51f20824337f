"""What the user knows of the cameras comes out as it went in, and square pixels have one focal length."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

import four_d
from four_d import fields
from four_d.abilities import UNITS
from four_d.formats.cameras import read_cameras, read_colmap
from four_d.geometry import Similarity, invert_pose, make_pose, project, transform, unproject
from four_d.inference import Known, Selection, infer
from four_d.inference.lens import Correction, correct, one_focal, stretch
from four_d.types import (
    DISPLACEMENT,
    LENGTH,
    NORMAL,
    POINT,
    POSE,
    QUATERNION,
    Cameras,
    Clip,
    Gaussians,
    Prediction,
    nested,
    selects,
)
from four_d.video.remarks import Remarks
from tests.test_inference import BIKES, gradient
from tests.test_inputs import write_folder
from tests.test_known import SIZE, hinted, some_cameras

LENS = (585.123456789, 580.1, 320.25, 136.5)
"""Numbers that single precision does not hold."""


def turned(count: int, generator: torch.Generator) -> Cameras:
    """A batch of one clip of cameras near the origin, as a model of square pictures says them of 24 × 40 pixels."""
    turns = roma.rotvec_to_rotmat(0.2 * torch.randn(count, 3, generator=generator))
    poses = make_pose(turns, 0.3 * torch.randn(count, 3, generator=generator))
    intrinsics = torch.tensor([[37.0, 0, 20], [0, 22, 12], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(world_from_camera=poses[None], intrinsics=intrinsics[None])


def blank(count: int, cameras: Cameras | None = None) -> Clip:
    times = torch.arange(count)[None] / 25
    return Clip(images=torch.zeros(1, count, 3, 24, 40), times=times, camera_ids=times.long(), cameras=cameras)


def said(cameras: Cameras, generator: torch.Generator) -> Prediction:
    """Depth, the same as points, motion of these to the first frame's time, and a Gaussian for each point."""
    depth = 1 + torch.rand(1, cameras.intrinsics.shape[1], 24, 40, generator=generator)
    points = unproject(depth, cameras)
    some = points[:, [0, 2]].flatten(1, 3)
    count = some.shape[1]
    gaussians = Gaussians(
        means=some,
        quats=torch.randn(1, count, 4, generator=generator),
        scales=0.01 + 0.1 * torch.rand(1, count, 3, generator=generator),
        opacities=torch.ones(1, count),
        harmonics=torch.zeros(1, count, 1, 3),
        offsets=0.1 * torch.randn(1, 2, count, 3, generator=generator),
        offset_times=torch.zeros(1, 2),
    )
    motion = 0.1 * torch.randn(1, 1, *points.shape[1:], generator=generator)
    return Prediction(
        cameras=cameras,
        depth=depth,
        points=points,
        motion=motion,
        gaussians=gaussians,
        key_frames=torch.tensor([[0, 2]]),
    )


def applied(generator: torch.Generator, given: Clip | None = None) -> tuple[Prediction, Prediction, Correction]:
    before = said(turned(3, generator), generator)
    correction = correct(before, blank(3) if given is None else given)
    return before, correction(before), correction


def test_one_focal_length_between_the_two() -> None:
    found = one_focal(torch.tensor([[90.0, 0.5, 48], [0, 40, 20], [0, 0, 1]]))
    torch.testing.assert_close(found, torch.tensor([[60.0, 0, 48], [0, 60, 20], [0, 0, 1]]))


def test_what_a_pixel_shows_stays_in_it(generator: torch.Generator) -> None:
    """Depth seen by the new cameras, the point map, the Gaussians and what they move by still agree."""
    before, after, _ = applied(generator)
    assert before.points is not None
    assert before.motion is not None
    assert after.cameras is not None
    assert after.depth is not None
    assert after.points is not None
    assert after.motion is not None
    assert after.gaussians is not None
    focal = after.cameras.intrinsics[..., [0, 1], [0, 1]]
    torch.testing.assert_close(focal, torch.full((1, 3, 2), (37 * 22) ** 0.5))
    torch.testing.assert_close(after.points, unproject(after.depth, after.cameras), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.gaussians.means, after.points[:, [0, 2]].flatten(1, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.cameras.world_from_camera, before.cameras.world_from_camera)  # pyright: ignore
    ends = [(p.points + p.motion[:, 0]).flatten(2, 3) for p in (before, after)]  # pyright: ignore
    seen = [project(end, p.cameras)[0] for end, p in zip(ends, (before, after), strict=True)]  # pyright: ignore
    torch.testing.assert_close(seen[0], seen[1], atol=1e-2, rtol=1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rig(Prediction):
    """Fields of a head of a user's own."""

    radius: Float[Tensor, "*b f h w"] | None = dataclasses.field(default=None, metadata=LENGTH)
    joints: Float[Tensor, "*b f j 3"] | None = dataclasses.field(default=None, metadata=POINT)
    centre: Float[Tensor, "*b f 3"] | None = dataclasses.field(default=None, metadata=POINT)
    origin: Float[Tensor, "*b 3"] | None = dataclasses.field(default=None, metadata=POINT)
    steps: Float[Tensor, "*b f j 3"] | None = dataclasses.field(default=None, metadata=DISPLACEMENT)
    normals: Float[Tensor, "*b f j 3"] | None = dataclasses.field(default=None, metadata=NORMAL)
    facing: Float[Tensor, "*b f 4"] | None = dataclasses.field(default=None, metadata=QUATERNION)
    eyes: Float[Tensor, "*b f 4 4"] | None = dataclasses.field(default=None, metadata=POSE)
    sharp: Int[Tensor, "*b s"] | None = dataclasses.field(default=None, metadata=selects("f"))
    corners: Float[Tensor, "*b s 3"] | None = dataclasses.field(default=None, metadata=POINT)
    cloud: Cloud | None = dataclasses.field(default=None, metadata=nested(m="f h w"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cloud:
    """A nested value of theirs."""

    places: Float[Tensor, "*b m 3"] = dataclasses.field(metadata=POINT)


def normal(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)


def rig(before: Prediction) -> Rig:
    """Everything is at the pixels of the point map."""
    points, cameras = before.points, before.cameras
    assert points is not None
    assert cameras is not None
    return Rig(
        **vars(before),
        radius=before.depth,
        joints=points[:, :, 5, :7],
        centre=points[:, :, 12, 20],
        origin=points[:, 0, 3, 4],
        steps=points[:, :, 5, 1:8] - points[:, :, 5, :7],
        normals=normal(points[:, :, 5, :7], points[:, :, 5, 1:8], points[:, :, 6, :7]),
        facing=roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(cameras.world_from_camera[..., :3, :3])),
        eyes=cameras.world_from_camera,
        sharp=torch.tensor([[2, 0]]),
        corners=points[:, [2, 0], 7, 8],
        cloud=Cloud(places=points.flatten(1, 3)),
    )


@pytest.mark.parametrize("posed", [False, True])
def test_fields_of_ones_own_follow_by_their_geometry(generator: torch.Generator, posed: bool) -> None:
    before = said(turned(3, generator), generator)
    other = turned(3, generator)
    known = dataclasses.replace(other, known=torch.ones(1, 3).bool()) if posed else None
    correction = correct(before, blank(3, known), 2.0)
    after = correction(rig(before))
    assert isinstance(after, Rig)
    assert after.cameras is not None
    wanted = rig(dataclasses.replace(correction(before), gaussians=None))
    for name in ("radius", "joints", "centre", "origin", "steps", "normals", "corners", "eyes"):
        torch.testing.assert_close(getattr(after, name), getattr(wanted, name), atol=1e-5, rtol=1e-4)
    assert after.cloud is not None
    assert wanted.cloud is not None
    torch.testing.assert_close(after.cloud.places, wanted.cloud.places)
    assert after.facing is not None
    turns = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(after.facing))
    torch.testing.assert_close(turns, after.cameras.world_from_camera[..., :3, :3], atol=1e-5, rtol=0)


def test_without_cameras_fields_of_ones_own_change_their_unit(generator: torch.Generator) -> None:
    before = rig(said(turned(3, generator), generator))
    assert before.eyes is not None
    silent = dataclasses.replace(before, cameras=None)
    after = correct(silent, blank(3), 2.0)(silent)
    assert isinstance(after, Rig)
    assert after.radius is not None
    assert after.corners is not None
    assert after.eyes is not None
    assert torch.equal(after.radius, 2 * before.radius)  # pyright: ignore[reportOperatorIssue]
    assert torch.equal(after.corners, 2 * before.corners)  # pyright: ignore[reportOperatorIssue]
    assert torch.equal(after.eyes[..., :3, 3], 2 * before.eyes[..., :3, 3])
    assert torch.equal(after.eyes[..., :3, :3], before.eyes[..., :3, :3])


def test_gaussians_of_no_frame_go_with_the_first(generator: torch.Generator) -> None:
    before = said(turned(3, generator), generator)
    assert before.gaussians is not None
    loose = dataclasses.replace(before, key_frames=None)
    correction = correct(loose, blank(3))
    first = dataclasses.replace(loose, key_frames=torch.tensor([[0]]))
    found, wanted = correction(loose).gaussians, correction(first).gaussians
    assert found is not None
    assert wanted is not None
    assert torch.equal(found.means, wanted.means)


def test_gaussians_are_stretched_whole(generator: torch.Generator) -> None:
    """Covariances and offsets go with the places, each by its own map."""
    gaussians = said(turned(3, generator), generator).gaussians
    assert gaussians is not None
    assert gaussians.offsets is not None
    count = gaussians.means.shape[1]
    linear = torch.eye(3) + 0.3 * torch.randn(1, count, 3, 3, generator=generator)
    after = stretch(gaussians, linear, torch.ones(1, count, 3))

    def covariance(some: Gaussians) -> torch.Tensor:
        quats = torch.nn.functional.normalize(some.quats, dim=-1)
        axes = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(quats)) * some.scales[..., None, :]
        return axes @ axes.mT

    torch.testing.assert_close(covariance(after), linear @ covariance(gaussians) @ linear.mT, atol=1e-6, rtol=1e-4)
    ends = (linear @ (gaussians.means + gaussians.offsets[:, 1])[..., None])[..., 0] + 1
    assert after.offsets is not None
    torch.testing.assert_close(after.means + after.offsets[:, 1], ends, atol=1e-5, rtol=0)


def test_turns_are_stretched_with_their_gaussians(generator: torch.Generator) -> None:
    """Exactly by rotations and scales, and as rotations by any other map."""
    gaussians = said(turned(3, generator), generator).gaussians
    assert gaussians is not None
    assert gaussians.offsets is not None
    turns = torch.nn.functional.normalize(torch.randn(*gaussians.offsets.shape[:3], 4, generator=generator), dim=-1)
    gaussians = dataclasses.replace(gaussians, turns=turns)
    count = gaussians.means.shape[1]
    rotation = roma.random_rotmat(generator=generator)
    shift = torch.tensor([1.0, 2.0, 3.0])
    found = stretch(gaussians, (2 * rotation).expand(1, count, 3, 3), shift.expand(1, count, 3)).turns
    plain = dataclasses.replace(gaussians, harmonics=gaussians.harmonics[..., :1, :])
    expected = fields.move(plain, Similarity(scale=2.0, rotation=rotation.double(), shift=shift.double())).turns
    assert found is not None
    assert expected is not None
    torch.testing.assert_close((found * expected).sum(-1).abs(), torch.ones(found.shape[:-1]))
    linear = torch.eye(3) + 0.3 * torch.randn(1, count, 3, 3, generator=generator)
    other = stretch(gaussians, linear, torch.zeros(1, count, 3)).turns
    assert other is not None
    torch.testing.assert_close(other.norm(dim=-1), torch.ones(found.shape[:-1]))
    assert (other * turns).sum(-1).abs().median() > 0.9


def test_what_is_not_finite_stays_so(generator: torch.Generator) -> None:
    """A model that has diverged gives Gaussians that are refused where they are written, not an error of algebra."""
    before = said(turned(3, generator), generator)
    assert before.cameras is not None
    assert before.gaussians is not None
    before.gaussians.scales[0, 5] = torch.nan
    before.cameras.intrinsics[0, 0, 0, 0] = torch.nan
    after = correct(before, blank(3))(before).gaussians
    assert after is not None
    broken = ~after.scales[0].isfinite().all(-1)
    count = broken.shape[0] // 2
    assert broken[:count].all(), "of the frame whose lens is not finite"
    assert not broken[count:].any()


def test_given_poses_bring_their_unit(generator: torch.Generator) -> None:
    """By how far they move, or by depth; places follow, and where nothing tells that is said."""
    before = said(turned(3, generator), generator)
    assert before.cameras is not None
    assert before.depth is not None
    poses = before.cameras.world_from_camera.clone()
    poses = invert_pose(poses[:, :1]) @ poses
    poses[..., :3, 3] *= 7
    known = Cameras(world_from_camera=poses, intrinsics=before.cameras.intrinsics, known=torch.ones(1, 3).bool())
    by_poses = correct(before, blank(3, known))
    assert by_poses.unit == pytest.approx(7, rel=1e-5)
    after = by_poses(before)
    assert after.depth is not None
    assert after.cameras is not None
    assert after.points is not None
    assert torch.equal(after.cameras.world_from_camera, poses)
    torch.testing.assert_close(after.depth, 7 * before.depth, rtol=1e-5, atol=0)
    torch.testing.assert_close(after.points, unproject(after.depth, after.cameras), atol=1e-4, rtol=0)
    deep = dataclasses.replace(blank(3, known), depth=3 * before.depth, valid=torch.ones_like(before.depth).bool())
    assert correct(before, deep).unit == pytest.approx(3, rel=1e-5)


def test_poses_without_a_unit_are_said(generator: torch.Generator, capfd: pytest.CaptureFixture[str]) -> None:
    still = turned(3, generator)
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    before = said(Cameras(world_from_camera=poses, intrinsics=still.intrinsics), generator)
    correction = correct(before, blank(3, still))
    assert correction.unit == 1
    assert "nothing tells how far away things are in their unit" in capfd.readouterr().err
    assert correct(before, blank(3, Cameras(world_from_camera=poses, intrinsics=still.intrinsics))).unit == 1
    assert capfd.readouterr().err == "", "cameras that stand still do so in any unit"
    of_video = Remarks("cameras")
    for _ in range(3):
        correct(before, blank(3, still), remarks=of_video)
    assert capfd.readouterr().err.count("nothing tells") == 1, "windows of one video"


@pytest.mark.parametrize("size", [(64, 112), (112, 64), (90, 91)])
def test_unasked_both_focal_lengths_are_one(size: tuple[int, int], tmp_path: Path) -> None:
    """In every output, of one window or several."""
    model, _ = hinted()
    folder = write_folder(tmp_path / "video", gradient(*size, 6))
    for name, window in (("one", None), ("several", 4)):
        result = infer(model, folder, tmp_path / name, window=window)
        assert result.cameras is not None
        focal = result.cameras.intrinsics[:, [0, 1], [0, 1]]
        torch.testing.assert_close(focal[:, 0], focal[:, 1])
        table = read_cameras(tmp_path / name / "cameras.json")
        for cameras in (table.model, table.original):
            torch.testing.assert_close(cameras.intrinsics[:, 0, 0], cameras.intrinsics[:, 1, 1], rtol=1e-6, atol=0)
        _agree(tmp_path / name, table.original.intrinsics, table.original.world_from_camera)
        assert result.points is not None
        assert result.depth is not None
        assert result.prediction.cameras is not None
        torch.testing.assert_close(result.points, unproject(result.depth, result.prediction.cameras))


def test_of_a_real_wide_video_with_the_shipped_model() -> None:
    model = four_d.load("checkpoints/unified-base")
    result = model(BIKES, selection=Selection(max_frames=3), tracks=False)
    assert result.cameras is not None
    focal = result.cameras.intrinsics[:, [0, 1], [0, 1]]
    torch.testing.assert_close(focal[:, 0], focal[:, 1])
    assert 272 < float(focal.mean()) < 640, "the picture's sides: 90° one way, 53° the other"


def _agree(folder: Path, intrinsics: torch.Tensor, poses: torch.Tensor) -> None:
    """``cameras.json``, both COLMAP projects and the arrays say this, of the sizes that the pictures have."""
    table = read_cameras(folder / "cameras.json")
    assert torch.equal(table.original.intrinsics, intrinsics)
    torch.testing.assert_close(table.original.world_from_camera, poses, atol=1e-12, rtol=0)
    with np.load(folder / "prediction.npz") as arrays:
        np.testing.assert_array_equal(arrays["intrinsics_original"], intrinsics.numpy())
        np.testing.assert_allclose(arrays["world_from_camera"], poses.numpy(), atol=1e-12, rtol=0)
        np.testing.assert_allclose(arrays["intrinsics"], table.model.intrinsics.numpy(), rtol=1e-5)
    for name, cameras, size in (
        ("model", table.model, table.model_size),
        ("original", table.original, table.original_sizes[0]),
    ):
        read, sizes, _ = read_colmap(folder / "colmap" / name / "sparse" / "0")
        assert set(sizes) == {size}
        torch.testing.assert_close(read.intrinsics, cameras.intrinsics, rtol=1e-11, atol=0)
        torch.testing.assert_close(read.world_from_camera, cameras.world_from_camera, atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [None, 4])
def test_given_intrinsics_are_kept_to_the_last_digit(window: int | None, tmp_path: Path) -> None:
    model, _ = hinted()
    folder = write_folder(tmp_path / "video", gradient(272, 640, 6))
    result = infer(model, folder, tmp_path / "out", window=window, known=Known(intrinsics=[LENS]))
    fx, fy, cx, cy = LENS
    wanted = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64).repeat(6, 1, 1)
    assert result.cameras is not None
    assert torch.equal(result.cameras.intrinsics, wanted)
    _agree(tmp_path / "out", wanted, read_cameras(tmp_path / "out" / "cameras.json").original.world_from_camera)
    frames = json.loads((tmp_path / "out" / "cameras.json").read_text())["frames"]
    assert frames[0]["intrinsics_original"] == [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    assert result.points is not None
    assert result.depth is not None
    assert result.prediction.cameras is not None
    pixels = project(result.points.flatten(1, 2).double(), result.cameras)[0]
    expected = result.fits.points_to_original(_centres(*result.fits.model), torch.tensor(0))
    torch.testing.assert_close(pixels.float(), expected.expand_as(pixels), atol=0.02, rtol=0)


def _centres(rows: int, columns: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


@pytest.mark.parametrize("window", [None, 4])
def test_given_poses_are_kept_too(window: int | None, tmp_path: Path, generator: torch.Generator) -> None:
    """In the first frame's camera and their own unit, of which the depth is too; also over the seams of windows."""
    given, (model, _) = some_cameras(6, generator), hinted()
    folder = write_folder(tmp_path / "video", gradient(*SIZE, 6))
    result = infer(model, folder, tmp_path / "out", window=window, known=Known(cameras=given))
    poses = invert_pose(given.world_from_camera[0]) @ given.world_from_camera
    _agree(tmp_path / "out", given.intrinsics, poses)
    assert result.cameras is not None
    assert result.depth is not None
    assert result.points is not None
    assert result.prediction.cameras is not None
    assert result.unit == UNITS["disparity"]
    assert json.loads((tmp_path / "out" / "cameras.json").read_text())["unit"] == result.unit
    torch.testing.assert_close(result.cameras.world_from_camera, poses, atol=1e-12, rtol=0)
    local = transform(invert_pose(poses), result.points.double().flatten(1, 2))
    torch.testing.assert_close(local[..., 2].float(), result.depth.flatten(1), atol=1e-3, rtol=1e-4)
    if window is not None:
        seams = [entry["seam"] for entry in json.loads((tmp_path / "out" / "windows.json").read_text())["windows"]]
        assert [seam["method"] for seam in seams[1:]] == ["poses"]
        assert seams[1]["camera_shift"] == pytest.approx(0, abs=1e-5)
        assert seams[1]["camera_turn_deg"] == pytest.approx(0, abs=1e-3)
