from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.data.sampling import collate, normalise, to_clip, to_example
from four_d.errors import UserError
from four_d.heads import HeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.track import (
    TrackHeadConfig,
    check_queries,
    correlate,
    embed_flow,
    embed_position,
    grid_points,
    pyramid,
    sample,
    window,
)
from four_d.losses.reduction import cross_entropy
from four_d.losses.supervision import supervised
from four_d.losses.track import TrackLossConfig, pixel_truth
from four_d.model import FourD, ModelConfig
from four_d.tracing import to_program
from four_d.types import Clip, Prediction, map_tensors
from tests.helpers import box_clip, loss_value, without_surface

SMALL = TrackHeadConfig(
    channels=(8, 8, 8, 8), features=16, levels=3, radius=2, hidden=16, depth=2, heads=2, virtual=4, iterations=3
)
BACKBONE = AlternatingConfig(patch_size=8, width=32, rounds=4, heads=2, registers=2, layer_scale=0.5, special_std=0.5)
FIELDS = ("pixel_tracks", "pixel_tracks_visible", "pixel_tracks_confidence")


def build(head: TrackHeadConfig = SMALL) -> FourD:
    """With an update whose first steps are not nearly zero, so that there is something to compare."""
    torch.manual_seed(0)
    model = ModelConfig(backbone=BACKBONE, heads={"track": head}).build()
    torch.nn.init.normal_(model.heads["track"].update.out.weight, std=0.3)
    return model.double().eval()


def make_clip(queries: Tensor | None = None, b: int = 1, f: int = 4, h: int = 32, w: int = 40) -> Clip:
    generator = torch.Generator().manual_seed(1)
    return Clip(
        images=torch.rand(b, f, 3, h, w, generator=generator).double(),
        times=torch.arange(f).float().expand(b, -1),
        camera_ids=torch.zeros(b, f, dtype=torch.long),
        query_points=queries,
    )


def make_queries(b: int = 1, n: int = 6, h: int = 32, w: int = 40) -> Tensor:
    drawn = torch.rand(b, n, 2, generator=torch.Generator().manual_seed(2)).double()
    return torch.nn.functional.pad(drawn * torch.tensor([w, h]), (1, 0))


def fields(found: Prediction) -> list[Tensor]:
    """All outputs, points last but one."""
    return [getattr(found, name) for name in FIELDS] + list(found.pixel_track_stages)


def test_points_start_at_the_query_exactly_and_move_elsewhere() -> None:
    queries = make_queries(b=2)
    with torch.no_grad():
        found = build()(make_clip(queries, b=2))
    assert found.pixel_track_stages.shape == (3, 2, 4, 6, 2)
    torch.testing.assert_close(
        found.pixel_track_stages[:, :, 0], queries[..., 1:].expand(3, -1, -1, -1), atol=1e-12, rtol=0
    )
    assert (found.pixel_tracks[:, 1:] - queries[:, None, :, 1:]).abs().min() > 1e-6
    assert torch.equal(found.pixel_tracks, found.pixel_track_stages[-1])
    for probability in (found.pixel_tracks_visible, found.pixel_tracks_confidence):
        assert ((probability > 0) & (probability < 1)).all()


def test_permuting_points_permutes_tracks() -> None:
    model, queries, order = build(), make_queries(), [3, 1, 5, 0, 2, 4]
    with torch.no_grad():
        straight, permuted = model(make_clip(queries)), model(make_clip(queries[:, order]))
    for one, two in zip(fields(straight), fields(permuted)):
        torch.testing.assert_close(one[:, :, order], two, atol=1e-9, rtol=1e-9)


def test_permuting_frames_other_than_the_first_permutes_tracks() -> None:
    model, clip, order = build(), make_clip(make_queries()), [0, 3, 1, 2]
    with torch.no_grad():
        straight = model(clip)
        permuted = model(dataclasses.replace(clip, images=clip.images[:, order]))
    for one, two in zip(fields(straight), fields(permuted)):
        torch.testing.assert_close(one[:, order], two, atol=1e-8, rtol=1e-8)


