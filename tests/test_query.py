"""Query times, hints and the motion head: frames in any order, any number of times, several cameras, clear refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.hints import HintsConfig, Use
from four_d.correlation import CorrelationConfig, compare, fetch, neighbour_frames, search
from four_d.errors import UserError
from four_d.geometry import make_pose
from four_d.heads import HeadConfig
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.query_decoder import QueryDecoderConfig
from four_d.model import FourD, ModelConfig
from four_d.parts import TokenShape
from four_d.query import QueryConfig, frames_at, gap_numbers, reference_frames
from four_d.types import Cameras, Clip, Prediction, map_tensors

B, F, H, W = 2, 4, 16, 24
DENSE = DenseHeadConfig(channels=(8, 8, 8, 8), features=16, last_features=8)
HEADS: dict[str, HeadConfig] = {
    "camera": CameraHeadConfig(width=32, depth=1, heads=2, start=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
    "depth": DENSE,
    "points": dataclasses.replace(DENSE, output="points"),
}
BACKBONE = AlternatingConfig(patch_size=8, width=32, rounds=3, heads=2, registers=2, layer_scale=0.5, special_std=0.5)
CORRELATION = CorrelationConfig(channels=8, radius=1)
DECODER = QueryDecoderConfig(width=16, depth=1, heads=2, layer_scale=0.5, gaps=True, correlation=CORRELATION)
LATE = dataclasses.replace(BACKBONE, correlation=CORRELATION)
EARLY = dataclasses.replace(LATE, query=QueryConfig(gaps=True))
EVERY_HINT = HintsConfig(intrinsics="optional", poses="optional", depth="optional", masks="optional")


def build(*, late: bool, hints: HintsConfig | None = None, shaken: bool = True) -> FourD:
    """With the query before or after the stack; ``shaken``: also what starts at zero has random weights."""
    motion = dataclasses.replace(DENSE, output="motion", decoder=DECODER if late else None)
    torch.manual_seed(0)
    backbone = dataclasses.replace(LATE if late else EARLY, hints=hints)
    model = ModelConfig(backbone=backbone, heads={**HEADS, "motion": motion}).build()
    if shaken:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
    return model.eval()


def make_clip() -> Clip:
    """Two cameras that see two times each."""
    generator = torch.Generator().manual_seed(1)
    return Clip(
        images=torch.rand(B, F, 3, H, W, generator=generator),
        times=torch.tensor([0.0, 0.5, 0.0, 0.5]).expand(B, -1),
        camera_ids=torch.tensor([0, 0, 1, 1]).expand(B, -1),
    )


def with_hints(clip: Clip, known: bool = True) -> Clip:
    generator = torch.Generator().manual_seed(2)
    flag = torch.full((B, F), known)
    intrinsics = torch.tensor([[30.0, 0, W / 2], [0, 28.0, H / 2], [0, 0, 1]]).repeat(B, F, 1, 1)
    intrinsics[1, :, :2] *= 1.5
    pose = make_pose(torch.eye(3).expand(B, F, -1, -1), torch.randn(B, F, 3, generator=generator))
    cameras = Cameras(world_from_camera=pose, intrinsics=intrinsics, known=flag, intrinsics_known=flag)
    return dataclasses.replace(
        clip,
        cameras=cameras,
        depth=1 + torch.rand(B, F, H, W, generator=generator),
        valid=flag[..., None, None].expand(-1, -1, H, W),
        dynamic=torch.rand(B, F, H, W, generator=generator) > 0.5,
        dynamic_known=flag,
    )


def ask(clip: Clip, *times: float) -> Clip:
    return dataclasses.replace(clip, query_times=torch.tensor(times).expand(B, -1))


def run(model: FourD, clip: Clip) -> Prediction:
    with torch.no_grad():
        return model(clip)


def motion(prediction: Prediction) -> list[Tensor]:
    return [prediction.motion, prediction.motion_confidence, prediction.motion_visible]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
class TestQueryTimes:
    def test_permuting_frames_other_than_the_first_permutes_motion(self, late: bool) -> None:
        """The query is a time, not a place in the order; hints travel with their frames."""
        model, order = build(late=late, hints=EVERY_HINT).double(), [0, 3, 1, 2]
        double = lambda x: x.double() if x.is_floating_point() else x  # noqa: E731
        clip = map_tensors(ask(with_hints(make_clip()), 0.5, 0.0), double)
        rest = dataclasses.replace(clip, query_times=None)
        permuted = dataclasses.replace(map_tensors(rest, lambda x: x[:, order]), query_times=clip.query_times)
        straight, other = run(model, clip), run(model, permuted)
        for one, two in zip(motion(straight), motion(other), strict=True):
            torch.testing.assert_close(one[:, :, order], two)
        torch.testing.assert_close(straight.depth[:, order], other.depth)
        swapped = map_tensors(rest, lambda x: x[:, [1, 0, 2, 3]])
        moved = run(model, dataclasses.replace(swapped, query_times=clip.query_times))
        assert (moved.motion[:, :, [1, 0]] - straight.motion[:, :, :2]).abs().max() > 1e-6, "the first one is special"

    def test_no_query_time_at_all_gives_all_but_motion(self, late: bool) -> None:
        model, clip = build(late=late), make_clip()
        nothing = run(model, dataclasses.replace(clip, query_times=torch.zeros(B, 0)))
        assert nothing.motion is None
        assert torch.equal(nothing.depth, run(model, clip).depth)

    def test_many_times_at_once_are_many_single_questions(self, late: bool) -> None:
        model, clip = build(late=late), make_clip()
        both = run(model, ask(clip, 0.5, 0.0))
        for index, time in enumerate((0.5, 0.0)):
            alone = run(model, ask(clip, time))
            for one, two in zip(motion(both), motion(alone), strict=True):
                torch.testing.assert_close(one[:, index : index + 1], two)
        assert both.motion.shape == (B, 2, F, H, W, 3)
        assert (both.motion[:, 0] - both.motion[:, 1]).abs().max() > 1e-3, "the answer must depend on the question"
        passes = [part.depth is not None for part in model.passes(ask(clip, 0.5, 0.0))]
        assert passes == [True, False], "what depends on no query is given once"

    def test_without_a_query_it_is_the_first_frames_time(self, late: bool) -> None:
        model, clip = build(late=late), make_clip()
        for one, two in zip(motion(run(model, clip)), motion(run(model, ask(clip, 0.0))), strict=True):
            torch.testing.assert_close(one, two)

    def test_encodes_once_only_where_the_query_comes_late(self, late: bool) -> None:
        model, calls = build(late=late), list[int]()
        model.backbone.register_forward_hook(lambda *_: calls.append(1))
        run(model, ask(make_clip(), 0.0, 0.5))
        assert len(calls) == (1 if late else 2)

    def test_a_time_outside_the_clip_is_refused_with_the_nearest(self, late: bool) -> None:
        with pytest.raises(UserError, match=r"query time 3 s .* from 0 to 0.5 s, the nearest at 0.5 s"):
            run(build(late=late), ask(make_clip(), 3.0))

    def test_nothing_changes_at_the_start(self, late: bool) -> None:
        """Queries and hints begin at zero: a model tuned from others' weights begins with their outputs."""
        model, clip = build(late=late, hints=EVERY_HINT, shaken=False), make_clip()
        plain = run(model, clip)
        for changed in (ask(clip, 0.5), with_hints(clip), with_hints(clip, known=False)):
            other = run(model, changed)
            for one, two in zip(motion(plain), motion(other), strict=True):
                assert torch.equal(one, two)
            assert torch.equal(plain.depth, other.depth)
            assert torch.equal(plain.cameras.world_from_camera, other.cameras.world_from_camera)

    def test_every_parameter_gets_a_gradient(self, late: bool) -> None:
        model = build(late=late, hints=EVERY_HINT)
        clip = with_hints(make_clip())
        some = torch.tensor([[True] * F, [False] * F])
        cameras = dataclasses.replace(clip.cameras, known=some, intrinsics_known=some)
        clip = dataclasses.replace(
            clip, cameras=cameras, valid=some[..., None, None].expand(-1, -1, H, W), dynamic_known=some
        )
        out = model(ask(clip, 0.5))
        inside = torch.where(out.match_logits.isfinite(), out.match_logits, 0)
        values = [*motion(out), inside, out.depth, out.depth_confidence, out.points, out.points_confidence]
        sum((each * (1 + each)).sum() for each in [*values, out.pose_encodings]).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_long_gaps_count_as_the_longest_that_was_learned() -> None:
    far = gap_numbers(torch.tensor([-60.0, -1.0, 0.3, 1.0, 60.0]))
    assert torch.equal(far[0], far[1])
    assert torch.equal(far[3], far[4])
    assert far.abs().max() <= 1


