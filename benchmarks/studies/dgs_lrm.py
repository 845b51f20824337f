"""Is one pass as good as optimising each clip, and do Gaussians that move pay? See docs/results/dgs_lrm.md."""

from __future__ import annotations

from benchmarks.studies import DATA, Key, Model, Study, Training, dept3r
from four_d.metrics.catalogue import METRICS

DATA_VALUES = (
    f"data.sources.calm.path={DATA / 'train_calm'}",
    f"data.validation.held_out.path={DATA / 'held_out_calm'}",
)
MINI = ("overlays/dgs_lrm_mini", *DATA_VALUES)
TUNED = (*MINI, "loop.max_steps=500", "loop.epoch_steps=250")
UNFOLLOWED = (*TUNED, "weights.fresh=[heads.gaussian.followed.*]")
"""From a start that has nothing to follow with."""
STILL = ("model.heads.gaussian.offsets=false", "model.heads.gaussian.follow=false", "losses.gaussian_flow=null")
ONE_CAMERA = ("data.views.dual=false",)
START = (*MINI, "loop.max_steps=1800", *STILL)
START_MOVING = (*MINI, "loop.max_steps=1500")
MOVING = (*MINI, "loop.max_steps=800", "loop.epoch_steps=400")
"""As many steps in all as from the other starts."""
SLOW, FAST = ("optimiser.lr=5.0e-4",), ("optimiser.lr=2.0e-3",)

TRACKS = (f"data={DATA / 'held_out_calm'}", "stride=1", "clips=60", "tasks=[tracks]", "track_frames=11")

STUDY = Study(
    name="dgs_lrm",
    data=dept3r.STUDY.data[2:],
    shared={
        "start": Training(values=START),
        "start_one_camera": Training(values=(*START, *ONE_CAMERA)),
        "start_moving": Training(values=START_MOVING),
    },
    variants={
        "deformable": Training(
            values=MOVING, start="start_moving", also=(*TRACKS, "frames=6", "hints=[intrinsics,poses]")
        ),
        "deformable_slow": Training(values=(*MOVING, *SLOW), start="start_moving"),
        "deformable_fast": Training(values=(*MOVING, *FAST), start="start_moving"),
        "static": Training(values=(*TUNED, *STILL), start="start"),
        "static_slow": Training(values=(*TUNED, *STILL, *SLOW), start="start"),
        "static_fast": Training(values=(*TUNED, *STILL, *FAST), start="start"),
        "from_still": Training(values=UNFOLLOWED, start="start"),
        "no_flow": Training(values=(*UNFOLLOWED, "losses.gaussian_flow=null", "losses.matching=null"), start="start"),
        "single_view": Training(values=(*UNFOLLOWED, *ONE_CAMERA), start="start_one_camera"),
        "not_followed": Training(values=(*TUNED, "model.heads.gaussian.follow=false"), start="start"),
    },
    seeds=(0, 1, 2),
    evaluation=(
        f"data={DATA / 'held_out_calm'}",
        "frames=6",
        "stride=2",
        "clips=60",
        "hints=[intrinsics,poses]",
        "tasks=[pictures]",
    ),
    models={"dept3r": Model(path="runs/studies/dept3r/late", evaluation=(*TRACKS, "frames=11"))},
    predictors={"copy": "copy"},
    others=("optimised_10x", "optimised_1000x"),
    keys=(
        Key(metric=METRICS["render_psnr"], label="PSNR, dB", digits=4),
        Key(metric=METRICS["render_psnr_dynamic"], label="PSNR of what moves, dB", digits=4),
        Key(metric=METRICS["seconds_per_clip"], label="seconds per clip"),
        Key(metric=METRICS["track_epe"], label="track EPE", compared=False),
        Key(metric=METRICS["track_epe_motion"], label="motion EPE of tracks", compared=False),
        Key(metric=METRICS["track_epe_motion_static"], label="motion EPE of standing still", compared=False),
    ),
)
