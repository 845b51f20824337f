"""Is PAGE-4D's mask worth it, at a size that two CPU cores can train? See docs/results/page_4d.md."""

from __future__ import annotations

from benchmarks.studies import DATA, DataSet, Key, Study, Training
from four_d.metrics.catalogue import METRICS

WORLDS = ("--clips-per-shard", "25", "--cameras", "2", "--frames", "12", "--size", "64")
MOTION = ("--moving", "0.12:0.55")
FINE_TUNING = (
    "overlays/page_4d_mini",
    f"data.sources.synthetic.path={DATA / 'train_motion'}",
    f"data.validation.held_out.path={DATA / 'held_out_motion'}",
)

STUDY = Study(
    name="page_4d",
    data=(
        DataSet(name="train", arguments=("--shards", "0:40", "--seed", "1", *WORLDS)),
        DataSet(name="train_motion", arguments=("--shards", "0:28", "--seed", "2", *WORLDS, *MOTION)),
        DataSet(name="held_out_motion", arguments=("--shards", "0:3", "--seed", "1", "--held-out", *WORLDS, *MOTION)),
    ),
    shared={
        "start": Training(
            values=(
                "overlays/reference",
                f"data.sources.synthetic.path={DATA / 'train'}",
                f"data.validation.held_out.path={DATA / 'held_out_motion'}",
            )
        )
    },
    variants={
        "plain": Training(values=(*FINE_TUNING, "overlays/page_4d_plain"), start="start"),
        "mask": Training(values=FINE_TUNING, start="start"),
        "mask_supervised": Training(values=(*FINE_TUNING, "losses.dynamic.kind=dynamic"), start="start"),
    },
    seeds=(0, 1, 2),
    evaluation=(f"data={DATA / 'held_out_motion'}", f"train_data={DATA / 'train_motion'}", "frames=6", "clips=100"),
    keys=(
        Key(metric=METRICS["pose_ate_sim3"], label="ATE after Sim(3), m"),
        Key(metric=METRICS["pose_rot_pairs_deg"], label="relative rotation error, °"),
        Key(metric=METRICS["depth_absrel_median_frame"], label="depth AbsRel"),
        Key(metric=METRICS["depth_absrel_median_dynamic"], label="depth AbsRel, moving pixels"),
        Key(metric=METRICS["points_accuracy"], label="points, accuracy, m"),
        Key(metric=METRICS["mask_iou"], label="mask IoU"),
    ),
)
