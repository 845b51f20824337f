"""The report page: video, depth, confidence, what moves, the point cloud, and whatever tables belong to it."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud, fuse
from four_d.formats.tracks import TrackTable
from four_d.pictures import colour_map, depth_image, depth_limits
from four_d.progress import progress
from four_d.types import Prediction, Segment, segment_at
from four_d.viewer.scene import POINTS_PER_FRAME, scene_html, scene_unit
from four_d.viewer.splats import RECORDED, Film, film
from four_d.viewer.trails import Box, trails

PANEL_WIDTH = 640
"""Widest picture in pixels that is put into the page."""


@runtime_checkable
class Playable(Protocol):
    """What a report shows; `inference.Result` is one. f frames, no batch axis, on the CPU."""

    @property
    def prediction(self) -> Prediction:
        """At the model's resolution."""
        ...

    @property
    def images(self) -> Float[Tensor, "f 3 r c"]:
        """What the model saw, in [0, 1]."""
        ...

    @property
    def frames(self) -> UInt8[np.ndarray, "f h w 3"]:
        """The original frames, of which the model saw a centred crop."""
        ...

    @property
    def times(self) -> list[float]:
        """Seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts; the first column names the row. ``strong`` rows are set in bold."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, JPEG or WebP file's bytes and what it shows."""

    data: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A further part of the page, under the video: plain text (blank lines part paragraphs), tables, pictures."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def report(
    path: str | Path,
    playable: Playable,
    *,
    title: str,
    summary: str = "",
    facts: Sequence[tuple[str, str]] = (),
    sections: Sequence[Section] = (),
    cloud: PointCloud | None = None,
    tracks: TrackTable | None = None,
    selected: Sequence[int] = (),
    gaussians: Sequence[Segment] = (),
) -> None:
    """Write one HTML file that needs no network: it plays the video, what the model sees in it and its points together.

    Args:
        path: the file; appears whole or not at all.
        playable: the video and what a model says of it. Panels whose data the model does not give are left out.
        title: heading, as text.
        summary: one or two sentences under it.
        facts: short label and value pairs beside the title, such as ("parameters", "3.8 M").
        sections: what follows under the video.
        cloud: the points to show in 3D; None: all reliable ones of the model.
        tracks: points followed through the video, drawn as trails, if it has more than one frame.
        selected: which of them are picked out from the start.
        gaussians: those of the whole video, to show in 3D; none: those of the prediction, if it has any.

    Raises:
        UserError: without the extra `viz`, or if the file cannot be written.

    """
    path = Path(path)
    with progress("report page", 3, "part") as bar:
        panels = _panels(playable)
        bar.advance()
        segments = _segments(playable, gaussians)
        cloud = _cloud(playable, segments) if cloud is None else cloud
        splats = _splats(playable, cloud, segments)
        scene = _scene(playable, cloud, splats)
        drawn = None if tracks is None else _trails(playable, cloud, tracks, selected)
        bar.advance()
        page = _page(title, summary, facts, panels, scene, playable.times, sections, drawn, splats)
        _write(path, page)
        bar.advance()


