"""Report page: video, maps, point cloud, and tables."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import fields
from four_d.drawing import colour_map
from four_d.formats.clouds import PointCloud, fuse
from four_d.formats.tracks import TrackTable
from four_d.outputs import write_whole
from four_d.progress import progress
from four_d.rendering import render
from four_d.types import Cameras, Prediction, Segment, map_tensors, segment_at
from four_d.viewer.scene import POINTS_PER_FRAME, scene_html, scene_unit
from four_d.viewer.skeletons import skeletons, skeletons_in_space
from four_d.viewer.splats import RECORDED, Film, film
from four_d.viewer.trails import Box, trails

PANEL_WIDTH = 640
"""Maximum width in pixels of an image in the page."""
MIN_EXPLAINED = 0.75
"""Fraction of a frame's variance that splats must explain for the page to open on them, 6 dB above constant grey.
A small reference model's explain -0.4 to 0.4 on real videos: fog, where points show the scene."""


@runtime_checkable
class Playable(Protocol):
    """Contents of a report; `inference.Result` is one. f frames, no batch axis, on the CPU."""

    @property
    def prediction(self) -> Prediction:
        """Prediction at the model's resolution."""
        ...

    @property
    def images(self) -> Float[Tensor, "f 3 r c"]:
        """Images that the model saw, in [0, 1]."""
        ...

    @property
    def frames(self) -> Sequence[UInt8[np.ndarray, "_h _w 3"]]:
        """Original frames, of which the model saw a centred crop; each camera's of its own size."""
        ...

    @property
    def times(self) -> list[float]:
        """Seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table of texts; the first column names the row. ``strong`` rows are bold."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Bytes of a PNG, JPEG or WebP file, and its caption."""

    data: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """Further section of the page, below the video: plain text (blank lines separate paragraphs), tables, images."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()


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
    """Write one self-contained HTML file that plays the video, the model's outputs and the points together.

    Args:
        path: the file, written atomically.
        playable: the video and a model's outputs. Panels without data are left out.
        title: heading, as text.
        summary: one or two sentences under it.
        facts: short label and value pairs beside the title, such as ("parameters", "3.8 M").
        sections: sections below the video.
        cloud: the points to show in 3D; None: all reliable ones of the model.
        tracks: point tracks, drawn as trails, if the video has more than one frame.
        selected: indices of tracks selected at first.
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
        bones = (
            None if scene is None else skeletons_in_space(playable.prediction, _edges(playable), _unit(playable, cloud))
        )
        bar.advance()
        on_splats = bool(splats) and _explained_variance(playable, segments) >= MIN_EXPLAINED
        page = _page(
            title, summary, facts, panels, scene, playable.times, sections, drawn, bones, splats, on_splats=on_splats
        )
        write_whole(path, page)
        bar.advance()


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """Panel of images that plays with the others."""

    name: str
    note: str
    uris: list[str]
    """A data URI per frame."""
    legend: tuple[str, str] | None = None
    """Meaning of the colour scale's left and right ends."""


def _panels(playable: Playable) -> list[_Panel]:
    rows, columns = playable.images.shape[-2:]
    sizes = dict.fromkeys(f"{frame.shape[1]} × {frame.shape[0]}" for frame in playable.frames)
    frames = [_fit(_crop(frame, rows / columns)) for frame in playable.frames]
    panels = [_Panel(name="Video", note=", ".join(sizes), uris=[_uri(f, "JPEG") for f in frames])]
    size = f"model's grid, {columns} × {rows}"
    for _, drawing, values in fields.drawings(playable.prediction):
        scale = drawing.style.scale(values)
        uris = [_uri(drawing.image(frame, scale), "PNG") for frame in values]
        panels.append(_Panel(name=drawing.title, note=size, uris=uris, legend=drawing.ends(scale)))
    drawn = skeletons(playable.images, playable.prediction, _edges(playable))
    if drawn:
        panels.append(_Panel(name="Keypoints", note=size, uris=[_uri(each, "JPEG") for each in drawn]))
    return panels


def _edges(playable: Playable) -> Sequence[tuple[int, int]]:
    """Bones between the keypoints, where the playable has any."""
    return getattr(playable, "keypoint_edges", ())


def _segments(playable: Playable, gaussians: Sequence[Segment]) -> Sequence[Segment]:
    """Given segments, or else the prediction's own, if it has any."""
    single = playable.prediction.gaussians
    return gaussians or ([] if single is None else [Segment(gaussians=single, start=0.0)])


def _cloud(playable: Playable, segments: Sequence[Segment]) -> PointCloud | None:
    """Reliable points of the model; for a model of Gaussians only, their centres at each frame's time."""
    cloud = fuse(playable.images, playable.prediction)
    if cloud is not None or not segments:
        return cloud
    return PointCloud.join([_centres(segments, time, frame) for frame, time in enumerate(playable.times)])


