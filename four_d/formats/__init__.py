"""File formats of other programs: cameras, depth, point clouds. Pure functions, each writer with its reader."""
