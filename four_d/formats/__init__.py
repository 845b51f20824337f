"""Files that other programs read: cameras, depth, point clouds. Pure functions, each writer with its reader."""
