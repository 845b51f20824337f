"""SirenPose (arXiv 2512.20531): supervision of trajectories that makes motion smooth and plausible, for any model.

The paper names its parts and publishes no formula, weight or code. Formulas, networks and weights here are ours
(docs/siren_pose.md); nothing in them is claimed to be the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields
from four_d.constants import keep, move, on_host
from four_d.deformation.prediction import ScenePrediction
from four_d.errors import UserError
from four_d.geometry import NEAREST, invert_pose, transform
from four_d.keypoints import NEIGHBOURS, inside_image
from four_d.losses.keypoint import units
from four_d.losses.reduction import nothing
from four_d.losses.schedule import Weight
from four_d.losses.siren_pose import consistency
from four_d.losses.siren_pose.codes import Names, PointCode
from four_d.losses.siren_pose.consistency import Edges, Points, Times, Weights, known, weighted_mean
from four_d.losses.siren_pose.graph import GraphConfig, GraphNetwork, judged_error
from four_d.losses.siren_pose.siren import AmortisedSiren, Fitted, SirenConfig, anchors, half_range
from four_d.losses.supervision import Need, frames_with_cameras
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.trajectories import Trajectories, asked_keypoints, asked_names, at_times, of_gaussians
from four_d.types import Cameras, Clip, same_time

Source = Literal["keypoints", "pixel_tracks", "gaussians", "motion", "scene"]
NEEDS: dict[Source, tuple[Need, ...]] = {
    "keypoints": ("keypoints",),
    "motion": ("cameras", "depth", "motion"),
    "gaussians": ("cameras", "depth", "motion"),
    "pixel_tracks": ("cameras", "surface"),
    "scene": (),
}
"""Truth of the trajectories of each source."""
PARTS = ("position", "depth", "reprojection", "velocity", "acceleration", "bone", "siren", "graph")
"""Settings that are weights of parts."""
LEAST_EXTENT = 0.01
"""Least extent of a clip's points relative to their distance from the first camera: that of a single point at rest is
0, or what rounding makes of it, and would make of any error a huge one."""
REMEDIES: dict[Source, str] = {
    "scene": "a scene that is fitted to one clip (model.kind=scene)",
    "keypoints": "keypoints in 3D, and clips that say which to find",
    "motion": "motion, and points, or depth and cameras, to start from",
    "gaussians": "one Gaussian for each pixel of key frames",
    "pixel_tracks": "pixel tracks, and points, or depth and cameras, to place them",
}


@dataclass(frozen=True, kw_only=True)
class SirenPoseLossConfig(LossSpec):
    """Consistency of 3D trajectories with the true ones, in parts with weights of their own; 0 leaves a part out.

    Positions are in units of the extent of each clip's points, times in units of its mean interval, so that all parts
    are numbers without unit. Each clip is averaged first, then the clips.
    """

    kind: Literal["siren_pose"] = "siren_pose"
    source: Source
    """Prediction's field that the trajectories come from; ``scene``: Gaussians of a fitted scene, in the object's own
    coordinates, which have no truth."""
    weight: Weight = 1.0
    """Factor of the whole term in the total loss, or its schedule."""
    position: float = 1.0
    """Weight of distances."""
    depth: float = 0.5
    """Weight of log depth in each frame's camera."""
    reprojection: float = 0.0
    """Weight of distances in the images from true pixels, of keypoints in known cameras, also without 3D positions."""
    velocity: float = 0.1
    """Weight of differences of velocity."""
    acceleration: float = 0.05
    """Weight of squared differences of acceleration."""
    bone: float = 0.1
    """Weight of the variance over time of log lengths between neighbours."""
    siren: float = 0.1
    """Weight of the coupling to a SIREN that learns how things move (`siren_network`)."""
    graph: float = 0.5
    """Weight of the graph network's error (`graph_network`)."""
    rate: float = 1.0
    """Weight of velocities beside positions in the coupling to the SIREN."""
    hidden: float = 0.0
    """Weight of points whose position is known but which no camera sees, beside 1 for those that are seen."""
    free_depth: bool = False
    """Compare depth up to one factor per clip, for models that know no scale."""
    without_truth: bool = False
    """Let velocity, acceleration, bones and SIREN act on clips without truth too, by smoothness and neighbours."""
    points: int | None = 64
    """Points at most, evenly chosen from those that the model follows; None: all. Keypoints are never left out."""
    neighbours: int = NEIGHBOURS
    """Nearest neighbours that a point is joined with in clips without a skeleton."""
    siren_network: SirenConfig = field(default_factory=SirenConfig)
    """Sizes of the SIREN that the part ``siren`` is coupled to."""
    graph_network: GraphConfig = field(default_factory=GraphConfig)
    """Sizes of the graph network whose error the part ``graph`` is."""

    def __post_init__(self) -> None:
        weights = [getattr(self, name) for name in PARTS]
        if min(*weights, self.rate) < 0 or not any(weights):
            raise UserError("weights of parts must be at least 0, and one of them positive")
        if self.reprojection and self.source != "keypoints":
            raise UserError(
                f"reprojection compares with true pixels, which keypoints have, and source is {self.source}; set "
                "reprojection to 0, or give keypoints a siren_pose loss of their own"
            )
        if self.source == "scene" and not self.without_truth:
            raise UserError(
                "nothing is known of how the Gaussians of a fitted scene move; set without_truth=true, with which "
                "velocity, acceleration and siren need no truth"
            )
        if not 0 <= self.hidden <= 1:
            raise UserError(f"hidden is {self.hidden:g}; choose a share from 0 to 1")
        if self.neighbours < 1 or (self.points is not None and self.points < 1):
            raise UserError("points and neighbours must be at least 1")

    @property
    def needs(self) -> tuple[Need, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] - they depend on settings
        """Truth without which the term is 0: that of the source; none with ``without_truth``."""
        return () if self.without_truth else NEEDS[self.source]

    @property
    def teaches(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] - likewise
        """The source."""
        return ("gaussians" if self.source == "scene" else self.source,)

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {} if self.siren else {"rate": "where siren is 0"}
        unread |= {} if self.depth else {"free_depth": "where depth is 0"}
        for part, network, kind in (("siren", "siren_network", SirenConfig), ("graph", "graph_network", GraphConfig)):
            if not getattr(self, part):
                unread |= {f"{network}.{name}": f"where {part} is 0" for name in kind.__dataclass_fields__}
        return unread

    def build(self) -> SirenPoseLoss:
        """Build the term, with networks for the parts that have a weight."""
        return SirenPoseLoss(self)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Predicted trajectories beside true ones, in units of the clip's extent and of its mean interval."""

    points: Points
    truth: Points
    times: Times
    weights: Weights
    """Weights where the truth is known; 0 elsewhere."""
    alone: Weights
    """Weights in clips without any truth; 0 in those with some."""
    edges: Edges
    rigid: Bool[Tensor, "b e"]
    """Bones of constant length, of a skeleton."""
    skeleton: int = 0
    """Number of rows that are of skeletons; the others join nearest neighbours."""
    names: Names | None = None
    """Names of the points, where they have some."""

    @property
    def any(self) -> Weights:
        """Weights of either kind: a clip has one or the other."""
        return self.weights + self.alone

    @property
    def target(self) -> Points:
        """Truth where it is known, the prediction without gradient elsewhere."""
        return torch.where((self.weights > 0)[..., None], self.truth, self.points.detach())


