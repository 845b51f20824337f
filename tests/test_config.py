"""Configs: the shipped ones build, values are checked, branches are chosen, mistakes name themselves."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import typing
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import cast

import pytest
import torch

from four_d import config as configs
from four_d import schema
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig
from four_d.heads.gaussian import GaussianHeadConfig
from four_d.losses import CameraLossConfig, DepthLossConfig, MotionLossConfig, PointsLossConfig
from four_d.overlays import shipped_configs
from four_d.query import QueryConfig
from four_d.schema import Plain

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


OVERLAYS = [name for name in shipped_configs() if name.startswith("overlays/")]
DEPT3R = ["overlays/dept3r_mini"]


@pytest.mark.parametrize(
    ("files", "least", "most"),
    [
        (["dgs_lrm"], 300e6, 320e6),
        (["overlays/dgs_lrm_mini"], 3e6, 4e6),
        (["overlays/dgs_lrm_base"], 3e6, 7.5e6),
        (["overlays/unified_mini"], 5e6, 7e6),
        (["overlays/unified_base"], 11e6, 12.5e6),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_models_with_gaussians_build_and_keep_their_promise(files: list[str], least: float, most: float) -> None:
    """The small ones are at most 8, 15, 14 and 25 MB in bfloat16."""
    config = configs.load(files, DATA)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in config.model.build().parameters())
    assert least < parameters <= most
    assert config.data.sampling.min_frames == config.data.sampling.max_frames == config.model.heads["gaussian"].frames


@pytest.mark.parametrize(
    "files",
    [
        ["dgs_lrm"],
        ["overlays/dgs_lrm_512"],
        ["overlays/dgs_lrm_mini"],
        ["overlays/dgs_lrm_base"],
        ["unified", "overlays/large"],
        ["overlays/unified_mini"],
        ["overlays/unified_base"],
    ],
    ids="+".join,
)
def test_gaussians_start_about_as_wide_as_a_pixel(files: list[str]) -> None:
    config = configs.load(files, DATA)
    (head,) = (each for each in config.model.heads.values() if isinstance(each, GaussianHeadConfig))
    width = math.exp(head.scale_start) * head.unit / head.start * max(config.data.image_size)
    assert 0.5 < width < 2.5, "standard deviation in pixels, at the longer side as focal length"


def test_there_is_an_overlay_for_every_size() -> None:
    assert {"overlays/tiny", "overlays/small", "overlays/medium", "overlays/debug"} <= set(OVERLAYS)


RECIPES = [
    ["overlays/demo"],
    ["vggt", "overlays/large", "overlays/vggt_paper_losses"],
    ["page_4d", "overlays/large"],
    ["overlays/page_4d_reference"],
    ["overlays/dept3r_phase_1"],
    ["overlays/dept3r_late"],
    ["overlays/dept3r_late_mini"],
    ["overlays/dgs_lrm_512"],
    ["overlays/dgs_lrm_mini"],
    ["overlays/dgs_lrm_base"],
    ["unified", "overlays/large"],
    ["overlays/unified_mini"],
    ["overlays/unified_base"],
]


@pytest.mark.parametrize("files", RECIPES, ids="+".join)
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_an_override_changes_what_it_names_and_nothing_else(files: list[str], place: int) -> None:
    """One setting of every part, given the value that it has: defaults are those of where a part stands."""
    given = configs.load_plain(files, DATA)
    run = schema.build(configs.RunConfig, given, "config")
    whole = cast(Plain, schema.to_plain(run))
    overridden = reduce(lambda plain, setting: put(plain, *setting), settings(whole, place), given)
    again = schema.build(configs.RunConfig, overridden, "config")
    assert schema.diff(whole, schema.to_plain(again)) == []


def settings(plain: Plain, place: int, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Names and value of the first or last setting of every mapping, which is no mapping itself."""
    parts = {key: cast(Plain, value) for key, value in plain.items() if isinstance(value, dict)}
    if own := [key for key in plain if key not in parts and key != "kind"]:
        yield (*path, own[place]), plain[own[place]]
    for key, part in parts.items():
        yield from settings(part, place, (*path, key))


