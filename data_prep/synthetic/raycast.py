"""Ray–triangle intersection behind a small interface, so that another backend can replace embree."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError

Points = NDArray[np.float32]


class RayScene(Protocol):
    """Triangles at one time."""

    def hit(self, origins: Points, directions: Points) -> NDArray[np.int32]:
        """First face (n) along each ray (n 3 each, directions of any length); −1 if there is none."""
        ...

    def blocked(self, origins: Points, directions: Points) -> NDArray[np.bool_]:
        """True (n) if a triangle lies between origin and origin + direction."""
        ...


class EmbreeRays:
    """`RayScene` with embree, in single precision."""

    def __init__(self, vertices: Points, triangles: NDArray[np.int32]) -> None:
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            raise UserError('the generator needs embreex: pip install "four_d[synth]"') from error
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(vertices), np.ascontiguousarray(triangles))

    def hit(self, origins: Points, directions: Points) -> NDArray[np.int32]:
        """Implement `RayScene.hit`; rays that slip between two adjacent faces are retried once, slightly rotated."""
        faces = np.asarray(self._scene.run(origins, directions), dtype=np.int32)
        missed = np.flatnonzero(faces < 0)
        if len(missed):
            rotated = directions[missed] * np.array([1.00002, 0.99999, 1.00001], np.float32)
            faces[missed] = self._scene.run(np.ascontiguousarray(origins[missed]), rotated)
        return faces

    def blocked(self, origins: Points, directions: Points) -> NDArray[np.bool_]:
        """Implement `RayScene.blocked`."""
        reach = np.ones(len(origins), np.float32)
        return np.asarray(self._scene.run(origins, directions, dists=reach, query="OCCLUDED")) >= 0
