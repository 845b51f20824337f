"""Textured meshes of a folder, in the layouts of published sets, as bodies of the generator.

GSO (Google Scanned Objects): ``NAME/meshes/model.obj`` with ``NAME/materials/textures/texture.png``, z up.
ShapeNet: ``…/NAME/models/model_normalized.obj`` with its ``.mtl`` and ``…/NAME/images``, y up. Objaverse: ``….glb``, y
up.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.synthetic.meshes import Mesh, normalised
from data_prep.synthetic.pictures import DARKEST, LIGHTEST, tile_of
from four_d.errors import UserError
from four_d.video.images import as_arrays
from four_d.video.remarks import some

LOGGER = logging.getLogger("four_d.data_prep")
Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Random = np.random.Generator
Native: TypeAlias = Any
"""Object of trimesh, which declares few types."""
MOST_FACES = 100_000
"""Faces beyond which a model is passed over: rays are cast and vertices stored at every time."""
FLATTEST = 0.02
"""Least ratio of a model's shortest side to its longest; flatter ones have no hull to collide with."""
LARGEST_TILE = 1024
PATTERNS = {"gso": "meshes/model.obj", "shapenet": "models/model_normalized.obj", "objaverse": "*.glb"}
"""Layout → pattern of its files below the folder."""
Y_UP = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
"""Rotation of a model whose y axis is up to z up."""


