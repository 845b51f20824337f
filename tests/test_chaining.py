"""Pixels followed from window to window of Gaussians: rigid cards whose paths are known in closed form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import make_pose, project, rays, transform
from four_d.metrics import tracks as scores
from four_d.tracking import PointTracks
from four_d.types import Cameras, Gaussians
from four_d.windows.gaussians import Window, chain

SIZE = (48, 64)
TIMES = torch.arange(13, dtype=torch.float64) / 10
INTRINSICS = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], dtype=torch.float64)
BY_ONE = [(0, 5), (4, 9), (8, 13)]
"""Windows that share one frame; the occluder covers the middle of the picture in frames 4 to 8."""
BY_THREE = [(0, 6), (3, 9), (6, 12), (9, 13)]
TURN = 0.004
"""Turn of the camera from frame to frame, in radians."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A rectangle that faces the z axis and keeps its direction."""

    middle: tuple[float, float, float]
    half: tuple[float, float]
    velocity: tuple[float, float, float] = (0, 0, 0)
    """Per second."""
    spacing: float

    def shift(self, times: Float[Tensor, "t"]) -> Float[Tensor, "t 3"]:
        return times[:, None] * torch.tensor(self.velocity, dtype=times.dtype)

    def centres(self, generator: torch.Generator) -> Float[Tensor, "n 3"]:
        """At time 0: a grid that lies anew each time."""
        nudge = torch.rand(2, generator=generator, dtype=torch.float64) * self.spacing
        x, y = (
            torch.arange(float(-half + start), half, self.spacing, dtype=torch.float64)
            for half, start in zip(self.half, nudge, strict=True)
        )
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
        return torch.cat([xy, torch.zeros_like(xy[:, :1])], dim=-1) + torch.tensor(self.middle, dtype=xy.dtype)

    def covers(
        self, points: Float[Tensor, "n 3"], camera: Float[Tensor, "3"], time: Tensor, wider: float
    ) -> Bool[Tensor, "n"]:
        """True where it, made so much wider, stands between a camera's place and the points."""
        middle = torch.tensor(self.middle, dtype=points.dtype) + self.shift(time[None])[0]
        share = (middle[2] - camera[2]) / (points[:, 2] - camera[2])
        crossing = camera + share[:, None] * (points - camera)
        return (share < 0.99) & ((crossing - middle)[:, :2].abs() < torch.tensor(self.half) + wider).all(-1)


WALL = Card(middle=(0, 0, 6), half=(7, 4), spacing=0.25)
PATCH = Card(middle=(-0.2, 0, 4), half=(1.0, 0.7), velocity=(0.3, 0.1, -0.2), spacing=0.1)
OCCLUDER = Card(middle=(-2.1, 0, 2.5), half=(0.9, 1.5), velocity=(3.5, 0, 0), spacing=0.08)
CARDS = (WALL, PATCH, OCCLUDER)


def cameras(first: int = 0, last: int = len(TIMES)) -> Cameras:
    """Turn and go to the right a little in each frame; the first stands in the origin."""
    steps = torch.arange(first, last, dtype=torch.float64)
    cosine, sine, one = (TURN * steps).cos(), (TURN * steps).sin(), torch.ones_like(steps)
    zero = torch.zeros_like(steps)
    rotation = torch.stack([cosine, zero, sine, zero, one, zero, -sine, zero, cosine], dim=-1).reshape(-1, 3, 3)
    poses = make_pose(rotation, torch.stack([0.01 * steps, zero, zero], dim=-1))
    return Cameras(world_from_camera=poses, intrinsics=INTRINSICS.expand(len(steps), 3, 3))


def gaussians(cards: tuple[Card, ...], times: Float[Tensor, "t"], generator: torch.Generator) -> Gaussians:
    """Opaque cards, in an order of their own, at the first of the times; each Gaussian rides on its card."""
    centres = [card.centres(generator) for card in cards]
    shifts = [card.shift(times)[:, None].expand(-1, len(some), -1) for card, some in zip(cards, centres, strict=True)]
    sizes = [torch.tensor([0.6 * card.spacing] * 2 + [0.005], dtype=torch.float64) for card in cards]
    scales = [size.expand(len(some), 3) for size, some in zip(sizes, centres, strict=True)]
    order = torch.randperm(sum(len(some) for some in centres), generator=generator)
    paths = (torch.cat(centres) + torch.cat(shifts, dim=1))[:, order]
    count = len(order)
    return Gaussians(
        means=paths[0],
        quats=torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(count, 4),
        scales=torch.cat(scales)[order],
        opacities=torch.full((count,), 0.95, dtype=torch.float64),
        harmonics=torch.zeros(count, 1, 3, dtype=torch.float64),
        offsets=paths - paths[0],
        offset_times=times,
    )