def test_points_of_other_frames_are_followed_from_there() -> None:
    """As if their frame came first, and whatever points of other frames are asked for beside them."""
    model, queries = build(), make_queries()
    queries[:, [1, 4], 0] = 2
    with torch.no_grad():
        found = model(make_clip(queries))
        tokens = model.backbone(make_clip(), model.rounds)
        order = [2, 0, 1, 3]
        moved = dataclasses.replace(
            tokens,
            patches=tuple(each[:, order] for each in tokens.patches),
            special=tuple(each[:, order] for each in tokens.special),
        )
        alone = queries[:, [1, 4]] * torch.tensor([0.0, 1, 1])
        expected = model.heads["track"](moved, make_clip(alone))
    torch.testing.assert_close(found.pixel_tracks[:, 2, [1, 4]], queries[:, [1, 4], 1:], atol=1e-12, rtol=0)
    for one, two in zip(fields(found), fields(expected)):
        torch.testing.assert_close(one[:, order][:, :, [1, 4]], two, atol=1e-9, rtol=1e-9)


def test_every_parameter_is_learned() -> None:
    model = build(dataclasses.replace(SMALL, grid=(3, 4))).train()
    found = model(make_clip(b=2))
    sum(each.square().sum() for each in fields(found)).backward()
    for name, parameter in model.heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert model.backbone.camera_token.grad is not None


def test_grid_is_of_pixel_centres_and_moves_only_in_training() -> None:
    clip = make_clip(h=32, w=40)
    points = grid_points((2, 5), clip, jitter=False)
    assert points.shape == (1, 10, 3)
    assert points[0, 0].tolist() == [0, 4.5, 8.5]
    assert points[0, 6].tolist() == [0, 12.5, 24.5]
    jittered = grid_points((2, 5), clip, jitter=True)
    assert ((jittered - points).abs() <= torch.tensor([0, 4, 8])).all()
    assert not torch.equal(jittered, points)
    assert (jittered[..., 1:] % 1 == 0.5).all()


def test_without_points_nothing_is_predicted() -> None:
    assert build()(make_clip()) == Prediction()


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (torch.tensor([[[0.0, 41, 3]]]), "is not in the 4 frames of 40 × 32"),
        (torch.tensor([[[4.0, 4, 3]]]), "is not in the 4 frames"),
        (torch.tensor([[[0.0, float("nan"), 3]]]), "is not in the 4 frames"),
        (torch.tensor([[0.0, 4, 3]]), r"give \(1, n, 3\)"),
        (torch.zeros(1, 0, 3), r"give \(1, n, 3\)"),
        (torch.tensor([[[0.5, 4, 3]]]), "whole number"),
    ],
)
def test_points_that_cannot_be_are_named(queries: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_queries(queries, make_clip())


def test_batches_ask_for_the_same_frames() -> None:
    queries = make_queries(b=2)
    queries[1, 0, 0] = 1
    with pytest.raises(UserError, match="different frames"):
        build()(make_clip(queries, b=2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"features": 10}, "multiple of 4"), ({"heads": 3}, "do not divide"), ({"rounds": (0, 1)}, "must be 4 numbers")],
)
def test_sizes_that_do_not_fit_are_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(dataclasses.replace(SMALL, **changed))


def test_images_too_small_for_the_levels_are_named() -> None:
    with pytest.raises(UserError, match="6 levels need feature maps of 32 cells a side, not 16"):
        build(dataclasses.replace(SMALL, levels=6))(make_clip(make_queries()))


def test_correlation_finds_where_the_map_has_moved() -> None:
    """The best of all offsets (x, y) is the one by which the second frame's map is shifted."""
    first = torch.randn(1, 1, 32, 20, 24, generator=torch.Generator().manual_seed(3))
    second = first.roll((-1, 2), dims=(-2, -1))  # up by 1, right by 2
    at = torch.tensor([[[[10.0, 9.0], [12.0, 12.0]]]])
    features = sample(first[:, 0], at[:, 0, :, None], border=True)[..., 0].mT[:, None]
    offsets = window(3, at)
    best = correlate(features, second, at, offsets).argmax(-1)
    assert offsets[best].flatten(0, 2).tolist() == [[2.0, -1.0]] * 2


