"""A session in sleap-anipose's layout, of two animals before three views, made of formulas of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from four_d.formats.videos import write_video

NODES = ("Nose", "Ear_L", "Ear_R", "TailTip")
EDGES = ((0, 1), (0, 2), (0, 3))
FRAMES, RATE, WIDTH, HEIGHT = 7, 20.0, 64, 48
DISTORTION = (-0.2, 0.05, 0.001, -0.002, 0.01)


@dataclass(kw_only=True)
class Session:
    """Content of the files."""

    calibration: dict[str, dict[str, Any]]
    tracks: dict[str, NDArray[np.float64]]
    """View → f a n 2."""
    points: NDArray[np.float64]
    """f a n 3, millimetres."""
    nodes: dict[str, Sequence[str]] = field(default_factory=dict)
    """View → names, where they are not `NODES`."""

    def write(self, folder: Path, *, flat: bool = False, edges: bool = True) -> Path:
        """Write the files; ``flat``: all in one folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = [f"[cam_{i}]\n{_toml(entry)}" for i, entry in enumerate(self.calibration.values())]
        (folder / "calibration.toml").write_text("\n".join([*tables, "[metadata]\n"]))
        with h5py.File(folder / "points3d.h5", "w") as file:
            file["tracks"] = self.points
        for name, pixels in self.tracks.items():
            own = folder if flat else folder / name
            own.mkdir(exist_ok=True)
            with h5py.File(own / (f"{name}_tracks2d.h5" if flat else f"x_{name}.analysis.h5"), "w") as file:
                file["tracks"] = pixels.transpose(1, 3, 2, 0)
                file["node_names"] = np.array(self.nodes.get(name, NODES), "S14")
                file["track_names"] = np.array([f"animal {i}" for i in range(pixels.shape[1])], "S8")
                if edges:
                    file["edge_inds"] = np.array(EDGES, np.int32)
            write_video(own / (f"{name}.mp4" if flat else f"x_{name}.mp4"), pictures(len(pixels)), rate=RATE)
        return folder


def pictures(count: int) -> list[NDArray[np.uint8]]:
    """Grey images, each of another brightness."""
    return [np.full((HEIGHT, WIDTH, 3), 60 + 20 * index, np.uint8) for index in range(count)]


def session() -> Session:
    """Make a session without a fault: frame 2 of "low" lacks a node, and animal 1 is never seen from "side"."""
    rng = np.random.default_rng(3)
    base = rng.uniform(-60, 60, (1, 2, len(NODES), 3)) + np.array([0, 0, 400])
    points = base + np.arange(FRAMES)[:, None, None, None] * rng.uniform(-3, 3, (1, 2, 1, 3))
    points[4, 1, 2] = np.nan
    poses = {
        "low": ([0.02, -0.01, 0.05], [3.0, -5.0, 10.0]),
        "side": ([0.1, 0.4, -0.3], [-150.0, 20.0, 60.0]),
        "top": ([-0.4, 0.1, 0.2], [20.0, 130.0, 50.0]),
    }
    calibration = {
        name: {
            "name": name,
            "size": [WIDTH, HEIGHT],
            "matrix": [[90.0, 0.0, 31.5], [0.0, 92.0, 23.5], [0.0, 0.0, 1.0]],
            "distortions": list(DISTORTION),
            "rotation": rotation,
            "translation": translation,
        }
        for name, (rotation, translation) in poses.items()
    }
    tracks = {name: seen(points, entry) for name, entry in calibration.items()}
    tracks["low"][2, 0, 1] = np.nan
    tracks["side"][:, 1] = np.nan
    return Session(calibration=calibration, tracks=tracks, points=points)


def seen(points: NDArray[np.float64], entry: Mapping[str, Any]) -> NDArray[np.float64]:
    """OpenCV's pixels of points, by its published formulas."""
    local = points @ rodrigues(np.array(entry["rotation"])).T + np.array(entry["translation"])
    x, y = local[..., 0] / local[..., 2], local[..., 1] / local[..., 2]
    k1, k2, p1, p2, k3 = entry["distortions"]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    (fx, _, cx), (_, fy, cy), _ = entry["matrix"]
    return np.stack([fx * u + cx, fy * v + cy], axis=-1)


def rodrigues(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix of a rotation vector."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _toml(entry: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in entry.items())
