"""Is PAGE-4D's mask worth it, at a size that two CPU cores can train? See docs/results/page_4d.md."""

from __future__ import annotations

from benchmarks.studies import DATA, DataSet, Key, Study, Training

WORLDS = ("--clips-per-shard", "25", "--cameras", "2", "--frames", "12", "--size", "64")
MOTION = ("--moving", "0.12:0.55")
FINE_TUNING = (
    "page_4d",
    "overlays/mini",
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
                "vggt",
                "overlays/mini",
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
        Key(name="ate", label="ATE after Sim(3), m"),
        Key(name="rot_error_deg", label="relative rotation error, °"),
        Key(name="absrel", label="depth AbsRel"),
        Key(name="absrel_dynamic", label="depth AbsRel, moving pixels"),
        Key(name="points_accuracy", label="points, accuracy, m"),
        Key(name="mask_iou", label="mask IoU", higher_is_better=True),
    ),
)
