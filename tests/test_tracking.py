"""Pixels followed through a model's dense motion: an oracle's tracks are the truth, exactly where that can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import surface as surfaces
from four_d.data.sampling import to_clip
from four_d.errors import UserError
from four_d.geometry import invert_pose, make_pose, pixel_centres, project, rays, transform, unproject, world_points
from four_d.tracking import SPAN, PointTracks, clip_times, follow, grid, moving, spans
from four_d.types import Cameras, Clip, Prediction, map_tensors
from tests.helpers import box_clip

HEIGHT, WIDTH = 20, 30


class Given:
    """A model that knows the prediction for all query times, and says of what clips it was asked."""

    def __init__(self, prediction: Prediction, times: Float[Tensor, "t"]) -> None:
        self.prediction, self.times, self.asked = prediction, times, []

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        assert clip.query_times is not None
        self.asked = clip.query_times[0].tolist()
        for count, time in enumerate(clip.query_times[0]):
            at = self.times == time
            assert at.sum() == 1, "each query time is the time of a frame"
            whole = self.prediction if count == 0 else Prediction()
            moved = {
                name: None if value is None else value[:, at]
                for name, value in vars(self.prediction).items()
                if name.startswith("motion")
            }
            yield dataclasses.replace(whole, **moved)


def turned(angle: float, shift: tuple[float, float, float]) -> Float[Tensor, "4 4"]:
    angle_ = torch.tensor(angle, dtype=torch.float64)
    c, s, one, zero = angle_.cos(), angle_.sin(), torch.ones_like(angle_), torch.zeros_like(angle_)
    rotation = torch.stack([c, zero, s, zero, one, zero, -s, zero, c]).reshape(3, 3)
    return make_pose(rotation, torch.tensor(shift, dtype=torch.float64))


class Plane:
    """A slanted plane that moves rigidly before one camera or several; everything is known in closed form."""

    def __init__(self, frame_times: list[float], *, still: bool = False) -> None:
        self.times = torch.tensor(frame_times, dtype=torch.float64)
        count = len(frame_times)
        poses = [turned(0.04 * i, (0.1 * i, -0.05 * i, 0.02 * i)) for i in range(count)]
        intrinsics = torch.tensor([[28.0, 0, 14.5], [0, 27, 9.7], [0, 0, 1]], dtype=torch.float64)
        self.cameras = Cameras(world_from_camera=torch.stack(poses), intrinsics=intrinsics.expand(count, 3, 3))
        self.still = still
        self.clip = Clip(
            images=torch.zeros(1, count, 3, HEIGHT, WIDTH, dtype=torch.float64),
            times=self.times[None],
            camera_ids=torch.arange(count)[None],
        )

    def _moved(self, time: float) -> Float[Tensor, "4 4"]:
        if self.still:
            return torch.eye(4, dtype=torch.float64)
        return turned(0.3 * time, (0.4 * time, 0.2 * time, -0.3 * time))

    def seen(self, frame: int, pixels: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n"]]:
        """World points and z-depth of what a frame's pixels show: the plane (0.3, 0.2, 1)·X = 4, moved."""
        camera = Cameras(
            world_from_camera=self.cameras.world_from_camera[frame], intrinsics=self.cameras.intrinsics[frame]
        )
        back = invert_pose(self._moved(float(self.times[frame]))) @ camera.world_from_camera
        directions = rays(camera.intrinsics, pixels)
        normal = torch.tensor([0.3, 0.2, 1], dtype=torch.float64)
        z = (4 - back[:3, 3] @ normal) / (directions @ back[:3, :3].mT @ normal)
        return transform(camera.world_from_camera, directions * z[:, None]), z

    def at(self, frame: int, pixels: Float[Tensor, "n 2"], time: float) -> Float[Tensor, "n 3"]:
        own = self._moved(float(self.times[frame]))
        return transform(self._moved(time) @ invert_pose(own), self.seen(frame, pixels)[0])

    def model(self, *, geometry: str = "depth") -> Given:
        centres = pixel_centres(HEIGHT, WIDTH, self.times).reshape(-1, 2)
        times, frames = self.times.unique(), range(len(self.times))
        depth = torch.stack([self.seen(i, centres)[1] for i in frames]).reshape(1, -1, HEIGHT, WIDTH)
        points = torch.stack([self.seen(i, centres)[0] for i in frames]).reshape(1, -1, HEIGHT, WIDTH, 3)
        there = torch.stack([torch.stack([self.at(i, centres, float(t)) for i in frames]) for t in times])
        motion = there.reshape(1, len(times), -1, HEIGHT, WIDTH, 3) - points[:, None]
        known = Prediction(motion=motion, points=points)
        if geometry != "points":
            known = dataclasses.replace(known, cameras=map_tensors(self.cameras, lambda tensor: tensor[None]))
        return Given(dataclasses.replace(known, depth=depth if geometry == "depth" else None), times)


