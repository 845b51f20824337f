"""Configs: the shipped ones build, values are checked, branches are chosen, mistakes name themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from four_d import config as configs
from four_d.errors import UserError

BASE = ["vggt", "overlays/tiny"]
DATA = ["data.sources.synthetic.path=somewhere"]
SIZES = {"tiny": 4.0e6, "small": 7.0e6, "medium": 33e6}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_build_and_keep_their_promise(size: str) -> None:
    config = configs.load(["vggt", f"overlays/{size}"], DATA)
    with torch.device("meta"):
        model = config.model.build()
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.7 * SIZES[size] <= parameters <= SIZES[size]


OVERLAYS = [name for name in configs.shipped_configs() if name.startswith("overlays/")]
DEPT3R = ["dept3r", "overlays/mini", "overlays/dept3r_mini"]
UNIFIED = ["unified", "overlays/mini", "overlays/dept3r_mini", "overlays/dept3r_late_mini"]
LARGE_DEPT3R = ["overlays/dept3r_phase_1", "overlays/dept3r_late"]


@pytest.mark.parametrize(
    ("files", "least", "most"),
    [
        (["dgs_lrm"], 300e6, 320e6),
        (["dgs_lrm", "overlays/dgs_lrm_mini"], 3e6, 4e6),
        ([*UNIFIED, "overlays/unified_mini"], 5e6, 7e6),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_models_with_gaussians_build_and_keep_their_promise(files: list[str], least: float, most: float) -> None:
    """The small ones are at most 8 and 14 MB in bfloat16."""
    config = configs.load(files, DATA)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in config.model.build().parameters())
    assert least < parameters <= most
    assert config.data.sampling.min_frames == config.data.sampling.max_frames == config.model.heads["gaussian"].frames


def test_there_is_an_overlay_for_every_size() -> None:
    assert {"overlays/tiny", "overlays/small", "overlays/medium", "overlays/debug"} <= set(OVERLAYS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_shipped_overlay_loads_on_top_of_what_it_is_for(overlay: str) -> None:
    """Those of one system lie on that system, all others on VGGT."""
    base = DEPT3R if "dept3r" in overlay else BASE
    base = ["dept3r", "overlays/large"] if overlay in LARGE_DEPT3R else base
    base = ["dgs_lrm"] if "dgs_lrm" in overlay else UNIFIED if "unified" in overlay else base
    configs.load([*base, overlay], DATA)


def test_a_motion_head_has_the_size_of_the_point_head_it_starts_from() -> None:
    for size in ("overlays/large", "overlays/small", "overlays/mini"):
        heads = configs.load(["dept3r", size], DATA).model.heads
        shared = ("rounds", "channels", "features", "last_features")
        assert [getattr(heads["motion"], s) for s in shared] == [getattr(heads["points"], s) for s in shared]


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = configs.load(BASE, [*DATA, "optimiser.lr=3e-4", "optimiser.trainable=[backbone.*]"])
    (tmp_path / "run.yaml").write_text(configs.to_yaml(config))
    assert configs.load([tmp_path / "run.yaml"]) == config
    assert config.optimiser.lr == 3e-4
    assert config.optimiser.trainable == ("backbone.*",)


def test_weights_and_groups_are_values_like_all_others(tmp_path: Path) -> None:
    group = (
        "optimiser.groups.mask={parameters: [backbone.dynamics.*], lr: 2e-5, weight_decay: 0.02, warmup_share: 0.15}"
    )
    config = configs.load(BASE, [*DATA, "weights.path=runs/a", "weights.fresh=[backbone.dynamics.*]", group])
    assert config.weights == configs.WeightsConfig(path="runs/a", fresh=("backbone.dynamics.*",))
    patterns = ("backbone.dynamics.*",)
    mask = configs.GroupConfig(parameters=patterns, lr=2e-5, weight_decay=0.02, warmup_share=0.15)
    assert config.optimiser.groups == {"mask": mask}
    (tmp_path / "run.yaml").write_text(configs.to_yaml(config))
    assert configs.load([tmp_path / "run.yaml"]) == config
    assert configs.load([tmp_path / "run.yaml"], ["weights=null", "optimiser.groups.mask=null"]).weights is None


def test_copies_are_patterns_that_null_takes_out_again(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("weights: {copies: {'heads.motion.*': 'heads.points.*'}}")
    copied = configs.load([*BASE, tmp_path / "one.yaml"], DATA)
    assert copied.weights == configs.WeightsConfig(copies={"heads.motion.*": "heads.points.*"})
    (tmp_path / "run.yaml").write_text(configs.to_yaml(copied))
    assert configs.load([tmp_path / "run.yaml"]) == copied
    without = configs.load([*BASE, tmp_path / "one.yaml"], [*DATA, "weights.copies={'heads.motion.*': null}"])
    assert without.weights == configs.WeightsConfig(copies={"heads.motion.*": None})


def test_files_merge_left_to_right_then_overrides_then_interpolation(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: one\nseed: 1\nloop: {max_steps: 10, epoch_steps: '${loop.max_steps}'}\n")
    (tmp_path / "two.yaml").write_text("name: two\n")
    config = configs.load([*BASE, tmp_path / "one.yaml", tmp_path / "two.yaml"], [*DATA, "loop.max_steps=20"])
    assert (config.name, config.seed, config.loop.epoch_steps) == ("two", 1, 20)


def test_null_removes_an_entry() -> None:
    config = configs.load(BASE, [*DATA, "model.heads.points=null", "losses.points=null"])
    assert set(config.model.heads) == set(config.losses) == {"camera", "depth"}


def test_kind_chooses_the_branch() -> None:
    config = configs.load(BASE, [*DATA, "model.backbone.patches={kind: conv}"])
    assert type(config.model.backbone.patches).__name__ == "ConvPatchConfig"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.heads.depth.kind=dpt", r"config\.model\.heads\.depth\.kind is 'dpt'; choose one of camera, dense"),
        ("optimiser.lrr=1", r"config\.optimiser\.lrr is not a setting; did you mean lr"),
        ("optimiser.lr=fast", r"config\.optimiser\.lr is 'fast': .*Float"),
        ("loop.precision=fp8", r"config\.loop\.precision is 'fp8': .*'fp32', 'bf16'"),
        ("data.image_size=[1,2,3]", r"config\.data\.image_size"),
        ("seed=[1]", r"config\.seed"),
        ("loop.epoch_steps=0", r"config\.loop: max_steps, epoch_steps and accumulate must be at least 1"),
        ("loop.ema=2.0", r"config\.loop: .*ema in \[0, 1\)"),
        ("optimiser.lr=-1.0", r"config\.optimiser: lr and clip_norm must be positive"),
        ("logging.every=0", r"config\.logging: every must be at least 1"),
        ("model.heads.depth=5", r"config\.model\.heads\.depth"),
        ("name", r"'name' is not key=value"),
        ("weights.fresch=[a]", r"config\.weights\.fresch is not a setting; did you mean fresh"),
        ("weights.copies={a: 'b.*'}", r"config\.weights: copies: 'a' must hold one \*, as in"),
        ("weights.copies={'a.*': 'b.?.*'}", r"config\.weights: copies: .* must hold one \*"),
        ("optimiser.groups.mask={lr: 1e-5}", r"config\.optimiser\.groups\.mask\.parameters is missing"),
        ("optimiser.groups.mask={parameters: [a], lr: -1}", r"groups\.mask: .*lr must be positive"),
        ("optimiser.clip=each", r"config\.optimiser\.clip is 'each'"),
        ("loop.max_steps=${nothing.here}", r"cannot read config .*nothing"),
    ],
)
def test_mistakes_name_the_value_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        configs.load(BASE, [*DATA, override])
    assert len(str(caught.value).splitlines()) <= 2


def test_missing_value_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.data\.sources is missing"):
        configs.load(BASE)
    with pytest.raises(UserError, match=r"vgt does not exist; did you mean vggt"):
        configs.load(["vgt"])
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="is not YAML"):
        configs.load([tmp_path / "broken.yaml"])


def test_diff_names_what_changed() -> None:
    left = configs.to_plain(configs.load(BASE, DATA))
    right = configs.to_plain(configs.load(BASE, [*DATA, "seed=7"]))
    assert configs.diff(left, right) == [("seed", 0, 7)]


def test_a_unit_that_poses_tell_needs_a_model_of_given_poses() -> None:
    with pytest.raises(UserError, match=r"model.heads.camera would answer in it; set data.normalisation=mean_distance"):
        configs.load(["unified"], [*DATA, "data.normalisation=disparity"])
    none = [f"model.heads.{name}=null" for name in ("camera", "depth", "points", "motion")]
    nothing = [f"losses.{name}=null" for name in ("camera", "depth", "points", "motion", "dynamic")]
    with pytest.raises(UserError, match="this model needs no poses"):
        configs.load(["unified"], [*DATA, "data.normalisation=disparity", *none, *nothing])
    hints = ["model.backbone.hints={intrinsics: required, poses: required}", "data.hints={intrinsics: 1, poses: 1}"]
    run = configs.load(["unified"], [*DATA, "data.normalisation=disparity", *none, *nothing, *hints])
    assert run.model.heads.keys() == {"dynamic", "gaussian"}, "which say nothing of lengths but Gaussians"


def test_motion_needs_query_times_and_hints_need_a_model_that_takes_them() -> None:
    motion = ["losses.motion.kind=motion", "model.heads.motion={kind: dense, output: motion}"]
    with pytest.raises(UserError, match=r"set data.query_times=1 or remove it"):
        configs.load(BASE, [*DATA, *motion])
    assert configs.load(BASE, [*DATA, *motion, "data.query_times=2"]).data.query_times == 2
    with pytest.raises(UserError, match=r"data.hints.intrinsics is 0.5, and the model takes none"):
        configs.load(BASE, [*DATA, "data.hints.intrinsics=0.5"])
    required = "model.backbone.hints={kind: hints, intrinsics: required}"
    with pytest.raises(UserError, match=r"the model requires intrinsics; set data.hints.intrinsics=1"):
        configs.load(BASE, [*DATA, required, "data.hints.intrinsics=0.5"])
    assert configs.load(BASE, [*DATA, required, "data.hints.intrinsics=1"]).data.hints.intrinsics == 1
