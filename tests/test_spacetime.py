"""The space-time backbone: cubes by camera and time, coordinates of the first frame, references that are only seen."""

from __future__ import annotations

import dataclasses

import pytest
import roma
import torch
from torch import Tensor

from four_d.backbones.patches import FeaturePatchConfig
from four_d.backbones.spacetime import SpacetimeBackbone, SpacetimeConfig, split_cubes, stamps
from four_d.correlation import CorrelationConfig
from four_d.encoders import EncoderConfig
from four_d.errors import UserError
from four_d.geometry import make_pose
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.gaussian import GaussianHeadConfig
from four_d.model import FourD, ModelConfig, kept_rounds
from four_d.types import Cameras, Clip, Tokens, map_tensors

BACKBONE = SpacetimeConfig(width=32, depth=2, heads=2, stride=2, patch_size=8)


def posed_clip(b: int = 1, f: int = 4, h: int = 16, w: int = 24) -> Clip:
    generator = torch.Generator().manual_seed(1)
    rotation = roma.rotvec_to_rotmat(torch.randn(b, f, 3, generator=generator) * 0.2)
    focal = 20 + 5 * torch.rand(b, f, generator=generator)
    intrinsics = torch.tensor([[0.0, 0, w / 2 + 0.3], [0, 0, h / 2 - 0.2], [0, 0, 1]]).repeat(b, f, 1, 1)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = focal, focal * 1.1
    return Clip(
        images=torch.rand(b, f, 3, h, w, generator=generator),
        times=torch.arange(f).float().expand(b, -1) / 12,
        camera_ids=torch.zeros(b, f, dtype=torch.long),
        cameras=Cameras(
            world_from_camera=make_pose(rotation, torch.randn(b, f, 3, generator=generator) * 0.3),
            intrinsics=intrinsics,
        ),
    )


def take(clip: Clip, order: list[int]) -> Clip:
    return map_tensors(clip, lambda tensor: tensor[:, order])


def backbone(config: SpacetimeConfig = BACKBONE) -> SpacetimeBackbone:
    torch.manual_seed(0)
    return config.build()


def model(frames: int = 4, config: SpacetimeConfig = BACKBONE) -> FourD:
    torch.manual_seed(0)
    return ModelConfig(backbone=config, heads={"gaussian": GaussianHeadConfig(frames=frames)}).build()


def tokens_of(clip: Clip, network: SpacetimeBackbone) -> Tensor:
    with torch.no_grad():
        return network(clip).patches[-1]


def test_one_row_of_tokens_per_cube() -> None:
    network = backbone()
    tokens: Tokens = network(posed_clip(b=2, f=6), (0, 1))
    assert [each.shape for each in tokens.patches] == [(2, 3, 6, 32)] * 2
    assert [each.shape for each in tokens.special] == [(2, 3, 0, 32)] * 2
    assert (tokens.grid, tokens.rounds) == ((2, 3), (0, 1))
    assert tokens.frames.tolist() == [[0, 2, 4]] * 2


def test_a_token_knows_its_own_patch() -> None:
    """Without attention, a change of one pixel changes one token."""
    network, clip = backbone(), posed_clip()
    network.blocks = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    images = clip.images.clone()
    images[0, 3, 1, 9, 17] += 0.5  # frame 3: second cube; row 1, column 2 of the patches
    changed = tokens_of(dataclasses.replace(clip, images=images), network) - tokens_of(clip, network)
    assert (changed[0].abs().amax(-1) > 0).nonzero().tolist() == [[1, 5]]


def test_an_encoder_of_images_shows_a_token_the_frames_of_its_own_cube() -> None:
    encoder = EncoderConfig(model="test_efficientnet", strides=(4, 8), frozen=False)
    search = CorrelationConfig(cells=2, channels=8, depth=1, radius=2, encoded=True)
    config = dataclasses.replace(
        BACKBONE, patches=FeaturePatchConfig(encoder=encoder), correlation=search, times=4, patch_size=8
    )
    network, clip = backbone(config).eval(), posed_clip(h=32, w=32)
    network.blocks = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    network.across = None  # the first frame's matches are in all frames
    images = clip.images.clone()
    images[0, 3] += 0.2 * torch.rand(images[0, 3].shape)
    changed = tokens_of(dataclasses.replace(clip, images=images), network) - tokens_of(clip, network)
    assert (changed.abs().amax((0, 2, 3)) > 1e-4).tolist() == [False, True]
    whole = backbone(config)
    tokens = whole(clip)
    assert tokens.matches is not None
    tokens.patches[-1].sum().backward()
    assert whole.patches.project.weight.grad.any()
    assert whole.join.weight.grad.any()


def test_order_in_time_matters_and_order_in_the_clip_does_not() -> None:
    network, clip = backbone(), posed_clip()
    straight = tokens_of(clip, network)
    order = [0, 3, 1, 2]
    shuffled = network(take(clip, order))
    torch.testing.assert_close(shuffled.patches[-1], straight)
    assert [order[frame] for frame in shuffled.frames[0]] == [0, 2]
    other_times = dataclasses.replace(clip, times=clip.times[:, order])
    assert (tokens_of(other_times, network) - straight).abs().max() > 1e-3


