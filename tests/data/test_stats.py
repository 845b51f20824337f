"""Figures of worlds whose figures are known."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d.data.contract import RawClip
from four_d.data.shards import finalise, write_shard
from four_d.data.stats import Distribution, _depth_cells, clip_stats, stats, summarise, view_spread
from four_d.data.truth import Truth
from tests.helpers import box_clip, look_at, without_surface


@pytest.fixture(scope="module")
def clip() -> RawClip:
    return box_clip(seed=4, frames=10, cameras=2, size=(40, 56))


def test_counts_and_times(clip: RawClip) -> None:
    found = clip_stats(clip)
    assert (found.frames, found.cameras) == (20, 2)
    assert found.fps == pytest.approx(12)
    assert found.seconds == pytest.approx(9 / 12)


def test_cameras(clip: RawClip) -> None:
    """Rotation and way by the poses' own definition; the field of view by the intrinsics'."""
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    found = clip_stats(clip)
    for camera in range(2):
        poses = clip.world_from_camera[camera * 10 : camera * 10 + 10]
        cosines = [(np.trace(poses[0, :3, :3].T @ pose[:3, :3]) - 1) / 2 for pose in poses]
        assert found.rotation_deg[camera] == pytest.approx(np.rad2deg(np.arccos(min(cosines))), abs=1e-2)
        ways = np.linalg.norm(poses[:, :3, 3] - poses[0, :3, 3], axis=-1)
        assert found.translation[camera] == pytest.approx(ways.max(), abs=1e-5)
        focal = clip.intrinsics[camera * 10, 0, 0]
        assert found.fov_deg[camera] == pytest.approx(2 * np.rad2deg(np.arctan(28 / focal)), abs=1e-3)
    assert len(found.between_cameras_deg) == 1


def test_a_turn_of_known_size(clip: RawClip) -> None:
    pose = np.stack([look_at(np.zeros(3), np.array([np.sin(a), 0.0, np.cos(a)])) for a in np.linspace(0, 0.5, 20)])
    still = clip_stats(dataclasses.replace(clip, world_from_camera=pose, surface=None))
    assert max(still.rotation_deg) == pytest.approx(np.rad2deg(0.5 * 9 / 19), abs=1e-3)
    assert still.between_cameras_deg == pytest.approx([np.rad2deg(0.5 * 10 / 19)], abs=1e-3)


def test_the_same_with_and_without_a_surface(clip: RawClip) -> None:
    """Depth, mask and cameras are the same world, stored in another way."""
    a, b = clip_stats(clip), clip_stats(without_surface(clip))
    np.testing.assert_allclose(a.depth_ratio, b.depth_ratio, rtol=1e-4)
    np.testing.assert_allclose(a.dynamic_fraction, b.dynamic_fraction)
    assert (a.rotation_deg, a.invalid_fraction, a.contrast) == (b.rotation_deg, b.invalid_fraction, b.contrast)


def test_dynamic_share_is_the_moving_boxes(clip: RawClip) -> None:
    assert clip.surface is not None
    objects = clip.surface.instances[clip.surface.faces]
    np.testing.assert_allclose(clip_stats(clip).dynamic_fraction, (objects >= 2).mean((1, 2)), atol=0.01)


def test_the_flying_box_hides_points(clip: RawClip) -> None:
    found = clip_stats(clip)
    assert found.occluded_fraction > 0.02
    assert clip.surface is not None
    room = dataclasses.replace(
        clip.surface,
        moving=np.zeros(0, np.int32),
        moving_vertices=np.zeros((10, 0, 3), np.float32),
        faces=np.where(clip.surface.instances[clip.surface.faces] == 0, clip.surface.faces, -1).astype(np.int32),
    )
    empty = clip_stats(dataclasses.replace(clip, surface=room))
    assert (empty.occluded_fraction, empty.reappearing_fraction) == (0, 0)
    assert empty.invalid_fraction > 0.05
    assert max(empty.dynamic_fraction) == 0


def test_images_alone(clip: RawClip) -> None:
    info = dataclasses.replace(clip.info, surface_times=None)
    found = clip_stats(RawClip(key="bare", info=info, images=np.full_like(clip.images, 51)))
    assert found.brightness == pytest.approx(0.2)
    assert found.contrast == pytest.approx(0, abs=1e-6)
    assert (found.depth_ratio, found.rotation_deg, found.fov_deg) == ([], [], [])
    assert math.isnan(found.occluded_fraction)
    assert math.isnan(found.invalid_fraction)


def test_of_a_folder(tmp_path: Path) -> None:
    clips = [box_clip(seed=seed, frames=4, cameras=2, size=24) for seed in range(4)]
    other = without_surface(clips[3])
    other = dataclasses.replace(other, info=dataclasses.replace(other.info, source="other"))
    write_shard(tmp_path, 0, [*clips[:3], other])
    finalise(tmp_path, "boxes")
    found = stats(tmp_path, shown=False)
    assert {name: source.clips for name, source in found.sources.items()} == {"box": 3, "other": 1}
    assert found.sources["box"].frames == 24
    assert found.distributions["field of view, degrees (camera)"].count == 8
    assert json.loads(json.dumps(found.to_dict()))["sources"]["box"]["cameras"] == 6
    assert "clips with occlusion" in found.table()
    assert found.mean_map > 1
    assert found.to_dict()["mean_map"] == found.mean_map
    assert "mean depth map, farthest over nearest cell" in found.table()
    assert stats(tmp_path, clips=2, shown=False).distributions["seconds (clip)"].count == 2


def test_shares_count_what_they_say(clip: RawClip) -> None:
    one = clip_stats(clip)
    near = dataclasses.replace(one, depth_ratio=[2.9, 3.0], dynamic_fraction=[0.02], rotation_deg=[4.0, 6.0])
    far = dataclasses.replace(one, depth_ratio=[3.1, 3.2], dynamic_fraction=[0.1], rotation_deg=[1.0, 2.0])
    far = dataclasses.replace(far, occluded_fraction=0.0, reappearing_fraction=0.5)
    shares = list(summarise([near, far]).shares.values())
    explained = shares.pop(4)
    assert explained == view_spread(one.depth_cells * 2)[1]
    assert shares == [0.75, 0.5, 0.5, 0.25, 0.5, 1.0]


def test_the_mean_depth_map_is_of_what_all_frames_share() -> None:
    rng = np.random.default_rng(0)
    floor = np.repeat(np.linspace(0.7, -0.7, 8)[:, None], 8, 1)
    same, spread = view_spread([floor] * 4)[1], view_spread([floor] * 4)[0]
    assert same == pytest.approx(1)
    assert spread == pytest.approx(np.exp(1.4))
    turned = [np.rot90(floor, quarter) for quarter in range(4)]
    assert view_spread(turned) == (pytest.approx(1), pytest.approx(0))
    noisy = [floor + rng.normal(0, 0.5, floor.shape) for _ in range(200)]
    assert view_spread(noisy)[1] == pytest.approx(floor.var() / (floor.var() + 0.25), abs=0.03)
    holes = [np.where(rng.random(floor.shape) < 0.3, np.nan, floor) for _ in range(20)]
    assert view_spread(holes) == (pytest.approx(np.exp(1.4)), pytest.approx(1))
    assert all(math.isnan(value) for value in view_spread([]))


def test_cells_are_the_frame_s_own_places(clip: RawClip) -> None:
    """Rows go down and columns to the right; depth that is unknown counts nowhere."""
    frames = np.full((20, 40, 56), 2.0, np.float32)
    frames[:, :5], frames[:, -5:, 28:] = 4.0, 0.0
    known = Truth(times=torch.zeros(20), cameras=None, surface=None, depth=torch.from_numpy(frames), dynamic=None)
    cells = _depth_cells(known)
    assert len(cells) == 20
    np.testing.assert_allclose(cells[0][0], np.log(2))
    np.testing.assert_allclose(cells[0][1:7], 0)
    assert np.isnan(cells[0][7, 4:]).all()


def test_nothing_counted_is_said() -> None:
    empty = Distribution.of([float("nan")])
    assert empty.count == 0
    assert math.isnan(empty.median)
    assert summarise([]).to_dict()["shares"]
    assert "nan" not in summarise([]).table()