def in_order(trajectories: Trajectories) -> Trajectories:
    """Sort by time, with one entry per time (`trajectories.at_times`).

    The places that this leaves free come last and are not valid.
    """
    times = trajectories.times.sort(-1).values
    merged = at_times(trajectories, times)
    again = torch.zeros_like(times, dtype=torch.bool)
    again[:, 1:] = same_time(times[:, 1:], times[:, :-1])
    order = again.int().argsort(stable=True, dim=-1)
    each = order[:, None].expand(merged.valid.shape)
    return replace(
        merged,
        points=merged.points.gather(2, each[..., None].expand(merged.points.shape)),
        visible=merged.visible.gather(2, each),
        valid=(merged.valid & ~again[:, None]).gather(2, each),
        times=times.gather(1, order),
    )


def chosen(trajectories: Trajectories, count: int | None) -> Trajectories:
    """Evenly chosen points, at most ``count``; None: all."""
    have = trajectories.points.shape[1]
    if count is None or have <= count:
        return trajectories
    index = torch.arange(count, device=trajectories.points.device) * have // count
    return fields.take(trajectories, "n", index)


def interval(times: Times, real: Bool[Tensor, "b t"]) -> Float[Tensor, "b 1"]:
    """Mean interval of each clip's times; 1 for a single time."""
    half = half_range(times, real)[1]
    steps = real.sum(-1, keepdim=True) - 1
    return torch.where(steps > 0, 2 * half / steps.clamp_min(1), 1)


