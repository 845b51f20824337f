"""Weights of others: names there and back, unsafe and broken files, conversion, golden cases made of our own model."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from four_d import checkpoints, cli, schema
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.dynamics import DynamicsConfig
from four_d.backbones.patches import ConvPatchConfig, TimmPatchConfig
from four_d.errors import UserError
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.dynamic import DynamicHeadConfig
from four_d.heads.track import TrackHeadConfig
from four_d.model import FourD, ModelConfig
from four_d.weights import KINDS, KNOWN, convert, convert_back, read_state, verify
from four_d.weights.cases import read_case
from four_d.weights.convert import target_of
from four_d.weights.dinov2 import encoder_config, infer_encoder
from four_d.weights.verify import build, run_case
from four_d.weights.vggt import infer_backbone

CHANNELS = (8, 8, 12, 12)
TIMM = TimmPatchConfig(model="vit_large_patch14_reg4_dinov2", image_size=28, depth=1, embed_width=16, heads=2)


def sizes(*, timm: bool = False, mask: bool = False) -> ModelConfig:
    """A model so small that a test may build it; its shapes determine its sizes."""
    dense = {"rounds": None, "channels": CHANNELS, "features": 16, "last_features": 32}
    heads = {
        "camera": CameraHeadConfig(depth=1, heads=2),
        "depth": DenseHeadConfig(**dense),
        "points": DenseHeadConfig(output="points", **dense),
        "track": TrackHeadConfig(channels=CHANNELS, features=16, levels=2, radius=1, hidden=16, depth=1, virtual=4),
    }
    backbone = AlternatingConfig(
        patches=TIMM if timm else ConvPatchConfig(),
        width=16,
        rounds=4,
        heads=2,
        registers=2,
        dynamics=DynamicsConfig(after=1, rounds=(2, 3), hidden=8, hold=None) if mask else None,
    )
    return ModelConfig(backbone=backbone, heads={**heads, "dynamic": DynamicHeadConfig()} if mask else heads)


def noisy(model: ModelConfig, seed: int = 0) -> FourD:
    """Every weight random and of a size that matters."""
    built = model.build().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in built.named_parameters():
        centre = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.5 if name.endswith("gamma") else 0.0
        value.copy_(centre + 0.1 * torch.randn(value.shape, generator=generator))
    return built


@pytest.fixture(scope="module", params=["conv", "timm", "mask"])
def family(request: pytest.FixtureRequest) -> tuple[str, ModelConfig, FourD]:
    model = sizes(timm=request.param == "timm", mask=request.param == "mask")
    return "page_4d" if request.param == "mask" else "vggt", model, noisy(model)


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return KINDS["vggt"].adapter.to_theirs(noisy(sizes()).state_dict(), "ours")


def test_ours_to_theirs_to_ours_is_the_identity(family: tuple[str, ModelConfig, FourD]) -> None:
    kind, model, built = family
    state, adapter = built.state_dict(), KINDS[kind].adapter
    theirs = adapter.to_theirs(state, "ours")
    back = adapter.to_ours(theirs, target_of(KINDS[kind], model), "theirs")
    assert list(back) == list(state)
    for name, value in state.items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=0)
    assert {name.split(".")[0] for name in theirs} <= {"aggregator", *(f"{h}_head" for h in HEADS)}


HEADS = ("camera", "depth", "point", "track")


def test_sizes_are_read_off_the_shapes(family: tuple[str, ModelConfig, FourD]) -> None:
    kind, model, built = family
    if kind == "page_4d":
        return  # its rounds are the released ones, for 24
    theirs = KINDS[kind].adapter.to_theirs(built.state_dict(), "ours")
    assert KINDS[kind].infer(theirs) == model


def test_convert_writes_what_checkpoints_reads(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": {f"module.{k}": v for k, v in theirs.items()}, "epoch": 3}, tmp_path / "a.pt")
    out = convert("vggt", tmp_path / "a.pt", tmp_path / "out", name="vggt-1b-commercial")
    found = checkpoints.read(out)
    for name, value in noisy(sizes()).state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=0, atol=0)
    card = (out / checkpoints.CARD).read_text()
    assert "commercial use allowed, except military" in card
    assert found.info.trained_on == {"vggt-1b-commercial weights": "commercial use allowed, except military"}
    back = convert_back("vggt", out, tmp_path / "back.safetensors")
    assert {k: v.shape for k, v in load_file(back).items()} == {k: v.shape for k, v in theirs.items()}
    with pytest.raises(UserError, match="exists"):
        convert_back("vggt", out, back)


def test_the_strictest_licence_is_assumed(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(theirs, tmp_path / "a.safetensors")
    out = convert("vggt", tmp_path / "a.safetensors", tmp_path / "out")
    assert "Licence of the weights: non-commercial" in (out / checkpoints.CARD).read_text()


def test_a_bare_aggregator_and_a_config_of_its_own(tmp_path: Path) -> None:
    model = ModelConfig(backbone=sizes(mask=True).backbone, heads={"dynamic": DynamicHeadConfig()})
    named = KINDS["page_4d"].adapter.to_theirs(noisy(model).state_dict(), "ours")
    save_file({k.removeprefix("aggregator."): v for k, v in named.items()}, tmp_path / "a.safetensors")
    file = tmp_path / "sizes.yaml"
    file.write_text(json.dumps({"model": schema.to_plain(model)}))
    out = convert("page_4d", tmp_path / "a.safetensors", tmp_path / "out", configs=[str(file)])
    assert checkpoints.read(out).info.model == model
    assert checkpoints.read(out).model.state_dict()["backbone.dynamics.alpha"] == 1


@pytest.mark.parametrize("registers", [0, 1, 4, 7])
def test_a_vggt_has_any_number_of_registers(registers: int) -> None:
    """In the encoder and beside the patches; both are read off the tensors' shapes."""
    patches = encoder_config(16, 4, 28, registers=registers, heads=2)
    backbone = AlternatingConfig(patches=patches, width=16, rounds=4, heads=2, registers=registers)
    model = ModelConfig(backbone=backbone, heads={"camera": CameraHeadConfig(depth=1, heads=2)})
    mine = noisy(model).state_dict()
    state = KINDS["vggt"].adapter.to_theirs(mine, "ours")
    inferred = infer_backbone(state)
    assert (inferred.registers, inferred.patches) == (registers, patches)
    found = KINDS["vggt"].adapter.to_ours(state, mine, "theirs")
    for name, value in mine.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("registers", [0, 2, 4])
