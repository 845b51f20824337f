"""Creatures alone: their build, gaits whose feet stand, servos that follow, limbs that fall."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("embreex", reason="needs the extra synth")
pytest.importorskip("mujoco", reason="needs the extra synth")

from data_prep.synthetic import WorldSettings, meshes
from data_prep.synthetic.creatures import gaits
from data_prep.synthetic.creatures.animals import HELD_OUT_BREEDS, TRAIN_BREEDS, make_animal
from data_prep.synthetic.creatures.chains import make_chain
from data_prep.synthetic.creatures.gaits import Path, Plan
from data_prep.synthetic.creatures.people import HELD_OUT_BUILDS, TRAIN_BUILDS, make_person
from data_prep.synthetic.creatures.puppets import Puppet
from data_prep.synthetic.creatures.skeleton import Array, Creature, limb_mesh
from data_prep.synthetic.physics import Motion, simulate
from data_prep.synthetic.settings import STEP_S
from four_d.errors import UserError

ROOM = np.array([[-6.0, -6.0, 0.0], [6.0, 6.0, 4.0]])
SECONDS = np.linspace(0, 1.2, 31)
MAKERS: dict[str, Callable[[np.random.Generator, bool], Creature]] = {
    "arm": lambda rng, held_out: make_chain(rng, held_out=held_out, rooted=True),
    "chain": lambda rng, held_out: make_chain(rng, held_out=held_out, rooted=False),
    "animal": lambda rng, held_out: make_animal(rng, held_out=held_out),
    "person": lambda rng, held_out: make_person(rng, held_out=held_out),
}


def some(kind: str) -> list[Creature]:
    return [MAKERS[kind](np.random.default_rng(seed), bool(seed % 2)) for seed in range(8)]


def place(speed: float = 0.0, turn: float = 0.0) -> Path:
    return Path(centre=np.zeros(2), heading=0.7, speed=speed, turn=turn, middle=0.6)


def perform(creature: Creature, plan: Plan) -> Motion:
    return simulate([], ROOM, SECONDS, [Puppet(creature=creature, plan=plan)])


def keypoints(creature: Creature, motion: Motion) -> Array:
    """t n 3"""
    found = [
        motion.positions[:, point.limb]
        + motion.rotations[:, point.limb] @ (point.place - creature.limbs[point.limb].centre)
        for point in creature.keypoints
    ]
    return np.stack(found, 1)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_creature_is_a_tree_whose_points_have_bones_and_whose_sides_match(kind: str) -> None:
    for creature in some(kind):
        assert creature.limbs[0].parent == -1
        assert all(limb.parent < number for number, limb in enumerate(creature.limbs))
        names = [point.name for point in creature.keypoints]
        assert len(set(names)) == len(names)
        assert all(hinge.low < hinge.high for hinge in creature.hinges)
        joined = {point for bone in creature.bones for point in bone}
        assert joined == set(range(len(names))), "every keypoint has a bone"
        for left in (name for name in names if name.startswith("left_")):
            one, other = (creature.keypoints[names.index(n)] for n in (left, left.replace("left_", "right_")))
            np.testing.assert_allclose(one.place, other.place * [1, -1, 1], atol=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_shapes_of_limbs_are_closed_and_face_outwards(kind: str) -> None:
    for creature in some(kind)[:4]:
        for shape in (shape for limb in creature.limbs for shape in limb.shapes):
            mesh = limb_mesh(shape)
            edges = np.concatenate([mesh.triangles[:, [i, (i + 1) % 3]] for i in range(3)])
            there, counts = np.unique(edges, axis=0, return_counts=True)
            assert (counts == 1).all()
            assert np.array_equal(there, np.unique(edges[:, ::-1], axis=0))
            assert meshes.volume(mesh) > 0


def test_held_out_creatures_are_of_other_species_and_proportions() -> None:
    assert not set(TRAIN_BREEDS) & set(HELD_OUT_BREEDS)
    assert not set(TRAIN_BUILDS) & set(HELD_OUT_BUILDS)
    for kind in MAKERS:
        rng = np.random.default_rng(0)
        train, held_out = ({MAKERS[kind](rng, side).species for _ in range(20)} for side in (False, True))
        assert not train & held_out
    for name, one in TRAIN_BUILDS.items():
        for other in HELD_OUT_BUILDS.values():
            apart = other.height[1] < one.height[0] or other.height[0] > one.height[1]
            assert apart, name


def test_sizes_and_numbers_of_limbs_vary() -> None:
    for kind in MAKERS:
        heights = {round(float(creature.limbs[1].offset @ [1, 2, 3]), 6) for creature in some(kind)}
        assert len(heights) > 4, kind
    for kind in ("arm", "chain", "animal"):
        assert len({len(creature.limbs) for creature in some(kind)}) > 2


@pytest.mark.parametrize("kind", ["animal", "person"])
def test_who_walks_keeps_to_the_path_and_its_standing_feet_do_not_slide(kind: str) -> None:
    for seed, creature in enumerate(some(kind)):
        rng = np.random.default_rng(seed)
        gait = gaits.walk(rng, creature)
        path = place(gait.speed, gait.turn)
        motion = perform(creature, gaits.drive(rng, creature, gait, path, np.arange(0, 1.21, STEP_S)))
        assert motion.stable
        assert motion.deepest < 0.01
        names = [point.name for point in creature.keypoints]
        points = keypoints(creature, motion)
        where, _ = path.at(SECONDS)
        middle = motion.positions[:, 0] - motion.rotations[:, 0] @ creature.limbs[0].centre
        assert np.abs(middle[:, :2] - where).max() < 0.01
        ends = ("paw", "ankle")
        for leg, foot in zip(creature.legs, (n for n, name in enumerate(names) if name.endswith(ends))):
            low = points[:, foot, 2] < leg.height + gaits.CLEARANCE_M + 0.01
            assert 0.3 < low.mean() < 0.95, (creature.species, names[foot])
            both = low[1:] & low[:-1]
            speed = np.linalg.norm(np.diff(points[:, foot, :2], axis=0), axis=-1) / np.diff(SECONDS)
            assert np.median(speed[both]) < 0.2 * max(gait.speed, 0.3), (creature.species, names[foot])
            assert points[:, foot, 2].max() > leg.height + 0.02


@pytest.mark.parametrize("kind", MAKERS)
def test_driven_hinges_follow_their_plan_and_keep_their_limits(kind: str) -> None:
    for seed, creature in enumerate(some(kind)):
        rng = np.random.default_rng(seed)
        times = np.arange(0, 1.21, STEP_S)
        if kind == "chain":
            plan = gaits.wriggle(rng, creature, place(), times)
        else:
            plan = gaits.drive(rng, creature, gaits.stand(rng, creature), place(), times)
        motion = perform(creature, plan)
        low, high = (np.array([getattr(one, end) for one in creature.hinges]) for end in ("low", "high"))
        assert (plan.angles >= low).all()
        assert (plan.angles <= high).all()
        assert np.ptp(plan.angles, axis=0).max() > 0.2
        assert motion.stable


@pytest.mark.parametrize("kind", ["chain", "animal", "person"])
def test_who_is_limp_falls_to_the_floor_and_stays_above_it(kind: str) -> None:
    for seed, creature in enumerate(some(kind)):
        motion = perform(creature, gaits.fall(np.random.default_rng(seed), creature, place()))
        assert motion.stable
        height = keypoints(creature, motion)[..., 2].mean(1)
        assert height[-1] < 0.75 * height[0]
        assert motion.positions[..., 2].min() > 0
        assert motion.excess < 0.15


@pytest.mark.parametrize("kind", MAKERS)
def test_bones_keep_their_lengths_whatever_happens(kind: str) -> None:
    for seed, creature in enumerate(some(kind)):
        rng = np.random.default_rng(seed)
        limp = kind != "arm" and seed % 2
        gait, times = gaits.stand(rng, creature), np.arange(0, 1.21, STEP_S)
        plan = gaits.fall(rng, creature, place()) if limp else gaits.drive(rng, creature, gait, place(), times)
        points = keypoints(creature, perform(creature, plan))
        for a, b in creature.bones:
            if set(creature.keypoints[a].limbs) & set(creature.keypoints[b].limbs):
                length = np.linalg.norm(points[:, a] - points[:, b], axis=-1)
                assert np.ptp(length) < 1e-9
                assert length[0] > 0.005


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"bodies": True, "creatures": (2, 1)}, "creatures"),
        ({"bodies": True, "species": ("fish",)}, "species is fish; choose among chain, animal, person"),
        ({"bodies": True, "obstacles": (-1, 2)}, "obstacles"),
        ({"creatures": (2, 2)}, "creatures is of worlds of articulated bodies; set bodies too"),
        ({"bodies": True, "spin": 0.2}, "spin is of worlds of objects; leave it out"),
    ],
)
def test_settings_of_bodies_name_themselves(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        WorldSettings(**wrong)  # pyright: ignore[reportArgumentType]


def test_settings_that_say_nothing_are_not_stored() -> None:
    """So clips of rigid objects have the bytes that they had before there were creatures."""
    rigid, bodies = WorldSettings().to_dict(), WorldSettings(bodies=True).to_dict()
    assert list(rigid) == [
        *("width", "height", "cameras", "frames", "objects", "moving", "duration_s", "paths", "starts", "spin"),
        *("rig_m", "antialias"),
    ]
    assert set(bodies) - set(rigid) == {"bodies", "creatures", "species", "obstacles"}
    assert set(rigid) - set(bodies) == {"objects", "starts", "spin"}