def put(plain: Plain, path: tuple[str, ...], value: object) -> Plain:
    """``plain`` with one setting more, or another value of it."""
    first, *rest = path
    old = plain.get(first)
    inner = cast(Plain, old) if isinstance(old, dict) else {}
    return {**plain, first: put(inner, tuple(rest), value) if rest else value}


def test_a_part_keeps_the_defaults_of_where_it_stands() -> None:
    motion = configs.load(DEPT3R, [*DATA, "losses.motion.pixels.confidence=0.5"]).losses["motion"]
    assert isinstance(motion, MotionLossConfig)
    assert motion.pixels == dataclasses.replace(MotionLossConfig().pixels, confidence=0.5)
    other = configs.load(BASE, [*DATA, "model.backbone.patches={kind: conv}"])
    assert type(other.model.backbone.patches).__name__ == "ConvPatchConfig", "another kind takes nothing over"


def test_motion_is_made_of_the_key_frames_of_a_backbone_that_reads_no_others() -> None:
    full = configs.load(["dgs_lrm"], DATA)
    small = configs.load(["overlays/dgs_lrm_mini"], DATA)
    assert (full.data.motion_every, small.data.motion_every) == (4, 3)
    with pytest.raises(
        UserError, match=r"motion_every is 4, and the backbone has stride 2; set data.motion_every=null"
    ):
        configs.load(["dgs_lrm"], [*DATA, "model.backbone.stride=2", "data.motion_every=4"])
    with pytest.raises(UserError, match=r"the backbone gives tokens of all frames"):
        configs.load(["dept3r", "overlays/large"], [*DATA, "data.motion_every=2"])


def test_the_phases_of_dept3r_have_the_papers_losses() -> None:
    """Huber for cameras, differences of neighbours for shape; confidence in the first phase only."""
    first = configs.load(["overlays/dept3r_phase_1"], DATA).losses
    second = configs.load(["dept3r", "overlays/large"], DATA).losses
    assert set(first) == {"camera", "depth", "points"} == set(second) - {"motion"}
    for losses, by, sure in ((first, "confidence", 1.0), (second, "plain", 0.0)):
        camera, depth, points = losses["camera"], losses["depth"], losses["points"]
        assert isinstance(camera, CameraLossConfig)
        assert isinstance(depth, DepthLossConfig)
        assert isinstance(points, PointsLossConfig)
        assert camera.huber_delta is not None
        assert (points.normal, points.gradient, depth.gradient) == (0, 1, 1)
        assert {(each.pixels.gradient_by, each.pixels.confidence) for each in (depth, points)} == {(by, sure)}
        assert depth.pixels.quantile is None
    motion = second["motion"]
    assert isinstance(motion, MotionLossConfig)
    assert motion.pixels.confidence == 0
    small = configs.load(DEPT3R, DATA).losses
    assert (small["depth"], small["points"]) == (DepthLossConfig(weight=2.0), PointsLossConfig()), (
        "as its start was trained"
    )


def test_recipes_that_say_so_have_random_aspects_and_small_ones_have_none() -> None:
    for recipe in ("vggt", "page_4d", "dept3r", "unified"):
        assert configs.load([recipe, "overlays/large"], DATA).data.aspect == (0.33, 1.0)
        assert configs.load([recipe, "overlays/mini"], DATA).data.aspect is None
    assert configs.load(["overlays/demo"], DATA).data.aspect is None


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


def test_a_part_of_one_kind_needs_none() -> None:
    """Each dataclass that is a field's only choice has no ``kind``; where there is a choice, all have one."""
    assert configs.load(["dept3r"], [*DATA, "model.backbone.query={}"]).model.backbone.query == QueryConfig()
    alone = [members[0] for members in choices(configs.RunConfig) if len(members) == 1]
    assert QueryConfig in alone
    # priors are users' own: this package has the one that says nothing; other backbones choose among patches
    named = {each.__name__ for each in alone if "kind" in each.__dataclass_fields__}
    assert named <= {"NoGuidanceConfig", "FeaturePatchConfig"}