def test_dinov2_becomes_the_encoder_of_a_new_model(registers: int, tmp_path: Path) -> None:
    patches = encoder_config(64, 1, 28, registers=registers, heads=1)
    assert infer_encoder(dict(patches.build(14, 64).encoder.state_dict()))[0] == patches
    encoder = patches.build(14, 64).encoder.requires_grad_(False)
    for index, value in enumerate(encoder.parameters()):
        value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(index)))
    mine = {f"backbone.patches.encoder.{k}": v for k, v in encoder.state_dict().items()}
    state = KINDS["dinov2"].adapter.to_theirs(mine, "ours")
    assert ("register_tokens" in state) == (registers > 0)
    assert state["pos_embed"].shape == (1, 5, 64)
    backbone = AlternatingConfig(patches=patches, width=64, rounds=4, heads=1)
    depth = DenseHeadConfig(channels=(8, 8, 8, 8), features=8, last_features=8)
    sizes_file = tmp_path / "sizes.yaml"
    sizes_file.write_text(
        json.dumps({"model": schema.to_plain(ModelConfig(backbone=backbone, heads={"depth": depth}))})
    )
    for file, content in (("meta.pth", state), ("timm.safetensors", dict(encoder.state_dict()))):
        path = tmp_path / file
        torch.save(content, path) if file.endswith("pth") else save_file(content, path)
        out = convert("dinov2", path, tmp_path / f"{file}.out", configs=[str(sizes_file)])
        found = checkpoints.read(out).model.state_dict()
        for name, value in mine.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def renamed(state: dict[str, Tensor]) -> str:
    state["aggregator.camera_tokne"] = state.pop("aggregator.camera_token")
    return "has aggregator.camera_tokne, .*nearest: aggregator.camera_token"