def some_queries(count: int, frames: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Anywhere between the outermost pixel centres."""
    unit = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    frame = (unit[:, 0] * frames).floor()
    return torch.stack([frame, 0.5 + unit[:, 1] * (WIDTH - 1), 0.5 + unit[:, 2] * (HEIGHT - 1)], dim=-1)


@pytest.mark.parametrize("geometry", ["depth", "points and cameras"])
@pytest.mark.parametrize("frame_times", [[0.0, 0.5, 1.0], [0.0, 0.0, 0.5, 0.5], [1.0, 0.5, 0.0]])
def test_an_oracles_tracks_are_the_truth_between_pixels_too(
    geometry: str, frame_times: list[float], generator: torch.Generator
) -> None:
    """One camera, several that share times, and frames that stand backwards; queries in all frames."""
    plane = Plane(frame_times)
    queries = some_queries(40, len(frame_times), generator)
    model = plane.model(geometry=geometry)
    tracks = follow(model, plane.clip, queries)
    assert tracks.times.tolist() == sorted(set(frame_times)) == model.asked
    truth = torch.stack(
        [torch.stack([plane.at(int(q[0]), q[None, 1:], float(t))[0] for t in tracks.times]) for q in queries]
    )
    torch.testing.assert_close(tracks.points, truth, atol=1e-12, rtol=0)
    assert tracks.pixels is not None
    step = torch.tensor([tracks.times.tolist().index(time) for time in frame_times])
    expected = project(truth[:, step].transpose(0, 1), plane.cameras)[0].transpose(0, 1)
    torch.testing.assert_close(tracks.pixels, expected, atol=1e-9, rtol=0)
    own = tracks.pixels[torch.arange(len(queries)), queries[:, 0].long()]
    torch.testing.assert_close(own, queries[:, 1:], atol=1e-9, rtol=0)
    assert moving(dataclasses.replace(tracks, jitter=0.0)).all()


def test_a_point_map_alone_is_exact_in_the_first_frame(generator: torch.Generator) -> None:
    plane = Plane([0.0, 0.5])
    queries = some_queries(20, 1, generator)
    tracks = follow(plane.model(geometry="points"), plane.clip, queries)
    truth = torch.stack([plane.at(0, queries[:, 1:], float(t)) for t in tracks.times], dim=1)
    torch.testing.assert_close(tracks.points, truth, atol=1e-12, rtol=0)
    assert tracks.pixels is None


def test_points_are_those_that_are_scored_and_shown_between_pixels_too(generator: torch.Generator) -> None:
    """Depth with cameras goes before a point map that says something else (`geometry.world_points`)."""
    plane = Plane([0.0, 0.5])
    model, queries = plane.model(), some_queries(20, 2, generator)
    queries[:, 1:] = queries[:, 1:].floor() + 0.5
    expected = follow(model, plane.clip, queries).points
    assert model.prediction.points is not None
    model.prediction = dataclasses.replace(model.prediction, points=model.prediction.points * 3 + 1)
    torch.testing.assert_close(follow(model, plane.clip, queries).points, expected, atol=0, rtol=0)
    dense = world_points(model.prediction)
    assert dense is not None
    frames, x, y = queries.long().unbind(-1)
    own = expected[torch.arange(20), frames]
    torch.testing.assert_close(own, dense[0, frames, y, x], atol=1e-12, rtol=0)


def test_a_static_scene_stands_still(generator: torch.Generator) -> None:
    plane = Plane([0.0, 0.5, 1.0], still=True)
    tracks = follow(plane.model(), plane.clip, some_queries(20, 3, generator))
    torch.testing.assert_close(tracks.points, tracks.points[:, :1].expand_as(tracks.points), atol=1e-12, rtol=0)
    assert not moving(tracks).any()


def test_at_its_own_time_a_point_is_where_it_is_seen_whatever_the_model_says() -> None:
    plane = Plane([0.0, 0.5])
    model = plane.model()
    ones = torch.ones(1, 2, 2, HEIGHT, WIDTH, dtype=torch.float64)
    model.prediction = dataclasses.replace(
        model.prediction, motion=ones[..., None].expand(*ones.shape, 3), motion_visible=ones / 4
    )
    queries = torch.tensor([[0, 4.0, 5.0], [1, 4.0, 5.0]], dtype=torch.float64)
    tracks = follow(model, plane.clip, queries)
    seen = torch.stack([plane.seen(i, queries[i : i + 1, 1:])[0][0] for i in range(2)])
    torch.testing.assert_close(tracks.points[0, 0], seen[0])
    torch.testing.assert_close(tracks.points[0, 1], seen[0] + 1)
    torch.testing.assert_close(tracks.points[1, 0], seen[1] + 1)
    torch.testing.assert_close(tracks.points[1, 1], seen[1])
    assert tracks.visible.tolist() == [[1, 0.25], [0.25, 1]]


def test_times_may_be_chosen_in_any_order() -> None:
    plane = Plane([0.0, 0.5, 1.0])
    queries = torch.tensor([[1, 4.25, 5.5]], dtype=torch.float64)
    everything = follow(plane.model(), plane.clip, queries)
    model = plane.model()
    chosen = follow(model, plane.clip, queries, torch.tensor([1.00005, 0.0]))
    assert model.asked == chosen.times.tolist() == [1.0, 0.0]
    assert torch.equal(chosen.points, everything.points[:, [2, 0]])
    assert chosen.pixels is None, "the middle frame's time was not asked for"


def step_scene() -> tuple[Clip, Given]:
    """Left of column 3 a near surface that moves to the right, right of it a far one that stands."""
    near = torch.arange(6) < 3
    depth = torch.where(near, 1.0, 5.0).expand(1, 2, 4, 6)
    pose = torch.eye(4).expand(1, 2, 4, 4)
    cameras = Cameras(
        world_from_camera=pose, intrinsics=torch.tensor([[6.0, 0, 3], [0, 6, 2], [0, 0, 1]]).expand(1, 2, 3, 3)
    )
    motion = torch.zeros(1, 2, 2, 4, 6, 3)
    motion[0, 1, 0, :, :3, 0] = 0.25
    prediction = Prediction(cameras=cameras, depth=depth, motion=motion)
    times = torch.tensor([[0.0, 1.0]])
    clip = Clip(images=torch.zeros(1, 2, 3, 4, 6), times=times, camera_ids=torch.zeros(1, 2, dtype=torch.long))
    return clip, Given(prediction, times[0])


def test_reading_does_not_mix_two_surfaces() -> None:
    """Just left and right of the edge: each side's own depth and motion, though bilinear reading would blend them."""
    clip, model = step_scene()
    tracks = follow(model, clip, torch.tensor([[0, 2.9, 2.0], [0, 3.1, 2.0], [0, 2.0, 2.0]]))
    torch.testing.assert_close(tracks.points[:, 0, 2], torch.tensor([1.0, 5.0, 1.0]))
    torch.testing.assert_close(tracks.points[:, 1, 0] - tracks.points[:, 0, 0], torch.tensor([0.25, 0.0, 0.25]))
    assert tracks.pixels is not None
    torch.testing.assert_close(tracks.pixels[:, 0], torch.tensor([[2.9, 2.0], [3.1, 2.0], [2.0, 2.0]]))


def test_visibility_of_a_model_without_one_is_judged_by_depth() -> None:
    """A far point moves behind the near surface, out of the picture, behind the camera, and before everything."""
    clip, model = step_scene()
    motion = torch.zeros(1, 2, 2, 4, 6, 3)
    motion[0, 1, 0, 0, 5] = torch.tensor([-3.0, 0, 0])
    motion[0, 1, 0, 1, 5] = torch.tensor([3.0, 0, 0])
    motion[0, 1, 0, 2, 5] = torch.tensor([0, 0, -9.0])
    motion[0, 1, 0, 3, 5] = torch.tensor([-2.2083, -1.25, -4.5])
    model.prediction = dataclasses.replace(model.prediction, motion=motion)
    queries = torch.tensor([[0, 5.5, 0.5], [0, 5.5, 1.5], [0, 5.5, 2.5], [0, 5.5, 3.5], [0, 4.5, 0.5]])
    tracks = follow(model, clip, queries)
    assert tracks.visible[:, 0].tolist() == [1] * 5
    assert tracks.visible[:, 1].tolist() == [0, 0, 0, 1, 1]


def test_visible_means_seen_by_any_camera_of_the_time() -> None:
    """The second camera of the second time stands to the right and still sees what leaves the first one's picture."""
    model = step_scene()[1]
    pose = torch.eye(4).repeat(1, 4, 1, 1)
    pose[0, 3, 0, 3] = 3.0
    prediction = model.prediction
    assert prediction.cameras is not None
    wide = Cameras(world_from_camera=pose, intrinsics=prediction.cameras.intrinsics[:, :1].expand(1, 4, 3, 3))
    motion = torch.zeros(1, 2, 4, 4, 6, 3)
    motion[0, 1, 0, 1, 5, 0] = 3.0
    motion[0, 1, 0, 2, 5, 0] = 300.0
    model.prediction = Prediction(cameras=wide, depth=torch.full((1, 4, 4, 6), 5.0), motion=motion)
    times = torch.tensor([[0.0, 0, 1, 1]])
    both = Clip(images=torch.zeros(1, 4, 3, 4, 6), times=times, camera_ids=torch.tensor([[0, 1, 0, 1]]))
    tracks = follow(model, both, torch.tensor([[0, 5.5, 1.5], [0, 5.5, 2.5]]))
    assert tracks.visible.tolist() == [[1, 1], [1, 0]]
    assert tracks.pixels is not None
    assert tracks.pixels.shape == (2, 4, 2)


def test_an_oracle_of_a_world_with_occlusion_gives_its_true_tracks() -> None:
    """A room with moving boxes and two cameras: at pixel centres the dense truth read back is the sparse truth."""
    clip = to_clip(box_clip(frames=8, size=32), with_surface=True)
    assert clip.surface is not None
    assert clip.cameras is not None
    assert clip.depth is not None
    times = clip_times(map_tensors(clip, lambda tensor: tensor[None]))
    motion = torch.stack(
        [surfaces.scene_flow(clip.surface, clip.times, time.expand(len(clip.times))) for time in times]
    )
    model = Given(
        Prediction(
            cameras=map_tensors(clip.cameras, lambda tensor: tensor[None]), depth=clip.depth[None], motion=motion[None]
        ),
        times,
    )
    queries = torch.cat([grid(32, 32, 12), grid(32, 32, 12, frame=12)])
    batched = Clip(images=clip.images[None], times=clip.times[None], camera_ids=clip.camera_ids[None])
    tracks = follow(model, batched, queries)
    truth = surfaces.tracks(clip.surface, clip.cameras, clip.times, queries[:, 0].long(), queries[:, 1:])
    assert truth.valid.all()
    torch.testing.assert_close(tracks.points, truth.points[:, :8], atol=2e-4, rtol=0)
    seen = truth.visible.unflatten(1, (2, 8)).any(1)
    agreement = ((tracks.visible > 0.5) == seen).float().mean()
    assert 0.02 < (~seen).float().mean() < 0.5, "the test needs points that go out of sight"
    assert agreement > 0.97
    path = truth.points[:, :8]
    span = (path.amax(1) - path.amin(1)).norm(dim=-1) / path.norm(dim=-1).median(1).values
    assert tracks.jitter < 1e-4, "a quarter of this room stands still, and the oracle says so"
    assert torch.equal(moving(tracks, share=0.03), span > 0.03)
    assert 5 < moving(tracks).sum() < len(queries) / 2


def test_a_model_that_lets_everything_wander_has_to_say_more_to_be_believed(generator: torch.Generator) -> None:
    """Noise of a tenth of the distance everywhere, and a corner that moves by half of it: only that moves."""
    plane = Plane([0.0, 0.5, 1.0], still=True)
    model = plane.model()
    assert model.prediction.motion is not None
    noise = 0.04 * 4 * torch.randn(model.prediction.motion.shape, generator=generator, dtype=torch.float64)
    noise[:, 1:, :, :6, :8, 0] += 0.5 * 4
    model.prediction = dataclasses.replace(model.prediction, motion=noise)
    everything = follow(model, plane.clip, grid(HEIGHT, WIDTH))
    corner = (everything.queries[:, 1] < 8) & (everything.queries[:, 2] < 6)
    assert (spans(everything.points) > SPAN).float().mean() > 0.95, "by a fixed share all would move"
    assert torch.equal(moving(everything), corner)
    for query, moves in (([0, 3.5, 2.5], True), ([0, 20.5, 12.5], False)):
        alone = follow(model, plane.clip, torch.tensor([query], dtype=torch.float64))
        assert moving(alone).tolist() == [moves], "however few are followed"


def test_only_one_query_time_is_held_at_once() -> None:
    """The dense fields of a time are gone when the next is made."""
    import weakref

    plane = Plane([0.0, 0.5, 1.0])
    inner, alive = plane.model(), []

    class Watched:
        def passes(self, clip: Clip) -> Iterator[Prediction]:
            for prediction in inner.passes(clip):
                assert prediction.motion is not None
                copy = prediction.motion.clone()
                assert all(reference() is None for reference in alive), "an earlier time's motion is still held"
                alive.append(weakref.ref(copy))
                yield dataclasses.replace(prediction, motion=copy)
                del copy, prediction

    follow(Watched(), plane.clip, torch.tensor([[0, 4.0, 5.0]], dtype=torch.float64))
    assert len(alive) == 3


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([0, 30.5, 5.0], r"point 30\.5,5 is outside the picture; choose x from 0 to 30, y to 20"),
        ([0, 3.0, -0.1], "point 3,-0.1 is outside the picture"),
        ([3, 3.0, 3.0], "frame 3 of point 3,3 is outside the clip; choose 0 to 2"),
        ([-1, 3.0, 3.0], "frame -1 of point"),
        ([0.5, 3.0, 3.0], r"frame 0\.5 of point"),
        ([0, float("nan"), 3.0], "point nan,3 is outside the picture"),
    ],
)
def test_queries_outside_are_refused(query: list[float], message: str) -> None:
    plane = Plane([0.0, 0.5, 1.0])
    with pytest.raises(UserError, match=message) as raised:
        follow(plane.model(), plane.clip, torch.tensor([[0, 30.0, 20.0], query], dtype=torch.float64))
    assert len(str(raised.value).splitlines()) == 1