def test_a_decoder_that_compares_needs_the_backbones_features() -> None:
    heads = {"motion": dataclasses.replace(DENSE, output="motion", decoder=DECODER)}
    with pytest.raises(UserError, match=r"decoder\.correlation=\$\{model\.backbone\.correlation\}"):
        ModelConfig(backbone=BACKBONE, heads=heads).build()


def test_one_frame_can_be_asked_for_its_own_time() -> None:
    clip = map_tensors(make_clip(), lambda x: x[:, :1])
    assert run(build(late=False), clip).motion.shape == (B, 1, 1, H, W, 3)


def test_a_model_without_motion_answers_once_whatever_is_asked() -> None:
    model = ModelConfig(backbone=BACKBONE, heads=HEADS).build().eval()
    assert not model.abilities.queried
    assert run(model, ask(make_clip(), 0.0, 0.5)).motion is None


def test_a_decoder_belongs_to_motion_only() -> None:
    with pytest.raises(UserError, match="depth does not depend on a query"):
        dataclasses.replace(DENSE, decoder=DECODER).build(TokenShape(width=64, rounds=3, patch_size=8))


@pytest.mark.parametrize(
    ("backbone", "decoder", "remedy"),
    [
        (
            BACKBONE,
            None,
            r"requires tokens that know the query time, .*set 'model\.backbone\.query=\{\}', or",
        ),
        (EARLY, DECODER, r"twice; set model\.backbone\.query=null, or model\.heads\.motion\.decoder=null"),
    ],
    ids=["neither", "both"],
)
def test_the_query_time_reaches_a_motion_head_one_way(
    backbone: AlternatingConfig, decoder: QueryDecoderConfig | None, remedy: str
) -> None:
    heads = {"motion": dataclasses.replace(DENSE, output="motion", decoder=decoder)}
    with pytest.raises(UserError, match=rf"model\.heads\.motion .*{remedy}") as raised:
        ModelConfig(backbone=backbone, heads=heads).build()
    assert len(str(raised.value).splitlines()) == 1


