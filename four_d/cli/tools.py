"""Other verbs: view, config show, config diff, config explain, doctor."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from four_d.cli.common import Verb, Verbs, add_verb, split
from four_d.cli.flags import Form
from four_d.errors import UserError


@dataclass(frozen=True, kw_only=True)
class View:
    """Flags of view."""

    gaussians: Annotated[Path, Form(positional=True, metavar="FILE")]
    """PLY, SPZ, GLB or USD file, or a folder with one file per time or segment."""
    port: int = 8080
    """Port on this machine; if it is taken, the next free one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 allows other machines to connect."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Flags of config show."""

    values: Annotated[tuple[str, ...], Form(positional=True, metavar="CONFIG|key=value")]
    """Config files, merged left to right, and settings."""


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Flags of config diff."""

    left: Annotated[str, Form(positional=True)]
    """Config file, or several joined with +."""
    right: Annotated[str, Form(positional=True)]
    """Config to compare it with, written alike."""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Flags of config explain."""

    values: Annotated[tuple[str, ...], Form(positional=True, metavar="SETTING|CONFIG|key=value")] = ()
    """Dotted name, as losses.motion (default: the top level); with configs, their values are shown too."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Flags of doctor."""

    values: Annotated[tuple[str, ...], Form(positional=True, metavar="CONFIG|key=value")] = ()
    """Config files and settings of a run to plan; without any, this machine is described."""
    memory: Annotated[str | None, Form(metavar="SIZE")] = None
    """Memory of a device to plan for, as 80GB or 80GiB (default: what this machine's device has)."""
    devices: Annotated[int | None, Form(metavar="N")] = None
    """Number of processes to plan for, each with a device (default: 1, or as torchrun started)."""
    strategy: Literal["ddp", "fsdp2"] | None = None
    """Way in which they share the run (default: loop.strategy)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device; auto: cuda where --memory or --devices is given, else what the run would take here."""


def add_verbs(verbs: Verbs[Verb]) -> None:
    """Add view, config show, config diff, config explain and doctor."""
    add_verb(
        verbs, "view", _view, "Show Gaussians in the browser, with a slider over time, until Ctrl-C.", lambda: View
    )
    config = verbs.add_parser("config", help="show, compare and explain configs")
    config = config.add_subparsers(required=True, metavar="VERB")
    add_verb(config, "show", _config_show, "Print the whole config that these files and overrides give.", lambda: Show)
    add_verb(config, "diff", _config_diff, "Print what differs between two configs.", lambda: Diff)
    add_verb(
        config, "explain", _config_explain, "Print what settings mean: type, default, value and use.", lambda: Explain
    )
    text = (
        "Print what this machine has of what four_d can use; with a config, what its run needs: memory, loader, disk."
    )
    add_verb(verbs, "doctor", _doctor, text, lambda: Doctor)


def _view(arguments: View) -> int:
    from four_d.inference.segments import read_segments
    from four_d.viewer import check_viser, serve, wait

    check_viser("showing Gaussians")
    live = serve(read_segments(arguments.gaussians), host=arguments.host, port=arguments.port)
    few = "" if live.film.kept > 0.995 else f" ({live.film.kept:.0%} of all, enlarged to fill the gaps)"
    print(f"http://{arguments.host}:{live.server.get_port()}  {len(live.film):,} splats{few}; Ctrl-C ends")
    wait(live)
    return 0


def _config_show(arguments: Show) -> int:
    from four_d.config import load, to_yaml

    print(to_yaml(load(*split(arguments.values))), end="")
    return 0


def _config_diff(arguments: Diff) -> int:
    from four_d.schema import diff

    for name, a, b in diff(_side(arguments.left), _side(arguments.right)):
        print(f"{name}: {a!r} → {b!r}")
    return 0


def _side(text: str) -> object:
    """Plain values of one side of a comparison: configs and settings, joined with +."""
    from four_d.config import recipe
    from four_d.explain import is_setting

    files, overrides = split(text.split("+"))
    wrong = next((file for file in files if is_setting(file)), None)
    if wrong is not None:
        raise UserError(f"{wrong} is a setting, not a config; give it a value behind one, as vggt+{wrong}=…")
    if any(" " in each.partition("=")[0] for each in (*files, *overrides)):
        raise UserError(f"{text!r} has a space within a name; join configs and settings with +, as vggt+seed=1")
    if not any(files):
        raise UserError(f"{text!r} names no config; put one before it, as vggt+{text or 'seed=1'}")
    try:
        return recipe(files, overrides)
    except UserError as error:
        raise UserError(f"{text}: {error}") from error


def _config_explain(arguments: Explain) -> int:
    from four_d.explain import explain, split_name

    name, rest = split_name(arguments.values)
    print(explain(name, *split(rest), width=min(shutil.get_terminal_size().columns, 100)))
    return 0


def _doctor(arguments: Doctor) -> int:
    if arguments.values:
        return _preflight(arguments)
    if arguments != Doctor():
        raise UserError("--memory, --devices, --strategy and --device plan a run; name its config first")
    from four_d.doctor import doctor

    rows = doctor()
    width = max(len(name) for name, _ in rows)
    print(*(f"{name:<{width}}  {finding}" for name, finding in rows), sep="\n")
    return 0


def _preflight(arguments: Doctor) -> int:
    from four_d.config import load
    from four_d.preflight import Question, preflight
    from four_d.training.parallel import discover

    told = {name: getattr(arguments, name) for name in ("memory", "devices", "strategy", "device")}
    rows = preflight(load(*split(arguments.values)), Question(**told))
    for name, finding in rows:  # each when it is there: some take seconds
        if discover().rank == 0:
            print(f"{name:<34}  {finding}", flush=True)
    return 0