def _centres(segments: Sequence[Segment], time: float, frame: int) -> PointCloud:
    visible = film(segment_at(segments, time).gaussians, [time], most=POINTS_PER_FRAME).still
    return PointCloud(
        points=visible.centres,
        colours=np.rint(visible.colours * 255).astype(np.uint8),
        frames=np.full(len(visible.centres), frame, np.int32),
        confidence=visible.opacities[:, 0],
    )


def _scene(playable: Playable, cloud: PointCloud | None, splats: Sequence[Film]) -> str | None:
    """Record the scene; None if the model gives no geometry."""
    cameras = playable.prediction.cameras
    if cloud is None or cameras is None:
        return None
    rows, columns = playable.images.shape[-2:]
    return scene_html(cloud, cameras, (rows, columns), splats)


def _splats(playable: Playable, cloud: PointCloud | None, segments: Sequence[Segment]) -> list[Film]:
    """Films of the Gaussians at the frames' times, by segment; none without a scene."""
    cameras = playable.prediction.cameras
    if not segments or cloud is None or cameras is None:
        return []
    unit, eye, times = scene_unit(cloud, cameras), cameras.world_from_camera[0, :3, 3], playable.times
    groups = [list(group) for _, group in itertools.groupby(times, lambda time: id(segment_at(segments, time)))]
    return [
        film(
            segment_at(segments, group[0]).gaussians,
            group,
            eye=eye,
            unit=unit,
            recorded=RECORDED * len(group) // len(times),
        )
        for group in groups
    ]


def _explained_variance(playable: Playable, segments: Sequence[Segment]) -> float:
    """Fraction of the first frame's variance explained by the render from its camera; below 0 for fog."""
    cameras, time = playable.prediction.cameras, torch.tensor([[playable.times[0]]])
    assert cameras is not None
    camera = Cameras(
        world_from_camera=cameras.world_from_camera[None, :1].float(), intrinsics=cameras.intrinsics[None, :1].float()
    )
    image = playable.images[0]
    batch = map_tensors(segment_at(segments, playable.times[0]).gaussians, lambda tensor: tensor.detach()[None].cpu())
    with torch.no_grad():
        rendered = render(batch, camera, time, (image.shape[-2], image.shape[-1])).colour[0, 0]
    varies = (image - image.mean((1, 2), keepdim=True)).square().mean()
    return 1 - float((rendered - image).square().mean() / varies.clamp_min(1e-9))


def _trails(
    playable: Playable, cloud: PointCloud | None, tracks: TrackTable, selected: Sequence[int]
) -> dict[str, object] | None:
    """Page data of point tracks; None without tracks or for a single frame."""
    if len(playable.times) < 2 or len(tracks) == 0:
        return None
    rows, columns = playable.images.shape[-2:]
    boxes = [_box(frame.shape[:2], rows / columns) for frame in playable.frames]
    return trails(tracks, boxes, _unit(playable, cloud), selected)


def _unit(playable: Playable, cloud: PointCloud | None) -> float:
    """Divisor of lengths in the scene; 1 without one."""
    cameras = playable.prediction.cameras
    return 1.0 if cloud is None or cameras is None else scene_unit(cloud, cameras)


def _box(size: tuple[int, ...], shape: float) -> Box:
    """Centred box of this height / width, the crop that the model saw."""
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
        raise ValueError(f"an image begins with {data[:4]!r}; give the bytes of a PNG, JPEG or WebP file")
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
    bones: dict[str, object] | None,
    splats: Sequence[Film],
    *,
    on_splats: bool,
) -> str:
    """Fill the template, escaping all external text. ``on_splats``: open on them."""
    content = {
        "times": list(times),
        "panels": [panel.uris for panel in panels],
        "trails": drawn,
        "skeletons": bones,
        "splats": bool(splats),
    }
    values = {
        "TITLE": html.escape(title),
        "SUMMARY": html.escape(summary),
        "STYLE": _resource("page.css"),
        "FACTS": "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts),
        "PANELS": "".join(_panel(i, panel, drawn if i == 0 else None) for i, panel in enumerate(panels)),
        "SCENE": _frame(scene, drawn_over=drawn is not None or bones is not None),
        "SWITCH": (_shape_switch(splats, on_splats=on_splats) if splats else "")
        + ("" if drawn is None else _switch(drawn))
        + ("" if bones is None else _BONES),
        "LAST": str(len(times) - 1),
        "SECTIONS": "".join(_section(section) for section in sections),
        # </script> in a string would end the script
        "DATA": json.dumps(content).replace("</", "<\\/"),
        "SCRIPT": "\n".join(_resource(name) for name in ("trails.js", "skeletons.js", "page.js")),
    }
    pieces = _resource("page.html").split("%%")
    return "".join(values[piece] if index % 2 else piece for index, piece in enumerate(pieces))


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
    "<p>Click on the video to select the nearest tracked point; again or <kbd>Esc</kbd> deselects, <kbd>shift</kbd> "
    "adds, <kbd>n</kbd> and <kbd>p</kbd> step through them. This page holds only these points, not the model: "
    "<code>four-d infer --points X,Y</code> tracks others.</p>"
)


