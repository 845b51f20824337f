"""`four-d VERB …`: every verb is one importable function with arguments."""

from __future__ import annotations

import argparse
import errno
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from four_d import __version__
from four_d.errors import UserError

if TYPE_CHECKING:
    from four_d.config import Plain

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. 0 = done, 1 = a check failed, 2 = bad input, 143 = stopped by a signal after saving."""
    parsed = parse(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{error.strerror}; {_REMEDIES[error.errno]}")
    except KeyboardInterrupt:
        print("four-d: interrupted", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of one verb, checked in form; ``command`` is the function to call with them."""
    return _parser().parse_args(arguments)


_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "your quota is used up: free some space or choose another folder",
    errno.EACCES: "choose a folder that you may write to (or fix its permissions)",
    errno.EPERM: "choose a folder that you may write to (or fix its permissions)",
    errno.ENOTDIR: "a file is in the way of a folder: choose another place",
    errno.EEXIST: "something is in the way: choose another place",
    errno.EISDIR: "a folder is in the way of a file: choose another place",
    errno.EROFS: "the disk is read-only: choose another folder",
}


def _complain(message: str) -> int:
    print(f"four-d: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="four-d", description="Train, evaluate and export feed-forward 4D models.")
    parser.add_argument("--version", action="version", version=f"four-d {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_run_verbs(verbs)
    _add_file_verbs(verbs)
    _add_view_verb(verbs)
    _add_data_verbs(verbs)
    _add_weights_verbs(verbs)
    _add_config_verbs(verbs)
    _verb(verbs, "doctor", _doctor, "Print what this machine has of what four_d can use, and how to get the rest.")
    return parser


Verbs = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]  # argparse names this type nowhere else


def _verb(verbs: Verbs[argparse.ArgumentParser], name: str, command: Command, text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(command=command)
    return verb


def _add_run_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    train = _verb(verbs, "train", _train, "Train what the configs say; continue if the run folder has a checkpoint.")
    tune = _verb(
        verbs, "finetune", _finetune, "Train from weights=PATH; score them on held-out clips before and after."
    )
    for verb in (train, tune):
        verb.add_argument("values", nargs="+", metavar="CONFIG|key=value", help="config files, merged left to right")
        verb.add_argument(
            "--resume",
            choices=["auto", "never", "always"],
            default="auto",
            help="auto (default): go on if there is a checkpoint; never: start anew in an empty folder; always: insist",
        )


def _add_file_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    evaluate = _verb(verbs, "eval", _eval, "Score a checkpoint on held-out shards or under a published protocol.")
    evaluate.add_argument("checkpoint", type=Path, help="an exported folder or a run folder")
    text = "data=DIR with train_data=DIR, frames=8, clips=64; or protocol=sintel root=DIR with sequences=a,b tasks=pose"
    evaluate.add_argument("values", nargs="+", metavar="key=value", help=text)
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    export = _verb(verbs, "export", _export, "Write weights, config, model card and a torch.export program.")
    export.add_argument("run", type=Path, help="a run folder")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    export.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the weights on disk")
    export.add_argument("--scores", type=Path, metavar="FILE", help="of four-d eval --json: they go onto the card")
    export.add_argument("--no-program", action="store_true", help="leave the torch.export program out")
    export.add_argument("--overwrite", action="store_true", help="replace whatever DIR holds")
    _add_infer(verbs)


def _add_infer(verbs: Verbs[argparse.ArgumentParser]) -> None:
    infer = _verb(verbs, "infer", _infer, "Cameras, depth, points and a report page of one video.")
    infer.add_argument(
        "video",
        type=Path,
        nargs="+",
        metavar="VIDEO",
        help="a video file or a folder of images; several: synchronised cameras that begin at the same moment",
    )
    infer.add_argument(
        "--model", type=Path, metavar="PATH", help="an exported folder or a run folder (default: the best reference)"
    )
    infer.add_argument("--out", type=Path, required=True, metavar="DIR")
    infer.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    infer.add_argument(
        "--mask", type=Path, metavar="PATH", help="what moves (nonzero): an image for all frames, or a folder of them"
    )
    infer.add_argument(
        "--points",
        type=_point,
        nargs="+",
        metavar="X,Y",
        help="pixels to follow: X,Y of the first frame or FRAME,X,Y (default, of a model with motion: a grid)",
    )
    infer.add_argument(
        "--intrinsics",
        type=_pinhole,
        nargs="+",
        metavar="FX,FY,CX,CY",
        help="known intrinsics in pixels, for a model that takes them; one, or one per camera",
    )
    infer.add_argument(
        "--cameras", type=Path, metavar="FILE", help="known poses and intrinsics: a cameras.json as infer writes it"
    )
    infer.add_argument(
        "--depth", type=Path, metavar="DIR", help="known depth: a folder as infer writes it, or 16-bit PNGs"
    )
    infer.add_argument("--depth-unit", type=float, metavar="UNIT", help="what one count of those PNGs is, as 0.001")
    infer.add_argument("--no-tracks", action="store_true", help="follow nothing: faster with a model of dense motion")
    infer.add_argument("--static-points", action="store_true", help="leave what moves out of the point cloud")
    infer.add_argument(
        "--max-frames", type=int, default=24, help="of each camera, spread evenly over the video (default 24)"
    )
    infer.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="frames seen at once; a longer video is joined of windows (default 24, or twice as many as in training)",
    )
    infer.add_argument("--overlap", type=int, metavar="K", help="frames that windows share (default a quarter)")
    infer.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="where in the video to begin")
    infer.add_argument("--overwrite", action="store_true", help="replace whatever DIR holds")
    infer.add_argument(
        "--fps", type=float, default=None, help="take so many frames per second instead of spreading them"
    )