def test_features_that_nothing_teaches_or_other_cells_search_are_refused() -> None:
    with pytest.raises(UserError, match=r"nothing teaches .*model\.backbone\.correlation=null"):
        ModelConfig(backbone=LATE, heads=HEADS).build()
    other = dataclasses.replace(DECODER, correlation=dataclasses.replace(CORRELATION, radius=2))
    with pytest.raises(
        UserError,
        match=r"which the alternating backbone has of other settings; set 'model\.heads\.motion\.decoder\.correlation=",
    ):
        ModelConfig(backbone=LATE, heads={"motion": dataclasses.replace(DENSE, output="motion", decoder=other)}).build()


def test_frames_refer_to_their_own_camera_at_the_query_time() -> None:
    clip = ask(make_clip(), 0.5)
    there = frames_at(clip, clip.query_times[:, 0])
    assert there[0].tolist() == [False, True, False, True]
    assert reference_frames(there, clip.camera_ids)[0].tolist() == [1, 1, 3, 3]
    alone = torch.tensor([[False, True, False, False]])
    assert reference_frames(alone, clip.camera_ids[:1])[0].tolist() == [1, 1, 1, 1]
    assert reference_frames(there, clip.camera_ids * 2**40)[0].tolist() == [1, 1, 3, 3], "ids are any numbers"


def test_a_frame_is_compared_with_those_around_it_in_time_of_its_own_camera() -> None:
    times, ids = torch.tensor([[0.2, 0.0, 0.1, 0.1, 0.3]]), torch.tensor([[0, 0, 0, 1, 1]])
    assert neighbour_frames(times, ids, later=True).tolist() == [[0, 2, 0, 4, 4]]
    assert neighbour_frames(times, ids, later=False).tolist() == [[2, 1, 1, 3, 3]]


