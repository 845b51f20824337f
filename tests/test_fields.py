"""Fields know themselves: each operation on every field of every dataclass, against closed forms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from four_d import fields, types
from four_d.errors import UserError
from four_d.geometry import Similarity, project, transform, unproject
from four_d.tracking import PointTracks
from four_d.types import (
    LENGTH,
    NONE,
    NORMAL,
    PIXEL,
    POINT,
    Cameras,
    Clip,
    Gaussians,
    Geometry,
    Prediction,
    Surface,
    Tracks,
    Views,
    map_tensors,
    merge_predictions,
    nested,
    selects,
)
from tests.helpers import full

T = TypeVar("T")
KINDS = (Clip, Prediction, Cameras, Gaussians, Tracks, Surface, PointTracks, Views, types.Keypoints)


@dataclass(frozen=True, kw_only=True)
class Keypoints(Prediction):
    """Fields of somebody's head."""

    radius: Float[Tensor, "*b f h w"] | None = field(default=None, metadata=LENGTH)
    keypoints: Float[Tensor, "*b n 3"] | None = field(default=None, metadata=POINT)


@dataclass(frozen=True, kw_only=True)
class Skeletons(Prediction):
    """Fields of another's."""

    bones: Float[Tensor, "*b f bones 3"] | None = field(default=None, metadata=POINT)


def same(one: object, other: object, tolerance: float | None = None) -> None:
    """The same fields with the same values."""
    mine, theirs = fields.named(one), fields.named(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=tolerance)


def ids(kind: type) -> str:
    return kind.__name__


every_kind = pytest.mark.parametrize("kind", [*KINDS, Keypoints], ids=ids)

# declarations


def test_every_axis_and_every_length_is_known() -> None:
    """The declarations of what is here; a new field of floats without a geometry is an error (below)."""
    frames = {each.name for each in fields.declared(Prediction) if "f" in each.axes}
    expected = {"pose_encodings", "depth", "depth_confidence", "points", "points_confidence", "dynamic"}
    expected |= {"dynamic_logits", "motion", "motion_confidence", "motion_visible", "motion_visible_logits"}
    assert {name for name in frames if not name.startswith("pixel_track")} == expected
    assert fields.axes(Prediction, "motion") == ("*b", "q", "f", "h", "w", "3")
    moved = {
        leaf.name
        for kind in (Clip, Prediction)
        for leaf, _ in fields.leaves(full(kind))
        if leaf.geometry not in (Geometry.NONE, Geometry.FIXED)
    }
    assert moved == {
        *("cameras.world_from_camera", "cameras.intrinsics", "depth", "points", "motion", "pixel_tracks"),
        *("pixel_track_stages", "gaussians.means", "gaussians.quats", "gaussians.scales", "gaussians.harmonics"),
        *("gaussians.offsets", "gaussians.turns", "surface.vertices", "tracks.points", "query_points", "scale"),
        *("keypoints.points", "keypoints.pixels", "keypoints.names", "keypoint_names", "keypoint_boxes"),
        "sweep_depth",
    }