def _add_view_verb(verbs: Verbs[argparse.ArgumentParser]) -> None:
    view = _verb(verbs, "view", _view, "Show Gaussians in the browser, with a slider over time, until Ctrl-C.")
    view.add_argument(
        "gaussians", type=Path, metavar="FILE", help="PLY, SPZ, GLB or USD, or a folder of one per time or per segment"
    )
    view.add_argument("--port", type=int, default=8080, help="of this machine (default 8080, or the next free one)")
    view.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default 127.0.0.1)")


def _add_data_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    data = verbs.add_parser("data", help="make, check, count and show shards")
    data = data.add_subparsers(required=True, metavar="VERB")
    make = _verb(data, "make", _data_make, "Make shards of synthetic multi-view video; whole ones are not made again.")
    make.add_argument("out", type=Path, metavar="OUT")
    make.add_argument("--shards", type=_range, default=range(1), metavar="A:B", help="which shards, as 0:64")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--workers", type=int, default=1)
    make.add_argument("--clips-per-shard", type=int, default=16)
    make.add_argument("--cameras", type=int, default=4)
    make.add_argument("--frames", type=int, default=24, help="per camera")
    make.add_argument("--size", type=_size, default=(128, 128), metavar="WxH", help="as 128 or 160x120")
    make.add_argument(
        "--moving",
        type=_shares,
        default=(0.035, 0.4),
        metavar="A:B",
        help="share of the picture that moves, as 0.1:0.5",
    )
    make.add_argument(
        "--objects", type=_counts, default=(3, 12), metavar="A:B", help="fewest and most objects in a world, as 3:5"
    )
    make.add_argument("--seconds", type=_shares, default=(1.0, 2.0), metavar="A:B", help="a clip's length, as 0.5:0.8")
    make.add_argument(
        "--paths",
        type=lambda text: tuple(text.split(",")),
        default=None,
        metavar="KIND,…",
        help="how cameras may move (default: all): handheld, orbit, dolly, pan, follow, static",
    )
    make.add_argument(
        "--starts",
        type=lambda text: tuple(text.split(",")),
        default=None,
        metavar="KIND,…",
        help="how things may set out (default: all): dropped, thrown, slid, rolled",
    )
    make.add_argument("--spin", type=float, default=1.0, help="factor on how fast things spin when they set out")
    make.add_argument(
        "--rig", type=float, default=None, metavar="METRES", help="cameras move as one, at most so far from the first"
    )
    make.add_argument("--held-out", action="store_true", help="worlds with textures and shapes never trained on")
    check = _verb(data, "check", _data_check, "Verify shards against the layout and their geometry; exit 1 if wrong.")
    stats = _verb(data, "stats", _data_stats, "Count what is in the shards.")
    for verb in (check, stats):
        verb.add_argument("folder", type=Path)
        verb.add_argument("--clips", type=_count, default=None, help="look at that many clips, evenly spread")
    stats.add_argument("--json", type=Path, metavar="FILE")
    show = _verb(data, "show", _data_show, "Draw a clip: frames, depth, mask, tracks, camera frusta.")
    show.add_argument("folder", type=Path)
    show.add_argument("--clip", default="0", metavar="INDEX|KEY")
    show.add_argument("--out", type=Path, default=Path(), metavar="DIR")