def moved_features(shift: float) -> Tensor:
    """Smooth maps of two frames; the second shows the first ``shift`` cells to the right and one down."""
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    places = torch.rand(64, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([9.0, 7.0])
    frames = [torch.stack([x - right, y - down], dim=-1) for right, down in ((0.0, 0.0), (shift, 1.0))]
    maps = torch.stack([(-(each[None] - places[:, None, None]).square().sum(-1) / 4).exp() for each in frames])
    return 8 * torch.nn.functional.normalize(maps, dim=1)[None]


def test_the_search_finds_where_the_features_went() -> None:
    features = moved_features(1.0)
    found = search(features, features[:, [1, 1]], radius=2)
    inner = found.displacement[0, 0, 1:-2, 2:-2]
    torch.testing.assert_close(inner, torch.tensor([1.0, 1.0]).expand_as(inner), atol=0.2, rtol=0)
    assert found.displacement[0, 1, 1:-1, 1:-1].abs().max() < 0.2, "a frame shows its own places where they are"
    assert (found.mass > 0).all()
    assert (found.mass <= 1 + 1e-4).all()


def test_the_search_tells_places_between_cells() -> None:
    features = moved_features(0.5)
    found = search(features, features[:, [1, 1]], radius=2)
    assert found.displacement[0, 0, 1:-2, 1:-2, 0].mean() == pytest.approx(0.5, abs=0.1)


def test_logits_are_products_with_the_places_around() -> None:
    features = torch.randn(1, 2, 4, 3, 5, generator=torch.Generator().manual_seed(4))
    logits = compare(features, features[:, [1, 0]], radius=1)
    assert logits.shape == (1, 2, 3, 5, 9)
    for frame, y, x, row, column in ((0, 1, 2, 0, 1), (1, 2, 0, 1, 1), (0, 0, 4, 1, 3)):
        place = 3 * (row - y + 1) + column - x + 1
        expected = features[0, frame, :, y, x] @ features[0, 1 - frame, :, row, column]
        torch.testing.assert_close(logits[0, frame, y, x, place], expected)
    assert logits[0, 0, 0, 0].isinf().tolist() == [True, True, True, True, False, False, True, False, False]
    assert not logits[0, 0, 1, 1].isinf().any()


def test_what_is_fetched_comes_from_the_place_found() -> None:
    values = torch.arange(24.0).view(1, 2, 3, 4, 1)
    place = torch.zeros(1, 2, 3, 4, 2)
    place[0, 0, 1, 1] = torch.tensor([1.0, -1.0])
    place[0, 0, 0, 0] = torch.tensor([0.5, 0.0])
    place[0, 0, 2, 3] = torch.tensor([9.0, 9.0])
    got = fetch(values, torch.tensor([[1, 1]]), place)[0, ..., 0]
    torch.testing.assert_close(got[1], values[0, 1, ..., 0])
    assert got[0, 1, 1] == values[0, 1, 0, 2]
    assert float(got[0, 0, 0]) == pytest.approx(12.5)
    assert got[0, 2, 3] == values[0, 1, 2, 3]


class TestHints:
    def test_known_values_change_the_outputs_and_unknown_ones_do_not(self) -> None:
        model, clip = build(late=False, hints=EVERY_HINT), make_clip()
        plain, known, unknown = (run(model, each).depth for each in (clip, with_hints(clip), with_hints(clip, False)))
        torch.testing.assert_close(plain, unknown)
        assert (plain - known).abs().max() > 1e-3

    @pytest.mark.parametrize("with_depth", [False, True])
    def test_the_unit_of_lengths_does_not_matter(self, with_depth: bool) -> None:
        model, clip = build(late=False, hints=EVERY_HINT), with_hints(make_clip())
        if not with_depth:
            clip = dataclasses.replace(clip, depth=None, valid=None)
        pose = clip.cameras.world_from_camera.clone()
        pose[..., :3, 3] *= 7
        depth = None if clip.depth is None else 7 * clip.depth
        large = dataclasses.replace(
            clip, cameras=dataclasses.replace(clip.cameras, world_from_camera=pose), depth=depth
        )
        torch.testing.assert_close(run(model, clip).points, run(model, large).points, atol=1e-4, rtol=1e-4)

    def test_a_clips_hints_do_not_depend_on_those_of_its_batch(self) -> None:
        """One clip with poses and depth beside one with poses only."""
        model, clip = build(late=False, hints=EVERY_HINT), with_hints(make_clip())
        valid = clip.valid.clone()
        valid[1] = False
        both = dataclasses.replace(clip, valid=valid, depth=clip.depth * valid)
        alone = map_tensors(dataclasses.replace(clip, depth=None, valid=None), lambda x: x[1:])
        torch.testing.assert_close(run(model, both).depth[1:], run(model, alone).depth, atol=1e-5, rtol=1e-5)

    def test_each_hint_counts_by_itself(self) -> None:
        clip = with_hints(make_clip())
        only = {
            "intrinsics": dataclasses.replace(
                make_clip(), cameras=dataclasses.replace(clip.cameras, known=torch.zeros(B, F, dtype=torch.bool))
            ),
            "depth": dataclasses.replace(make_clip(), depth=clip.depth, valid=clip.valid),
            "masks": dataclasses.replace(make_clip(), dynamic=clip.dynamic, dynamic_known=clip.dynamic_known),
        }
        for name, hinted in only.items():
            uses: dict[str, Use] = dict.fromkeys(("intrinsics", "poses", "depth", "masks"), "off")
            taking = build(late=False, hints=HintsConfig(**{**uses, name: "optional"}))
            assert (run(taking, make_clip()).depth - run(taking, hinted).depth).abs().max() > 1e-4, name

    def test_what_is_required_and_missing_is_named(self) -> None:
        model = build(late=False, hints=HintsConfig(intrinsics="required"))
        run(model, with_hints(make_clip()))
        for clip in (make_clip(), with_hints(make_clip(), known=False)):
            with pytest.raises(UserError, match="this model requires intrinsics"):
                run(model, clip)

    def test_a_section_that_takes_nothing_is_refused(self) -> None:
        with pytest.raises(UserError, match="every hint is off"):
            build(late=False, hints=HintsConfig(intrinsics="off"))
