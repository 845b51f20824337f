"""Gaussians in the browser as long as the program runs, with a slider over time: `serve`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from four_d.errors import UserError
from four_d.types import Gaussians
from four_d.viewer import splats
from four_d.viewer.scene import FIELD_OF_VIEW, check_viser
from four_d.viewer.splats import Film

if TYPE_CHECKING:
    import viser

STATES = 240
"""Most places of the slider; they are computed once."""
BETWEEN = 4
"""Places of the slider from one offset time to the next: between them splats go straight on."""
FASTEST = 1 / 20
"""Seconds from one picture to the next while playing, at least."""
HELD = 4_000_000
"""Most positions that are held, of splats that move times places of the slider."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
    """A scene that is being served. ``stop`` ends it."""

    server: viser.ViserServer
    film: Film
    slider: viser.GuiSliderHandle[float] | None
    """Seconds; None where nothing moves."""
    moving: viser.GaussianSplatHandle | None
    """What moves, as it is shown."""
    ended: threading.Event

    def stop(self) -> None:
        """Let go of the port."""
        self.ended.set()
        self.server.stop()


def serve(gaussians: Gaussians, *, host: str = "127.0.0.1", port: int = 8080) -> Live:
    """Show Gaussians in any browser that opens ``http://host:port``, until `Live.stop`.

    A slider goes over the offset times, a button plays them at their own speed. Of many Gaussians as many are shown as
    `splats.film` takes, seen from the world's origin, which is where the first camera of a prediction is. A port that
    is taken gives way to the next free one (``server.get_port()``).

    Raises:
        UserError: without the extra `viz`, no Gaussians, or as `sound`.

    """
    check_viser("showing Gaussians")
    import viser

    if not len(gaussians.means):
        raise UserError("there are no Gaussians to show; give another file")
    unit = max(float(gaussians.means.detach().norm(dim=-1).median()), 1e-9)
    shown = splats.film(gaussians, _times(gaussians), unit=unit, recorded=HELD)
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, verbose=False)
    server.scene.set_up_direction((0.0, -1.0, 0.0))
    server.initial_camera.position = (0.2, -0.3, -0.55)
    server.initial_camera.look_at = (0.0, 0.05, 0.9)
    server.initial_camera.fov = FIELD_OF_VIEW
    if len(shown.still.centres):
        splats.add(server, "/still", shown.still)
    ended = threading.Event()
    moving = splats.add(server, "/moving", shown.moving) if len(shown.moving.centres) else None
    slider = None if moving is None else _controls(server, moving, shown, ended)
    return Live(server=server, film=shown, slider=slider, moving=moving, ended=ended)


def _times(gaussians: Gaussians) -> list[float]:
    """Places of the slider: the offset times and evenly between them."""
    known = gaussians.offset_times
    if known is None or len(known) < 2:
        return [0.0 if known is None else float(known[0])]
    count = min((len(known) - 1) * BETWEEN + 1, STATES)
    return torch.linspace(float(known[0]), float(known[-1]), count, dtype=torch.float64).tolist()


def _controls(
    server: viser.ViserServer, moving: viser.GaussianSplatHandle, film: Film, ended: threading.Event
) -> viser.GuiSliderHandle[float]:
    times = np.array(film.times)
    step = float(times[1] - times[0])
    slider = server.gui.add_slider("Time (s)", float(times[0]), float(times[-1]), step, float(times[0]))
    playing = server.gui.add_checkbox("Play", initial_value=False)

    @slider.on_update
    def _(_: object) -> None:
        splats.move(moving, film.places[int(np.abs(times - slider.value).argmin())])

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