def test_declarations_that_do_not_fit_are_errors() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Untagged(Prediction):
        radius: Float[Tensor, "*b f h w"] | None = None

    @dataclass(frozen=True, kw_only=True)
    class Flat(Prediction):
        corners: Float[Tensor, "*b f 2"] | None = field(default=None, metadata=POINT)

    @dataclass(frozen=True, kw_only=True)
    class Bare(Prediction):
        corners: Tensor | None = None

    @dataclass(frozen=True, kw_only=True)
    class Several(Prediction):
        corners: tuple[Float[Tensor, "*b f 2"], ...] = ()

    @dataclass(frozen=True, kw_only=True)
    class Unnamed(Prediction):
        others: Cameras | None = None

    @dataclass(frozen=True, kw_only=True)
    class Twice(Prediction):
        intrinsics: Float[Tensor, "*b 2"] | None = field(default=None, metadata=NONE)

    @dataclass(frozen=True, kw_only=True)
    class Meant(Prediction):
        gaussian_means: Float[Tensor, "*b 2"] | None = field(default=None, metadata=NONE)

    @dataclass(frozen=True, kw_only=True)
    class Keyed(Prediction):
        joints: Float[Tensor, "*b f k 3"] | None = field(default=None, metadata=POINT)

    @dataclass(frozen=True, kw_only=True)
    class Rowed(Prediction):
        splats: Gaussians | None = field(default=None, metadata=nested(n="r h w"))

    @dataclass(frozen=True, kw_only=True)
    class Chosen(Prediction):
        lines: Int[Tensor, "*b h"] | None = field(default=None, metadata=selects("f"))

    for kind, text in (
        (Keyed, "Keyed.joints has an axis k, which counts what key_frames selects, of another class; give the axis"),
        (Rowed, "Rowed.splats has an axis r, which counts what match_frames selects"),
        (Chosen, "Chosen.depth has an axis h, which counts what lines selects"),
        (Twice, r"Twice\.cameras\.intrinsics and \.intrinsics are both listed as intrinsics; rename one"),
        (Meant, "are both listed as gaussian_means"),
        (Untagged, "Untagged.radius does not say its geometry"),
        (Flat, r"Flat.corners is a POINT, whose axes end with '3', not '\*b f 2'"),
        (Bare, "Bare.corners holds tensors in a form without axes"),
        (Several, "Several.corners holds tensors in a form without axes"),
        (Unnamed, "Unnamed.others does not say what its axes are called outside"),
    ):
        with pytest.raises(TypeError, match=text):
            fields.declared(kind)
        with pytest.raises(TypeError, match=text):
            fields.join([merge_predictions([kind()])], "q")  # as every model does in each step


# axes


@every_kind
@settings(max_examples=20)
@given(st.data())
def test_joining_undoes_taking(kind: type, data: st.DataObject) -> None:
    value = full(kind)
    axis = data.draw(st.sampled_from(sorted({each for leaf, _ in fields.leaves(value) for each in leaf.axes})))
    if axis.isdecimal() or axis in ("*b", "k h w") or (issubclass(kind, Prediction) and axis in "hw"):
        return
    cut = data.draw(st.integers(1, 4))
    parts = [fields.take(value, axis, part) for part in (slice(None, cut), slice(cut, None))]
    joined = fields.join(parts, axis)
    selected = [each for each in fields.declared(kind) if each.selects == axis]
    outer, _, inner = axis.rpartition(".")  # of a nested value's own axis, as keypoints.n
    nested = [each.kind for each in fields.declared(kind) if each.name == outer and each.kind is not None]
    within = [each for other in nested for each in fields.declared(other) if each.selects == inner]
    if any(each.pairs for each in (*selected, *within)):
        return  # those that are cut through are lost (tests/test_keypoints.py)
    if not selected:
        same(joined, value)
    for each in selected:
        # what selects entries comes in the order of these: all is there, and refers to the same
        before, after = getattr(value, each.name), getattr(joined, each.name)
        assert sorted(before.reshape(len(before), -1).tolist()) == sorted(after.reshape(len(after), -1).tolist())


def test_taking_frames_cuts_all_that_has_frames_and_what_selects_them() -> None:
    clip = full(Clip, k=3)
    found = fields.take(clip, "f", [3, 1])
    assert clip.cameras and found.cameras and clip.surface and found.surface  # noqa: PT018
    assert torch.equal(found.images, clip.images[[3, 1]])
    assert torch.equal(found.cameras.world_from_camera, clip.cameras.world_from_camera[[3, 1]])
    assert torch.equal(found.surface.faces, clip.surface.faces[[3, 1]])
    assert found.surface.vertices is clip.surface.vertices
    assert found.tracks is not None
    assert torch.equal(found.tracks.points, full(Clip, k=3).tracks.points)  # pyright: ignore[reportOptionalMemberAccess]
    assert clip.motion is not None and clip.motion_frames is not None  # noqa: PT018
    assert found.motion is not None and found.motion_frames is not None  # noqa: PT018
    left = [i for i, frame in enumerate(clip.motion_frames.tolist()) if frame in (3, 1)]
    assert torch.equal(found.motion, clip.motion[:, left])
    assert [(3, 1)[i] for i in found.motion_frames.tolist()] == clip.motion_frames[left].tolist()
    assert clip.query_points is not None and found.query_points is not None  # noqa: PT018
    asked = [row for row in clip.query_points.tolist() if row[0] in (3, 1)]
    assert [[(3, 1)[int(frame)], x, y] for frame, x, y in found.query_points.tolist()] == asked