def test_times_outside_are_refused() -> None:
    plane = Plane([0.0, 0.5, 1.0])
    for time in (0.25, 2.0, float("nan")):
        with pytest.raises(UserError, match=f"no frame is of time {time:g} s; the clip has 3 times from 0 to 1 s"):
            follow(plane.model(), plane.clip, torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0.0, time]))


def test_models_that_cannot_are_named() -> None:
    plane = Plane([0.0, 0.5])
    query, model = torch.tensor([[0, 4.0, 5.0]], dtype=torch.float64), plane.model()
    whole = model.prediction
    model.prediction = dataclasses.replace(whole, motion=None)
    with pytest.raises(UserError, match="no motion"):
        follow(model, plane.clip, query)
    model.prediction = dataclasses.replace(whole, depth=None, points=None)
    with pytest.raises(UserError, match="neither depth with cameras nor points"):
        follow(model, plane.clip, query)
    two = map_tensors(plane.clip, lambda tensor: tensor.expand(2, *tensor.shape[1:]))
    with pytest.raises(UserError, match="a batch of 2"):
        follow(model, two, query)


def test_one_frame_and_no_query() -> None:
    plane = Plane([0.0])
    tracks = follow(plane.model(), plane.clip, torch.tensor([[0, 4.0, 5.0]], dtype=torch.float64))
    assert tracks.points.shape == (1, 1, 3)
    torch.testing.assert_close(tracks.points[0], plane.seen(0, torch.tensor([[4.0, 5.0]], dtype=torch.float64))[0])
    assert not moving(tracks).any()
    nothing = follow(plane.model(), plane.clip, torch.zeros(0, 3, dtype=torch.float64))
    assert nothing.points.shape == (0, 1, 3)
    assert moving(nothing).shape == (0,)