def windows(parts: list[tuple[int, int]], generator: torch.Generator, cards: tuple[Card, ...] = CARDS) -> list[Window]:
    """Each with Gaussians of its own: other grids, another order, other times at which they have no offset."""
    return [
        Window(
            gaussians=gaussians(cards, TIMES[first:last], generator),
            cameras=cameras(first, last),
            times=TIMES[first:last],
            size=SIZE,
        )
        for first, last in parts
    ]


def truth(
    queries: Float[Tensor, "n 3"], card: Card, wider: float = 0.0
) -> tuple[Float[Tensor, "n t 3"], Bool[Tensor, "n t"]]:
    """Paths of pixels that show a card, and where they are seen if the others are so much wider."""
    frames, all_cameras = queries[:, 0].long(), cameras()
    pose = all_cameras.world_from_camera[frames]
    ways = transform(pose, rays(INTRINSICS.expand(len(frames), 3, 3), queries[:, None, 1:]))[:, 0] - pose[:, :3, 3]
    depth = card.middle[2] + card.shift(TIMES)[frames, 2]
    start = pose[:, :3, 3] + ways * ((depth - pose[:, 2, 3]) / ways[:, 2])[:, None]
    paths = start[:, None] + card.shift(TIMES) - card.shift(TIMES)[frames][:, None]
    pixels, z = project(paths.transpose(0, 1), all_cameras)
    seen = (z > 0) & (pixels >= 0).all(-1) & (pixels < torch.tensor([SIZE[1], SIZE[0]])).all(-1)
    for step, time in enumerate(TIMES):
        eye = all_cameras.world_from_camera[step, :3, 3]
        for other in CARDS[CARDS.index(card) + 1 :]:
            seen[step] &= ~other.covers(paths[:, step], eye, time, wider)
    return paths, seen.T


ON_PATCH = torch.tensor([[0, 29.5, 24.5], [0, 31.3, 26.2], [0, 33.0, 22.0]], dtype=torch.float64)
BESIDE = torch.tensor([[0, 48.5, 10.5], [0, 55.2, 40.1]], dtype=torch.float64)


def check_visible(tracks: PointTracks, queries: Float[Tensor, "n 3"], card: Card) -> None:
    """Right wherever a Gaussian's width at the others' edges does not matter, which is most of the time."""
    least, most = (truth(queries, card, wider)[1] for wider in (0.1, -0.1))
    assert (least == most).double().mean() > 0.8
    seen = tracks.visible > 0.5
    assert (seen >= least).all()
    assert (seen <= most).all()


def error(tracks: PointTracks, paths: Float[Tensor, "n t 3"]) -> float:
    """EPE in scene units; a pixel of the patch is 0.08."""
    return float(scores.epe(scores.endpoint_errors(tracks.points, paths), torch.ones_like(paths[..., 0]).bool()))


@pytest.mark.parametrize("parts", [BY_ONE, BY_THREE])
def test_a_point_that_is_hidden_at_seams_keeps_its_identity(
    parts: list[tuple[int, int]], generator: torch.Generator
) -> None:
    paths, seen = truth(ON_PATCH, PATCH)
    assert seen[:, :4].all()
    assert not seen[:, 4:8].any()
    assert seen[:, 10:].all()
    tracks = chain(windows(parts, generator), ON_PATCH)
    errors = scores.endpoint_errors(tracks.points, paths)
    assert error(tracks, paths) < 1e-3
    assert scores.apd(errors, torch.ones_like(seen), (1e-3,)) == 1
    check_visible(tracks, ON_PATCH, PATCH)


def test_scores_of_the_field_take_the_tracks(generator: torch.Generator) -> None:
    queries = torch.cat([ON_PATCH, BESIDE])
    of_patch, of_wall = truth(ON_PATCH, PATCH), truth(BESIDE, WALL)
    paths, seen = (torch.cat(parts) for parts in zip(of_patch, of_wall, strict=True))
    tracks = chain(windows(BY_ONE, generator), queries)
    assert tracks.pixels is not None
    in_camera, true = (_in_cameras(points) for points in (tracks.points, paths))
    found = scores.tapvid3d(
        in_camera, tracks.visible > 0.5, true, seen, focal=50 * 256 / 48, query_frames=queries[:, 0].long()
    )
    assert found.within == 1
    assert min(found.jaccard, found.occlusion) > 0.95


