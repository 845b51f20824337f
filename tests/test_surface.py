"""The truth that correspondence gives, against ray casting, finite differences and rigid moves of the world."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from four_d import geometry, surface
from four_d.data.contract import RawClip
from four_d.types import Cameras, Surface
from tests.helpers import box_clip, torch_cameras


@pytest.fixture(scope="module")
def clip() -> RawClip:
    return box_clip(seed=3, frames=8, cameras=2, size=(40, 48))


@pytest.fixture(scope="module")
def truth(clip: RawClip) -> tuple[Surface, Cameras, Tensor]:
    assert clip.surface is not None
    return surface.decode(clip.surface, clip.info), torch_cameras(clip), torch.tensor(clip.info.times)


Truth = tuple[Surface, Cameras, Tensor]


def every_pixel(clip: RawClip) -> Tensor:
    return geometry.pixel_centres(clip.info.height, clip.info.width, torch.zeros(())).reshape(-1, 2)


class TestGeometry:
    def test_points_lie_on_their_pixels_rays(self, clip: RawClip, truth: Truth) -> None:
        surf, cameras, times = truth
        pixels, z = geometry.project(surface.points(surf, times).flatten(1, 2), cameras)
        torch.testing.assert_close(pixels, every_pixel(clip).expand_as(pixels), atol=3e-3, rtol=0)
        torch.testing.assert_close(z.view(surf.faces.shape), surface.depth(surf, cameras, times), atol=1e-5, rtol=1e-5)

    def test_depth_unprojects_to_the_points(self, truth: Truth) -> None:
        surf, cameras, times = truth
        world = geometry.unproject(surface.depth(surf, cameras, times), cameras)
        torch.testing.assert_close(world, surface.points(surf, times), atol=5e-4, rtol=0)

    def test_a_rigid_move_of_the_world_changes_no_pixel(self, truth: Truth) -> None:
        surf, cameras, times = truth
        rotation = torch.linalg.matrix_exp(torch.tensor([[0, 0.3, -0.7], [-0.3, 0, 0.9], [0.7, -0.9, 0]]))
        move = geometry.make_pose(rotation, torch.ones(3))
        moved = surface.transform_surface(surf, move)
        there = dataclasses.replace(cameras, world_from_camera=move @ cameras.world_from_camera)
        torch.testing.assert_close(
            surface.depth(moved, there, times), surface.depth(surf, cameras, times), atol=1e-4, rtol=1e-4
        )
        assert torch.equal(surface.dynamic(moved, times), surface.dynamic(surf, times))
        rotated = surface.normals(surf, cameras, times) @ move[:3, :3].T
        torch.testing.assert_close(surface.normals(moved, there, times), rotated, atol=1e-4, rtol=0)

    def test_normals_agree_with_finite_differences(self, truth: Truth) -> None:
        surf, cameras, times = truth
        world, normals = surface.points(surf, times), surface.normals(surf, cameras, times)
        flat = (surf.faces[:, 1:, 1:] == surf.faces[:, 1:, :-1]) & (surf.faces[:, 1:, 1:] == surf.faces[:, :-1, 1:])
        for other in (world[:, 1:, :-1], world[:, :-1, 1:]):
            edge = torch.nn.functional.normalize(world[:, 1:, 1:] - other, dim=-1)
            assert ((edge * normals[:, 1:, 1:]).sum(-1).abs()[flat] < 5e-3).all()
        torch.testing.assert_close(normals.norm(dim=-1), torch.ones_like(normals[..., 0]))
        towards = cameras.world_from_camera[:, None, None, :3, 3] - world
        assert ((towards * normals).sum(-1) >= 0).all()

    def test_where_nothing_was_hit(self, truth: Truth) -> None:
        surf, cameras, times = truth
        faces = surf.faces.clone()
        faces[:, 3, 4] = -1
        holed = dataclasses.replace(surf, faces=faces)
        assert not surface.valid(holed)[:, 3, 4].any()
        assert (surface.instances(holed)[:, 3, 4] == -1).all()
        for value in (
            surface.points(holed, times),
            surface.depth(holed, cameras, times),
            surface.normals(holed, cameras, times),
            surface.dynamic(holed, times),
        ):
            assert not value[:, 3, 4].any()
            assert torch.isfinite(value.float()).all()


class TestMotion:
    def test_dynamic_is_the_moving_boxes(self, truth: Truth) -> None:
        surf, _, times = truth
        mask, objects = surface.dynamic(surf, times), surface.instances(surf)
        assert not mask[objects < 2].any()
        assert mask[objects == 2].all()  # it flies at more than 1 m/s
        turning = mask[objects == 3].float().mean()
        assert turning > 0.9  # only its axis rests

    def test_dynamic_by_its_definition(self, truth: Truth) -> None:
        surf, _, times = truth
        now = surface.points(surf, times)
        fastest = torch.zeros_like(now[..., 0])
        for step in (-1, 1):
            index = surface.time_indices(surf, times) + step
            inside = (index >= 0) & (index < len(surf.times))
            then = surface.points(surf, surf.times[index.clamp(0, len(surf.times) - 1)])
            speed = (then - now).norm(dim=-1) * 12
            fastest = torch.where(inside[:, None, None], torch.maximum(fastest, speed), fastest)
        sure = (fastest - surface.DYNAMIC_SPEED).abs() > 1e-4
        assert torch.equal(surface.dynamic(surf, times)[sure], (fastest > surface.DYNAMIC_SPEED)[sure])

    def test_a_single_time_does_not_move(self, truth: Truth) -> None:
        surf, _, times = truth
        one = dataclasses.replace(
            surf,
            faces=surf.faces[:1],
            barycentric=surf.barycentric[:1],
            vertices=surf.vertices[:1],
            times=surf.times[:1],
        )
        assert not surface.dynamic(one, times[:1]).any()

    def test_only_neighbouring_times_are_needed(self, truth: Truth) -> None:
        surf, _, times = truth
        part = dataclasses.replace(
            surf,
            faces=surf.faces[3:4],
            barycentric=surf.barycentric[3:4],
            vertices=surf.vertices[2:5],
            times=surf.times[2:5],
        )
        assert torch.equal(surface.dynamic(part, times[3:4]), surface.dynamic(surf, times)[3:4])

    def test_scene_flow_leads_to_the_point(self, truth: Truth) -> None:
        surf, _, times = truth
        last = torch.full_like(times, float(surf.times[-1]))
        flow = surface.scene_flow(surf, times, last)
        torch.testing.assert_close(surface.points(surf, times) + flow, surface.points(surf, last))
        objects = surface.instances(surf)
        assert not flow[objects < 2].any()
        flight = (flow / (last - times).clamp_min(1e-9)[:, None, None, None])[:7][objects[:7] == 2]
        torch.testing.assert_close(flight, flight[:1].expand_as(flight), atol=1e-3, rtol=0)  # one velocity

    def test_an_unknown_time_is_named(self, truth: Truth) -> None:
        surf, _, times = truth
        wrong = times.clone()
        wrong[3] += 0.03
        with pytest.raises(ValueError, match=r"0\.280000 s is not on the surface's axis"):
            surface.points(surf, wrong)


class TestTracks:
    def test_a_track_begins_at_its_pixel_and_is_seen_there(self, truth: Truth) -> None:
        surf, cameras, times = truth
        frame = torch.tensor([0, 5, 9, 15])
        pixels = torch.tensor([[10.5, 20.5], [40.2, 3.9], [0.0, 0.0], [47.5, 39.5]])
        tracks = surface.tracks(surf, cameras, times, frame, pixels)
        assert tracks.points.shape == (4, 16, 3)
        for n, f in enumerate(frame.tolist()):
            at = dataclasses.replace(
                cameras, world_from_camera=cameras.world_from_camera[f], intrinsics=cameras.intrinsics[f]
            )
            pixel, _ = geometry.project(tracks.points[n, f][None], at)
            torch.testing.assert_close(pixel[0], pixels[n].floor() + 0.5, atol=3e-3, rtol=0)
            assert tracks.visible[n, f]

    def test_colours_along_visible_tracks_agree(self, clip: RawClip, truth: Truth) -> None:
        surf, cameras, times = truth
        pixels = every_pixel(clip)[::3]
        tracks = surface.tracks(surf, cameras, times, torch.zeros(len(pixels), dtype=torch.long), pixels)
        images = torch.from_numpy(clip.images).float() / 255
        where, _ = geometry.project(tracks.points.transpose(0, 1), cameras)
        size = torch.tensor([clip.info.width, clip.info.height])
        colours = torch.nn.functional.grid_sample(
            images.permute(0, 3, 1, 2), (where / size * 2 - 1)[:, None], align_corners=False
        )[:, :, 0].permute(2, 0, 1)
        error = (colours - colours[:, :1]).abs().mean(-1)
        assert error[tracks.visible].median() < 0.02
        hidden = ~tracks.visible & tracks.valid & ((where > 0) & (where < size)).all(-1).T
        assert hidden.sum() > 50
        assert error[hidden].median() > 0.05

    def test_visibility_against_ray_casting(self, clip: RawClip, truth: Truth) -> None:
        """Sub-pixel visibility by intersecting the exact segment with every triangle."""
        surf, cameras, times = truth
        pixels = every_pixel(clip)[::7]
        tracks = surface.tracks(surf, cameras, times, torch.full((len(pixels),), 2), pixels)
        found, exact = [], []
        for f in (0, 4, 7, 11):
            centre = cameras.world_from_camera[f, :3, 3].double()
            at = int(surface.time_indices(surf, times[f : f + 1])[0])
            found.append(tracks.visible[:, f])
            exact.append(
                _clear(centre, tracks.points[:, f].double(), surf.vertices[at].double()[surf.triangles.long()])
                & _inside(tracks.points[:, f], cameras, f, clip)
            )
        agree = (torch.stack(found) == torch.stack(exact)).float().mean()
        assert 0.2 < torch.stack(exact).float().mean() < 0.95
        assert agree > 0.985, float(agree)

    def test_outside_and_behind_is_not_visible(self, truth: Truth) -> None:
        surf, cameras, times = truth
        centre, forward = cameras.world_from_camera[:, :3, 3], cameras.world_from_camera[:, :3, 2]
        where = torch.stack(
            [centre - forward, centre + forward + 3 * cameras.world_from_camera[:, :3, 0], centre + 0.1 * forward],
            dim=1,
        )
        seen = surface.visible(surf, cameras, times, where)
        assert not seen[:, :2].any()
        assert seen[:, 2].all()

    def test_an_open_background_hides_nothing(self, truth: Truth) -> None:
        surf, cameras, times = truth
        nothing = dataclasses.replace(surf, faces=torch.full_like(surf.faces, -1))
        tracks = surface.tracks(nothing, cameras, times, torch.tensor([0]), torch.tensor([[5.5, 5.5]]))
        assert not tracks.valid.any()
        assert not tracks.visible.any()
        assert not tracks.points.any()
        ahead = cameras.world_from_camera[:, :3, 3] + 50 * cameras.world_from_camera[:, :3, 2]
        assert surface.visible(nothing, cameras, times, ahead[:, None]).all()


def _inside(points: Tensor, cameras: Cameras, f: int, clip: RawClip) -> Tensor:
    pixels, z = geometry.project(
        points, Cameras(world_from_camera=cameras.world_from_camera[f], intrinsics=cameras.intrinsics[f])
    )
    size = torch.tensor([clip.info.width, clip.info.height])
    return (z > 0) & (pixels >= 0).all(-1) & (pixels < size).all(-1)


def _clear(centre: Tensor, points: Tensor, corners: Tensor) -> Tensor:
    """True where nothing lies strictly between the centre and the point."""
    rays = (points - centre)[:, None]
    a, edge, other = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = torch.linalg.cross(rays.expand(-1, len(a), 3), other.expand(len(points), -1, 3))
    determinant = (across * edge).sum(-1)
    offset = centre - a
    u = (across * offset).sum(-1) / determinant
    turned = torch.linalg.cross(offset, edge)
    v, t = (rays * turned).sum(-1) / determinant, (turned * other).sum(-1) / determinant
    return ~((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 1e-6) & (t < 0.995)).any(-1)


def test_decoding_needs_times(clip: RawClip) -> None:
    assert clip.surface is not None
    with pytest.raises(ValueError, match="no surface_times"):
        surface.decode(clip.surface, dataclasses.replace(clip.info, surface_times=None))


def test_a_static_surface_shares_its_vertices(clip: RawClip) -> None:
    assert clip.surface is not None
    still = dataclasses.replace(
        clip.surface, moving=np.zeros(0, np.int32), moving_vertices=np.zeros((8, 0, 3), np.float32)
    )
    decoded = surface.decode(still, clip.info)
    assert decoded.vertices.stride(0) == 0
    assert not surface.dynamic(decoded, torch.tensor(clip.info.times)).any()


def test_fast_enough_for_a_loader() -> None:
    """Four frames of 64 × 64 in milliseconds of a core's own time, which others' work does not lengthen; with room."""
    clip = box_clip(frames=4, cameras=1, size=64)
    assert clip.surface is not None
    decoded, cameras, times = (
        surface.decode(clip.surface, clip.info),
        torch_cameras(clip),
        torch.tensor(clip.info.times),
    )
    taken = []
    for _ in range(10):
        start = time.process_time()
        surface.depth_and_dynamic(decoded, cameras, times)
        taken.append(time.process_time() - start)
    assert min(taken) < 0.1
