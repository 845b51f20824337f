"""Does dense motion learn what moves where, and what does a query before the stack buy? See docs/results/dept3r.md."""

from __future__ import annotations

from benchmarks.studies import BASE, DATA, MOTION_PARTS, REFERENCE, SIDE, DataSet, Key, Model, Study, Training
from benchmarks.studies.page_4d import STUDY as PAGE_4D
from four_d.metrics.catalogue import METRICS

WORLDS = (
    *("--clips-per-shard", "25", "--cameras", "2", "--frames", "12", "--size", str(SIDE), "--moving", "0.12:0.55"),
    *("--objects", "3:6", "--seconds", "0.5:0.9", "--paths", "handheld,static", "--starts", "dropped,thrown,slid"),
    *("--spin", "0.2", "--rig", "0.5"),
)
NEW = ("backbone.neighbours.*", "heads.motion.*")
"""Begun anew in both designs, that neither has learned longer than the other."""
LATE = (
    *BASE,
    f"data.sources.calm.path={DATA / 'train_calm'}",
    f"data.sources.motion.path={DATA / 'train_motion'}",
    "data.sources.motion.weight=0.25",
    f"data.validation.held_out.path={DATA / 'held_out_calm'}",
    *(
        "model.refine.mask=null",
        "model.backbone.dynamics=null",
        "model.heads.dynamic=null",
        "model.heads.gaussian=null",
    ),
    *(f"losses.{name}=null" for name in ("dynamic", "photometric", "gaussian_depth", "gaussian_flow")),
    *("data.views=null", f"weights.fresh={[*NEW]}"),
    f"weights.dropped={[*MOTION_PARTS, 'backbone.neighbours.*', 'backbone.dynamics.*', 'heads.dynamic.*']}",
    *("optimiser.frozen=[]", "optimiser.lr=4.0e-4", f"optimiser.groups.new.parameters={[*NEW, 'backbone.features.*']}"),
    *("loop.max_steps=600", "loop.epoch_steps=200"),
)
QUERY = ("backbone.query.*", *NEW)
EARLY = (
    *LATE,
    *("model.backbone.query={gaps: true}", "model.heads.motion.decoder=null", "data.query_times=1"),
    f"weights.fresh={[*QUERY]}",
    f"optimiser.groups.new.parameters={[*QUERY, 'backbone.features.*']}",
)
SEEDS = (
    *("weights.fresh=[]", "weights.dropped=[]", "optimiser.lr=1.5e-4", "optimiser.groups.new.lr=4.0e-4"),
    *("optimiser.min_warmup_steps=0", "loop.max_steps=60", "loop.epoch_steps=60", "loop.ema=0.95"),
)
"""The last steps, with a seed of their own."""
PAIRS = ("data.sampling.min_frames=2", "data.sampling.max_frames=2", "data.validation_frames=2")
SCORED = (
    f"data={DATA / 'held_out_calm'}",
    f"train_data={DATA / 'train_calm'}",
    "frames=6",
    "stride=1",
    "clips=60",
    "tasks=[motion]",
)

STUDY = Study(
    name="dept3r",
    data=(
        PAGE_4D.data[0],  # so that fast cameras are not forgotten
        DataSet(name="train_calm", arguments=("--shards", "0:16", "--seed", "6", *WORLDS)),
        DataSet(name="held_out_calm", arguments=("--shards", "0:3", "--seed", "2", "--held-out", *WORLDS)),
    ),
    shared={"early": Training(values=EARLY, start=REFERENCE), "late": Training(values=LATE, start=REFERENCE)},
    variants={
        "dept3r": Training(values=(*EARLY, *SEEDS), start="early"),
        "late_query": Training(values=(*LATE, *SEEDS), start="late"),
        "no_intrinsics": Training(
            values=(*EARLY, *SEEDS, "data.hints.intrinsics=0"), start="early", evaluation=("hints=[]",)
        ),
        "pairwise": Training(values=(*EARLY, *SEEDS, *PAIRS), start="early", evaluation=("pairwise=true",)),
    },
    models={"reference": Model(path=REFERENCE, evaluation=(*SCORED, "hints=[intrinsics]"))},
    predictors={"static": "static_motion", "prior": "prior_motion"},
    seeds=(0, 1, 2),
    evaluation=(*SCORED, "hints=[intrinsics]"),
    keys=(
        Key(metric=METRICS["motion_epe_dynamic"], label="motion EPE, dynamic, m"),
        Key(metric=METRICS["motion_apd_dynamic"], label="motion APD, dynamic"),
        Key(metric=METRICS["track_epe_dynamic"], label="track EPE, dynamic, m"),
        Key(metric=METRICS["seconds_per_clip"], label="seconds per clip"),
        Key(metric=METRICS["motion_dynamic_fraction"], label="share of dynamic points", compared=False),
    ),
)
