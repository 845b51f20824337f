"""Files of one object, splats or meshes, as Gaussians in one frame and unit: what a scene is fitted from."""

from four_d.objects.canonical import CanonicalObject, Up, of_gaussians, of_triangles, read_object
from four_d.objects.providers import ObjectFile, ObjectProvider

__all__ = ["CanonicalObject", "ObjectFile", "ObjectProvider", "Up", "of_gaussians", "of_triangles", "read_object"]
