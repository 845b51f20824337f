"""Is PAGE-4D's mask worth it, at a size that two CPU cores can train? See docs/results/page_4d.md."""

from __future__ import annotations

from benchmarks.studies import BASE, CORRELATION, DATA, MOTION_PARTS, REFERENCE, SIDE, DataSet, Key, Study, Training
from four_d.metrics.catalogue import METRICS

WORLDS = ("--clips-per-shard", "25", "--cameras", "2", "--frames", "12", "--size", str(SIDE))
MOTION = ("--moving", "0.12:0.55")
SHAPE = (
    *BASE,
    f"data.sources.motion.path={DATA / 'train_motion'}",
    f"data.validation.held_out.path={DATA / 'held_out_motion'}",
    *("model.refine.mask=null", "model.heads.gaussian=null", "model.heads.motion=null", "model.heads.dynamic=null"),
    *("model.backbone.correlation=null", "model.backbone.dynamics=null", "data.views=null", "data.query_times=0"),
    *(f"losses.{name}=null" for name in ("motion", "matching", "photometric", "gaussian_depth", "gaussian_flow")),
    *("losses.dynamic=null", "losses.camera.weight=27.0", "losses.depth.weight=2.5"),
    *("optimiser.frozen=[]", "optimiser.groups.new=null", "weights.fresh=[]"),
)
"""VGGT's parts of the reference model: cameras (by matches when it is used), depth and points, no mask."""
BLOCKS = ("backbone.frame_blocks.[23].*", "backbone.global_blocks.[23].*")
TUNED = (
    *SHAPE,
    *(f"optimiser.trainable={[*BLOCKS]}", "optimiser.lr=3.0e-4", "optimiser.min_warmup_steps=0"),
    *("loop.max_steps=150", "loop.epoch_steps=150", "loop.ema=0.98"),
)
MASKED = (
    *TUNED,
    "model.backbone.dynamics={after: 1, rounds: [2, 3], hidden: 64, hold: null}",
    "weights.fresh=[backbone.dynamics.*]",
    f"optimiser.trainable={[*BLOCKS, 'backbone.dynamics.*']}",
    "optimiser.groups.mask={parameters: [backbone.dynamics.*], lr: 1.0e-3, weight_decay: 0.01}",
)
PATCHES = "model.heads.mask={kind: dynamic}"
"""The mask of the backbone, one value a patch."""
PIXELS = (
    "model.heads.dynamic={kind: dense, output: dynamic, channels: [16, 24, 32, 32], features: 24, last_features: 16, "
    "down_ratio: 2, chunk: 64, fine_chunk: 64, detail: true}",
    f"optimiser.trainable={[*BLOCKS, 'backbone.dynamics.*', 'heads.dynamic.*']}",
    "weights.fresh=[backbone.dynamics.*, heads.dynamic.*]",
    "optimiser.groups.mask.parameters=[backbone.dynamics.*, heads.dynamic.*]",
)
"""The reference model's: a head of its own, for pixels."""
TRUE_MASKS = "losses.dynamic={kind: dynamic, positive: 2.0}"

STUDY = Study(
    name="page_4d",
    data=(
        DataSet(name="train_motion", arguments=("--shards", "0:12", "--seed", "2", *WORLDS, *MOTION)),
        DataSet(name="held_out_motion", arguments=("--shards", "0:3", "--seed", "1", "--held-out", *WORLDS, *MOTION)),
    ),
    shared={
        "start": Training(
            values=(
                *SHAPE,
                f"weights.dropped={[*MOTION_PARTS, 'backbone.dynamics.*', 'heads.dynamic.*', *CORRELATION]}",
                *("optimiser.lr=4.0e-4", "loop.max_steps=200", "loop.epoch_steps=100", "loop.ema=0.98"),
            ),
            start=REFERENCE,
        )
    },
    variants={
        "plain": Training(values=TUNED, start="start"),
        "mask": Training(values=(*MASKED, PATCHES), start="start"),
        "mask_supervised": Training(values=(*MASKED, PATCHES, TRUE_MASKS), start="start"),
        "mask_pixels": Training(values=(*MASKED, *PIXELS, TRUE_MASKS), start="start"),
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
