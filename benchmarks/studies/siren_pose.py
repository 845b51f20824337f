"""Does supervision of motion make keypoints smoother without blurring them? See docs/results/siren_pose.md."""

from __future__ import annotations

from benchmarks.studies import DATA, DataSet, Key, Study, Training
from four_d.metrics.catalogue import METRICS

WORLDS = (
    *("--bodies", "--clips-per-shard", "25", "--cameras", "2", "--frames", "16", "--size", "64"),
    *("--moving", "0.12:0.6", "--paths", "handheld,static,orbit", "--rig", "0.5"),
)
EASY = ("--seconds", "0.8:2.2", "--creatures", "1:3", "--obstacles", "0:5")
HARD = ("--seconds", "0.6:1.0", "--creatures", "2:3", "--obstacles", "3:6")
"""Fast; at the rates of videos (a twentieth of a second between frames); of several things; with something before them.

At 0.12 s between frames, as this study had it first, the acceleration is not told by so few pictures: a still point is
off by 11.6 m/s², and the model without the term by 14.
"""
VALUES = (
    "overlays/siren_pose_mini",
    f"data.sources.bodies.path={DATA / 'train_creatures'}",
    f"data.validation.held_out.path={DATA / 'held_out_creatures'}",
)
WITHOUT = ("losses.siren_pose=null", "optimiser.groups.siren_pose=null")
TUNED = (
    *VALUES,
    "weights.fresh=[]",
    "weights.dropped=[]",
    "loop.max_steps=200",
    "loop.epoch_steps=200",
    "loop.ema=0.98",
)
PARTS = ("position", "depth", "velocity", "acceleration", "bone", "siren", "graph")
FITTED, SHORT = "start", "short_start"
"""Shared trainings: of 2,500 steps, and of 1,250 for the rows with a part removed, which compare with ``…_short``."""
SCORED = ("frames=12", "clips=80", "stride=1", "hints=[boxes]", "tasks=[keypoints,pose]")

STUDY = Study(
    name="siren_pose",
    data=(
        DataSet(name="train_creatures", arguments=("--shards", "0:28", "--seed", "11", *WORLDS, *EASY)),
        DataSet(name="held_out_creatures", arguments=("--shards", "0:2", "--seed", "12", "--held-out", *WORLDS, *HARD)),
    ),
    shared={
        name: Training(values=(*VALUES, *WITHOUT, f"loop.max_steps={steps}"), start="unified-small")
        for name, steps in ((FITTED, 2500), (SHORT, 1250))
    },
    variants={
        "base": Training(values=(*TUNED, *WITHOUT), start=FITTED),
        "full": Training(values=TUNED, start=FITTED),
        "base_short": Training(values=(*TUNED, *WITHOUT), start=SHORT),
        "full_short": Training(values=TUNED, start=SHORT),
        **{f"no_{part}": Training(values=(*TUNED, f"losses.siren_pose.{part}=0"), start=SHORT) for part in PARTS},
    },
    seeds=(0, 1, 2),
    evaluation=(f"data={DATA / 'held_out_creatures'}", *SCORED),
    others=("smoothed",),
    keys=(
        Key(
            metric=METRICS["keypoint_acceleration_error"], label="acceleration error, m/s²", called="acceleration_error"
        ),
        Key(metric=METRICS["keypoint_mpjpe"], label="keypoint error, m", called="keypoint_error"),
        Key(metric=METRICS["keypoint_bone_variance"], label="variance of log bone lengths", called="bone_variance"),
        Key(metric=METRICS["pose_ate_sim3"], label="ATE after Sim(3), m", called="ate"),
        Key(metric=METRICS["keypoint_mpjpe_procrustes"], label="keypoint error, Procrustes, m"),
        Key(metric=METRICS["keypoint_pck"], label="PCK"),
        Key(metric=METRICS["keypoint_jerk"], label="jerk, m/s³"),
    ),
)