def _write(path: Path, page: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another place") from error


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One of the pictures that play together."""

    name: str
    note: str
    pictures: list[str]
    """A data URI per frame."""
    legend: tuple[str, str] | None = None
    """What the colour scale's left and right ends mean."""


def _panels(playable: Playable) -> list[_Panel]:
    rows, columns = playable.images.shape[-2:]
    height, width = playable.frames.shape[1:3]
    shown = [_fit(_crop(frame, rows / columns)) for frame in playable.frames]
    panels = [_Panel(name="Video", note=f"{width} × {height}", pictures=[_uri(f, "JPEG") for f in shown])]
    size = f"model's grid, {columns} × {rows}"
    depth, confidence = playable.prediction.depth, playable.prediction.depth_confidence
    if depth is not None:
        values = depth.float().numpy()
        near, far = depth_limits(values)
        pictures = [_uri(depth_image(frame, limits=(near, far)), "PNG") for frame in values]
        panels.append(_Panel(name="Depth", note=size, pictures=pictures, legend=(f"far {far:.2g}", f"near {near:.2g}")))
    if confidence is not None:
        values = confidence.float().numpy()
        low, high = (float(q) for q in np.quantile(values, (0.02, 0.98)))
        pictures = [_uri(colour_map((frame - low) / max(high - low, 1e-9)), "PNG") for frame in values]
        legend = (f"{low:.3g} unsure", f"sure {high:.3g}")
        panels.append(_Panel(name="Confidence", note=size, pictures=pictures, legend=legend))
    if playable.prediction.dynamic is not None:
        pictures = [_uri(colour_map(frame), "PNG") for frame in playable.prediction.dynamic.float().numpy()]
        panels.append(_Panel(name="What moves", note=size, pictures=pictures, legend=("still", "moves")))
    return panels


def _segments(playable: Playable, gaussians: Sequence[Segment]) -> Sequence[Segment]:
    """Those given, or else the prediction's own, if it has any."""
    single = playable.prediction.gaussians
    return gaussians or ([] if single is None else [Segment(gaussians=single, start=0.0)])


def _cloud(playable: Playable, segments: Sequence[Segment]) -> PointCloud | None:
    """All reliable points of the model; where it gives only Gaussians, their centres at each frame's time."""
    cloud = fuse(playable.images, playable.prediction)
    if cloud is not None or not segments:
        return cloud
    return PointCloud.join([_centres(segments, time, frame) for frame, time in enumerate(playable.times)])


def _centres(segments: Sequence[Segment], time: float, frame: int) -> PointCloud:
    seen = film(segment_at(segments, time).gaussians, [time], most=POINTS_PER_FRAME).still
    return PointCloud(
        points=seen.centres,
        colours=np.rint(seen.colours * 255).astype(np.uint8),
        frames=np.full(len(seen.centres), frame, np.int32),
        confidence=seen.opacities[:, 0],
    )


def _scene(playable: Playable, cloud: PointCloud | None, splats: Sequence[Film]) -> str | None:
    """The recorded scene; None if the model gives no geometry."""
    cameras = playable.prediction.cameras
    if cloud is None or cameras is None:
        return None
    rows, columns = playable.images.shape[-2:]
    return scene_html(cloud, cameras, (rows, columns), splats)


def _splats(playable: Playable, cloud: PointCloud | None, segments: Sequence[Segment]) -> list[Film]:
    """The model's Gaussians at the frames' times, segment by segment; none without a scene to put them in."""
    cameras = playable.prediction.cameras
    if not segments or cloud is None or cameras is None:
        return []
    unit, eye, times = scene_unit(cloud, cameras), cameras.world_from_camera[0, :3, 3], playable.times
    parts = [list(part) for _, part in itertools.groupby(times, lambda time: id(segment_at(segments, time)))]
    return [
        film(
            segment_at(segments, part[0]).gaussians,
            part,
            eye=eye,
            unit=unit,
            recorded=RECORDED * len(part) // len(times),
        )
        for part in parts
    ]


def _trails(
    playable: Playable, cloud: PointCloud | None, tracks: TrackTable, selected: Sequence[int]
) -> dict[str, object] | None:
    """The page's data of followed points; None where there is no time to follow them through, or none."""
    if len(playable.times) < 2 or len(tracks) == 0:
        return None
    rows, columns = playable.images.shape[-2:]
    cameras = playable.prediction.cameras
    unit = 1.0 if cloud is None or cameras is None else scene_unit(cloud, cameras)
    return trails(tracks, _box(playable.frames.shape[1:3], rows / columns), unit, selected)


def _box(size: tuple[int, ...], shape: float) -> Box:
    """The centred part of this height / width, which is what the model saw."""
    height, width = size
    rows, columns = min(height, round(width * shape)), min(width, round(height / shape))
    return (width - columns) // 2, (height - rows) // 2, columns, rows


def _crop(frame: NDArray[np.uint8], shape: float) -> NDArray[np.uint8]:
    left, top, columns, rows = _box(frame.shape[:2], shape)
    return frame[top : top + rows, left : left + columns]


def _fit(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    if width <= PANEL_WIDTH:
        return frame
    size = PANEL_WIDTH, max(1, round(height * PANEL_WIDTH / width))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def _uri(frame: NDArray[np.uint8], kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "JPEG":
        Image.fromarray(frame).save(buffer, "JPEG", quality=82, optimize=True)
    else:
        Image.fromarray(frame).save(buffer, kind)
    return _data_uri(buffer.getvalue())


def _data_uri(data: bytes) -> str:
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((kind for head, kind in kinds.items() if data.startswith(head)), None)
    if kind is None:
        raise ValueError(f"a picture begins with {data[:4]!r}; give the bytes of a PNG, JPEG or WebP file")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _page(
    title: str,
    summary: str,
    facts: Sequence[tuple[str, str]],
    panels: Sequence[_Panel],
    scene: str | None,
    times: Sequence[float],
    sections: Sequence[Section],
    drawn: dict[str, object] | None,
    splats: Sequence[Film],
) -> str:
    """Fill the template; every text from outside is escaped."""
    content = {
        "times": list(times),
        "panels": [panel.pictures for panel in panels],
        "trails": drawn,
        "splats": bool(splats),
    }
    parts = {
        "TITLE": html.escape(title),
        "SUMMARY": html.escape(summary),
        "STYLE": _resource("page.css"),
        "FACTS": "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts),
        "PANELS": "".join(_panel(i, panel, drawn if i == 0 else None) for i, panel in enumerate(panels)),
        "SCENE": _frame(scene, watched=drawn is not None),
        "SWITCH": (_shape_switch(splats) if splats else "") + ("" if drawn is None else _switch(drawn)),
        "LAST": str(len(times) - 1),
        "SECTIONS": "".join(_section(section) for section in sections),
        # </script> in a string would end the script
        "DATA": json.dumps(content).replace("</", "<\\/"),
        "SCRIPT": "\n".join(_resource(name) for name in ("trails.js", "page.js")),
    }
    pieces = _resource("page.html").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _resource(name: str) -> str:
    return resources.files("four_d.viewer").joinpath(name).read_text(encoding="utf-8")


def _panel(index: int, panel: _Panel, drawn: dict[str, object] | None) -> str:
    name, note = html.escape(panel.name), html.escape(panel.note)
    legend = ""
    if panel.legend is not None:
        stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colour_map(np.linspace(0, 1, 11)).tolist())
        left, right = (html.escape(text) for text in panel.legend)
        bar = f'<i style="background: linear-gradient(90deg, {stops})"></i>'
        legend = f'<div class="legend"><span>{left}</span>{bar}<span>{right}</span></div>'
    below = legend if drawn is None else _STATUS
    follow = ""
    if drawn is not None and drawn["pixels"] is not None:
        below, follow = _STATUS + _HELP, " follow"
    return (
        f'<figure class="card{follow}"><figcaption><b>{name}</b><span>{note}</span></figcaption>'
        f'<canvas data-panel="{index}" role="img" aria-label="{name}"></canvas>{below}</figure>'
    )


_STATUS = '<p id="followed" role="status"></p>'
_HELP = (
    "<p>Click on the video to pick out the nearest followed point; again or <kbd>Esc</kbd> lets go, <kbd>shift</kbd> "
    "adds, <kbd>n</kbd> and <kbd>p</kbd> go on and back. This page has no model, only these points: "
    "<code>four-d infer --points X,Y</code> follows others.</p>"
)


def _switch(drawn: dict[str, object]) -> str:
    """Which trails to draw; none where nothing moves, lest noise be taken for motion."""
    moves = any(cast(list[bool], drawn["moving"]))
    at_first = "moving" if moves else "none"
    names = {"all": "all", "moving": "moving only", "none": "none"}
    choices = "".join(
        f'<label><input type="radio" name="trails" value="{value}"{" checked" if value == at_first else ""}'
        f"{' disabled' if value == 'moving' and not moves else ''}> {name}</label>"
        for value, name in names.items()
    )
    return f'<div id="trails" class="choice" role="radiogroup" aria-label="Trails"><span>Trails</span>{choices}</div>'


def _shape_switch(splats: Sequence[Film]) -> str:
    """Points or splats, with a word on how many of them there are at once."""
    most = max(splats, key=len)
    some = "" if most.kept > 0.995 else f", {100 * most.kept:.0f} % of the model's"
    names = {"splats": f"{len(most):,} splats{some}", "points": "points"}
    checked = {"splats": " checked", "points": ""}
    choices = "".join(
        f'<label><input type="radio" name="shape" value="{value}"{checked[value]}> {name}</label>'
        for value, name in names.items()
    )
    return f'<div id="shape" class="choice" role="radiogroup" aria-label="Shape"><span>Shape</span>{choices}</div>'


_WATCH = """<script>
window.__THREE_DEVTOOLS__ = new EventTarget();
window.__THREE_DEVTOOLS__.addEventListener("observe", ({ detail: renderer }) => {
  if (!renderer.isWebGLRenderer) return;
  const render = renderer.render;
  let anchor = null;
  renderer.render = function (scene, camera) {
    render.apply(this, arguments);
    if (!camera.isPerspectiveCamera) return;
    if (!anchor) scene.traverse((node) => { if (node.isPoints) anchor = node; });
    if (!anchor) return;
    window.view = { world: anchor.matrixWorld.elements, camera: camera.matrixWorldInverse.elements,
                    projection: camera.projectionMatrix.elements };
    if (window.onview) window.onview();
  };
});
</script>"""
"""Tells the page from where the scene is seen, by way of three.js's hook for developers' tools. Any point cloud of the
scene lies in world coordinates, so its matrix is that of the world."""


def _frame(scene: str | None, *, watched: bool) -> str:
    """The scene in a frame of its own, told the colour scheme of the page's reader; a canvas over it if ``watched``."""
    if scene is None:
        return '<p class="none">This model gives no cameras with depth or points, so there is no scene to show.</p>'
    scheme = (
        "<script>window.__VISER_EMBED_CONFIG__={darkMode:matchMedia('(prefers-color-scheme: dark)').matches};</script>"
        "<style>html,body{overflow:hidden}.mantine-Notifications-root{display:none}</style>"
    )
    end = scene.index("</head>")
    document = scene[:end] + scheme + (_WATCH if watched else "") + scene[end:]
    over = '<canvas id="space"></canvas>' if watched else ""
    return (
        f'<div id="view"><iframe id="scene" title="Point cloud" srcdoc="{html.escape(document)}"></iframe>{over}</div>'
    )


def _section(section: Section) -> str:
    paragraphs = "".join(f"<p>{html.escape(p.strip())}</p>" for p in section.text.split("\n\n") if p.strip())
    tables = "".join(_table(table) for table in section.tables)
    pictures = "".join(
        f'<figure class="picture"><img src="{_data_uri(p.data)}" alt="{html.escape(p.caption)}">'
        f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
        for p in section.pictures
    )
    return f'<section class="card"><h2>{html.escape(section.title)}</h2>{paragraphs}{tables}{pictures}</section>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr{' class=strong' if index in table.strong else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