def missing(state: dict[str, Tensor]) -> str:
    del state["depth_head.norm.weight"]
    return r"lacks depth_head.norm.weight .*nearest: \w+_head.norm"


def misshapen(state: dict[str, Tensor]) -> str:
    state["camera_head.token_norm.bias"] = torch.zeros(5)
    return "camera_head.token_norm.bias is 5, the model's is 32"


def another(state: dict[str, Tensor]) -> str:
    state.clear()
    state["layers.0.weight"] = torch.zeros(2, 2)
    return "no aggregator.frame_blocks: not a VGGT checkpoint"


@pytest.mark.parametrize("damage", [renamed, missing, misshapen, another])
def test_a_tensor_that_does_not_fit_is_named(
    damage: Callable[[dict[str, Tensor]], str], theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    state = dict(theirs)
    message = damage(state)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        convert("vggt", tmp_path / "a.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/four_d_was_harmed"),))


def write_bad(path: Path, kind: str) -> None:
    good = {"weight": torch.zeros(100)}
    if kind == "code":
        torch.save({"model": Harmful()}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Harmful()))
    elif kind.startswith("cut"):
        torch.save(good, path) if path.suffix == ".pt" else save_file(good, path)
        path.write_bytes(path.read_bytes()[: 10 if kind == "cut early" else -60])
    elif kind == "empty":
        path.touch()
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "numbers":
        torch.save({"weight": 3}, path)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a.pt", "code", "holds code or objects"),
        ("a.pt", "pickle", "holds code or objects"),
        ("a.pt", "cut early", "truncated"),
        ("a.pt", "cut late", "truncated"),
        ("a.pt", "empty", "truncated"),
        ("a.pt", "list", "holds a list, not a state dict"),
        ("a.pt", "numbers", "'weight' in it is a int"),
        ("a.safetensors", "cut early", "truncated"),
        ("a.safetensors", "cut late", "truncated"),
        ("a.safetensors", "empty", "truncated"),
        ("a.onnx", "empty", "is not a weight file"),
        ("a.pt", "none", "does not exist"),
    ],
)
def test_bad_files_are_one_clear_error(name: str, kind: str, message: str, tmp_path: Path) -> None:
    write_bad(tmp_path / name, kind)
    with pytest.raises(UserError, match=message) as raised:
        read_state(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(tmp_path))
    assert not Path("/tmp/four_d_was_harmed").exists()


def test_files_in_parts(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert set(read_state(tmp_path)) == {"a", "b"}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match=re.escape("names the shard two.safetensors")):
        read_state(index)