def choices(kind: type) -> Iterator[list[type]]:
    """The dataclasses that each field below ``kind`` may hold."""
    for hint in typing.get_type_hints(kind, include_extras=True).values():
        if members := schema.branches(hint):
            yield members
            for member in members:
                yield from choices(member)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.heads.depth.kind=dpt", r"config\.model\.heads\.depth\.kind is 'dpt'; choose one of camera, dense"),
        (
            "model.backbone.matching={kind: matching}",
            r"matching\.kind is 'matching', and there is only one kind of it; leave",
        ),
        ("optimiser.lrr=1", r"config\.optimiser\.lrr is not a setting; did you mean optimiser\.lr\?"),
        ("optimiser.lr=fast", r"config\.optimiser\.lr is 'fast': .*Float"),
        ("loop.precision=fp8", r"config\.loop\.precision is 'fp8': .*'fp32', 'bf16'"),
        ("data.image_size=[1,2,3]", r"config\.data\.image_size"),
        ("data.image_size=64", r"config\.data\.image_size is 64; give a list, as data\.image_size=64,64"),
        ("seed=[1]", r"config\.seed"),
        (
            "optimiser.lr.x=1",
            r"config\.optimiser\.lr\.x is not a setting: optimiser\.lr is one value; set it whole, as",
        ),
        ("optimiser.betas.0=1", r"optimiser\.betas\.0 is not a setting: optimiser\.betas is one value"),
        ("seed=-1", r"config: seed is -1; choose 0 or more"),
        ("optimiser.lr=nan", r"config\.optimiser\.lr is .nan.; give a finite number"),
        ("optimiser.lr=.inf", r"config\.optimiser\.lr is inf; give a finite number"),
        ("optimiser.betas=0.9,nan", r"config\.optimiser\.betas is \['0\.9', 'nan'\]; give a finite number"),
        ("loop.epoch_steps=0", r"config\.loop: max_steps, epoch_steps and accumulate must be at least 1"),
        ("loop.ema=2.0", r"config\.loop: .*ema in \[0, 1\)"),
        ("optimiser.lr=-1.0", r"config\.optimiser: lr and clip_norm must be positive"),
        ("logging.every=0", r"config\.logging: every and media_side must be at least 1"),
        ("model.heads.depth=5", r"config\.model\.heads\.depth"),
        ("name", r"'name' is not key=value"),
        ("weights.fresch=[a]", r"config\.weights\.fresch is not a setting; did you mean weights\.fresh\?"),
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


