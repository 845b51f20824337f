"""One video's object as a model: weights that are Gaussians, their motion and the cameras (PAD3R's second stage)."""

from four_d.scene.density import DensityConfig
from four_d.scene.model import DeformableScene, DeformableSceneConfig
from four_d.scene.start import initial_scene

__all__ = ["DeformableScene", "DeformableSceneConfig", "DensityConfig", "initial_scene"]