def _add_weights_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    weights = verbs.add_parser("weights", help="list, convert and verify weights of other projects")
    weights = weights.add_subparsers(required=True, metavar="VERB")
    _verb(weights, "list", _weights_list, "Weights that can be converted, their licences, and reference models here.")
    convert = _verb(weights, "convert", _weights_convert, "Write other projects' weights as a model of ours, or back.")
    convert.add_argument("kind", metavar="KIND", help="vggt, page_4d or dinov2")
    convert.add_argument("source", type=Path, metavar="SRC", help="a .safetensors, .pt or .pth file")
    convert.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to make (with --reverse: a .safetensors file)"
    )
    convert.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="CONFIG|key=value",
        help="the model's sizes, as vggt overlays/large (default: by the tensors' shapes)",
    )
    convert.add_argument("--name", help="which of `weights list` it is: its source and licence go onto the card")
    convert.add_argument("--reverse", action="store_true", help="SRC is a model of ours, OUT gets KIND's names")
    convert.add_argument("--overwrite", action="store_true", help="replace whatever OUT holds")
    verify = _verb(
        weights, "verify", _weights_verify, "Compare our outputs with a golden case's; exit 1 if they differ."
    )
    verify.add_argument("case", type=Path, metavar="CASE_DIR", help="case.json, weights, inputs and outputs")


def _add_config_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    config = verbs.add_parser("config", help="show and compare configs").add_subparsers(required=True, metavar="VERB")
    show = _verb(config, "show", _config_show, "Print the whole config that these files and overrides give.")
    show.add_argument("values", nargs="+", metavar="CONFIG|key=value")
    differ = _verb(config, "diff", _config_diff, "Print what differs between two configs.")
    differ.add_argument("left", help="a config file; several joined with +")
    differ.add_argument("right")


def _range(text: str) -> range:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with A < B, as 0:64")
    return range(int(first), int(last))