def extent(points: Points, weights: Weights) -> Float[Tensor, "b 1 1 1"]:
    """Root mean square distance of a clip's points from their mean, over all times; no gradient.

    At least `LEAST_EXTENT` of the distance of that mean from the origin; 1 where both are 0.
    """
    weights, points = weights[..., None], known(points, weights).detach()
    total = weights.sum((1, 2), keepdim=True).clamp_min(1e-12)
    centre = (points * weights).sum((1, 2), keepdim=True) / total
    squared = ((points - centre).square().sum(-1, keepdim=True) * weights).sum((1, 2), keepdim=True) / total
    least = LEAST_EXTENT * centre.norm(dim=-1, keepdim=True)
    found = squared.sqrt().maximum(least)
    return torch.where(found > 0, found, 1)


class SirenPoseLoss(LossTerm[SirenPoseLossConfig]):
    """The term of `SirenPoseLossConfig`."""

    def __init__(self, config: SirenPoseLossConfig) -> None:
        super().__init__(config)
        named = config.source == "keypoints"
        self.siren = AmortisedSiren(config.siren_network, named=named) if config.siren else None
        self.codes = PointCode(config.graph_network.code, named=named) if config.graph else None
        self.graph = GraphNetwork(config.graph_network) if config.graph else None

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the weighted sum of the parts. UserError where the model does not give the source."""
        parts = self.parts(inputs)
        outputs = [each for each in fields.named(inputs.prediction).values() if each.is_floating_point()]
        total = nothing(inputs.targets.images, *outputs)
        return sum((getattr(self.config, name) * value for name, value in parts.items()), start=total)

    def parts(self, inputs: LossInputs) -> dict[str, Float[Tensor, ""]]:
        """Compute every part that has a weight, unweighted; each an exact 0 where nothing is known.

        Empty where the source is keypoints and the clips ask for none. UserError where the model does not give the
        source.
        """
        source, targets = self.config.source, inputs.targets
        names = asked_names(targets) if source == "keypoints" else None
        if source == "keypoints" and (names is None or not names.shape[1]):
            return {}  # nothing was asked for, so nothing need be found
        predicted = inputs.trajectories if source != "scene" else of_scene(inputs)
        if source not in predicted:
            given = ", ".join(inputs.trajectories) or "none"
            raise UserError(
                f"the siren_pose loss reads trajectories of {source}, and the model gives {given}: it needs "
                f"{REMEDIES[source]}; add heads for them, choose another source, or remove the loss"
            )
        truths = {"keypoints": lambda: inputs.true_keypoints, "scene": lambda: None}
        known = truths.get(source, lambda: inputs.true_trajectories)()
        paths, truth = self.pair(predicted[source], known)
        compared = replace(self.compare(paths, truth), names=names)
        values = self.direct(compared) | self.learned(compared)
        if self.config.depth:
            values["depth"] = self.depth(paths, truth, targets)
        if self.config.reprojection:
            values["reprojection"] = self.reprojection(paths, targets)
        return {name: value.mean() for name, value in values.items()}

    def pair(self, paths: Trajectories, truth: Trajectories | None) -> tuple[Trajectories, Trajectories]:
        """Predicted trajectories in the order of time, and the true ones of the same points at the same times.

        Chosen points alone. True positions that are not finite are not valid.
        """
        count = None if self.config.source == "keypoints" else self.config.points
        paths = in_order(chosen(paths, count))
        paths = replace(paths, visible=paths.visible.detach().to(paths.points))
        if truth is None:
            nowhere = torch.zeros_like(paths.valid)
            return paths, replace(paths, points=torch.zeros_like(paths.points), valid=nowhere)
        truth = at_times(chosen(truth, count), paths.times)
        sound = truth.valid & truth.points.isfinite().all(-1)
        points, visible = (each.to(paths.points) for each in (truth.points, truth.visible))
        return paths, replace(truth, points=points, visible=visible, valid=sound)

    def weigh(self, valid: Bool[Tensor, "b n t"], visible: Weights) -> Weights:
        """Weights of entries by their visibility: `hidden` for those that nobody sees."""
        return torch.where(valid, self.config.hidden + (1 - self.config.hidden) * visible, 0)

    def compare(self, paths: Trajectories, truth: Trajectories) -> Compared:
        """Weigh the points, join neighbours, and change to units of the clip's own extent and interval."""
        weights = self.weigh(paths.valid & truth.valid, truth.visible)
        free = paths.valid & ~truth.valid.flatten(1).any(-1)[:, None, None]
        alone = self.weigh(free, paths.visible) if self.config.without_truth else torch.zeros_like(weights)
        real = paths.valid.any(1)
        unit = extent(torch.where((weights > 0)[..., None], truth.points, paths.points), weights + alone)
        none = keep(paths.times.new_zeros(len(weights), 0, 2).long(), torch.zeros(len(weights), 0, 2).long())
        compared = Compared(
            points=paths.points / unit,
            truth=truth.points / unit,
            times=(paths.times - half_range(paths.times, real)[0]) / interval(paths.times, real),
            weights=weights,
            alone=alone,
            edges=none,
            rigid=torch.zeros(len(weights), 0, dtype=torch.bool, device=weights.device),
        )
        return self.joined(compared, paths)

    def joined(self, given: Compared, paths: Trajectories) -> Compared:
        """Add the skeletons' edges, and in clips without one those between nearest neighbours.

        UserError for an edge that ends at no point.
        """
        skeleton, count = given.edges if paths.edges is None else paths.edges, paths.points.shape[1]
        known = on_host(skeleton)
        bones = consistency.real(known)
        if bool((((known < 0) | (known >= count)) & bones[..., None]).any()):
            raise UserError(
                f"an edge of Clip.keypoints joins points of {known.amin()} to {known.amax()}, and there are "
                f"{count}, counted from 0; give indices of them"
            )
        rigid = torch.zeros_like(skeleton[..., 0], dtype=torch.bool) if paths.rigid is None else paths.rigid
        bare = ~bones.any(-1)
        nearest = given.edges
        if bool(bare.any()):
            weights = torch.where(move(bare, given.any.device)[:, None, None], given.any, 0)
            nearest = consistency.nearest_edges(given.target, weights, self.config.neighbours)
        no = torch.zeros_like(nearest[..., 0], dtype=torch.bool)
        return replace(
            given,
            edges=torch.cat([skeleton, nearest], dim=1),
            rigid=torch.cat([rigid, no], dim=1),
            skeleton=skeleton.shape[1],
        )

    def direct(self, given: Compared) -> dict[str, Float[Tensor, "b"]]:
        """Compute the parts without networks, one value per clip."""
        points, times, weights, alone = given.points, given.times, given.weights, given.alone
        values: dict[str, Float[Tensor, "b"]] = {}
        if self.config.position:
            values["position"] = consistency.position(points, given.truth, weights)
        if self.config.velocity:
            values["velocity"] = consistency.velocity(points, times, weights, given.truth)
        if self.config.acceleration:
            values["acceleration"] = consistency.acceleration(points, times, weights, given.truth)
        if self.config.without_truth and self.config.velocity:
            values["velocity"] = values["velocity"] + consistency.joint_velocity(points, times, alone, given.edges)
        if self.config.without_truth and self.config.acceleration:
            values["acceleration"] = values["acceleration"] + consistency.acceleration(points, times, alone)
        if self.config.bone:
            bones = torch.where(given.rigid[..., None], given.edges, 0)
            nearest = given.edges[:, given.skeleton :]
            values["bone"] = consistency.bone_variance(points, given.any, bones)
            values["bone"] = values["bone"] + consistency.bone_variance(points, weights, nearest, given.truth)
        return values

    def learned(self, given: Compared) -> dict[str, Float[Tensor, "b"]]:
        """Compute the parts with networks, one value per clip."""
        values: dict[str, Float[Tensor, "b"]] = {}
        if self.siren is not None:
            middle, half = half_range(given.times, (given.any > 0).any(1))
            stamps = (given.times - middle) / half
            made = self.siren(given.points, stamps, given.any, anchors(given.target, given.any), given.names)
            made = replace(made, velocities=made.velocities / half[:, :, None, None])
            values["siren"] = coupling(made, given, self.config.rate)
        if self.graph is not None and self.codes is not None:
            codes, network = self.codes(given.target, given.any, given.names), self.config.graph_network
            judged = self.graph(given.points, given.times, given.weights, codes, given.edges)
            errors = judged_error(judged, given.points, given.truth, given.weights, network.least_sigma)
            moved = judged.correction.square().sum(-1)
            values["graph"] = weighted_mean(errors + network.correction * moved, given.weights)
        return values

    def depth(self, paths: Trajectories, truth: Trajectories, targets: Clip) -> Float[Tensor, "b"]:
        """Compute the error of log depth in the true camera of every frame at whose time both are known.

        A point that is behind one camera of a rig, or that nobody sees, has no depth in it.
        """
        if targets.cameras is None:
            return weighted_mean(paths.points, torch.zeros_like(paths.points))
        ours, theirs = (at_times(each, targets.times) for each in (paths, truth))
        weights = self.weigh(ours.valid & theirs.valid, theirs.visible)
        if targets.cameras.known is not None:
            weights = torch.where(targets.cameras.known[:, None], weights, 0)
        z, true = (depths(known(each.points, weights), targets.cameras).mT for each in (ours, theirs))
        weights = torch.where(true > NEAREST, weights, 0)
        return consistency.depth(z, true, weights, free=self.config.free_depth)

    def reprojection(self, paths: Trajectories, targets: Clip) -> Float[Tensor, "b"]:
        """Compute the distance of keypoints from their true pixels inside the image, in frames with a known camera.

        Its unit is that of the ``keypoints`` loss (``by: box``).
        """
        truth, cameras = asked_keypoints(targets), targets.cameras
        if truth is None or cameras is None:
            return weighted_mean(paths.points, torch.zeros_like(paths.points))
        ours, size = at_times(paths, targets.times), (targets.images.shape[-2], targets.images.shape[-1])
        here = inside_image(truth, size)
        weights = self.weigh(ours.valid & here.mT, truth.visible.mT.to(ours.points))
        weights = torch.where(frames_with_cameras(targets)[:, None], weights, 0)
        pixels, sides = (each.to(ours.points) for each in (truth.pixels, units(truth, here, size)))
        return consistency.reprojection(ours.points, cameras, pixels.transpose(1, 2), sides.mT, weights)


