"""Faults planted in sound clips are named; untouched clips of any source pass, and what they cannot show is said."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d.data.consistency import findings
from four_d.data.contract import RawClip, problems
from four_d.data.depth_maps import depth_map_findings, sentinel
from four_d.data.evidence import half_line_distance
from four_d.data.features import features, match
from four_d.data.matches import Matches, rigid_part
from four_d.data.measures import Measure, Note, Unchecked
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.types import Cameras
from tests.data.excerpts import EXCERPTS, SAMPLES
from tests.data.faults import FAULTS, deep, lens, posed, turned
from tests.data.walk import walk
from tests.helpers import box_clip, without_surface

DEPTH = {"poses in mm", "depth in mm", "odd unit", "ray", "sentinel", *(name for name in FAULTS if "depth" in name)}


def failures(clip: RawClip) -> list[Measure]:
    return [found for found in findings(clip) if isinstance(found, Measure) and not found.ok]


def remedies(clip: RawClip) -> str:
    return "; ".join(found.remedy for found in failures(clip))


@cache
def plain() -> RawClip:
    return walk()


@cache
def squeezed() -> RawClip:
    return walk(6, squeezed=1.3)


@cache
def blind() -> RawClip:
    return dataclasses.replace(plain(), depth=None, info=dataclasses.replace(plain().info, depth_unit=None))


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "anamorphic"])
def test_a_fault_is_named(fault: str) -> None:
    plant, words = FAULTS[fault]
    assert words in remedies(plant(plain()))


def test_swapped_focal_lengths_are_named() -> None:
    plant, words = FAULTS["anamorphic"]
    assert words in remedies(plant(squeezed()))


@pytest.mark.parametrize("fault", [n for n in FAULTS if n not in DEPTH and n != "anamorphic"])
def test_a_fault_is_named_without_depth(fault: str) -> None:
    plant, words = FAULTS[fault]
    assert words in remedies(plant(blind()))


@pytest.mark.parametrize(("quarters", "way"), [(1, "clockwise"), (-1, "anticlockwise")])
def test_square_images_that_are_turned_alone_are_named(quarters: int, way: str) -> None:
    said = remedies(turned(walk(6, (96, 96)), quarters, images_only=True))
    assert f"the images are turned by 90 degrees {way} against poses and depth" in said


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_depth_with_noise_of_each_pixel_fails(share: float) -> None:
    """Where noise leaves no smooth place its neighbourhoods still contradict each other."""
    noise = 1 + share * np.random.default_rng(0).standard_normal((8, 96, 128))
    clip = deep(plain(), noise.clip(0.05, 3))
    assert {"depth across frames"} <= {found.check for found in failures(clip)}


@pytest.mark.parametrize("late_by", [1, -2])
def test_late_cameras_of_a_clip_with_a_surface_are_named(late_by: int) -> None:
    clip = box_clip(seed=5, frames=8, cameras=2, size=(44, 52))
    assert clip.world_from_camera is not None
    poses = np.concatenate([np.roll(each, late_by, axis=0) for each in np.split(clip.world_from_camera, 2)])
    way = "1 frame too late" if late_by == 1 else "2 frames too early"
    assert f"the cameras come {way}" in remedies(dataclasses.replace(clip, world_from_camera=poses))


def test_two_faults_are_both_named() -> None:
    clip = FAULTS["opengl"][0](FAULTS["poses in mm"][0](plain()))
    assert "OpenGL" in remedies(clip)
    assert "times 1000 fits" in remedies(clip)


def test_a_fault_of_no_usual_kind_fails_without_a_name() -> None:
    rng = np.random.default_rng(1)
    jolted = posed(plain(), lambda pose: np.concatenate([pose[:, :, :3], pose[rng.permutation(8), :, 3:]], 2))
    assert "no usual mistake" in remedies(jolted)


def test_no_overlap_is_a_failure() -> None:
    apart = posed(plain(), lambda pose: pose + _far(len(pose)))
    assert "overlap" in {found.check for found in failures(apart)}


@pytest.mark.parametrize("seed", range(3))
def test_images_of_the_other_camera_fail(seed: int) -> None:
    """Each camera still fits itself over time; the two at one time do not fit each other."""
    rig = walk(4, seed=seed, cameras=2)
    assert failures(dataclasses.replace(rig, images=np.ascontiguousarray(np.roll(rig.images, 4, axis=0))))


def stage(masked: bool, with_depth: bool = False) -> RawClip:
    """A camera that stands still before a bare wall, and a textured thing that moves: all corners are the thing's."""
    clip, rng = walk(6, still=True), np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 255, (12, 15, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    images, moves = np.full_like(clip.images, 128), np.zeros(clip.images.shape[:3], bool)
    for i in range(len(images)):
        place = np.s_[i, 20 + 2 * i : 68 + 2 * i, 10 + 6 * i : 70 + 6 * i]
        images[place], moves[place] = texture, True
    return dataclasses.replace(
        clip,
        images=images,
        depth=np.full(moves.shape, 2.0, np.float32) if with_depth else None,
        dynamic=moves if masked else None,
        info=dataclasses.replace(clip.info, depth_unit=2e-4 if with_depth else None),
    )


def slide() -> RawClip:
    """A camera that moves sideways before a wall, which it sees at one depth."""
    clip = walk(6)
    assert clip.depth is not None
    assert clip.world_from_camera is not None
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = 0.1 * np.arange(6)
    depth = np.full_like(clip.depth, 2.0)
    depth[:, 40:60, 40:60] = 1.5
    return dataclasses.replace(clip, world_from_camera=poses, depth=depth)


def test_a_wall_at_one_depth_is_no_sentinel() -> None:
    assert sentinel(slide()) is None
    forward = slide()
    assert forward.world_from_camera is not None
    forward.world_from_camera[:, 2, 3] = 0.1 * np.arange(6)
    found = sentinel(forward)
    assert found is not None
    assert found.value == pytest.approx(2.0)


def test_depth_without_the_images_edges_is_not_said_to_lie_beside_them() -> None:
    """Eight pictures of one view are one piece of evidence."""
    for seed in range(6):
        rng, clip = np.random.default_rng(seed), walk(8, still=True)
        texture = np.kron(rng.integers(0, 255, (24, 32, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        depth = np.full((96, 128), 2.0, np.float32)
        for y, x in rng.integers(5, 70, (6, 2)):
            depth[y : y + 20, x : x + 25] = rng.uniform(1, 1.7)
        same = dataclasses.replace(clip, images=np.stack([texture] * 8), depth=np.stack([depth] * 8))
        (place,) = (found for found in depth_map_findings(same, None) if "place of depth" in str(found))
        assert isinstance(place, Unchecked) or place.ok, seed


@pytest.mark.parametrize("value", [0.0, -0.5, 0.3, 5.0])
def test_a_tolerance_that_allows_anything_is_refused(value: float) -> None:
    clip = dataclasses.replace(plain(), info=dataclasses.replace(plain().info, depth_tolerance=value))
    assert problems(clip) == [f"clip.json: depth_tolerance is {value:g}; it is a share above 0 and up to 0.2"]


def _far(count: int) -> np.ndarray:
    shift = np.zeros((count, 4, 4))
    shift[:, 0, 3] = 500 * np.arange(count)
    return shift


@pytest.mark.parametrize(
    "clip",
    [
        lambda: walk(5, seed=1),
        lambda: walk(4, seed=2, cameras=2),
        lambda: walk(4, seed=3, still=True),
        lambda: walk(1),
        squeezed,
        blind,
        lambda: stage(masked=False),
        lambda: stage(masked=True),
        lambda: stage(masked=False, with_depth=True),
        lambda: box_clip(seed=5, frames=5, cameras=2, size=(88, 104)),
        lambda: without_surface(box_clip(seed=6, frames=5, cameras=2, size=(88, 104))),
    ],
)
def test_untouched_clips_pass(clip) -> None:  # noqa: ANN001
    assert not failures(clip())


@pytest.mark.parametrize("name", EXCERPTS)
def test_untouched_excerpts_pass(name: str) -> None:
    if not SAMPLES.is_dir():
        pytest.skip("../shared/samples is not there")
    clip = EXCERPTS[name]()
    assert not problems(clip)
    assert not failures(clip)


CANNOT = {
    # what an excerpt cannot show: a camera's small way, equal focal lengths, few frames, smooth depth; and what is
    # named otherwise: without depth a mirrored picture and a mirrored world are one (fox), lengths of Aria in
    # millimetres are told as such; OpenGL's axes and a mirrored world are mistaken for each other there, an odd unit is
    # not found in 3DMatch, whose poses drift
    "hololens": {"anamorphic", "depth right by 4", "depth up by 3"},
    "threedmatch": {"anamorphic", "ray", "swapped centre", "depth up by 3", "odd unit"},
    "aria": {
        "anamorphic",
        "ray",
        "swapped centre",
        "odd unit",
        "depth up by 3",
        "depth in mm",
        "opengl",
        "mirrored world",
        "depth right by 4",
    },
    "motorcycle": {
        "anamorphic",
        "ray",
        "w2c",
        "w2c opengl",
        "opengl",
        "transposed",  # cameras of a rectified pair do not turn, and stand beside each other
        "mirrored world",
        "world upside down",
        "poses in mm",
        "depth in mm",
    },
    "fox": {"anamorphic", "mirrored", "upside down"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CANNOT)
def test_faults_are_named_in_excerpts(name: str) -> None:
    if not SAMPLES.is_dir():
        pytest.skip("../shared/samples is not there")
    clip = EXCERPTS[name]()
    missed: dict[str, str] = {}
    for fault in FAULTS.keys() - CANNOT[name]:
        if (clip.depth is None and fault in DEPTH) or (
            " by " in fault and "right" not in fault and len(clip.images) < 6
        ):
            continue
        plant, words = FAULTS[fault]
        # depth of real sensors lies up to a pixel beside its image before anything is planted
        near = [words.replace("4 pixels", f"{count} pixels") for count in (3, 4, 5)]
        said = remedies(plant(clip))
        if not any(each in said for each in near):
            missed[fault] = said
    assert not missed


def test_what_cannot_be_checked_is_said() -> None:
    def unchecked(clip: RawClip) -> dict[str, str]:
        return {found.what: found.why for found in findings(clip) if isinstance(found, Unchecked)}

    assert "single frame" in unchecked(walk(1))["conventions"]
    bare = dataclasses.replace(blind(), world_from_camera=None, intrinsics=None)
    assert "no cameras" in unchecked(bare)["conventions"]
    still = unchecked(walk(4, still=True))
    assert "hardly moves" in still["time stamps"]
    grey = dataclasses.replace(blind(), images=np.full_like(blind().images, 128))
    assert "corners" in unchecked(grey)["conventions"]


def test_what_was_not_tried_is_said() -> None:
    def unchecked(clip: RawClip) -> dict[str, str]:
        return {found.what: found.why for found in findings(clip) if isinstance(found, Unchecked)}

    assert "three frames" in unchecked(walk(2))["time stamps"]
    assert "time stamps" not in unchecked(plain())
    assert "three frames" in unchecked(box_clip(seed=5, frames=2, cameras=2, size=44))["time stamps"]
    followed = without_surface(box_clip(seed=6, frames=5, cameras=1, size=44), tracks=50)
    bare = dataclasses.replace(followed, depth=None, info=dataclasses.replace(followed.info, depth_unit=None))
    assert "no depth" in unchecked(bare)["tracks"]
    assert "no depth" in unchecked(blind())["unit of lengths"]
    times = [time + 0.01 for time in followed.info.times]
    early = unchecked(dataclasses.replace(followed, info=dataclasses.replace(followed.info, times=times)))
    assert early.keys() >= {"conventions", "tracks"}
    assert all("missing from" in early[name] for name in ("conventions", "tracks"))


def test_rotations_nearly_orthonormal_are_noted() -> None:
    bent = posed(plain(), lambda pose: pose * [1.0001, 1.0001, 1.0001, 1])
    found = list(findings(bent))
    assert any(isinstance(each, Note) and "orthonormal" in each.text for each in found)
    assert not failures(bent)


def test_a_clip_states_its_tolerance(tmp_path: Path) -> None:
    clip = plain()
    clip = dataclasses.replace(clip, info=dataclasses.replace(clip.info, depth_tolerance=0.07))
    write_shard(tmp_path, 0, [clip])
    finalise(tmp_path, "test")
    assert ShardReader(tmp_path).read(0).info.depth_tolerance == 0.07


def test_intrinsics_in_another_place_of_a_surface_clip_are_named() -> None:
    clip = box_clip(seed=5, frames=3, cameras=1, size=44)
    assert "half as large: multiply" in remedies(lens(clip, lambda row: row / 2))


class TestFeatures:
    def test_shifted_pictures_match_to_a_fraction_of_a_pixel(self) -> None:
        image = torch.from_numpy(walk(1, (120, 160)).images[0].copy()).permute(2, 0, 1).float() / 255
        here, there = match(features(image[:, :, :-7]), features(image[:, 3:, 7:]))
        assert len(here) > 50
        moved = there - here
        assert float((moved - torch.tensor([-7.0, -3.0])).norm(dim=-1).median()) < 0.02

    def test_a_bare_wall_has_no_corners(self) -> None:
        found = features(torch.full((3, 60, 80), 0.5))
        assert len(found.pixels) == 0
        assert len(match(found, found)[0]) == 0

    def test_matches_of_chance_are_none(self) -> None:
        generator = torch.Generator().manual_seed(0)
        here, there = (torch.rand(60, 2, generator=generator) * 100 for _ in range(2))
        assert rigid_part(here, there, 100) is None
        assert rigid_part(here, here + 1, 100) is not None

    def test_a_pair_is_matched_once(self) -> None:
        matches = Matches(plain().images)
        assert matches(0, 1) is matches(0, 1)


def test_distance_from_a_half_line() -> None:
    """A camera that goes right sees a point left of where it was, however far the point is."""
    k = torch.tensor([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    here = Cameras(world_from_camera=torch.eye(4), intrinsics=k)
    pose = torch.eye(4)
    pose[0, 3] = 1
    there = Cameras(world_from_camera=pose, intrinsics=k)
    pixel = torch.tensor([[60.0, 40]])
    for seen, distance in (((30.0, 40.0), 0), ((60.0, 40.0), 0), ((30.0, 45.0), 5), ((64.0, 43.0), 5)):
        assert float(half_line_distance(pixel, torch.tensor([seen]), here, there)) == pytest.approx(distance, abs=1e-3)
    assert float(half_line_distance(pixel, torch.tensor([[63.0, 44.0]]), here, here)) == pytest.approx(5, abs=1e-3)