def _counts(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, as 3:5")
    return int(first), int(last)


def _shares(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, as 0.1:0.5") from None
    return low, high


def _point(text: str) -> tuple[float, float, float]:
    """Frame, x, y."""
    try:
        numbers = [float(part) for part in text.split(",")]
        frame, x, y = numbers if len(numbers) == 3 else [0.0, *numbers]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y or FRAME,X,Y, as 120,64.5") from None
    return frame, x, y


def _pinhole(text: str) -> tuple[float, float, float, float]:
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FX,FY,CX,CY, as 500,500,320,240") from None
    return fx, fy, cx, cy


def _count(text: str) -> int:
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and (height or width).isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 128 or 160x120")
    return int(width), int(height or width)


def _split(values: list[str]) -> tuple[list[str], list[str]]:
    """Config files and key=value overrides, which may come in any order; weights=PATH is short for weights.path."""
    overrides = [v for v in values if "=" in v]
    short = re.compile(r"^weights=(?!null$)")
    return [v for v in values if "=" not in v], [short.sub("weights.path=", v, count=1) for v in overrides]


def _train(arguments: argparse.Namespace) -> int:
    from four_d.config import load
    from four_d.training import train

    files, overrides = _split(arguments.values)
    return train(load(files, overrides), resume=arguments.resume).exit_code


def _finetune(arguments: argparse.Namespace) -> int:
    from four_d.config import load
    from four_d.training import finetune

    files, overrides = _split(arguments.values)
    return finetune(load(files, overrides), resume=arguments.resume).exit_code


def _eval(arguments: argparse.Namespace) -> int:
    from four_d import evaluation
    from four_d.config import build, load_plain
    from four_d.inference import load

    values = load_plain([], arguments.values)
    if "protocol" in values:
        return _eval_published(arguments, values)
    model = load(arguments.checkpoint)
    size: Plain = {"size": list(model.info.image_size)}
    settings = build(evaluation.EvaluationConfig, {**size, **values}, "eval")
    result = evaluation.run(model.to(evaluation.usable(settings.device)), settings)
    result.print()
    if arguments.json is not None:
        result.write(arguments.json)
    return 0


def _eval_published(arguments: argparse.Namespace, values: Plain) -> int:
    from four_d import evaluation
    from four_d.config import build
    from four_d.inference import load

    lists = {key: str(values[key]).split(",") for key in ("sequences", "tasks") if isinstance(values.get(key), str)}
    settings = build(evaluation.PublishedConfig, {**values, **lists}, "eval")
    device, model = evaluation.usable(settings.device), load(arguments.checkpoint)
    patch, trained = model.model.patch_size, model.info.image_size
    result = evaluation.run_protocol(model.to(device), settings, patch=patch, trained=trained)
    result.print()
    if arguments.json is not None:
        result.write(arguments.json)
    return 1 if result.failed or not result.rows else 0


def _export(arguments: argparse.Namespace) -> int:
    from four_d.checkpoints import WEIGHTS, sha256_of
    from four_d.export import export, read_scores

    scores = None if arguments.scores is None else read_scores(arguments.scores)
    dtype, program, overwrite = arguments.dtype, not arguments.no_program, arguments.overwrite
    out = export(arguments.run, arguments.out, scores=scores, dtype=dtype, program=program, overwrite=overwrite)
    weights = out / WEIGHTS
    print(out, f"{weights.name}: {weights.stat().st_size} bytes, sha256 {sha256_of(weights)}", sep="\n")
    return 0


def _infer(arguments: argparse.Namespace) -> int:
    from four_d.checkpoints import best_reference
    from four_d.inference import Known, Result, Selection, infer, load
    from four_d.viewer import report

    source = arguments.model
    if source is None:
        source, reference = best_reference()
        print(f"no --model given: taking {source} ({reference.summary}; {reference.licence})", file=sys.stderr)

    known = Known(
        intrinsics=arguments.intrinsics,
        cameras=arguments.cameras,
        depth=arguments.depth,
        depth_unit=arguments.depth_unit,
    )
    title = ", ".join(video.name for video in arguments.video)

    def page(result: Result, folder: Path) -> None:
        report(
            folder / "report.html",
            result,
            title=title,
            summary=f"Seen by {source}",
            cloud=result.cloud(static=arguments.static_points),
            tracks=result.track_table,
            selected=range(0 if result.queries is None else len(result.queries)),
            gaussians=result.gaussians,
        )

    infer(
        load(source).to(arguments.device),
        arguments.video,
        arguments.out,
        selection=Selection(max_frames=arguments.max_frames, start=arguments.start, fps=arguments.fps),
        mask=arguments.mask,
        points=arguments.points,
        known=known,
        window=arguments.window,
        overlap=arguments.overlap,
        tracks=not arguments.no_tracks,
        static_points=arguments.static_points,
        page=page,
        overwrite=arguments.overwrite,
    )
    print(arguments.out)
    return 0


def _data_make(arguments: argparse.Namespace) -> int:
    from data_prep.synthetic import WorldSettings, make

    width, height = arguments.size
    settings = WorldSettings(
        width=width,
        height=height,
        frames=arguments.frames,
        cameras=arguments.cameras,
        moving=arguments.moving,
        objects=arguments.objects,
        duration_s=arguments.seconds,
        spin=arguments.spin,
        rig_m=arguments.rig,
        **{name: value for name in ("paths", "starts") if (value := getattr(arguments, name)) is not None},
    )
    manifest = make(
        arguments.out,
        shards=arguments.shards,
        seed=arguments.seed,
        clips_per_shard=arguments.clips_per_shard,
        workers=arguments.workers,
        settings=settings,
        held_out=arguments.held_out,
    )
    if manifest is None:
        print(f"{arguments.out}: other shards are still missing; whoever makes the last one writes the manifest")
    else:
        print(f"{arguments.out}: {manifest.clips} clips, {manifest.frames} frames, {manifest.bytes / 1e6:.0f} MB")
    return 0


def _data_check(arguments: argparse.Namespace) -> int:
    from four_d.data.check import check

    report = check(arguments.folder, clips=arguments.clips)
    print(report.table())
    return 0 if report.ok else 1


def _data_stats(arguments: argparse.Namespace) -> int:
    from four_d.data.manifest import atomic
    from four_d.data.stats import stats

    found = stats(arguments.folder, clips=arguments.clips)
    print(found.table())
    if arguments.json is not None:
        with atomic(arguments.json) as file:
            file.write((json.dumps(found.to_dict(), indent=1) + "\n").encode())
    return 0


def _view(arguments: argparse.Namespace) -> int:
    from four_d.inference.segments import read_segments
    from four_d.viewer import serve, wait

    live = serve(read_segments(arguments.gaussians), host=arguments.host, port=arguments.port)
    few = "" if live.film.kept > 0.995 else f" ({live.film.kept:.0%} of all, enlarged to fill the gaps)"
    print(f"http://{arguments.host}:{live.server.get_port()}  {len(live.film):,} splats{few}; Ctrl-C ends")
    wait(live)
    return 0


def _data_show(arguments: argparse.Namespace) -> int:
    from four_d.data.show import show

    clip = int(arguments.clip) if arguments.clip.isdigit() else arguments.clip
    print(*show(arguments.folder, clip, arguments.out), sep="\n")
    return 0


def _weights_list(arguments: argparse.Namespace) -> int:  # noqa: ARG001 - all commands have one signature
    from four_d.weights import show

    show()
    return 0


def _weights_convert(arguments: argparse.Namespace) -> int:
    from four_d.weights import convert, convert_back

    kind, source, out = arguments.kind, arguments.source, arguments.out
    if arguments.reverse:
        print(convert_back(kind, source, out, overwrite=arguments.overwrite))
        return 0
    configs, name = arguments.config, arguments.name
    print(convert(kind, source, out, configs=configs, name=name, overwrite=arguments.overwrite))
    return 0


def _weights_verify(arguments: argparse.Namespace) -> int:
    from four_d.weights import verify

    report = verify(arguments.case)
    report.print()
    return 0 if report.good else 1


def _doctor(arguments: argparse.Namespace) -> int:  # noqa: ARG001 - all commands have one signature
    from four_d.doctor import doctor

    rows = doctor()
    width = max(len(name) for name, _ in rows)
    print(*(f"{name:<{width}}  {finding}" for name, finding in rows), sep="\n")
    return 0


def _config_show(arguments: argparse.Namespace) -> int:
    from four_d.config import load, to_yaml

    print(to_yaml(load(*_split(arguments.values))), end="")
    return 0


def _config_diff(arguments: argparse.Namespace) -> int:
    from four_d.config import diff, load, to_plain

    left, right = (to_plain(load(*_split(side.split("+")))) for side in (arguments.left, arguments.right))
    for name, a, b in diff(left, right):
        print(f"{name}: {a!r} → {b!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
