"""Files of one object, splats or meshes, as Gaussians in one frame and unit: what a scene is fitted from."""

from four_d.objects.canonical import CanonicalObject, Up, read_object

__all__ = ["CanonicalObject", "Up", "read_object"]