def test_motion_of_all_frames_is_cut_with_them() -> None:
    clip = dataclasses.replace(full(Clip, k=5), motion_frames=None)
    found = fields.take(clip, "f", torch.tensor([True, False, False, True, False]))
    assert clip.motion is not None
    assert found.motion is not None
    assert torch.equal(found.motion, clip.motion[:, [0, 3]])
    assert found.motion_frames is None


def test_gaussians_follow_their_key_frames() -> None:
    value = dataclasses.replace(full(Prediction, k=3), key_frames=torch.tensor([0, 2, 4]))
    found = fields.take(value, "f", [4, 0])
    assert found.gaussians is not None and value.gaussians is not None  # noqa: PT018
    assert found.key_frames is not None
    assert found.key_frames.tolist() == [1, 0]
    per_frame = value.gaussians.means.unflatten(0, (3, -1))
    assert torch.equal(found.gaussians.means, per_frame[[0, 2]].flatten(0, 1))
    offsets = value.gaussians.offsets
    assert offsets is not None and found.gaussians.offsets is not None  # noqa: PT018
    assert torch.equal(found.gaussians.offsets, offsets.unflatten(1, (3, -1))[:, [0, 2]].flatten(1, 2))


def test_nothing_of_what_selects_entries_is_left_where_none_is_taken() -> None:
    value = Prediction(depth=torch.ones(3, 1, 1), key_frames=torch.tensor([2]))
    assert fields.take(value, "f", []).key_frames.tolist() == []  # pyright: ignore[reportOptionalMemberAccess]


def test_an_entry_that_is_taken_twice_keeps_its_selection_once() -> None:
    found = fields.take(Prediction(depth=torch.arange(3.0)[:, None, None], key_frames=torch.tensor([2])), "f", [2, 2])
    assert found.depth is not None
    assert found.key_frames is not None
    assert found.depth.flatten().tolist() == [2, 2]
    assert found.key_frames.tolist() == [0]


def test_axes_of_nested_values_are_their_own() -> None:
    clip = full(Clip)
    found = fields.take(clip, "tracks.n", [1])
    assert found.tracks is not None
    assert len(found.tracks.points) == 1
    assert found.query_points is clip.query_points
    seen = dataclasses.replace(clip, views=full(Clip, seed=7))
    assert seen.views is not None
    part = fields.take(seen, "views.f", slice(2))
    assert part.views is not None
    assert (len(part.images), len(part.views.images)) == (5, 2)
    assert len(fields.take(seen, "f", slice(1)).views.images) == 5  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(ValueError, match=r"Clip has no axis frames; choose among \['b', 'f'"):
        fields.take(clip, "frames", slice(2))


def test_batches_that_select_differently_cannot_be_cut() -> None:
    batch = Prediction(depth=torch.ones(2, 4, 1, 1), key_frames=torch.tensor([[0, 1], [0, 2]]))
    with pytest.raises(ValueError, match="key_frames differs within the batch"):
        fields.take(batch, "f", slice(2))


def test_a_batch_is_stacked_and_taken_apart() -> None:
    for kind in (Clip, Prediction, Keypoints, Cameras, Surface, Tracks, Gaussians):
        values = [full(kind, seed) for seed in range(3)]
        batch = fields.stack(values)
        for index, value in enumerate(values):
            same(fields.unstack(batch, index), value)
        same(fields.take(batch, "b", slice(2)), fields.stack(values[:2]))
        same(fields.join([fields.take(batch, "b", slice(2)), fields.take(batch, "b", slice(2, 3))], "b"), batch)
    assert fields.stack([full(Prediction)] * 3).pose_encodings.shape == (2, 3, 5, 9)  # pyright: ignore[reportOptionalMemberAccess]