def write_case(folder: Path, *, mask: bool = False) -> Path:
    """A golden case in the published layout whose reference is our own model."""
    model = noisy(sizes(mask=mask))
    generator = torch.Generator().manual_seed(1)
    case: dict[str, object] = {
        "name": "ours",
        "patch_embed": {"kind": "conv"},
        "aggregator": {"patch_size": 14, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_register_tokens": 2},
        "camera_head": {"trunk_depth": 1, "num_heads": 2},
        "dpt": {"features": 16, "out_channels": list(CHANNELS), "intermediate_layer_idx": [0, 1, 2, 3]},
        "track_head": {
            "features": 16,
            "iters": 4,
            "corr_levels": 2,
            "corr_radius": 1,
            "hidden_size": 16,
            "depth": 1,
            "num_heads": 8,
            "num_virtual_tracks": 4,
        },
        "input": {"B": 1, "S": 2, "H": 28, "W": 42},
        "fp32_vs_fp64_max_abs_diff": {},
    }
    if mask:
        case["mask"] = {"predicted_after_frame_block": 1, "used_in_global_blocks": [2, 3], "scale": 64.0}
    kind = "page_4d" if mask else "vggt"
    images = torch.rand(1, 2, 3, 28, 42, generator=generator)
    inputs = {"images": images, "query_points": torch.tensor([[[3.0, 4.0], [20.5, 11.0]]])}
    folder.mkdir()
    (folder / "case.json").write_text(json.dumps(case))
    save_file(KINDS[kind].adapter.to_theirs(model.state_dict(), "ours"), folder / "weights.safetensors")
    save_file(inputs, folder / "inputs.safetensors")
    save_file({"mask_on.mask_rows": torch.zeros(1)} if mask else inputs, folder / "outputs.safetensors")
    read = read_case(folder)
    outputs = {name: value.contiguous() for name, value in run_case(build(read), read).items()}
    save_file({name: value.clone() for name, value in outputs.items()}, folder / "outputs.safetensors")
    return folder


@pytest.mark.parametrize("mask", [False, True])
def test_verify_says_whether_outputs_agree(mask: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_case(tmp_path / "case", mask=mask)
    assert cli.main(["weights", "verify", str(folder)]) == 0
    names = {row.name.removeprefix("mask_on.") for row in verify(folder).rows}
    assert names >= {"patch_tokens", "aggregator.block_03", "pose_enc", "extrinsic", "depth", "world_points", "track"}
    assert (names >= {"mask_rows", "mask_keys", "mask_head_input"}) == mask
    weights = load_file(folder / "weights.safetensors")
    weights["aggregator.global_blocks.3.mlp.fc2.bias"] += 1e-3
    save_file(weights, folder / "weights.safetensors")
    capsys.readouterr()
    assert cli.main(["weights", "verify", str(folder)]) == 1
    assert "differs" in capsys.readouterr().out
    good = {row.name for row in verify(folder).rows if row.good}
    assert {name.removeprefix("mask_on.") for name in good} >= {"patch_tokens", "block_02"}
    assert "block_03" not in {name.removeprefix("mask_on.") for name in good}


def test_outputs_that_are_not_there_are_not_asked_for(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    outputs = load_file(folder / "outputs.safetensors")
    save_file({"depth": outputs["depth"]}, folder / "outputs.safetensors")
    save_file({"depth": outputs["depth"].double()}, folder / "outputs_fp64.safetensors")
    rows = verify(folder).rows
    assert [(row.name, row.exact) for row in rows] == [("depth", False), ("depth", True)]
    save_file({"normals": outputs["depth"]}, folder / "outputs.safetensors")
    assert not verify(folder).good


def no_case(folder: Path) -> str:
    (folder / "case.json").unlink()
    return "case.json does not exist"


def bad_json(folder: Path) -> str:
    (folder / "case.json").write_text("{")
    return "is not JSON"


def no_inputs(folder: Path) -> str:
    (folder / "inputs.safetensors").unlink()
    return "inputs.safetensors does not exist"


def changed(section: str, name: str, value: object, message: str) -> Callable[[Path], str]:
    def change(folder: Path) -> str:
        case = json.loads((folder / "case.json").read_text())
        case[section][name] = value
        (folder / "case.json").write_text(json.dumps(case))
        return message

    return change


@pytest.mark.parametrize(
    "damage",
    [
        no_case,
        bad_json,
        no_inputs,
        changed("aggregator", "embed_dim", None, "aggregator lacks embed_dim"),
        changed("aggregator", "num_heads", 0, "num_heads is 0; it must be a whole number from 1 on"),
        changed("aggregator", "embed_dim", 32, "the model's is"),
        changed("aggregator", "norm_eps", 1e-3, "four_d supports only 1e-05"),
        changed("input", "H", 56, "case.json says"),
    ],
)
def test_a_broken_case_is_one_clear_error(damage: Callable[[Path], str], tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    message = damage(folder)
    with pytest.raises(UserError, match=re.escape(message)):
        verify(folder)


def test_list_names_every_known_file_and_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["weights", "list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for each in KNOWN:
        assert each.name in printed
        assert each.licence in printed


def test_unknown_kinds_and_names_are_refused(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(theirs, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="choose one of vggt, page_4d, dinov2"):
        convert("dust3r", tmp_path / "a.safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="choose one of vggt-1b, vggt-1b-commercial"):
        convert("vggt", tmp_path / "a.safetensors", tmp_path / "out", name="dinov2-small")