def test_depth_that_means_nothing_gives_finite_tracks() -> None:
    plane = Plane([0.0, 0.5])
    model = plane.model()
    model.prediction = dataclasses.replace(
        model.prediction, depth=torch.zeros(1, 2, HEIGHT, WIDTH, dtype=torch.float64)
    )
    tracks = follow(model, plane.clip, torch.tensor([[0, 4.0, 5.0], [1, 0.0, 20.0]], dtype=torch.float64))
    assert tracks.points.isfinite().all()
    assert isinstance(tracks, PointTracks)


@pytest.mark.parametrize(("height", "width", "count"), [(20, 30, 24), (240, 320, 24), (5, 3, 2), (1, 1, 24)])
def test_grid_covers_the_picture_once(height: int, width: int, count: int) -> None:
    queries = grid(height, width, count, frame=2)
    assert len(queries) == min(count, height) * min(count, width) == len(queries.unique(dim=0))
    assert (queries[:, 0] == 2).all()
    assert ((queries[:, 1:] % 1) == 0.5).all(), "pixel centres"
    for axis, side in ((1, width), (2, height)):
        values = queries[:, axis].unique()
        assert values.min() > 0
        assert values.max() < side
        assert abs(float(values.min() + values.max()) - side) <= 1.5, "as far from one border as from the other"


def test_unprojecting_agrees_with_reading_at_centres() -> None:
    plane = Plane([0.0, 0.5])
    model = plane.model()
    assert model.prediction.depth is not None
    whole = unproject(model.prediction.depth[0], plane.cameras)
    queries = grid(HEIGHT, WIDTH, 30, frame=1).double()
    tracks = follow(model, plane.clip, queries, torch.tensor([0.5]))
    torch.testing.assert_close(tracks.points[:, 0], whole[1].reshape(-1, 3), atol=1e-12, rtol=0)
