"""All data sets that can be imported, by name."""

from __future__ import annotations

from four_d.datasets import (
    colmap,
    cut3r,
    davis,
    depths,
    dycheck,
    folder,
    kubric,
    nerfstudio,
    npz_tracks,
    nvidia_dynamic,
    pointodyssey,
    rgbd,
    scenes,
    sintel,
    spring,
    tartanair,
    vkitti2,
)
from four_d.datasets.facts import DataSet

DATASETS: dict[str, DataSet] = {
    each.name: each
    for each in (
        folder.FOLDER,
        colmap.COLMAP,
        nerfstudio.NERFSTUDIO,
        *cut3r.CUT3R_SETS,
        pointodyssey.POINTODYSSEY,
        kubric.KUBRIC,
        tartanair.TARTANAIR,
        vkitti2.VKITTI2,
        spring.SPRING,
        sintel.SINTEL,
        rgbd.TUM_RGBD,
        rgbd.BONN_DYNAMIC,
        scenes.SCANNET,
        scenes.SEVEN_SCENES,
        scenes.NRGBD,
        depths.KITTI,
        depths.NYU,
        dycheck.DYCHECK,
        nvidia_dynamic.NVIDIA_DYNAMIC,
        davis.DAVIS,
        npz_tracks.WORLDTRACK,
        npz_tracks.TAPVID3D,
    )
}