def test_only_what_is_declared_so_is_padded() -> None:
    short, long = full(Clip, t=2, m=3, joints=1), full(Clip, seed=1)
    batch = fields.stack([dataclasses.replace(each, motion=None) for each in (short, long)])
    assert batch.surface is not None
    assert batch.surface.triangles.shape == (2, 7, 3)
    assert not batch.surface.triangles[0, 3:].any()
    assert batch.keypoint_names is not None
    assert batch.keypoint_names.shape == (2, 4, 32)
    assert not batch.keypoint_names[0, 1:].any()
    with pytest.raises(ValueError, match=r"depth has \[2, 4\] entries of h; all must have equally many"):
        fields.stack([Prediction(depth=torch.ones(1, n, 3)) for n in (2, 4)])
    with pytest.raises(ValueError, match="1 of 2 values have query_points; all must, or none"):
        fields.stack([long, dataclasses.replace(long, query_points=None)])
    with pytest.raises(ValueError, match=r"1 of 2 values have tracks\.points"):
        fields.stack([long, dataclasses.replace(long, tracks=None)])
    with pytest.raises(ValueError, match="1 of 2 values have depth"):
        fields.join([Prediction(depth=torch.ones(1, 2, 3)), Prediction()], "f")


def test_queries_are_joined_and_the_rest_is_the_firsts() -> None:
    parts = [full(Keypoints, seed, batch=(2,)) for seed in range(3)]
    joined = fields.join(parts, "q")
    assert joined.motion is not None
    assert torch.equal(joined.motion, torch.cat([part.motion for part in parts if part.motion is not None], 1))
    assert joined.match_logits is not None
    assert joined.match_logits.shape[1] == 6
    assert joined.depth is parts[0].depth
    bare = dataclasses.replace(parts[1], depth=None, cameras=None)
    assert fields.join([parts[0], bare], "q").depth is parts[0].depth


def test_fields_with_an_axis_or_of_losses_can_be_left_out() -> None:
    value = full(Prediction)
    found = fields.without(value, "q", "k")
    assert found.motion is None
    assert found.gaussians is None
    assert found.key_frames is None
    assert found.depth is value.depth
    shown = fields.delivered(value)
    assert shown.pose_encodings is None
    assert not [name for name in vars(shown) if "logits" in name and getattr(shown, name) is not None]
    assert shown.motion is value.motion
    with pytest.raises(ValueError, match="Clip cannot be without"):
        fields.without(full(Clip), "f")


# geometry

scales = st.floats(0.1, 10)


def similarity(scale: float, seed: int) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    rotation = roma.random_rotmat(generator=generator, dtype=torch.float64)
    return Similarity(scale=scale, rotation=rotation, shift=torch.randn(3, generator=generator, dtype=torch.float64))


def inverse(move: Similarity) -> Similarity:
    turn = move.rotation.mT
    return Similarity(scale=1 / move.scale, rotation=turn, shift=-(turn @ move.shift) / move.scale)


def upright(value: T) -> T:
    """Of the two quaternions that mean one rotation that with a positive first number."""
    rotations = (Geometry.QUATERNION, Geometry.TURN)
    return fields.apply(value, lambda leaf, t: t * t[..., :1].sign() if leaf.geometry in rotations else t)


def movable(kind: type[T]) -> T:
    value = full(kind)
    return fields.delivered(value) if isinstance(value, Prediction) else value


