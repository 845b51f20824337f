"""Score a model on real pictures with truth, beside what ignores the image and the model before it.

    python benchmarks/real.py [--model NAME] [--previous NAME]   # docs/results/real.{md,json}, and two sheets
    python benchmarks/real.py --fit                              # the mean map, of worlds like those of training

The pictures are excerpts of ``../shared/samples`` (`tests/data/excerpts.py`). The scores are those of ``four-d eval``
on held-out shards (`four_d.evaluation.evaluate`), at the pictures' own size: each model sees them as ``four-d infer``
shows it a video, all frames of a video at once, and its answers are enlarged. ``--previous`` takes a model, or, where
that model is gone, an earlier table of the same pictures (same digest), whose ``model`` it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - this script is run by its path
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.generate import commit, processor  # noqa: E402
from benchmarks.reference import HELD_OUT, HELD_OUT_SETS, STAGES, Place, make  # noqa: E402
from four_d import drawing, evaluation, geometry, load  # noqa: E402
from four_d.abilities import Abilities, Model  # noqa: E402
from four_d.checkpoints import WEIGHTS, best_reference, sha256_of  # noqa: E402
from four_d.data.contract import RawClip  # noqa: E402
from four_d.data.sampling import collate, normalise, to_clip, to_example  # noqa: E402
from four_d.data.shards import ShardReader, open_shards  # noqa: E402
from four_d.data.stats import clip_stats  # noqa: E402
from four_d.inference.model import LoadedModel  # noqa: E402
from four_d.metrics import baselines  # noqa: E402
from four_d.metrics.depth import align  # noqa: E402
from four_d.outputs import new_file, write_json  # noqa: E402
from four_d.types import Cameras, Clip, Example, Prediction, map_tensors  # noqa: E402
from four_d.video.fit import Fit, fit, resize  # noqa: E402
from tests.data import excerpts  # noqa: E402

Line = dict[str, Any]

CHECKPOINTS = ROOT / "checkpoints"
RESULTS = ROOT / "docs" / "results"
TABLE = RESULTS / "real.json"
MEAN_MAP = RESULTS / "real_mean_map.json"
PICTURE = ROOT / "docs" / "images" / "real.jpg"
"""Sheet of the pictures whose licence allows it."""
SHEET = Path("runs/real/sheet.jpg")
"""Sheet of all pictures."""
EACH_FRAMES = 4
"""Frames of each world that the mean map is fitted on, evenly spread over its cameras and times."""
ABSREL = "depth_absrel_median_frame"
POSE = {"rotation_deg": "pose_rot_pairs_deg", "rta15": "pose_rta15", "ate_m": "pose_ate_sim3"}
MASK = {"iou": "mask_iou", "f": "mask_f"}
MOTION = {"epe_dynamic_m": "motion_epe_dynamic", "epe_all_m": "motion_epe_all"}
STANDS_FOR = {"near": "varied", "near_furnished": "furnished", "open": "varied"}
"""Kinds of worlds without held-out ones of their own, and the kind that differs only in the cameras' distance, or has
them as a part.
"""
DEPTH_ROWS = ("model", "constant", "mean_map", "previous")
POSE_ROWS = ("model", "still", "line", "previous")
MASK_ROWS = ("model", "all", "none", "previous")
MOTION_ROWS = ("model", "still", "previous")
CELL = 224
"""Width of a picture of the sheets in pixels."""


@dataclass(frozen=True, kw_only=True)
class Real:
    """One set of real pictures: its videos, their licence, and what the table says of them."""

    videos: Mapping[str, Callable[[], Clip]]
    """Name → unbatched clip in the source's units, first frame's camera."""
    what: str
    licence: str
    depth: bool = True
    shown: bool = False
    """True if the licence allows pictures of it in docs."""


def clip_of(make_raw: Callable[[], RawClip], turned: bool = False) -> Clip:
    clip = to_clip(make_raw())
    return upright(clip) if turned else clip


def upright(clip: Clip) -> Clip:
    """Turn a clip of a camera that lies on its side (Aria's) by a quarter, clockwise; the world goes with it."""
    cameras = clip.cameras
    assert cameras is not None
    old_from_new = cameras.intrinsics.new_tensor([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    k, height = cameras.intrinsics, clip.images.shape[-2]
    lens = torch.zeros_like(k)
    lens[..., 0, 0], lens[..., 1, 1], lens[..., 2, 2] = k[..., 1, 1], k[..., 0, 0], 1
    lens[..., 0, 2], lens[..., 1, 2] = height - k[..., 1, 2], k[..., 0, 2]
    turn = geometry.make_pose(old_from_new, torch.zeros_like(old_from_new[0]))
    moved = geometry.rebase(Cameras(world_from_camera=cameras.world_from_camera @ turn, intrinsics=lens))
    motion = None if clip.motion is None else _quarter(clip.motion.movedim(-1, 0)).movedim(0, -1) @ old_from_new.float()
    return dataclasses.replace(
        clip,
        images=_quarter(clip.images),
        cameras=moved,
        depth=None if clip.depth is None else _quarter(clip.depth),
        valid=None if clip.valid is None else _quarter(clip.valid),
        motion=motion,
        motion_valid=None if clip.motion_valid is None else _quarter(clip.motion_valid),
    )


def _quarter(maps: Tensor) -> Tensor:
    """Turn the last two axes, rows and columns, clockwise."""
    return maps.rot90(-1, (-2, -1))


def stirring() -> Clip:
    exact = map_tensors(excerpts.stirring().targets, lambda t: t.float() if t.is_floating_point() else t)
    return upright(dataclasses.replace(exact, metric=torch.tensor(True), scale=torch.tensor(1.0)))


def left(make_raw: Callable[[], RawClip]) -> RawClip:
    """First frame of a pair, the one with depth."""
    raw = make_raw()
    info = dataclasses.replace(raw.info, times=[0.0], camera_ids=[0])
    assert raw.world_from_camera is not None
    assert raw.intrinsics is not None
    assert raw.depth is not None
    return dataclasses.replace(
        raw,
        info=info,
        images=raw.images[:1],
        world_from_camera=raw.world_from_camera[:1],
        intrinsics=raw.intrinsics[:1],
        depth=raw.depth[:1],
    )


def by_camera(make_raw: Callable[[], RawClip], camera: int) -> RawClip:
    """Video of one camera of a rig without depth."""
    raw = make_raw()
    own = [index for index, each in enumerate(raw.info.camera_ids) if each == camera]
    info = dataclasses.replace(raw.info, times=[raw.info.times[i] for i in own], camera_ids=[0] * len(own))
    poses, lenses, depth = (
        None if part is None else part[own] for part in (raw.world_from_camera, raw.intrinsics, raw.depth)
    )
    return dataclasses.replace(
        raw, info=info, images=raw.images[own], world_from_camera=poses, intrinsics=lenses, depth=depth
    )


REAL: dict[str, Real] = {
    "aria_digital_twin": Real(
        videos={
            "rgb": stirring,
            **{
                f"slam_{side}": partial(clip_of, partial(by_camera, excerpts.aria, camera), turned=True)
                for camera, side in enumerate(("left", "right"))
            },
        },
        what="a head's three cameras, turned upright, 2 frames each, 33 ms apart; hands stir",
        licence="Apache-2.0",
        shown=True,
    ),
    "hololens_rgbd": Real(
        videos={"office": partial(clip_of, excerpts.hololens)},
        what="a walk through an office, 12 frames; nothing moves",
        licence="MIT",
        shown=True,
    ),
    "rgbd_3dmatch": Real(
        videos={"room": partial(clip_of, excerpts.threedmatch)},
        what="a room, 4 frames, of which 2 are neighbours",
        licence="Apache-2.0 repository, data for research",
    ),
    "kitti": Real(
        videos={"street": partial(clip_of, excerpts.kitti)},
        what="a street, 1 frame, lidar",
        licence="CC BY-NC-SA 3.0",
    ),
    "nyu": Real(videos={"room": partial(clip_of, excerpts.nyu)}, what="a room, 1 frame", licence="research"),
    "middlebury": Real(
        videos={"motorcycle": partial(clip_of, partial(left, excerpts.motorcycle))},
        what="a motorcycle in a shed, the left image of a pair",
        licence="research",
    ),
    "tartanair": Real(
        videos={"street": partial(clip_of, excerpts.tartanair)},
        what="a rendered street, 2 frames, no poses",
        licence="CC BY 4.0",
        shown=True,
    ),
    "nerf_fox": Real(
        videos={"fox": partial(clip_of, excerpts.fox)},
        what="3 photographs around a toy; poses only",
        licence="non-commercial research",
        depth=False,
    ),
    "davis_bmx-trees": Real(
        videos={"rider": partial(clip_of, excerpts.davis)},
        what="a rider among trees, 30 frames; masks only",
        licence="CC BY-NC 4.0",
        depth=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Fitted(Model):
    """A model behind ``four-d infer``'s fit of pictures: it sees them at its own size and answers at theirs."""

    model: LoadedModel

    @property
    def abilities(self) -> Abilities:
        """Abilities of the model without Gaussians."""
        return self.model.without("gaussians").abilities

    def __call__(self, clip: Clip) -> Prediction:
        """Predict for a batch of one clip, whose query times, if any, are answered together."""
        own = self.abilities
        size = clip.images.shape[-2], clip.images.shape[-1]
        fits = fit([size] * clip.images.shape[1], self.model.info.image_size, own.multiple, exact=own.image_size)
        small = dataclasses.replace(clip, images=resize(list(clip.images[0]), fits)[None])
        with torch.inference_mode():
            seen = self.model.without("gaussians")(small)
        whole = fits.of_frames[0]
        cameras = seen.cameras
        if cameras is not None:
            cameras = dataclasses.replace(cameras, intrinsics=fits.to_original(cameras.intrinsics[0])[None])
        return Prediction(
            depth=_at(seen.depth, whole),
            dynamic=_at(seen.dynamic, whole),
            cameras=cameras,
            motion=None if seen.motion is None else _required(_at(seen.motion.movedim(-1, 1), whole)).movedim(1, -1),
            motion_visible=_at(seen.motion_visible, whole),
        )


def _at(maps: Tensor | None, own: Fit) -> Tensor | None:
    """Maps (… r c) at the picture's size, bilinear; what the fit cropped repeats the edge."""
    if maps is None:
        return None
    (height, width), (rows, columns) = own.original, own.model
    x = (torch.arange(width) + 0.5 - own.left) * own.scale * 2 / columns - 1
    y = (torch.arange(height) + 0.5 - own.top) * own.scale * 2 / rows - 1
    where = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    flat = maps.reshape(1, -1, rows, columns).float().cpu()
    large = torch.nn.functional.grid_sample(flat, where, padding_mode="border", align_corners=False)
    return large.reshape(*maps.shape[:-2], height, width)


def _required(maps: Tensor | None) -> Tensor:
    assert maps is not None
    return maps


def examples() -> Iterator[Example]:
    """Every video as a batch of one; keys are set/video."""
    for name, real in REAL.items():
        for video, build in real.videos.items():
            yield collate([to_example(normalise(build()), f"{name}/{video}")])


def fit_mean_map() -> Line:
    """Mean of the logarithm of relative depth over frames of the reference training's kinds of worlds.

    In the cells of ``data stats``; each kind counts as the stages make shards of it. Its held-out worlds stand for it:
    other textures and shapes, the same cameras and rooms.
    """
    shards = dict.fromkeys(HELD_OUT, 0)
    for stage in STAGES.values():
        for kind, count in stage.shards.items():
            shards[STANDS_FOR.get(kind, kind)] += count
    maps: dict[str, np.ndarray] = {}
    worlds: Line = {}
    for each in HELD_OUT_SETS:
        make(each, Place(), 1)
        kind = each.folder.rpartition("/")[2]
        with open_shards(Place().data(each)) as reader:
            cells = [cell for index in range(len(reader)) for cell in _cells(reader, index)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # cells without depth in any frame
            maps[kind] = np.nan_to_num(np.nanmean(np.stack(cells), axis=0))
        settings = {"seed": each.seed, "held_out": True, "arguments": list(each.worlds.arguments)}
        worlds[kind] = {**settings, "frames": len(cells), "weight": shards[kind]}
    mean = np.average(np.stack(list(maps.values())), axis=0, weights=[shards[kind] for kind in maps])
    frames = sum(each["frames"] for each in worlds.values())
    return {"log_relative_depth": np.round(mean, 4).tolist(), "frames": frames, "worlds": worlds, **provenance()}


def _cells(reader: ShardReader, index: int) -> list[np.ndarray]:
    chosen = evaluation.evenly(range(len(reader.samples[index].times)), EACH_FRAMES)
    return clip_stats(reader.read(index, chosen)).depth_cells


def mean_map() -> Model:
    cells = torch.tensor(json.loads(MEAN_MAP.read_text())["log_relative_depth"])
    return baselines.DepthMap(depth=cells.exp())


def provenance(script: str = __file__) -> Line:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}, torch {torch.__version__}",
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]]),
    }


def named(name: str) -> LoadedModel:
    """A model of ``checkpoints/`` by name, or any other as `four_d.load` takes it."""
    return load(CHECKPOINTS / name if (CHECKPOINTS / name).is_dir() else name)


def described(model: LoadedModel) -> Line:
    weights = None if model.path is None else model.path / WEIGHTS
    sha256 = None if weights is None or not weights.is_file() else sha256_of(weights)
    return {
        "name": model.info.name if model.path is None else model.path.name,
        "image_size": list(model.info.image_size),
        "frames": model.info.frames,
        "sha256": sha256,
    }


def scored(model: LoadedModel, previous: LoadedModel | None) -> evaluation.Evaluation:
    """Evaluation of all videos; each model is a row beside the predictors that ignore the image."""
    free = baselines.untrained()
    rows: dict[str, Model] = {
        "constant": free["flat_depth"],
        "mean_map": mean_map(),
        "still": free["static_camera"],
        "line": free["line_camera"],
        "all": free["all_moving"],
        "none": free["none_moving"],
        "no_motion": free["static_motion"],
    }
    if previous is not None:
        rows["previous"] = Fitted(model=previous)
    return evaluation.evaluate(
        Fitted(model=model), examples(), predictors=rows, tasks=("depth", "pose", "mask", "motion")
    )


def by_set(found: evaluation.Evaluation, row: str, metric: str) -> dict[str, float]:
    """Mean over the videos of each set that allows the metric."""
    values = found.per_video.get(row, {}).get(metric, ())
    sets: dict[str, list[float]] = {}
    for key, value in zip(found.keys, values):
        if value is not None:
            sets.setdefault(key.rpartition("/")[0], []).append(value)
    return {name: statistics.fmean(each) for name, each in sets.items()}


def table_of(found: evaluation.Evaluation, same: bool) -> Line:
    """Figures by kind, set and row; the row ``previous`` is the model's where they are one."""

    def figures(rows: tuple[str, ...], metrics: Mapping[str, str], source: Mapping[str, str]) -> Line:
        table: Line = {}
        for row in rows:
            name = "model" if row == "previous" and same else source.get(row, row)
            for key, metric in metrics.items():
                for each, value in by_set(found, name, metric).items():
                    table.setdefault(each, {}).setdefault(row, {})[key] = round(value, 4)
        return table

    depth = figures(DEPTH_ROWS, {"absrel": ABSREL}, {})
    absrel = {each: {row: cell["absrel"] for row, cell in rows.items()} for each, rows in depth.items()}
    return {
        "absrel": with_average(absrel),
        "pose": figures(POSE_ROWS, POSE, {}),
        "mask": figures(MASK_ROWS, MASK, {}),
        "motion": figures(MOTION_ROWS, MOTION, {"still": "no_motion"}),
    }


def with_average(absrel: Line) -> Line:
    """Add the mean over sets of each row that all sets have, and the model's over the best of the others."""
    sets = {name: rows for name, rows in absrel.items() if name != "average"}
    rows = [row for row in DEPTH_ROWS if all(row in each for each in sets.values())]
    average = {row: round(statistics.fmean(each[row] for each in sets.values()), 4) for row in rows}
    return {**sets, "average": average}


def with_previous(table: Line, earlier: Line, digest: str) -> Line:
    """Add the rows ``previous`` from an earlier table's ``model``. SystemExit if that is of other pictures."""
    if earlier["digest"] != digest:
        raise SystemExit(f"--previous is of other pictures (digest {earlier['digest']}, here {digest})")
    for kind in ("absrel", "pose", "mask", "motion"):
        for each, rows in table[kind].items():
            if each in earlier[kind] and "model" in earlier[kind][each]:
                rows["previous"] = earlier[kind][each]["model"]
    return {**table, "absrel": with_average(table["absrel"])}


def ratio(absrel: Line) -> float:
    """Model's average over the best of the other rows."""
    average = absrel["average"]
    return average["model"] / min(value for row, value in average.items() if row != "model")


def pictures(models: Mapping[str, Model], only_shown: bool) -> Image.Image:
    """A row of each set with depth: a picture, its depth, and that of each model, in one scale after its median."""
    rows, labels = [], []
    for name, real in REAL.items():
        if not real.depth or (only_shown and not real.shown):
            continue
        clip = next(iter(real.videos.values()))()
        frame = len(clip.times) // 2
        assert clip.depth is not None
        assert clip.valid is not None
        truth, valid = clip.depth[frame], clip.valid[frame]
        batch = collate([to_example(clip, name)]).inputs
        limits = drawing.depth_limits(truth.numpy(), valid.numpy())
        picture = (clip.images[frame].permute(1, 2, 0) * 255).round().byte().numpy()
        row = [picture, drawing.depth_image(truth.numpy(), valid.numpy(), limits)]
        for model in models.values():
            said = _required(model(batch).depth)[0, frame]
            fitted = align(said.double().flatten(), truth.double().flatten(), valid.flatten(), "median")
            row.append(drawing.depth_image(fitted.view_as(truth).numpy(), limits=limits))
        rows.append([_small(each) for each in row])
        labels.append(name)
    return Image.fromarray(drawing.grid(rows, labels, ["picture", "truth", *models], cell=CELL))


def _small(image: drawing.RgbImage) -> drawing.RgbImage:
    size = CELL, max(1, round(CELL * image.shape[0] / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def write_picture(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial_file:
        image.save(partial_file, format="jpeg", quality=82, optimize=True)
    print(path, path.stat().st_size)


def page(table: Line) -> str:
    """The results page."""
    average, best = table["absrel"]["average"], ratio(table["absrel"])
    sets = "\n".join(f"| `{name}` | {real.what} | {real.licence} |" for name, real in REAL.items())
    made = table["mean_map"]
    return f"""# Real pictures

What the reference model says of real pictures with truth, beside what ignores the image.

- command: `{table["command"]}`, commit `{table["commit"]}`, {table["date"]}
- machine: {table["machine"]}
- all figures, and the digest of the pictures (`{table["digest"]}`): [real.json](real.json)
- `model`: {_model(table["models"]["model"])}
- `previous`: {_model(table["models"]["previous"])}

Each model sees the pictures as `four-d infer` shows it a video, all frames of a video at once; its answers are
enlarged to the pictures' own size, where the code of [`four-d eval`](../evaluation.md) scores them. Nothing here was
trained on.

## Depth

Mean over pixels of |p − g| / g after one factor per frame, by medians (`{ABSREL}`). `constant` is one
depth everywhere, `mean_map` the mean of the logarithm of relative depth over {made["frames"]} frames of worlds
[like those of training](real_mean_map.json) (`python benchmarks/real.py --fit`: the held-out worlds of each kind of
`benchmarks/reference.py`, weighted as training has the kind), in the 8 × 8 cells of `four-d data stats`, resized.

{_depth_table(table["absrel"])}

On the average of sets the model has {average["model"]:.3f}, which is {best:.2f} of the best of the
other rows; at most 0.80 is asked for.

![Pictures, true depth, and the models' depth](../images/real.jpg)

## Cameras

Mean error of relative rotation over pairs of frames; share of pairs whose direction of translation errs by less than
15° (`pose_rta15`, up to sign); and the distance of camera centres after the best similarity, in metres, where there
are three frames. `still` never moves or turns, `line` moves forward without turning.

{_cell_table(table["pose"], POSE_ROWS, {"rotation_deg": "rotation, °", "rta15": "RTA@15", "ate_m": "ATE, m"})}

## What moves

IoU and contour of masks; `all` and `none` call everything and nothing moving.

{_cell_table(table["mask"], MASK_ROWS, {"iou": "IoU", "f": "F"})}

Distance of predicted from true motion: a fork and a spoon that move by 2 cm, and everything else, which is still.

{_cell_table(table["motion"], MOTION_ROWS, {"epe_dynamic_m": "of what moves, m", "epe_all_m": "of all, m"})}

## Sets

| set | what | licence |
| --- | --- | --- |
{sets}

The sheet above holds those whose licence allows pictures; the command writes one of all sets to `runs/real/sheet.jpg`.
They are few: single scenes, of which some have one frame. A difference of a few percent says nothing.
"""


def _model(facts: Line) -> str:
    rows, columns = facts["image_size"]
    weights = "" if facts["sha256"] is None else f", weights {facts['sha256'][:12]}"
    return f"`{facts['name']}` ({rows} × {columns}, {facts['frames']} frames{weights})"


def _depth_table(absrel: Line) -> str:
    return _markdown(
        ["set", *DEPTH_ROWS],
        [[f"`{name}`" if name in REAL else f"**{name}**", *(_number(rows.get(row)) for row in DEPTH_ROWS)]
         for name, rows in absrel.items()],
    )  # fmt: skip


def _cell_table(kind: Line, rows: tuple[str, ...], metrics: Mapping[str, str]) -> str:
    return _markdown(
        ["set", "", *rows],
        [
            [f"`{name}`", label, *(_number(cells.get(row, {}).get(key)) for row in rows)]
            for name, cells in kind.items()
            for key, label in metrics.items()
            if any(key in cell for cell in cells.values())
        ],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name in checkpoints/, or whatever four_d.load takes (default: the best one)")
    parser.add_argument("--previous", help="the model before it, or an earlier real.json (default: the same model)")
    parser.add_argument("--fit", action="store_true", help="only fit the mean map, on training worlds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.fit:
        write_json(MEAN_MAP, fit_mean_map())
        return
    model = named(given.model or best_reference([CHECKPOINTS])[1].name)
    earlier = json.loads(Path(given.previous).read_text()) if (given.previous or "").endswith(".json") else None
    previous = None if earlier is not None or given.previous is None else named(given.previous)
    same = earlier is None and (previous is None or described(previous) == described(model))
    found = scored(model, None if same else previous)
    table = table_of(found, same)
    if earlier is not None:
        table = with_previous(table, earlier, found.digest)
    before = earlier["models"]["model"] if earlier is not None else described(model if same else _some(previous))
    fitted = json.loads(MEAN_MAP.read_text())
    table |= {
        "models": {"model": described(model), "previous": before},
        "mean_map": {"file": MEAN_MAP.name, "frames": fitted["frames"], "command": fitted["command"]},
        "digest": found.digest,
        **provenance(),
    }
    write_json(TABLE, table)
    TABLE.with_suffix(".md").write_text(page(table))
    shown: dict[str, Model] = {"model": Fitted(model=model), "mean map": mean_map()}
    if previous is not None and not same:
        shown["previous"] = Fitted(model=previous)
    for path, only_shown in ((PICTURE, True), (SHEET, False)):
        write_picture(pictures(shown, only_shown), path)
    print(_depth_table(table["absrel"]))


def _some(model: LoadedModel | None) -> LoadedModel:
    assert model is not None
    return model


if __name__ == "__main__":
    main()
