"""Is one pass as good as optimising each clip, and do Gaussians that move pay? See docs/results/dgs_lrm.md."""

from __future__ import annotations

from benchmarks.studies import DATA, Key, Study, Training, dept3r
from four_d.metrics.catalogue import METRICS

REFERENCE = "dgs_lrm-base@d6f7869"
"""Where all trainings start, with the commit that has it."""
BASE = (
    "overlays/dgs_lrm_base",
    f"data.sources.calm.path={DATA / 'train_calm'}",
    f"data.validation.held_out.path={DATA / 'held_out_calm'}",
    *("weights.fresh=[]", "optimiser.groups.new=null"),
)
STILL = ("model.heads.gaussian.offsets=false", "model.heads.gaussian.follow=false", "losses.gaussian_flow=null")
LONG = ("optimiser.lr=4.0e-4", "loop.max_steps=300", "loop.epoch_steps=100")
TUNED = (
    *("optimiser.lr=3.0e-4", "optimiser.min_warmup_steps=0"),
    *("loop.max_steps=100", "loop.epoch_steps=100", "loop.ema=0.97"),
)
SLOW, FAST = ("optimiser.lr=1.0e-4",), ("optimiser.lr=9.0e-4",)

STUDY = Study(
    name="dgs_lrm",
    data=dept3r.STUDY.data[1:],
    shared={
        "start": Training(
            values=(*BASE, *LONG, *STILL, "weights.dropped=[heads.gaussian.followed.*]"), start=REFERENCE
        ),
        "start_moving": Training(values=(*BASE, *LONG), start=REFERENCE),
    },
    variants={
        "deformable": Training(values=(*BASE, *TUNED), start="start_moving"),
        "static": Training(values=(*BASE, *TUNED, *STILL), start="start"),
        "static_slow": Training(values=(*BASE, *TUNED, *STILL, *SLOW), start="start"),
        "static_fast": Training(values=(*BASE, *TUNED, *STILL, *FAST), start="start"),
        "no_flow": Training(
            values=(*BASE, *TUNED, "losses.gaussian_flow=null", "losses.matching=null"), start="start_moving"
        ),
        "from_still": Training(values=(*BASE, *TUNED, "weights.fresh=[heads.gaussian.followed.*]"), start="start"),
        "not_followed": Training(values=(*BASE, *TUNED, "model.heads.gaussian.follow=false"), start="start"),
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
    predictors={"copy": "copy"},
    others=("optimised_10x", "optimised_1000x"),
    keys=(
        Key(metric=METRICS["render_psnr"], label="PSNR, dB", digits=4),
        Key(metric=METRICS["render_psnr_dynamic"], label="PSNR of what moves, dB", digits=4),
        Key(metric=METRICS["seconds_per_clip"], label="seconds per clip"),
    ),
)