GAUSSIAN, MOTION = "model.heads.g={kind: gaussian, ", "losses.m={kind: motion, "


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            MOTION + "pixels: {gradient_by: confidence}}",
            r"losses\.m\.pixels\.gradient_by is 'confidence', and has no effect",
        ),
        (
            MOTION + "pixels: {gamma: 0.3}}",
            r"gamma is 0\.3, and has no effect where confidence is 0 and gradient_by plain",
        ),
        (
            "losses.depth={gradient: 0, pixels: {gradient_by: confidence}}",
            r"effect where gradient is 0; leave it out, or",
        ),
        ("losses.points.pixels.gradient_by=likelihood", r"set losses\.points\.pixels\.gradient_by=plain"),
        (
            "losses.p={kind: photometric, lpips_weights: x}",
            r"lpips_weights is 'x', and .* where perceptual is structure",
        ),
        ("losses.t={kind: track, confidence: 0, near: 2}", r"near is 2\.0, and has no effect where confidence is 0"),
        (
            GAUSSIAN + "position: point, near: 0.2}",
            r"g\.near is 0\.2, and has no effect where position is point; .*=0\.1",
        ),
        (GAUSSIAN + "position: point, depth: exp}", r"g\.depth is 'exp', and has no effect where position is point"),
        (GAUSSIAN + "depth: exp, far: 7}", r"g\.far is 7\.0, and has no effect where depth is exp"),
        (GAUSSIAN + "offsets: false, follow: true}", r"follow is True, and .* where offsets are false; .*follow=false"),
        ("model.backbone={kind: spacetime, times: 6}", r"backbone\.times is 6, and has no effect without correlation"),
        ("model.heads.points.decoder={values: 3}", r"decoder\.values is 3, and has no effect without correlation"),
        (
            "data.motion_every=2",
            r"data\.motion_every is 2, and has no effect where query_times is 0; .*motion_every=null",
        ),
        ("optimiser.clip=groups", r"optimiser\.clip is 'groups', and has no effect without groups; .*clip=all"),
        (
            "optimiser={warmup_share: 0, min_warmup_steps: 50}",
            r"min_warmup_steps is 50, and has no effect where warmup_share is 0; .*=100",
        ),
        (
            "data.sampling={one_camera_share: 1, max_cameras: 2}",
            r"data\.sampling\.max_cameras is 2, and has no effect where one_camera_share is 1; .*=4",
        ),
        (
            "data.sampling={one_camera_share: 0.2, max_cameras: 1}",
            r"one_camera_share is 0\.2, and has no effect where max_cameras is 1; .*=0\.5",
        ),
        (
            "data.validation.held={path: somewhere, weight: 2}",
            r"data\.validation\.held\.weight is 2\.0, and has no effect on validation, which reads .*=1\.0",
        ),
        (
            "data={views: {count: 2}, augment: {per_frame_share: 0.1}}",
            r"data\.augment\.per_frame_share is 0\.1, and has no effect where views is set: .*=0\.3",
        ),
        ("losses.t={kind: track, position: 0, stage_decay: 0.5}", r"stage_decay is 0\.5, and .* where position is 0"),
        (
            "losses.p={kind: photometric, perceptual: none, perceptual_weight: 1}",
            r"perceptual_weight is 1\.0, and has no effect where perceptual is none",
        ),
        (
            "losses.depth.pixels={regression: 0, confidence: 0, quantile: 0.9}",
            r"pixels\.quantile is 0\.9, and has no effect where pixels\.regression and .*=0\.98",
        ),
        (
            MOTION + "visibility: 0, pixels: {regression: 0, quantile: 0.9}}",
            r"m\.pixels\.quantile is 0\.9, and has no effect where .* are 0; .*=null",
        ),
        (MOTION + "balance: 0.5, pixels: {regression: 0}}", r"m\.balance is 0\.5, and has no effect where pixels"),
    ],
)
def test_a_setting_without_effect_is_refused(override: str, message: str) -> None:
    """In one line, whose remedy helps; its default, as a run's resolved config has it, may stand there."""
    with pytest.raises(UserError, match=message) as caught:
        configs.load(BASE, [*DATA, override])
    assert "\n" not in str(caught.value)
    remedy = str(caught.value).rpartition(" or set ")[2]
    assert "has no effect" not in complaint(BASE, [*DATA, override, remedy])


@pytest.mark.parametrize(
    "override",
    [
        "optimiser={warmup_share: 0, min_warmup_steps: 0}",
        "optimiser={warmup_share: 0, min_warmup_steps: 50, groups: {a: {parameters: [x], warmup_share: 0.1}}}",
        "data={views: {count: 2}, augment: {per_frame_share: 0}}",
        "model.heads.g={kind: gaussian, position: point, start: 200}",
        MOTION + "pixels: {regression: 0, quantile: 0.9}}",
    ],
)
def test_a_setting_that_something_reads_may_stand_there(override: str) -> None:
    """Or one whose value is what is done anyway."""
    told = complaint(BASE, [*DATA, "data.query_times=1", override])
    assert "no effect" not in told
    assert "near < start" not in told


def test_lists_need_no_brackets() -> None:
    values = ["data.image_size=64,48", "optimiser.frozen=a.*,b.*", "optimiser.trainable=c.*", "optimiser.betas=0.8,0.9"]
    found = configs.load(BASE, [*DATA, *values])
    assert found.data.image_size == (64, 48)
    assert (found.optimiser.frozen, found.optimiser.trainable) == (("a.*", "b.*"), ("c.*",))
    assert found.optimiser.betas == (0.8, 0.9)
    with pytest.raises(UserError, match=r"eval\.tasks is \['smell'\]: expected one of \['depth'"):
        schema.build(EvaluationConfig, {"data": "x", "tasks": "smell"}, "eval")


def test_home_is_filled_in_inside_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text("folder: ~/runs\nlogging: {}\n")
    found = configs.load([*BASE, file], ["data.sources.mine.path=~/data"])
    assert (found.folder, found.data.sources["mine"].path) == (f"{tmp_path}/runs", f"{tmp_path}/data")