def _in_cameras(points: Float[Tensor, "n t 3"]) -> Float[Tensor, "n t 3"]:
    return transform(torch.linalg.inv(cameras().world_from_camera), points.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("frame", [1, 4, 9, 12])
def test_points_are_followed_backwards_too(frame: int, generator: torch.Generator) -> None:
    """From frames of every window, a shared one and the last; where the occluder is in the way, what it leaves free."""
    x = {4: 20.5, 9: 24.5}.get(frame, 33.5)
    card = OCCLUDER if frame == 4 else PATCH
    queries = torch.tensor([[frame, x, 25.5]], dtype=torch.float64)
    tracks = chain(windows(BY_ONE, generator), queries)
    assert error(tracks, truth(queries, card)[0]) < 5e-3
    assert tracks.visible[0, frame] == 1
    check_visible(tracks, queries, card)


def test_a_query_is_met_exactly_at_its_own_frame(generator: torch.Generator) -> None:
    queries = torch.cat([ON_PATCH, BESIDE, torch.tensor([[5, 30.2, 20.9], [12, 1.0, 47.9]])])
    tracks = chain(windows(BY_THREE, generator), queries)
    frames = queries[:, 0].long()
    assert tracks.pixels is not None
    torch.testing.assert_close(tracks.pixels[torch.arange(len(frames)), frames], queries[:, 1:])
    assert (tracks.visible[torch.arange(len(frames)), frames] == 1).all()
    torch.testing.assert_close(tracks.times, TIMES)
    torch.testing.assert_close(project(tracks.points.transpose(0, 1), cameras())[0].transpose(0, 1), tracks.pixels)


@pytest.mark.parametrize("parts", [[(0, 7), (6, 13)], BY_ONE, BY_THREE, [(i, i + 2) for i in range(12)]])
def test_consistent_gaussians_give_the_same_however_many_windows(
    parts: list[tuple[int, int]], generator: torch.Generator
) -> None:
    """The same Gaussians in every window."""
    everything = gaussians(CARDS, TIMES, generator)
    whole = Window(gaussians=everything, cameras=cameras(), times=TIMES, size=SIZE)
    pieces = [
        dataclasses.replace(whole, cameras=cameras(first, last), times=TIMES[first:last]) for first, last in parts
    ]
    queries = torch.cat([ON_PATCH, BESIDE, torch.tensor([[6, 31.0, 20.0], [12, 30.0, 30.0]])])
    one, many = chain([whole], queries), chain(pieces, queries)
    torch.testing.assert_close(many.points, one.points)
    torch.testing.assert_close(many.visible, one.visible)
    torch.testing.assert_close(many.pixels, one.pixels)


@pytest.mark.parametrize("offsets", [True, False])
def test_what_is_static_stays_exactly_where_it_is(generator: torch.Generator, *, offsets: bool) -> None:
    """A slanted wall of all depths, before a camera that moves; with offsets of 0 and with none."""
    found = windows(BY_ONE, generator, (WALL,))
    slanted = [
        dataclasses.replace(
            window.gaussians,
            means=window.gaussians.means * (1 + 0.05 * window.gaussians.means[:, :1]),
            offsets=window.gaussians.offsets if offsets else None,
            offset_times=window.gaussians.offset_times if offsets else None,
        )
        for window in found
    ]
    found = [dataclasses.replace(one, gaussians=other) for one, other in zip(found, slanted, strict=True)]
    queries = torch.cat([ON_PATCH, BESIDE, torch.tensor([[7, 20.0, 30.0]])])
    tracks = chain(found, queries)
    assert (tracks.points == tracks.points[:, :1]).all()
    assert (tracks.visible == 1).all()


def test_a_point_that_left_the_picture_at_the_seams_comes_back(generator: torch.Generator) -> None:
    """The cameras look away, even backwards, from frame 3 to 9."""
    found = windows(BY_ONE, generator, (WALL, PATCH))
    turned = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))
    looking = []
    for (first, last), window in zip(BY_ONE, found, strict=True):
        poses = window.cameras.world_from_camera.clone()
        away = [3 <= frame <= 9 for frame in range(first, last)]
        poses[away] = poses[away] @ turned
        looking.append(
            dataclasses.replace(window, cameras=dataclasses.replace(window.cameras, world_from_camera=poses))
        )
    tracks = chain(looking, ON_PATCH)
    assert error(tracks, truth(ON_PATCH, PATCH)[0]) < 1e-3
    assert (tracks.visible == torch.tensor([1.0] * 3 + [0.0] * 7 + [1.0] * 3)).all()