def test_both_ways_to_correlate_agree() -> None:
    """The map of 20 × 24 cells is larger than 9 samples of 4 channels, and smaller than 81 of 16."""
    for channels, radius in ((4, 1), (16, 4)):
        generator = torch.Generator().manual_seed(4)
        maps = torch.randn(2, 3, channels, 20, 24, generator=generator).double()
        features = torch.randn(2, 3, 5, channels, generator=generator).double()
        at = (torch.rand(2, 3, 5, 2, generator=generator) * 30 - 3).double()
        offsets = window(radius, at)
        found = correlate(features, maps, at, offsets)
        for b, f, n in ((0, 0, 0), (1, 2, 4), (0, 1, 3)):
            places = (at[b, f, n] + offsets)[None, :, None]
            sampled = sample(maps[b, f][None], places, border=False)[0, :, :, 0]
            torch.testing.assert_close(found[b, f, n], features[b, f, n] @ sampled / channels**0.5)


def test_positions_are_embedded_as_a_map_of_them_would_be_sampled() -> None:
    height, width, channels = 7, 9, 20
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1).double()
    full = embed_position(grid, (height, width), channels)
    at = torch.rand(1, 30, 1, 2, generator=torch.Generator().manual_seed(5)).double() * 10 - 0.5
    sampled = sample(full.permute(2, 0, 1)[None], at, border=True)[0, :, :, 0].mT
    torch.testing.assert_close(embed_position(at[0, :, 0], (height, width), channels), sampled)
    angle = 4 * 10000 ** (-2 / 10)
    assert full[2, 4, 1].item() == pytest.approx(math.sin(angle))
    assert full[2, 4, 6].item() == pytest.approx(math.cos(angle))


