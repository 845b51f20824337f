"""Every usual mistake, made on purpose, is found and named; a sound data set passes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from four_d.data import runs
from four_d.data.check import CheckReport, check
from four_d.data.contract import ClipInfo, RawClip, SurfaceArrays
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.errors import UserError
from tests.data.faults import along_rays, deep, posed, translated
from tests.data.test_agreement import room
from tests.helpers import box_clip, without_surface


@pytest.fixture(scope="module")
def clip() -> RawClip:
    return box_clip(seed=5, frames=8, cameras=2, size=(44, 52))


@pytest.fixture(scope="module")
def video(clip: RawClip) -> RawClip:
    """The first camera's frames alone, as depth and tracks."""
    return without_surface(box_clip(seed=6, frames=12, cameras=1, size=(44, 52)), tracks=120)


@pytest.fixture(scope="module")
def rig(clip: RawClip) -> RawClip:
    return without_surface(clip, tracks=120)


@pytest.fixture(scope="module")
def long() -> RawClip:
    return without_surface(box_clip(seed=2, frames=130, cameras=1, size=(16, 20)), tracks=4)


def checked(folder: Path, *clips: RawClip) -> CheckReport:
    write_shard(folder, 0, clips)
    finalise(folder, "test")
    return check(folder, shown=False)


def names(report: CheckReport) -> set[str]:
    return {failure.check for failure in report.failures}


def remedies(report: CheckReport, name: str) -> str:
    return "; ".join(failure.remedy for failure in report.failures if failure.check == name)


def resurfaced(clip: RawClip, **changes: NDArray[np.generic]) -> RawClip:
    assert clip.surface is not None
    return dataclasses.replace(clip, surface=dataclasses.replace(clip.surface, **changes))  # pyright: ignore


class TestSound:
    def test_a_sound_data_set_passes(self, tmp_path: Path, clip: RawClip, video: RawClip, rig: RawClip) -> None:
        report = checked(tmp_path, clip, video, dataclasses.replace(rig, key="rig"))
        assert report.ok, report.table()
        assert {"pixel centres", "depth across frames", "tracks keep colour", "units"} <= {
            measure.check for measure in report.measures
        }
        assert "no failures" in report.table()

    @pytest.mark.parametrize("seed", range(4))
    def test_whatever_the_scene(self, tmp_path: Path, seed: int) -> None:
        scene = box_clip(seed=seed, frames=6, cameras=3, size=36)
        other = dataclasses.replace(without_surface(scene), key="other")
        assert checked(tmp_path, scene, other).ok

    def test_images_alone(self, tmp_path: Path, clip: RawClip) -> None:
        info = dataclasses.replace(clip.info, surface_times=None)
        assert checked(tmp_path, RawClip(key="bare", info=info, images=clip.images)).ok

    def test_only_some_clips(self, tmp_path: Path, clip: RawClip) -> None:
        for index in range(3):
            write_shard(tmp_path, index, [dataclasses.replace(clip, key=f"k{index}")])
        finalise(tmp_path, "test")
        assert check(tmp_path, clips=2, shown=False).clips == 2

    def test_pure_rotation_is_no_failure(self, tmp_path: Path) -> None:
        """A camera that stands still shows no parallax: nothing can be said of it, nothing is wrong with it."""
        still = without_surface(box_clip(seed=2, frames=1, cameras=1, size=40))
        assert checked(tmp_path, still).ok


