"""Live viewer of Gaussians in the browser, with a slider over time: `serve`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from four_d.errors import UserError
from four_d.types import Gaussians, Segment, segment_at
from four_d.viewer import splats
from four_d.viewer.scene import FIELD_OF_VIEW, check_viser
from four_d.viewer.splats import Film, Reel

if TYPE_CHECKING:
    import viser

STATES = 240
"""Maximum number of slider positions, which are computed once."""
BETWEEN = 4
"""Slider positions per interval of offset times, between which motion is linear."""
FASTEST = 1 / 20
"""Minimum seconds between images while playing."""
HELD = 4_000_000
"""Maximum number of positions held: moving splats times slider positions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    """Scene being served. ``stop`` ends it."""

    server: viser.ViserServer
    reels: tuple[Reel, ...]
    """Reels of the segments, in order."""
    slider: viser.GuiSliderHandle[float] | None
    """Slider over seconds; None for a static scene."""
    ended: threading.Event

    @property
    def film(self) -> Film:
        """Film of the first segment."""
        return self.reels[0].film

    @property
    def moving(self) -> viser.GaussianSplatHandle | None:
        """Handle of the first segment's moving splats."""
        return self.reels[0].moving

    def stop(self) -> None:
        """Stop serving, and release the port."""
        self.ended.set()
        self.server.stop()


def serve(gaussians: Gaussians | Sequence[Segment], *, host: str = "127.0.0.1", port: int = 8080) -> Live:
    """Show Gaussians, or segments of them, in any browser that opens ``http://host:port``, until `Live.stop`.

    A slider covers the offset times of all segments, and a button plays them at their own speed. At most as many
    Gaussians as `splats.film` takes are shown, with colours seen from the world's origin, a prediction's first camera.
    If the port is taken, the next free one is used (``server.get_port()``).

    Raises:
        UserError: without the extra `viz`, no Gaussians, or as `sound`.

    """
    check_viser("showing Gaussians")
    import viser

    segments = [Segment(gaussians=gaussians, start=0.0)] if isinstance(gaussians, Gaussians) else gaussians
    if not len(segments[0].gaussians.means):
        raise UserError("there are no Gaussians to show; give another file")
    films = _films(segments)
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, verbose=False)
    server.scene.set_up_direction((0.0, -1.0, 0.0))
    server.initial_camera.position = (0.2, -0.3, -0.55)
    server.initial_camera.look_at = (0.0, 0.05, 0.9)
    server.initial_camera.fov = FIELD_OF_VIEW
    ended = threading.Event()
    reels = [Reel.add(server, f"/{index}", film) for index, film in enumerate(films)]
    for reel in reels[1:]:
        reel.show(None)
    changes = len(reels) > 1 or reels[0].moving is not None
    slider = _controls(server, reels, ended) if changes else None
    return Live(server=server, reels=tuple(reels), slider=slider, ended=ended)


def _films(segments: Sequence[Segment]) -> list[Film]:
    """Films of the segments, each over its part of the slider, all in the unit of the first."""
    unit = max(float(segments[0].gaussians.means.detach().norm(dim=-1).median()), 1e-9)
    times = _times(segments)
    groups = [list(group) for _, group in itertools.groupby(times, lambda time: id(segment_at(segments, time)))]
    return [
        splats.film(
            segment_at(segments, group[0]).gaussians, group, unit=unit, recorded=max(HELD * len(group) // len(times), 1)
        )
        for group in groups
    ]


def _times(segments: Sequence[Segment]) -> list[float]:
    """Slider positions: the offset times, and evenly spaced times between them."""
    offset_times = torch.tensor(
        [time for segment in segments for time in _offset_times(segment)], dtype=torch.float64
    ).unique()
    if len(offset_times) < 2:
        return offset_times.tolist()
    count = min((len(offset_times) - 1) * BETWEEN + 1, STATES)
    return torch.linspace(float(offset_times[0]), float(offset_times[-1]), count, dtype=torch.float64).tolist()


def _offset_times(segment: Segment) -> list[float]:
    offset_times = segment.gaussians.offset_times
    return [segment.start] if offset_times is None else offset_times.tolist()


def _controls(server: viser.ViserServer, reels: Sequence[Reel], ended: threading.Event) -> viser.GuiSliderHandle[float]:
    times = np.array([time for reel in reels for time in reel.film.times])
    positions = [(reel, index) for reel in reels for index in range(len(reel.film.times))]
    step = float(times[1] - times[0])
    slider = server.gui.add_slider("Time (s)", float(times[0]), float(times[-1]), step, float(times[0]))
    playing = server.gui.add_checkbox("Play", initial_value=False)

    @slider.on_update
    def _(_: object) -> None:
        reel_there, index = positions[int(np.abs(times - slider.value).argmin())]
        reel_there.show(index)
        for reel in reels:
            if reel is not reel_there:
                reel.show(None)

    def play() -> None:
        while not ended.wait(max(step, FASTEST)):
            if playing.value:
                later = slider.value + max(step, FASTEST)
                slider.value = float(times[0]) if later > times[-1] + step / 2 else min(later, float(times[-1]))

    threading.Thread(target=play, daemon=True, name="play").start()
    return slider


def wait(live: Live) -> None:
    """Serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    live.stop()