@every_kind
@settings(max_examples=5)
@given(scales, st.integers(0, 100))
def test_moving_back_gives_the_same(kind: type, factor: float, seed: int) -> None:
    value = full(Gaussians, k=1) if kind is Gaussians else movable(kind)
    value = map_tensors(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    move = similarity(factor, seed)
    same(upright(fields.move(fields.move(value, move), inverse(move))), upright(value), 1e-9)
    same(fields.scale(fields.scale(value, factor), 1 / factor), value)
    same(fields.divide(value, factor), fields.scale(value, 1 / factor))
    only = Similarity(scale=factor, rotation=torch.eye(3).double(), shift=torch.zeros(3).double())
    same(upright(fields.move(value, only)), upright(fields.scale(value, factor)))


def test_what_is_moved_agrees_with_itself() -> None:
    """Depth with cameras, points, motion, Gaussians and a field of somebody's head: all in the one new world."""
    value, move = movable(Keypoints), similarity(2.5, 3)
    depth = torch.rand(5, 2, 3) + 1
    lens = torch.tensor([[2.0, 0, 1.5], [0, 2, 1], [0, 0, 1]]).expand(5, 3, 3)
    assert value.cameras is not None
    cameras = dataclasses.replace(value.cameras, intrinsics=lens)
    value = dataclasses.replace(value, depth=depth, cameras=cameras, points=unproject(depth, cameras))
    moved = fields.move(value, move)
    assert moved.depth is not None and moved.cameras is not None and moved.points is not None  # noqa: PT018
    torch.testing.assert_close(unproject(moved.depth, moved.cameras), moved.points)
    assert value.points is not None and value.motion is not None and moved.motion is not None  # noqa: PT018
    torch.testing.assert_close(moved.points + moved.motion, move.points(value.points + value.motion))
    assert value.radius is not None and value.keypoints is not None and moved.keypoints is not None  # noqa: PT018
    torch.testing.assert_close(moved.radius, 2.5 * value.radius)
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = move.rotation.float(), move.shift.float()
    torch.testing.assert_close(moved.keypoints, transform(pose, 2.5 * value.keypoints))
    before, after = value.gaussians, moved.gaussians
    assert before is not None and after is not None  # noqa: PT018
    turns = [roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(normalize(each.quats, dim=-1))) for each in (before, after)]
    torch.testing.assert_close(turns[1], move.rotation.float() @ turns[0], atol=1e-5, rtol=1e-5)


def test_what_cannot_be_moved_is_not_moved_silently() -> None:
    move = similarity(1.0, 0)
    for change in (lambda: fields.move(full(Prediction), move), lambda: fields.mirror(full(Prediction, k=1), 3)):
        with pytest.raises(ValueError, match="pose_encodings is bound to its coordinates"):
            change()
    with pytest.raises(UserError, match="degree 0"):
        fields.move(full(Gaussians, k=4), move)
    assert fields.scale(full(Gaussians, k=4), 2.0).harmonics.shape[-2] == 4
    with pytest.raises(ValueError, match=r"gaussians.means counts columns within other things"):
        fields.mirror(dataclasses.replace(Prediction(), gaussians=full(Gaussians, k=1)), 3)


@pytest.mark.parametrize("kind", [Clip, Cameras, Tracks, Surface, PointTracks, Views, types.Keypoints], ids=ids)
def test_a_mirror_in_a_mirror_shows_the_same(kind: type) -> None:
    value = full(kind)
    same(fields.mirror(fields.mirror(value, 3), 3), value)


def test_what_is_mirrored_is_seen_mirrored() -> None:
    lens = torch.tensor([[2.0, 0, 1.2], [0, 2, 1], [0, 0, 1]])
    cameras = Cameras(world_from_camera=full(Cameras).world_from_camera, intrinsics=lens)
    points = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    tracks = PointTracks(
        queries=torch.tensor([[0.0, 1, 2]] * 4), points=points[:, None], visible=torch.ones(4, 1), times=torch.zeros(1)
    )
    pixels, depth = project(points, cameras)
    found = fields.mirror(tracks, 3)
    mirrored, same_depth = project(found.points[:, 0], fields.mirror(cameras, 3))
    torch.testing.assert_close(same_depth, depth)
    torch.testing.assert_close(mirrored[:, 1], pixels[:, 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mirrored[:, 0], 3 - pixels[:, 0], rtol=1e-4, atol=1e-4)
    assert found.queries[0].tolist() == [0, 2, 2]
    turn = roma.random_unitquat(8, generator=torch.Generator().manual_seed(1))
    gaussians = dataclasses.replace(full(Gaussians, n=8, k=1), quats=roma.quat_xyzw_to_wxyz(turn))
    reflection = torch.diag(torch.tensor([-1.0, 1, 1]))
    expected = reflection @ roma.unitquat_to_rotmat(turn) @ reflection
    quats = fields.mirror(gaussians, 3).quats
    torch.testing.assert_close(roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(quats)), expected)


# names and classes


