"""Deformation graph of one object: control nodes that move rigidly, and Gaussians that follow those near them.

Pure functions and modules, which know neither losses nor files. One object, so nothing is batched; t counts times, m
nodes, n points or Gaussians, k the nodes of a point, e edges between nodes.
"""

from four_d.deformation.bends import Bends, along_surface
from four_d.deformation.energies import rigidity, smoothness
from four_d.deformation.graph import Deformation, DeformationConfig
from four_d.deformation.motion import (
    DirectMotionConfig,
    HexplaneMotionConfig,
    MlpMotionConfig,
    MotionConfig,
    NodeMotion,
    NodeStates,
    anchored,
)
from four_d.deformation.nodes import Binding, bind, edges_between, farthest_points
from four_d.deformation.skinning import Skinning, skin

__all__ = [
    "Bends",
    "Binding",
    "Deformation",
    "DeformationConfig",
    "DirectMotionConfig",
    "HexplaneMotionConfig",
    "MlpMotionConfig",
    "MotionConfig",
    "NodeMotion",
    "NodeStates",
    "Skinning",
    "along_surface",
    "anchored",
    "bind",
    "edges_between",
    "farthest_points",
    "rigidity",
    "skin",
    "smoothness",
]