def of_scene(inputs: LossInputs) -> dict[str, Trajectories]:
    """Trajectories ``scene`` of a fitted scene's Gaussians at all frames' times, in the object's coordinates; none of
    another model.
    """
    prediction, times = inputs.prediction, inputs.targets.times
    if not isinstance(prediction, ScenePrediction) or prediction.gaussians is None:
        return {}
    assert prediction.world_from_object is not None
    paths = of_gaussians(prediction.gaussians, times)
    # the prediction's world changes with the first frame of a step
    own = transform(invert_pose(prediction.world_from_object)[:, None], paths.points)
    return {"scene": replace(paths, points=own)}


def depths(points: Points, cameras: Cameras) -> Float[Tensor, "b t n"]:
    """Depth z of each time's points in the camera of that number."""
    poses = cameras.world_from_camera.to(points)
    return transform(invert_pose(poses), points.transpose(1, 2))[..., 2]


def coupling(made: Fitted, given: Compared, rate: float) -> Float[Tensor, "b"]:
    """Fit of the SIREN to the truth (or, without one, to the prediction), and the pull of the prediction to the SIREN.

    Both are squared distances of positions plus ``rate`` times those of velocities. Where there is a truth, only what
    the SIREN has nearer to it than the prediction is pulled: it cannot blur what the model knows better.
    """
    ours, pairs = consistency.velocities(given.points, given.times, given.any)
    aims = consistency.velocities(given.target, given.times, given.any)[0]
    free = (given.alone > 0)[..., 1:] & (given.alone > 0)[..., :-1]
    place = _coupled(
        made.points, known(given.points, given.any), known(given.target, given.any), given.any, given.alone > 0
    )
    return place + rate * _coupled(made.velocities, ours, aims, pairs, free)


def _coupled(
    made: Points, ours: Points, aims: Points, weights: Weights, free: Bool[Tensor, "b n t"]
) -> Float[Tensor, "b"]:
    errors = (made - aims).square().sum(-1)
    pulled = free | (errors < (ours - aims).square().sum(-1)).detach()
    distances = torch.where(pulled, (ours - made.detach()).square().sum(-1), 0)
    return weighted_mean(errors + distances, weights)