def test_a_flat_list_names_every_tensor() -> None:
    value = full(Keypoints)
    found = fields.arrays(value)
    assert {"world_from_camera", "intrinsics", "depth", "gaussian_means", "key_frames", "radius"} <= set(found)
    assert len(found) == len(list(fields.leaves(value)))
    assert found["radius"].dtype.name == "float32"
    assert found["key_frames"].dtype.name == "int64"
    assert set(fields.arrays(Prediction(depth=torch.ones(1, 2, 3)))) == {"depth"}


def test_heads_with_fields_of_their_own_are_merged() -> None:
    parts = [
        Prediction(depth=torch.ones(1, 2, 3)),
        Keypoints(radius=torch.ones(1, 2, 3)),
        Skeletons(bones=torch.ones(1, 2, 3)),
    ]
    merged = merge_predictions(parts)
    assert isinstance(merged, Keypoints)
    assert isinstance(merged, Skeletons)
    assert type(merge_predictions(parts[::-1])) is type(merged)
    assert merged.radius is parts[1].radius  # pyright: ignore[reportAttributeAccessIssue]
    half = fields.move(map_tensors(fields.take(merged, "f", slice(1)), torch.Tensor.half), similarity(2.0, 0))
    assert {*fields.arrays(half)} == {"depth", "radius", "bones"}
    assert type(merge_predictions(parts[:2])) is Keypoints
    assert type(merge_predictions(parts[:1])) is Prediction


def test_two_heads_may_not_mean_different_things_by_one_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(Prediction):
        radius: Int[Tensor, "*b f"] | None = None

    with pytest.raises(ValueError, match=r"two heads declare Prediction\.radius"):
        merge_predictions([Keypoints(), Other()])


def test_users_may_declare_selections_and_values_of_their_own() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Rig(Prediction):
        other: Cameras | None = field(default=None, metadata=nested(b="s"))
        sharp: Int[Tensor, "*b s"] | None = field(default=None, metadata=selects("f"))
        corners: Float[Tensor, "*b s 2"] | None = field(default=None, metadata=PIXEL)
        weights: Float[Tensor, "*b f"] | None = field(default=None, metadata=NONE)

    value = Rig(
        other=full(Cameras, batch=(2,)), sharp=torch.tensor([4, 1]), corners=torch.rand(2, 2), weights=torch.rand(5)
    )
    found = fields.take(value, "f", [1, 2])
    assert found.sharp is not None and found.other is not None and value.other is not None  # noqa: PT018
    assert found.corners is not None and value.corners is not None  # noqa: PT018
    assert found.sharp.tolist() == [0]
    assert torch.equal(found.corners, value.corners[1:])
    assert torch.equal(found.other.world_from_camera, value.other.world_from_camera[1:])
    assert set(fields.named(value)) == {
        *("other_world_from_camera", "other_intrinsics", "other_known", "other_intrinsics_known"),
        *("sharp", "corners", "weights"),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facet(Prediction):
    """A triangle that a head of somebody's predicts, and its normal."""

    corners: Float[Tensor, "*b corner 3"] = dataclasses.field(metadata=POINT)
    normal: Float[Tensor, "*b 3"] = dataclasses.field(metadata=NORMAL)


def test_a_normal_stays_upright_on_its_triangle(generator: torch.Generator) -> None:
    corners = torch.randn(4, 3, 3, generator=generator)
    a, b, c = corners.unbind(1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    facet = Facet(corners=corners, normal=normal)
    for found in (fields.move(facet, similarity(2.5, 3)), fields.mirror(facet, 3), fields.scale(facet, 7.0)):
        assert not torch.equal(found.corners, corners)
        edges = found.corners[:, 1:] - found.corners[:, :1]
        torch.testing.assert_close((edges @ found.normal[..., None]).abs().amax(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.normal.norm(dim=-1), torch.ones(4))
    # seen in a mirror, the other side of the triangle is turned towards where its normal points
    a, b, c = fields.mirror(facet, 3).corners.unbind(1)
    turned = torch.linalg.cross(b - a, c - a)
    assert bool(((turned * fields.mirror(facet, 3).normal).sum(-1) < 0).all())