_BONES = '<label><input id="bones" type="checkbox" checked> keypoints</label>'


def _switch(drawn: dict[str, object]) -> str:
    """Switch of the trails to draw; none at first in a static scene, so that noise is not mistaken for motion."""
    moves = any(cast(list[bool], drawn["moving"]))
    at_first = "moving" if moves else "none"
    names = {"all": "all", "moving": "moving only", "none": "none"}
    choices = "".join(
        f'<label><input type="radio" name="trails" value="{value}"{" checked" if value == at_first else ""}'
        f"{' disabled' if value == 'moving' and not moves else ''}> {name}</label>"
        for value, name in names.items()
    )
    return f'<div id="trails" class="choice" role="radiogroup" aria-label="Trails"><span>Trails</span>{choices}</div>'


def _shape_switch(splats: Sequence[Film], *, on_splats: bool) -> str:
    """Switch between points and splats, with a note on their number; checked: splats if ``on_splats``, else points."""
    largest = max(splats, key=len)
    kept = "" if largest.kept > 0.995 else f", {100 * largest.kept:.0f} % of the model's"
    names = {"splats": f"{len(largest):,} splats{kept}", "points": "points"}
    opened = "splats" if on_splats else "points"
    checked = {opened: " checked"}
    choices = "".join(
        f'<label><input type="radio" name="shape" value="{value}"{checked.get(value, "")}> {name}</label>'
        for value, name in names.items()
    )
    return f'<div id="shape" class="choice" role="radiogroup" aria-label="Shape"><span>Shape</span>{choices}</div>'


_VIEW_HOOK = """<script>
window.__THREE_DEVTOOLS__ = new EventTarget();
window.__THREE_DEVTOOLS__.addEventListener("observe", ({ detail: renderer }) => {
  if (!renderer.isWebGLRenderer) return;
  const render = renderer.render;
  let anchor = null;
  renderer.render = function (scene, camera) {
    scene.traverse((node) => {
      const flat = node.isMesh && node.geometry.getAttribute("position");
      if (!flat || flat.itemSize !== 2) return;
      const corners = Array.from({ length: flat.count }, (_, i) => [flat.getX(i), flat.getY(i), 0]).flat();
      node.geometry.setAttribute("position", new flat.constructor(new Float32Array(corners), 3));
      node.geometry.computeBoundingSphere();
      node.geometry.boundingSphere.radius = Infinity;
    });
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
"""Script that reports the scene's view to the page, through three.js's hook for developer tools. Any point cloud of the
scene is in world coordinates, so its matrix is the world's. The positions of viser's splats are corners in two
dimensions, for which three.js computes a bounding sphere of NaN: they get a third, and an always visible sphere."""


def _frame(scene: str | None, *, drawn_over: bool) -> str:
    """Iframe of the scene, in the reader's colour scheme; a canvas over it if anything is drawn there."""
    if scene is None:
        return '<p class="none">This model gives no cameras with depth or points, so there is no scene to show.</p>'
    scheme = (
        "<script>window.__VISER_EMBED_CONFIG__={darkMode:matchMedia('(prefers-color-scheme: dark)').matches};</script>"
        "<style>html,body{overflow:hidden}.mantine-Notifications-root{display:none}</style>"
    )
    end = scene.index("</head>")
    document = scene[:end] + scheme + _VIEW_HOOK + scene[end:]
    over = '<canvas id="space"></canvas>' if drawn_over else ""
    return (
        f'<div id="view"><iframe id="scene" title="Point cloud" srcdoc="{html.escape(document)}"></iframe>{over}</div>'
    )


def _section(section: Section) -> str:
    paragraphs = "".join(f"<p>{html.escape(p.strip())}</p>" for p in section.text.split("\n\n") if p.strip())
    tables = "".join(_table(table) for table in section.tables)
    figures = "".join(
        f'<figure class="picture"><img src="{_data_uri(p.data)}" alt="{html.escape(p.caption)}">'
        f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
        for p in section.figures
    )
    return f'<section class="card"><h2>{html.escape(section.title)}</h2>{paragraphs}{tables}{figures}</section>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr{' class=strong' if index in table.strong else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