def test_a_config_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"\x00\x00\x00 ftypisom\xa0\xff")
    with pytest.raises(UserError, match=r"cannot read config .*video\.mp4"):
        configs.load([tmp_path / "video.mp4"])


def complaint(files: list[str], overrides: list[str]) -> str:
    """Faults of a config; empty if there are none."""
    try:
        configs.load(files, overrides)
    except UserError as error:
        return str(error)
    return ""


TEACHES_MOTION = "losses.motion={kind: motion}"


@pytest.mark.parametrize(
    ("files", "overrides"),
    [
        (BASE, []),
        (BASE, ["data.sources={}", "data.sources.mine={}"]),
        (["overlays/debug"], [*DATA, "name=x", "losses={}"]),
        (["overlays/debug"], [*DATA, "name=x", "losses={}", "model.heads.depth={}"]),
        (BASE, [*DATA, "model.heads.depth=null", "model.heads.other={output: depth}"]),
        (BASE, [*DATA, "optimiser.groups.mask={lr: 1e-5}"]),
        (BASE, [*DATA, "losses.scene={kind: photometric}"]),
        (BASE, [*DATA, "model.heads.motion={kind: dense, output: motion}", TEACHES_MOTION]),
        (BASE, [*DATA, "model.heads.motion={kind: dense, output: motion}", TEACHES_MOTION, "data.surface=true"]),
        (BASE, [*DATA, "data.hints.poses=1"]),
        (BASE, [*DATA, "data.hints.poses=0.5", "model.backbone.hints={poses: required}"]),
        (BASE, [*DATA, "data.normalisation=disparity"]),
    ],
)
def test_remedies_can_be_pasted(files: list[str], overrides: list[str]) -> None:
    """A shell takes what a message says to set, and then that is no longer what is wrong."""
    told = complaint(files, overrides)
    words = shlex.split(told.partition("; ")[2])
    remedies = [word.rstrip(",") for word in words if re.match(r"[\w.]+=", word)]
    assert remedies, told
    for remedy in remedies:
        assert complaint(files, [*overrides, remedy.replace("NAME", "mine").replace("…", "x")]) != told


def test_a_missing_value_is_said_as_the_command_line_takes_it() -> None:
    with pytest.raises(UserError, match=r"config\.data\.sources is missing; .* as data\.sources\.NAME\.path=…"):
        configs.load(BASE)
    with pytest.raises(UserError, match=r"eval\.data is missing; .* as data=…"):
        schema.build(EvaluationConfig, {}, "eval")
    with pytest.raises(UserError, match=r"heads\.depth has no kind; .* as model\.heads\.depth\.kind=camera"):
        configs.load(["overlays/debug"], [*DATA, "name=x", "losses={}", "model.heads.depth={}"])


def test_missing_value_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.data\.sources is missing"):
        configs.load(BASE)
    with pytest.raises(UserError, match=r"vgt does not exist; did you mean vggt"):
        configs.load(["vgt"])
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="is not YAML"):
        configs.load([tmp_path / "broken.yaml"])


def test_diff_names_what_changed() -> None:
    left = schema.to_plain(configs.load(BASE, DATA))
    right = schema.to_plain(configs.load(BASE, [*DATA, "seed=7"]))
    assert schema.diff(left, right) == [("seed", 0, 7)]


def test_a_unit_that_poses_tell_needs_a_model_of_given_poses() -> None:
    with pytest.raises(UserError, match=r"the model.s cameras would be in it; set data.normalisation=mean_distance"):
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
    with pytest.raises(UserError, match=r"set data.query_times=1 or losses.motion=null"):
        configs.load(BASE, [*DATA, *motion])
    assert configs.load(BASE, [*DATA, *motion, "data.query_times=2"]).data.query_times == 2
    with pytest.raises(UserError, match=r"data.hints.intrinsics is 0.5, and the model takes none"):
        configs.load(BASE, [*DATA, "data.hints.intrinsics=0.5"])
    required = "model.backbone.hints={intrinsics: required}"
    with pytest.raises(UserError, match=r"the model requires intrinsics; set data.hints.intrinsics=1"):
        configs.load(BASE, [*DATA, required, "data.hints.intrinsics=0.5"])
    assert configs.load(BASE, [*DATA, required, "data.hints.intrinsics=1"]).data.hints.intrinsics == 1