def test_another_world_leaves_everything_as_it_is() -> None:
    network, clip = backbone().double(), map_tensors(posed_clip(), lambda t: t.double() if t.is_floating_point() else t)
    assert clip.cameras is not None
    moved = make_pose(roma.random_rotmat(dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    cameras = dataclasses.replace(clip.cameras, world_from_camera=moved @ clip.cameras.world_from_camera)
    torch.testing.assert_close(tokens_of(dataclasses.replace(clip, cameras=cameras), network), tokens_of(clip, network))


def test_references_are_seen_and_have_no_rows() -> None:
    network, clip = backbone(), posed_clip(f=6)
    times = clip.times.clone()
    times[:, 2], times[:, 5] = 9.0, -4.0
    references = torch.zeros_like(times, dtype=torch.bool)
    references[:, [2, 5]] = True
    clip = dataclasses.replace(clip, times=times, references=references)
    tokens = network(clip)
    assert tokens.frames.tolist() == [[0, 3]]
    without = tokens_of(dataclasses.replace(take(clip, [0, 1, 3, 4]), references=None), network)
    images = clip.images.clone()
    images[:, 5] = 1 - images[:, 5]
    other = tokens_of(dataclasses.replace(clip, images=images), network)
    assert without.shape == other.shape == tokens.patches[-1].shape
    for each in (without, other):
        assert (each - tokens.patches[-1]).abs().max() > 1e-4
    torch.testing.assert_close(tokens_of(take(clip, [0, 5, 1, 2, 3, 4]), network), tokens.patches[-1])


def test_frames_of_a_cube_are_of_one_camera() -> None:
    clip = posed_clip(f=8)
    ids = torch.tensor([[0, 1] * 4])
    rig = dataclasses.replace(clip, times=torch.arange(4.0).repeat_interleave(2)[None], camera_ids=ids)
    assert split_cubes(rig, 2)[0].tolist() == [[[0, 2], [4, 6], [1, 3], [5, 7]]]
    with pytest.raises(UserError, match=r"camera 0 has 3 frames .* takes 2 at a time; give each camera 2, 4, 6 …"):
        split_cubes(dataclasses.replace(rig, camera_ids=torch.tensor([[0, 1, 0, 1, 0, 1, 1, 1]])), 2)


def test_time_stamps_fill_minus_one_to_one_and_go_on_slowly() -> None:
    clip = dataclasses.replace(posed_clip(), times=torch.tensor([[2.0, 4.0, 3.0, 103.0]]))
    clip = dataclasses.replace(clip, references=torch.tensor([[False, False, False, True]]))
    far = 1 + torch.tensor(100.0).log().item()
    torch.testing.assert_close(stamps(clip), torch.tensor([[-1.0, 1.0, 0.0, far]]), atol=0.02, rtol=0)
    one = dataclasses.replace(clip, times=torch.zeros(1, 4), references=None)
    assert stamps(one).tolist() == [[-1.0] * 4]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(checkpointing: bool) -> None:
    network = model(config=dataclasses.replace(BACKBONE, checkpointing=checkpointing, layer_scale=0.1, qk_norm=True))
    gaussians = network(posed_clip(b=2)).gaussians
    parts = [part for field in dataclasses.fields(gaussians) if (part := getattr(gaussians, field.name)) is not None]
    sum((each * torch.randn_like(each)).sum() for each in parts if each.requires_grad).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_bf16_autocast_is_finite_and_rays_stay_exact() -> None:
    network, clip = model(), posed_clip()
    with torch.autocast("cpu", torch.bfloat16):
        low = network(clip).gaussians
    full = network(clip).gaussians
    assert low.means.dtype == torch.float32
    torch.testing.assert_close(low.means, full.means, atol=0.05, rtol=0.05)


def without(clip: Clip, **changes: object) -> Clip:
    return dataclasses.replace(clip, **changes)


def test_mistakes_are_named_with_their_remedy() -> None:
    network, clip = backbone(), posed_clip()
    assert clip.cameras is not None
    unknown = dataclasses.replace(clip.cameras, known=torch.tensor([[True, True, False, True]]))
    with pytest.raises(UserError, match=r"the clip has none; give them \(--cameras, .* configs/unified\.yaml"):
        network(without(clip, cameras=None))
    with pytest.raises(UserError, match=r"some are unknown; give them \(--cameras"):
        network(without(clip, cameras=unknown))
    with pytest.raises(
        UserError, match=r"the clip has 3 frames .* takes 2 at a time; give each camera 2, 4, 6 … frames"
    ):
        network(take(clip, [0, 1, 2]))
    with pytest.raises(UserError, match="multiples of the model's patch size 8; resize or crop them to 16 × 16"):
        network(without(clip, images=clip.images[..., :20]))
    two = posed_clip(b=2)
    uneven = torch.tensor([[True, False, False, False], [True, True, False, False]])
    with pytest.raises(UserError, match="1 to 2 reference frames; give each clip as many"):
        network(without(two, references=uneven))
    with pytest.raises(UserError, match="a head reads round 2, the backbone has 0 to 1"):
        kept_rounds([2], 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ModelConfig(backbone=BACKBONE, heads={"depth": DenseHeadConfig()}),
            r"heads\.depth requires tokens of every frame, which the spacetime backbone .*configs/unified\.yaml",
        ),
        (
            ModelConfig(backbone=BACKBONE, heads={"splats": GaussianHeadConfig(frames=5)}),
            r"heads\.splats\.frames 5 is not a multiple of model\.backbone\.stride 2",
        ),
        (ModelConfig(backbone=SpacetimeConfig(width=30, heads=4)), "width 30 must be a multiple of heads 4"),
        (ModelConfig(backbone=SpacetimeConfig(stride=0)), "stride, width, depth and heads must be at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(config: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.build()


def test_it_asks_for_whole_cameras() -> None:
    assert BACKBONE.takes["intrinsics"] == BACKBONE.takes["poses"] == "required"