def test_a_point_of_which_a_window_has_no_gaussians_waits(generator: torch.Generator) -> None:
    """The middle window has the occluder only: a point of the wall stands still, unseen, and is found again after."""
    behind = torch.tensor([[0, 32.5, 5.5], [12, 32.5, 5.5]], dtype=torch.float64)
    found = windows(BY_ONE, generator, (WALL, OCCLUDER))
    found[1] = windows([BY_ONE[1]], generator, (OCCLUDER,))[0]
    tracks = chain(found, behind)
    paths, _ = truth(behind, WALL)
    assert error(tracks, paths) < 5e-3
    assert (tracks.points == tracks.points[:, :1]).all()
    assert (tracks.visible[:, 4:9] == 0).all()
    assert (tracks.visible[:, [0, 1, 2, 10, 11, 12]] == 1).all()


def test_a_pixel_that_shows_nothing_is_never_visible_and_harms_no_other(generator: torch.Generator) -> None:
    found = windows(BY_ONE, generator, (PATCH, OCCLUDER))
    empty = torch.tensor([[0, 62.0, 3.0], [2, 60.0, 45.0]], dtype=torch.float64)
    tracks, alone = chain(found, torch.cat([ON_PATCH, empty])), chain(found, ON_PATCH)
    assert (tracks.visible[3:] == 0).all()
    assert tracks.points.isfinite().all()
    assert (tracks.points[3:, 1:] == tracks.points[3:, :1]).all()
    assert tracks.pixels is not None
    torch.testing.assert_close(tracks.pixels[[3, 4], [0, 2]], empty[:, 1:])
    torch.testing.assert_close(tracks.points[:3], alone.points)
    torch.testing.assert_close(tracks.visible[:3], alone.visible)


def test_a_pixel_at_an_edge_goes_with_what_makes_most_of_it(generator: torch.Generator) -> None:
    """No path between two things: everything goes with one of the cards."""
    columns = torch.arange(12.0, 52.0, 0.5, dtype=torch.float64)
    queries = torch.stack([torch.zeros_like(columns), columns, torch.full_like(columns, 24.5)], dim=-1)
    tracks = chain(windows(BY_ONE, generator), queries)
    steps = (tracks.points[:, -1] - tracks.points[:, 0])[:, None]
    ways = torch.stack([card.shift(TIMES[-1:])[0] for card in CARDS])
    assert float((steps - ways).norm(dim=-1).amin(-1).max()) < 1e-6


def test_no_queries_give_no_tracks(generator: torch.Generator) -> None:
    tracks = chain(windows(BY_ONE, generator), torch.zeros(0, 3))
    assert tracks.points.shape == (0, 13, 3)
    assert tracks.visible.shape == (0, 13)


def test_windows_that_do_not_slide_are_refused(generator: torch.Generator) -> None:
    def refused(found: list[Window], words: str) -> None:
        with pytest.raises(UserError, match=words):
            chain(found, ON_PATCH)

    refused([], "no windows; give at least one")
    refused(windows([(0, 5), (5, 9)], generator), "windows 0 and 1 share no frame; let each begin")
    refused(windows([(0, 5), (4, 9), (10, 13)], generator), "windows 1 and 2 share no frame")
    refused(windows([(4, 9), (0, 5)], generator), "windows 0 and 1 are out of order")
    refused(windows([(0, 9), (2, 6)], generator), "one lies within the other")
    first, second = windows([(0, 5), (3, 8)], generator)
    every_other = dataclasses.replace(first, times=first.times[::2], cameras=_some(first.cameras, slice(None, None, 2)))
    refused([every_other, second], "window 0 skips a frame that another has")
    refused([dataclasses.replace(first, times=first.times.flip(0))], "window 0's times do not ascend")
    refused([dataclasses.replace(first, times=first.times[:3])], "window 0 has 3 times; give as many cameras")
    refused([dataclasses.replace(first, gaussians=first.batched)], "without a batch: n 3")


def _some(cameras: Cameras, which: slice) -> Cameras:
    return Cameras(world_from_camera=cameras.world_from_camera[which], intrinsics=cameras.intrinsics[which])


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ((13, 5, 5), "frame 13 of point 5,5 is outside the video; choose 0 to 12"),
        ((0.5, 5, 5), "frame 0.5"),
        ((0, 65, 5), "outside the picture; choose x from 0 to 64, y to 48"),
        ((0, 5, -1), "outside the picture"),
    ],
)
def test_queries_outside_are_refused(query: tuple[float, float, float], words: str, generator: torch.Generator) -> None:
    with pytest.raises(UserError, match=words):
        chain(windows(BY_ONE, generator), torch.tensor([query], dtype=torch.float64))


def test_a_margin_that_is_no_share_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(UserError, match="choose a share of the depth"):
        chain(windows(BY_ONE, generator), ON_PATCH, margin=0.0)