def test_movements_are_embedded_by_turns() -> None:
    found = embed_flow(torch.tensor([0.125, -0.25]).double(), 16)
    frequencies = [0, 250, 500, 750]
    expected = [
        function(value * frequency)
        for value in (0.125, -0.25)
        for frequency in frequencies
        for function in (math.sin, math.cos)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_pyramid_drops_what_is_odd() -> None:
    shapes = [tuple(each.shape[-2:]) for each in pyramid(torch.zeros(1, 2, 3, 9, 14), 4)]
    assert shapes == [(9, 14), (4, 7), (2, 3), (1, 1)]


def test_half_precision_around_the_head_changes_nothing_in_it() -> None:
    model, clip = build().float(), make_clip(make_queries().float())
    clip = dataclasses.replace(clip, images=clip.images.float())
    with torch.no_grad():
        tokens = model.backbone(clip, model.rounds)
        expected = model.heads["track"](tokens, clip)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model.heads["track"](tokens, clip)
    for one, two in zip(fields(expected), fields(found)):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_exported_programs_follow_nothing() -> None:
    heads: dict[str, HeadConfig] = {
        "depth": DenseHeadConfig(channels=(8, 8, 8, 8), features=16, last_features=8),
        "track": dataclasses.replace(SMALL, grid=(2, 2)),
    }
    model = ModelConfig(backbone=BACKBONE, heads=heads).build().eval()
    _, errors = to_program(model, (32, 40))
    assert set(errors) == {"depth", "depth_confidence"}


@pytest.fixture(scope="module")
def targets() -> Clip:
    """Two clips of unequally many times: the shorter one's surface is padded."""
    clips = [
        normalise(to_clip(box_clip(seed, frames=frames, cameras=cameras, size=(32, 40)), with_surface=True))
        for seed, frames, cameras in ((3, 4, 1), (5, 2, 2))
    ]
    return collate([to_example(clip, str(index)) for index, clip in enumerate(clips)]).targets


def true_tracks(targets: Clip, grid: tuple[int, int] = (6, 8)) -> Prediction:
    """The prediction that is right, and sure of it."""
    queries = grid_points(grid, targets, jitter=False)
    found = pixel_truth(targets, queries)
    # In the first frame a head says the query itself.
    pixels = torch.cat([queries[:, None, :, 1:], found.pixels[:, 1:]], dim=1)
    return Prediction(
        pixel_tracks=pixels,
        pixel_tracks_visible_logits=100 * found.visible.float() - 50,
        pixel_tracks_confidence_logits=torch.full(found.visible.shape, 50.0),
        pixel_track_stages=pixels.repeat(3, 1, 1, 1, 1),
    )


def beside(prediction: Prediction, by: float) -> Prediction:
    """Wrong by so many pixels in x but in the first frame, and undecided."""
    moved = prediction.pixel_track_stages.clone()
    moved[:, :, 1:, :, 0] += by
    half = torch.zeros_like(prediction.pixel_tracks_visible_logits)
    found = Prediction(
        pixel_tracks=moved[-1],
        pixel_tracks_visible_logits=half,
        pixel_tracks_confidence_logits=half,
        pixel_track_stages=moved,
    )
    return map_tensors(found, lambda x: x.detach().clone().requires_grad_())


def test_truth_starts_at_the_query_and_follows_what_moves(targets: Clip) -> None:
    queries = grid_points((6, 8), targets, jitter=False)
    found = pixel_truth(targets, queries)
    assert found.valid[:, 0].any()
    error = (found.pixels[:, 0] - queries[..., 1:])[found.valid[:, 0]].abs().max()
    assert error < 0.01
    assert found.visible[:, 0][found.valid[:, 0]].all()
    assert (found.valid | ~found.visible).all()
    moved = (found.pixels[:, 1:] - queries[:, None, :, 1:]).norm(dim=-1)[found.valid[:, 1:]]
    assert moved.median() > 0.3


def test_truth_of_a_query_elsewhere_leads_back(targets: Clip) -> None:
    queries = grid_points((6, 8), targets, jitter=False)
    there = pixel_truth(targets, queries)
    seen = there.visible[:, 2] & there.visible[:, 0]
    target = there.pixels[:, 2]
    height, width = targets.images.shape[-2:]
    inside = (target.floor() + 0.5).clamp(torch.tensor(0.5), torch.tensor([width - 0.5, height - 0.5]))
    back = pixel_truth(targets, torch.nn.functional.pad(inside, (1, 0), value=2.0))
    error = (back.pixels[:, 0] - queries[..., 1:]).norm(dim=-1)[seen & back.valid[:, 0]]
    assert error.median() < 1.0  # half a pixel is lost where the place is rounded to a pixel's centre


def test_track_loss_is_nothing_at_the_truth_and_not_beside_it(targets: Clip) -> None:
    right = true_tracks(targets)
    assert loss_value(TrackLossConfig(), right, targets).item() < 0.01
    near = loss_value(TrackLossConfig(), beside(right, 1.0), targets).item()
    far = loss_value(TrackLossConfig(), beside(right, 5.0), targets).item()
    assert 0.01 < near < far
    position = TrackLossConfig(visibility=0.0, confidence=0.0, stage_decay=1.0)
    # Of four frames the first is right; x is wrong by 4, y is not.
    known = pixel_truth(targets, grid_points((6, 8), targets, jitter=False)).visible
    share = known[:, 1:].flatten(1).sum(-1) / known.flatten(1).sum(-1)
    assert loss_value(position, beside(right, 4.0), targets).item() == pytest.approx(2 * share.mean().item(), abs=0.01)


def test_confidence_is_of_being_near(targets: Clip) -> None:
    confidence = TrackLossConfig(position=0.0, visibility=0.0)
    right = true_tracks(targets)
    far = dataclasses.replace(beside(right, 4.0), pixel_tracks_confidence_logits=right.pixel_tracks_confidence_logits)
    near = dataclasses.replace(beside(right, 2.0), pixel_tracks_confidence_logits=right.pixel_tracks_confidence_logits)
    unseen = torch.full_like(right.pixel_tracks_visible_logits, torch.nan)  # of weight 0 here
    near = dataclasses.replace(near, pixel_tracks_visible_logits=unseen)
    assert loss_value(confidence, near, targets).item() < 1e-6
    assert loss_value(confidence, far, targets).item() > 5


def test_track_loss_of_a_batch_is_the_mean_of_its_clips(targets: Clip) -> None:
    prediction = beside(true_tracks(targets), 2.0)
    parts: list[Tensor] = []
    for index in range(2):
        part = map_tensors(targets, lambda x, index=index: x[index : index + 1])
        stages = prediction.pixel_track_stages[:, index : index + 1]
        mine = map_tensors(dataclasses.replace(prediction, pixel_track_stages=None), lambda x, i=index: x[i : i + 1])
        parts.append(loss_value(TrackLossConfig(), dataclasses.replace(mine, pixel_track_stages=stages), part))
    torch.testing.assert_close(loss_value(TrackLossConfig(), prediction, targets), torch.stack(parts).mean())


@pytest.mark.parametrize("how", ["no surface in the batch", "no surface in one clip", "nothing seen"])
def test_tracks_without_truth_are_exactly_zero_with_zero_gradients(targets: Clip, how: str) -> None:
    prediction, zero = beside(true_tracks(targets), 2.0), slice(None)
    if how == "no surface in the batch":
        given = dataclasses.replace(targets, surface=None)
    elif how == "nothing seen":
        faces = torch.full_like(targets.surface.faces, -1)
        given = dataclasses.replace(targets, surface=dataclasses.replace(targets.surface, faces=faces))
    else:
        bare = to_clip(without_surface(box_clip(5, frames=2, cameras=2, size=(32, 40))))
        full = to_clip(box_clip(3, frames=4, cameras=1, size=(32, 40)), with_surface=True)
        given, zero = collate([to_example(full, "a"), to_example(bare, "b")]).targets, slice(1, 2)
    loss = loss_value(TrackLossConfig(), prediction, given)
    loss.backward()
    assert (loss.item() == 0) == (how != "no surface in one clip")
    assert not supervised(given, TrackLossConfig.needs)[zero].any()
    for each in (prediction.pixel_tracks_visible_logits, prediction.pixel_tracks_confidence_logits):
        assert not each.grad[zero].any()
    assert not prediction.pixel_track_stages.grad[:, zero].any()


def test_missing_track_head_is_named(targets: Clip) -> None:
    with pytest.raises(UserError, match="add a head"):
        loss_value(TrackLossConfig(), Prediction(), targets)


def test_cross_entropy_pulls_back_what_is_sure_and_wrong() -> None:
    logits = torch.tensor([-20.0, 20.0, -1000.0, 20.0, math.log(0.25 / 0.75)], requires_grad=True)
    found = cross_entropy(logits, torch.tensor([True, False, True, True, True]))
    found.sum().backward()
    assert found.tolist() == pytest.approx([20, 20, 1000, 0, -math.log(0.25)], abs=1e-6)
    assert logits.grad.tolist() == pytest.approx([-1, 1, -1, 0, -0.75], abs=1e-6)


def test_track_loss_teaches_every_parameter_and_goes_down(targets: Clip) -> None:
    torch.manual_seed(0)
    model = ModelConfig(backbone=BACKBONE, heads={"track": dataclasses.replace(SMALL, grid=(4, 5))}).build().train()
    clip = Clip(images=targets.images, times=targets.times, camera_ids=targets.camera_ids)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses: list[float] = []
    for step in range(12):
        optimiser.zero_grad()
        torch.manual_seed(1)  # the same points in every step
        loss = loss_value(TrackLossConfig(), model(clip), targets)
        loss.backward()
        if step == 1:  # in the first step some paths are still nearly closed
            assert all(p.grad is not None and p.grad.any() for p in model.heads.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
