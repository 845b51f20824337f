"""Does dense motion learn what moves where, and what does a query before the stack buy? See docs/results/dept3r.md."""

from __future__ import annotations

from benchmarks.studies import DATA, DataSet, Key, Study, Training, page_4d
from four_d.metrics.catalogue import METRICS

WORLDS = (
    *("--clips-per-shard", "25", "--cameras", "2", "--frames", "12", "--size", "64", "--moving", "0.12:0.55"),
    *("--objects", "3:6", "--seconds", "0.5:0.9", "--paths", "handheld,static", "--starts", "dropped,thrown,slid"),
    *("--spin", "0.2", "--rig", "0.5"),
)
EARLY = (
    "overlays/dept3r_mini",
    f"data.sources.calm.path={DATA / 'train_calm'}",
    f"data.sources.motion.path={DATA / 'train_motion'}",
    "data.sources.motion.weight=0.25",
    f"data.validation.held_out.path={DATA / 'held_out_calm'}",
)
LATE = (*EARLY, "overlays/dept3r_late_mini")
PAIRS = ("data.sampling.min_frames=2", "data.sampling.max_frames=2", "data.validation_frames=2")
REFERENCE = (
    "overlays/page_4d_reference",
    f"data.sources.synthetic.path={DATA / 'train'}",
    f"data.sources.motion.path={DATA / 'train_motion'}",
    f"data.validation.held_out.path={DATA / 'held_out_calm'}",
)

STUDY = Study(
    name="dept3r",
    data=(
        *page_4d.STUDY.data[:2],  # of the start; and so that fast cameras are not forgotten
        DataSet(name="train_calm", arguments=("--shards", "0:60", "--seed", "6", *WORLDS)),
        DataSet(name="held_out_calm", arguments=("--shards", "0:3", "--seed", "2", "--held-out", *WORLDS)),
    ),
    shared={
        "plain": page_4d.STUDY.shared["start"],
        "reference": Training(values=REFERENCE, start="plain"),
        "early": Training(values=EARLY, start="reference"),
        "late": Training(values=LATE, start="reference"),
    },
    variants={
        "dept3r": Training(values=(*EARLY, "overlays/dept3r_seeds"), start="early"),
        "no_intrinsics": Training(
            values=(*EARLY, "overlays/dept3r_seeds", "data.hints.intrinsics=0"),
            start="early",
            evaluation=("hints=[]",),
        ),
        "late_query": Training(values=(*LATE, "overlays/dept3r_seeds"), start="late"),
        "pairwise": Training(
            values=(*EARLY, "overlays/dept3r_seeds", *PAIRS), start="early", evaluation=("pairwise=true",)
        ),
    },
    predictors={"static": "static_motion", "prior": "prior_motion"},
    seeds=(0, 1, 2),
    evaluation=(
        f"data={DATA / 'held_out_calm'}",
        f"train_data={DATA / 'train_calm'}",
        "frames=6",
        "stride=1",
        "clips=60",
        "hints=[intrinsics]",
        "tasks=[motion]",
    ),
    keys=(
        Key(metric=METRICS["motion_epe_dynamic"], label="motion EPE, dynamic, m"),
        Key(metric=METRICS["motion_apd_dynamic"], label="motion APD, dynamic"),
        Key(metric=METRICS["track_epe_dynamic"], label="track EPE, dynamic, m"),
        Key(metric=METRICS["seconds_per_clip"], label="seconds per clip"),
        Key(metric=METRICS["motion_dynamic_fraction"], label="share of dynamic points", compared=False),
    ),
)