@dataclass(frozen=True, kw_only=True)
class Skin:
    """Texture of some faces of a mesh."""

    name: str
    """Path of the model's file below its folder."""
    faces: slice
    uv: Floats
    """m 3 2: in tiles, v down."""
    tile: Floats
    """s s 3: linear albedo; s is a power of two."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Mesh with its textures, longest side 1, centred at 0, z up; it collides as its convex hull."""

    name: str
    mesh: Mesh
    skins: tuple[Skin, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """File of a model; ``root`` is the folder that it may read from."""

    layout: str
    name: str
    below: str
    """Path below the folder of all models."""
    path: Path
    root: Path


class Models:
    """Models below a folder, in order of their paths; the same folder gives the same models."""

    def __init__(self, folder: Path) -> None:
        """List the files. UserError if there is none."""
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give one of meshes")
        self.files = [file for layout, pattern in PATTERNS.items() for file in _listed(folder, layout, pattern)]
        if not self.files:
            raise UserError(
                f"{folder} holds no meshes that are known; expected NAME/meshes/model.obj (GSO), "
                "NAME/models/model_normalized.obj (ShapeNet) or NAME.glb (Objaverse)"
            )

    def draw(self, rng: Random) -> Model:
        """Draw a model; of one that cannot be used, the next instead. UserError if none can."""
        first = int(rng.integers(len(self.files)))
        for step in range(len(self.files)):
            model = read_model(self.files[(first + step) % len(self.files)])
            if model is not None:
                return model
        names = some([file.name for file in self.files])
        raise UserError(f"none of the {len(self.files)} meshes in {self.folder} can be used ({names}); see above")


def _listed(folder: Path, layout: str, pattern: str) -> list[ModelFile]:
    found: list[ModelFile] = []
    for path in sorted(folder.rglob(pattern)):
        if path.is_file():
            root = path.parent if layout == "objaverse" else path.parent.parent
            name = path.stem if layout == "objaverse" else root.name
            below = path.relative_to(folder).as_posix()
            found.append(ModelFile(layout=layout, name=name or layout, below=below, path=path, root=root))
    return found


@lru_cache(maxsize=16)
def models(folder: Path) -> Models:
    """List of a folder's models, made once per process."""
    return Models(folder)


@lru_cache(maxsize=48)
def read_model(file: ModelFile) -> Model | None:
    """Read a model; None, with a warning that says why, if it cannot be used."""
    try:
        return _model(file)
    except UserError:
        raise
    except Exception as error:  # a foreign reader of foreign files raises anything
        reason = str(error) or type(error).__name__
        LOGGER.warning(f"{file.path} cannot be used as a body ({reason}); another takes its place")
        return None


def _model(file: ModelFile) -> Model:
    try:
        trimesh = importlib.import_module("trimesh")
    except ImportError as error:
        raise UserError('meshes need trimesh: pip install "four_d[synth]"') from error
    parts = [part for part in _loaded(trimesh, file) if len(part.triangles)]
    if not parts:
        raise ValueError("it has no triangles")
    counts = [len(part.triangles) for part in parts]
    if sum(counts) > MOST_FACES:
        raise ValueError(f"it has {sum(counts)} triangles, more than {MOST_FACES}; simplify it")
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    vertices = np.concatenate([part.vertices for part in parts])
    triangles = np.concatenate([part.triangles + o for part, o in zip(parts, offsets)])
    if not np.isfinite(vertices).all():
        raise ValueError("vertices are not finite")
    if file.layout != "gso":
        vertices = vertices @ Y_UP.T
    sides = np.ptp(vertices[np.unique(triangles)], axis=0)
    if sides.min() < FLATTEST * sides.max() or not sides.max() > 0:
        raise ValueError("it is flat")
    used, indices = np.unique(triangles, return_inverse=True)
    mesh = normalised(
        Mesh(vertices=vertices[used], triangles=indices.reshape(-1, 3), parts=(vertices[used],), crease=50.0)
    )
    firsts = np.cumsum([0, *counts])
    skins = tuple(
        _skin(part, file, slice(int(first), int(last))) for part, first, last in zip(parts, firsts, firsts[1:])
    )
    return Model(name=file.name, mesh=mesh, skins=skins)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Part of a model, in the model's frame."""

    vertices: Array
    triangles: NDArray[np.int64]
    visual: Native


def _loaded(trimesh: ModuleType, file: ModelFile) -> list[_Part]:
    """Parts of a model, each with one material."""
    kind = file.path.suffix[1:].lower()
    resolver = _resolver(trimesh, file)
    with file.path.open("rb") as stream:
        scene = trimesh.load_scene(stream, file_type=kind, resolver=resolver, process=False)
    found: list[_Part] = []
    for node in sorted(scene.graph.nodes_geometry):  # their order is not the file's
        frame, name = scene.graph[node]
        part = scene.geometry[name]
        if isinstance(part, trimesh.Trimesh):
            vertices = np.asarray(part.vertices, np.float64) @ frame[:3, :3].T + frame[:3, 3]
            triangles = np.asarray(part.faces, np.int64)
            mirrored = np.linalg.det(frame[:3, :3]) < 0
            if mirrored:
                raise ValueError("a part of it is mirrored by its node; apply its transforms")
            found.append(_Part(vertices=vertices, triangles=triangles, visual=part.visual))
    return found


def _resolver(trimesh: ModuleType, file: ModelFile) -> Native:
    """Reader of the files that a model names: none outside its ``root``."""

    class Within(trimesh.resolvers.Resolver):
        def __init__(self) -> None:
            """Make the one reader of this model."""

        def get(self, name: str) -> bytes:
            """Read a file beside the model. OSError if it is elsewhere."""
            path = (file.path.parent / name.strip().replace("\\", "/")).resolve()
            if not path.is_relative_to(file.root.resolve()):
                raise FileNotFoundError(f"{name} is outside {file.root}")
            return path.read_bytes()

        def keys(self) -> list[str]:
            """List nothing: files are read by their names only."""
            return []

        def namespaced(self, namespace: str) -> Native:
            """Refuse: no archive."""
            raise NotImplementedError(namespace)

        def write(self, name: str, data: bytes) -> None:
            """Refuse: nothing is written."""
            raise NotImplementedError(name)

    return Within()


def _skin(part: _Part, file: ModelFile, faces: slice) -> Skin:
    """Texture of one part: its image, else its colour."""
    visual = part.visual
    material = getattr(visual, "material", None)
    uv = getattr(visual, "uv", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is None and file.layout == "gso":
        image = _scanned(file)  # their .mtl names it without its folder
    factor = _linear_factor(material)
    corners = np.zeros((len(part.triangles), 3, 2), np.float32)
    if image is None or uv is None or not len(uv):
        return Skin(name=file.below, faces=faces, uv=corners, tile=_plain(visual, factor))
    corners = np.asarray(uv, np.float32)[part.triangles]
    if not np.isfinite(corners).all():
        raise ValueError("texture coordinates are not finite")
    corners = (corners * np.array([1, -1], np.float32) + np.array([0, 1], np.float32)).astype(np.float32)
    pixels = as_arrays([image])[0]
    side = min(2 ** int(np.ceil(np.log2(max(pixels.shape[:2])))), LARGEST_TILE)
    tile = np.clip(tile_of(pixels, side) * factor, DARKEST, LIGHTEST).astype(np.float32)
    return Skin(name=file.below, faces=faces, uv=corners, tile=tile)


def _scanned(file: ModelFile) -> Image.Image | None:
    path = file.root / "materials" / "textures" / "texture.png"
    if not path.is_file():
        return None
    with Image.open(path) as image:
        image.load()
        return image


def _linear_factor(material: Native) -> Floats:
    """Factor (3) of glTF on the texture, linear; 1 for other materials, whose images stand alone."""
    found = getattr(material, "baseColorFactor", None)
    if found is None:
        return np.ones(3, np.float32)
    values = np.asarray(found)
    share = values[:3] / 255 if values.dtype.kind in "iu" else values[:3]
    return share.astype(np.float32)


def _plain(visual: Native, factor: Floats) -> Floats:
    """Tile of one colour: glTF's factor, the mean of vertex colours, or a diffuse colour."""
    material = getattr(visual, "material", None)
    if material is not None and getattr(material, "baseColorFactor", None) is not None:
        colour = factor
    elif material is not None and getattr(material, "diffuse", None) is not None:
        colour = tile_of(np.asarray(material.diffuse, np.uint8)[None, None, :3], 1)[0, 0]
    elif getattr(visual, "kind", None) in ("vertex", "face"):
        shown = np.asarray(visual.vertex_colors if visual.kind == "vertex" else visual.face_colors, np.float64)
        colour = tile_of(np.round(shown[:, :3].mean(0)).astype(np.uint8)[None, None], 1)[0, 0]
    else:
        colour = np.full(3, 0.4, np.float32)
    return np.clip(colour, DARKEST, LIGHTEST).astype(np.float32).reshape(1, 1, 3)
