"""Is one pass as good as optimising each clip, and do Gaussians that move pay? See docs/results/dgs_lrm.md."""

from __future__ import annotations

from benchmarks.studies import DATA, Key, Study, Training, dept3r

MINI = (
    "dgs_lrm",
    "overlays/dgs_lrm_mini",
    f"data.sources.calm.path={DATA / 'train_calm'}",
    f"data.validation.held_out.path={DATA / 'held_out_calm'}",
)
STATIC = (*MINI, "model.heads.gaussian.offsets=false", "losses.gaussian_flow=null")

STUDY = Study(
    name="dgs_lrm",
    data=dept3r.STUDY.data[1:],
    shared={},
    variants={
        "deformable": Training(values=MINI),
        "no_flow": Training(values=(*MINI, "losses.gaussian_flow=null")),
        "single_view": Training(values=(*MINI, "data.views.dual=false")),
        "static": Training(values=STATIC),
        "static_slow": Training(values=(*STATIC, "optimiser.lr=5.0e-4")),
        "static_fast": Training(values=(*STATIC, "optimiser.lr=2.0e-3")),
    },
    seeds=(0, 1, 2),
    evaluation=(
        f"data={DATA / 'held_out_calm'}",
        "frames=6",
        "stride=1",
        "clips=60",
        "hints=[intrinsics,poses]",
        "tasks=[pictures]",
    ),
    keys=(
        Key(name="psnr", label="PSNR, dB", higher_is_better=True),
        Key(name="psnr_dynamic", label="PSNR of what moves, dB", higher_is_better=True),
        Key(name="seconds_per_clip", label="seconds per clip"),
        Key(name="copy_psnr", label="PSNR of copies, dB", higher_is_better=True, compared=False),
        Key(name="copy_psnr_dynamic", label="PSNR of copies of what moves, dB", higher_is_better=True, compared=False),
    ),
)