class TestLongClips:
    """Geometry is measured in some frames of a long clip, in no more memory; members and layout in all."""

    def test_no_more_frames_are_held_than_are_measured(
        self, tmp_path: Path, long: RawClip, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, held = ShardReader.read, list[int]()

        def counted(self: ShardReader, index: int, frames: list[int] | None = None, *, verify: bool = True) -> RawClip:
            held.append(self.samples[index].frames if frames is None else len(frames))
            return read(self, index, frames, verify=verify)

        monkeypatch.setattr(ShardReader, "read", counted)
        report = checked(tmp_path, long)
        assert held == [96, 34]
        assert report.ok, report.table()
        assert "some were measured, evenly chosen (96 of 130)" in report.table()

    def test_frames_are_called_by_their_own_numbers(self, tmp_path: Path, long: RawClip) -> None:
        frame = runs.choose(long.info.times, long.info.camera_ids, 320).frames[-1]

        def change(pose: NDArray[np.float64]) -> NDArray[np.float64]:
            pose[frame, :3, :3] *= 1.1
            return pose

        report = checked(tmp_path, posed(long, change))
        assert ("rotation", frame) in {(failure.check, failure.frame) for failure in report.failures}

    def test_a_frame_that_is_not_measured_is_read(self, tmp_path: Path, long: RawClip) -> None:
        assert long.depth is not None
        frame = next(i for i in range(130) if i not in runs.choose(long.info.times, [0] * 130, 320).frames)
        write_shard(tmp_path, 0, [long])
        finalise(tmp_path, "test")
        offset, size, _ = ShardReader(tmp_path).samples[0].members[f"f{frame:03d}.depth.png"]
        with (tmp_path / "shard-000000.tar").open("r+b") as file:
            file.seek(offset + size // 2)
            file.write(b"\0\1\2\3")
        report = check(tmp_path, shown=False)
        assert ("members", frame) in {(failure.check, failure.frame) for failure in report.failures}
        assert "not checked: geometry: a member is damaged" in report.table()

    @pytest.mark.parametrize(
        ("cameras", "frames", "pixels", "counts"),
        [
            (1, 96, 320, [96]),  # all
            (1, 1000, 320, [16] * 6),
            (4, 24, 320, [24] * 4),
            (4, 100, 320, [16] * 4),
            (20, 100, 320, [16] * 6),
            (200, 1, 320, [1] * 96),
            (1, 1000, 2**21, [16]),
            (3, 50, 2**24, [8]),
        ],
    )
    def test_runs_are_evenly_chosen(self, cameras: int, frames: int, pixels: int, counts: list[int]) -> None:
        times, ids = [i / 30 for i in range(frames)] * cameras, [i for i in range(cameras) for _ in range(frames)]
        chosen = runs.choose(times, ids, pixels)
        of_run = [[f for f, s in zip(chosen.frames, chosen.streams) if s == run] for run in sorted(set(chosen.streams))]
        assert [len(run) for run in of_run] == counts
        assert all(len({ids[f] for f in run}) == 1 and run == list(range(run[0], run[-1] + 1)) for run in of_run)
        assert len({tuple(times[f] for f in run) for run in of_run}) == (len(counts) if cameras == 1 else 1)


class TestPoses:
    @pytest.mark.parametrize("kind", ["clip", "rig", "video"])
    def test_inverted(self, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
        report = checked(tmp_path, posed(request.getfixturevalue(kind), np.linalg.inv))
        name = "pixel centres" if kind == "clip" else "depth across frames"
        assert name in names(report), report.table()
        assert "invert them" in remedies(report, name)

    @pytest.mark.parametrize("kind", ["clip", "rig", "video"])
    def test_opengl(self, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
        flip = np.diag([1.0, -1, -1, 1])
        report = checked(tmp_path, posed(request.getfixturevalue(kind), lambda pose: pose @ flip))
        name = "pixel centres" if kind == "clip" else "depth across frames"
        assert "OpenGL" in remedies(report, name), report.table()

    @pytest.mark.parametrize("kind", ["clip", "rig", "video"])
    def test_mirrored_world(self, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
        mirror = np.diag([-1.0, 1, 1, 1])
        report = checked(tmp_path, posed(request.getfixturevalue(kind), lambda pose: mirror @ pose @ mirror))
        name = "pixel centres" if kind == "clip" else "depth across frames"
        assert "mirrored in x" in remedies(report, name), report.table()

    def test_one_axis_flipped(self, tmp_path: Path, clip: RawClip) -> None:
        report = checked(tmp_path, posed(clip, lambda pose: pose * [1, -1, 1, 1]))
        assert {"handedness", "pixel centres"} <= names(report)
        assert "rotation" not in names(report)

    def test_a_scaled_rotation(self, tmp_path: Path, clip: RawClip) -> None:
        report = checked(tmp_path, posed(clip, lambda pose: pose * [1.01, 1.01, 1.01, 1]))
        assert "rotation" in names(report)

    def test_one_wrong_pose_is_found_by_frame(self, tmp_path: Path, clip: RawClip) -> None:
        def change(pose: NDArray[np.float64]) -> NDArray[np.float64]:
            pose[11] = pose[3]
            return pose

        report = checked(tmp_path, posed(clip, change))
        found = next(failure for failure in report.failures if failure.check == "pixel centres")
        assert (found.shard, found.key, found.frame) == ("shard-000000.tar", clip.key, 11)


class TestIntrinsics:
    @pytest.mark.parametrize(("shift", "remedy"), [(-0.5, "add 0.5"), (0.5, "subtract 0.5")])
    def test_half_a_pixel(self, tmp_path: Path, clip: RawClip, shift: float, remedy: str) -> None:
        assert clip.intrinsics is not None
        k = clip.intrinsics.copy()
        k[:, :2, 2] += shift
        report = checked(tmp_path, dataclasses.replace(clip, intrinsics=k))
        assert "half a pixel off" in remedies(report, "pixel centres")
        assert remedy in remedies(report, "pixel centres")

    def test_another_resolution(self, tmp_path: Path, clip: RawClip) -> None:
        assert clip.intrinsics is not None
        k = clip.intrinsics * np.array([4.0, 4.0, 1.0])[:, None]
        assert {"principal point", "pixel centres"} <= names(checked(tmp_path, dataclasses.replace(clip, intrinsics=k)))

    def test_normalised(self, tmp_path: Path, rig: RawClip) -> None:
        assert rig.intrinsics is not None
        k = rig.intrinsics / np.array([52.0, 44.0, 1.0])[:, None]
        assert "focal length" in names(checked(tmp_path, dataclasses.replace(rig, intrinsics=k)))

    def test_swapped(self, tmp_path: Path, clip: RawClip) -> None:
        assert clip.intrinsics is not None
        k = clip.intrinsics[:, [1, 0, 2]][:, :, [1, 0, 2]]
        report = checked(tmp_path, dataclasses.replace(clip, intrinsics=k))
        assert "swapped" in remedies(report, "pixel centres")


class TestDepth:
    def test_millimetres(self, tmp_path: Path, rig: RawClip) -> None:
        assert rig.depth is not None
        info = dataclasses.replace(rig.info, depth_unit=1.0)
        report = checked(tmp_path, dataclasses.replace(rig, info=info, depth=rig.depth * 1000))
        assert "units" in names(report), report.table()
        assert "divide by 1000" in remedies(report, "units")

    @pytest.mark.parametrize("factor", [0.5, 1.5])
    def test_another_scale_than_the_poses(self, tmp_path: Path, rig: RawClip, factor: float) -> None:
        assert rig.depth is not None
        report = checked(tmp_path, dataclasses.replace(rig, depth=rig.depth * np.float32(factor)))
        assert {"depth across frames", "tracks on surfaces"} & names(report), report.table()

    def test_shuffled_frames(self, tmp_path: Path, rig: RawClip) -> None:
        assert rig.depth is not None
        report = checked(tmp_path, dataclasses.replace(rig, depth=np.ascontiguousarray(rig.depth[::-1])))
        assert "depth across frames" in names(report), report.table()

    def test_not_in_metres(self, tmp_path: Path, clip: RawClip) -> None:
        """A whole world in millimetres that says metric."""
        assert clip.surface is not None
        big = resurfaced(
            clip, vertices=clip.surface.vertices * 1000, moving_vertices=clip.surface.moving_vertices * 1000
        )
        report = checked(tmp_path, posed(big, lambda pose: pose * [1, 1, 1, 1000] / [[1], [1], [1], [1000]]))
        assert "units" in names(report)


class TestSurface:
    def test_shuffled_times(self, tmp_path: Path, clip: RawClip) -> None:
        assert clip.surface is not None
        moving = clip.surface.moving_vertices.copy()
        moving[1:] = moving[:0:-1]
        assert "pixel outliers" in names(checked(tmp_path, resurfaced(clip, moving_vertices=moving)))

    def test_the_first_time(self, tmp_path: Path, clip: RawClip) -> None:
        assert clip.surface is not None
        moved = resurfaced(clip, vertices=np.roll(clip.surface.vertices, 1, axis=0))
        assert "first time" in names(checked(tmp_path, moved))

    def test_surroundings_that_move(self, tmp_path: Path, clip: RawClip) -> None:
        assert clip.surface is not None
        wrong = resurfaced(clip, instances=np.zeros_like(clip.surface.instances))
        assert "surroundings" in names(checked(tmp_path, wrong))

    def test_barycentrics_of_another_order(self, tmp_path: Path, clip: RawClip) -> None:
        assert clip.surface is not None
        swapped = resurfaced(clip, barycentric=np.ascontiguousarray(clip.surface.barycentric[:, ::-1]))
        assert "pixel centres" in names(checked(tmp_path, swapped))

    def test_barycentrics_out_of_range(self, tmp_path: Path, clip: RawClip) -> None:
        assert clip.surface is not None
        wrong = resurfaced(clip, barycentric=np.full_like(clip.surface.barycentric, 60000))
        assert "barycentric" in names(checked(tmp_path, wrong))

    def test_a_frame_between_the_times(self, tmp_path: Path, clip: RawClip) -> None:
        times = list(clip.info.times)
        times[3] += 0.01
        report = checked(tmp_path, dataclasses.replace(clip, info=dataclasses.replace(clip.info, times=times)))
        assert [(f.check, f.frame) for f in report.failures] == [("times", 3)]


class TestTracks:
    @pytest.mark.parametrize("kind", ["rig", "video"])
    def test_permuted(self, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
        """Another order of the tracks at every second time."""
        clip: RawClip = request.getfixturevalue(kind)
        assert clip.tracks is not None
        points, visible = clip.tracks.points.copy(), clip.tracks.visible.copy()
        order = np.random.default_rng(0).permutation(len(points))
        points[:, 1::2], visible[:, 1::2] = points[order, 1::2], visible[order, 1::2]
        tracks = dataclasses.replace(clip.tracks, points=points, visible=visible)
        report = checked(tmp_path, dataclasses.replace(clip, tracks=tracks))
        assert names(report) == {"tracks keep colour"}, report.table()

    def test_points_and_visibility_of_different_tracks(self, tmp_path: Path, video: RawClip) -> None:
        assert video.tracks is not None
        tracks = dataclasses.replace(video.tracks, points=video.tracks.points + np.float32([0.3, 0.0, 0.4]))
        assert "tracks on surfaces" in names(checked(tmp_path, dataclasses.replace(video, tracks=tracks)))

    def test_all_said_to_be_visible(self, tmp_path: Path, video: RawClip) -> None:
        assert video.tracks is not None
        tracks = dataclasses.replace(video.tracks, visible=np.ones_like(video.tracks.visible))
        assert "tracks on surfaces" in names(checked(tmp_path, dataclasses.replace(video, tracks=tracks)))


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path, clip: RawClip) -> Path:
        write_shard(tmp_path, 0, [clip])
        write_shard(tmp_path, 1, [dataclasses.replace(clip, key="second")])
        finalise(tmp_path, "test")
        return tmp_path

    def test_a_wrong_checksum(self, folder: Path) -> None:
        path = folder / "shard-000001.tar"
        data = bytearray(path.read_bytes())
        data[150] ^= 1  # in a tar header
        path.write_bytes(data)
        report = check(folder, shown=False)
        assert {(f.shard, f.check) for f in report.failures} >= {("shard-000001.tar", "checksum")}
        assert all(f.shard == "shard-000001.tar" for f in report.failures)

    def test_a_truncated_tar(self, folder: Path) -> None:
        path = folder / "shard-000000.tar"
        path.write_bytes(path.read_bytes()[:-5000])
        report = check(folder, shown=False)
        assert [(f.shard, f.check) for f in report.failures] == [("shard-000000.tar", "files")]
        assert "truncated" in report.failures[0].what
        assert report.clips == 1  # the other shard is still looked at

    def test_a_missing_shard(self, folder: Path) -> None:
        (folder / "shard-000000.tar").unlink()
        assert "missing" in check(folder, shown=False).failures[0].what

    def test_changed_bytes(self, folder: Path) -> None:
        offset, size, _ = ShardReader(folder).samples[0].members["f002.faces.npy.gz"]
        with (folder / "shard-000000.tar").open("r+b") as file:
            file.seek(offset + size // 2)
            file.write(b"\0\1\2\3")
        report = check(folder, shown=False)
        assert names(report) == {"checksum", "members"}
        found = next(failure for failure in report.failures if failure.check == "members")
        assert (found.key, found.frame) == ("box-000005", 2)
        assert "f002.faces.npy.gz" in found.what

    def test_a_missing_member(self, folder: Path) -> None:
        path = folder / "shard-000000.json"
        sidecar = json.loads(path.read_text())
        del sidecar["samples"][0]["members"]["f004.image.jpg"]
        path.write_text(json.dumps(sidecar))
        report = check(folder, shown=False)
        assert {failure.check for failure in report.failures} == {"members"}
        assert any("f004.image" in failure.what and failure.frame == 4 for failure in report.failures)

    def test_an_unknown_member(self, tmp_path: Path, clip: RawClip, monkeypatch: pytest.MonkeyPatch) -> None:
        from four_d.data import encoding

        def with_extra(clip: RawClip, *, lossless: bool = False) -> dict[str, bytes]:
            return encoding.encode_clip(clip, lossless=lossless) | {"notes.pkl": b"x"}

        monkeypatch.setattr("four_d.data.shards.encode_clip", with_extra)
        report = checked(tmp_path, clip)
        assert [failure.what for failure in report.failures] == ["unknown member notes.pkl"]

    def test_wrong_counts(self, folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace('"clips":2,"frames"', '"clips":3,"frames"', 2))
        assert "counts" in names(check(folder, shown=False))

    def test_broken_layout(self, tmp_path: Path, clip: RawClip, monkeypatch: pytest.MonkeyPatch) -> None:
        """What our writer would refuse but another's may hold."""
        assert clip.surface is not None
        monkeypatch.setattr("four_d.data.encoding.problems", lambda _: [])
        triangles = clip.surface.triangles.copy()
        triangles[5, 0] = 10**6
        report = checked(tmp_path, resurfaced(clip, triangles=triangles))
        assert names(report) == {"layout"}
        assert "triangles goes from 0 to 1000000" in report.failures[0].what

    def test_no_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"manifest\.json"):
            check(tmp_path)


def test_a_failure_says_where_what_and_how(tmp_path: Path, clip: RawClip) -> None:
    report = checked(tmp_path, posed(clip, np.linalg.inv))
    line = next(str(failure) for failure in report.failures if failure.check == "pixel centres")
    assert line.startswith("shard-000000.tar, box-000005, frame ")
    assert "at most 0.05 allowed" in line
    assert "Invert" in line or "invert" in line
    assert line in report.table()


def test_helper_surface_is_what_the_layout_says(clip: RawClip) -> None:
    assert isinstance(clip.surface, SurfaceArrays)


@pytest.fixture(scope="module")
def scan() -> RawClip:
    """A bare grey room, gone through and looked about in, as depth alone."""
    cameras, depth = room(8, (48, 64))
    count, height, width = depth.shape
    info = ClipInfo(
        source="scan",
        licence="CC0-1.0",
        metric=False,
        width=width,
        height=height,
        times=[0.1 * i for i in range(count)],
        camera_ids=[0] * count,
        depth_unit=1e-4,
    )
    return RawClip(
        key="scan",
        info=info,
        images=np.full((count, height, width, 3), 128, np.uint8),
        world_from_camera=cameras.world_from_camera.numpy(),
        intrinsics=cameras.intrinsics.numpy(),
        depth=depth.float().numpy(),
    )


def noisy(clip: RawClip, share: float) -> RawClip:
    """Depth as a sensor gives it: off by a share of itself, patch by patch, with holes."""
    rng = np.random.default_rng(0)
    assert clip.depth is not None
    count, height, width = clip.depth.shape
    patches = rng.standard_normal((count, height // 8, width // 8)).repeat(8, 1).repeat(8, 2)
    factor = np.where(rng.random(clip.depth.shape) < 0.02, 0, 1 + share * patches)
    return dataclasses.replace(clip, depth=(clip.depth * factor).astype(np.float32))


class TestSensors:
    """Depth with noise passes where its tolerance is said; a wrong unit is named all the same."""

    def test_noise_needs_its_tolerance_and_is_called_noise(self, tmp_path: Path, scan: RawClip) -> None:
        report = checked(tmp_path, noisy(scan, 0.03))
        assert names(report) == {"depth across frames"}
        remedy = remedies(report, "depth across frames")
        assert "half of the depths are off by more than" in remedy
        assert "no usual mistake explains it" in remedy
        assert "--depth-tolerance" in remedy
        report = check(tmp_path, depth_tolerance=0.08, shown=False)
        assert report.ok, report.table()

    def test_what_is_exact_passes_as_it_is(self, tmp_path: Path, scan: RawClip) -> None:
        report = checked(tmp_path, scan, dataclasses.replace(noisy(scan, 0.005), key="good"))
        assert report.ok, report.table()

    @pytest.mark.parametrize("tolerance", [0.02, 0.05])
    @pytest.mark.parametrize("noise", [0, 0.02])
    @pytest.mark.parametrize(
        ("factor", "remedy"),
        [
            (1000, "times 0.001 fits"),
            (0.001, "times 1000 fits"),
            (5, "times 0.2 fits"),
            (1 / 0.256, "times 0.256 fits"),
        ],
    )
    def test_other_units_of_depth_are_named(
        self, tmp_path: Path, scan: RawClip, factor: float, remedy: str, noise: float, tolerance: float
    ) -> None:
        write_shard(tmp_path, 0, [deep(noisy(scan, noise), factor, factor)])
        finalise(tmp_path, "test")
        report = check(tmp_path, depth_tolerance=tolerance, shown=False)
        assert remedy in remedies(report, "convention"), report.table()

    @pytest.mark.parametrize("factor", [1000, 0.001])
    def test_other_units_of_poses_are_named(self, tmp_path: Path, scan: RawClip, factor: float) -> None:
        report = checked(tmp_path, translated(scan, factor))
        assert f"depth times {factor:g} fits" in remedies(report, "convention"), report.table()

    def test_depth_along_the_ray_is_named(self, tmp_path: Path, scan: RawClip) -> None:
        report = checked(tmp_path, deep(scan, along_rays(scan), float(along_rays(scan).max())))
        assert "along the ray: store z-depth" in remedies(report, "depth across frames"), report.table()
