from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.metrics import pose

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples" / "trajectories"

# ../shared/samples/trajectories/SOURCE.md: evo 1.38.1, association 0.01 s, RMSE
REFERENCE = [
    ("freiburg1_xyz-rgbdslam", "freiburg1_xyz-groundtruth", 785, "se3", 0.013470, 0.005764, 0.353613),
    ("freiburg1_xyz-rgbdslam", "freiburg1_xyz-groundtruth", 785, "sim3", 0.013389, 0.005806, 0.353613),
    ("freiburg1_xyz-rgbdslam_drift", "freiburg1_xyz-groundtruth", 785, "sim3", 0.013389, 0.005806, 0.353614),
    ("freiburg1_xyz-ORB_kf_mono", "freiburg1_xyz-groundtruth", 32, "se3", 0.024302, 0.025266, 0.884849),
    ("freiburg1_xyz-ORB_kf_mono", "freiburg1_xyz-groundtruth", 32, "sim3", 0.009755, 0.013835, 0.884849),
    ("fr2_desk_ORB", "fr2_desk_groundtruth", 2174, "se3", 0.008119, 0.003490, 0.280519),
    ("fr2_desk_ORB", "fr2_desk_groundtruth", 2174, "sim3", 0.006123, 0.003485, 0.280519),
    ("fr2_desk_ORB_kf_mono", "fr2_desk_groundtruth", 118, "se3", 0.939049, 0.136726, 0.387091),
    ("fr2_desk_ORB_kf_mono", "fr2_desk_groundtruth", 118, "sim3", 0.007729, 0.007069, 0.387091),
]


def _trajectory(seed: int, *batch: int, spread: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*batch, 3, generator=g, dtype=torch.float64)
    centres = spread * torch.randn(*batch, 3, generator=g, dtype=torch.float64)
    return geometry.make_pose(roma.rotvec_to_rotmat(vectors), centres)


def _near(truth: Tensor, seed: int, size: float = 0.1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    turn = roma.rotvec_to_rotmat(size * torch.randn(*truth.shape[:-2], 3, generator=g, dtype=torch.float64))
    shift = size * torch.randn(*truth.shape[:-2], 3, generator=g, dtype=torch.float64)
    return truth @ geometry.make_pose(turn, shift)


def _moved(trajectory: Tensor, seed: int, scale: float) -> Tensor:
    """Another world frame and unit."""
    scaled = geometry.make_pose(trajectory[..., :3, :3], trajectory[..., :3, 3] * scale)
    return _trajectory(seed) @ scaled


def _along_x(*x: float, angles_deg: tuple[float, ...] | None = None) -> Tensor:
    centres = torch.zeros(len(x), 3, dtype=torch.float64)
    centres[:, 0] = torch.tensor(x, dtype=torch.float64)
    vectors = torch.zeros(len(x), 3, dtype=torch.float64)
    if angles_deg is not None:
        vectors[:, 2] = torch.tensor(angles_deg, dtype=torch.float64).deg2rad()
    return geometry.make_pose(roma.rotvec_to_rotmat(vectors), centres)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs ../shared/samples/trajectories (estimates under GPL)")
@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: f"{row[0]}-{row[3]}")
def test_reference_values_of_evo(row: tuple[str, str, int, pose.Alignment, float, float, float]) -> None:
    estimate, truth, matched, alignment, *expected = row
    times_e, poses_e = pose.read_tum(SAMPLES / f"{estimate}.txt")
    times_g, poses_g = pose.read_tum(SAMPLES / f"{truth}.txt")
    index_e, index_g = pose.associate(times_e, times_g, 0.01)
    assert len(index_e) == matched
    steps = pose.rpe(poses_e[index_e], poses_g[index_g], alignment)
    ate = pose.ate(poses_e[index_e], poses_g[index_g], alignment)
    assert [ate.item(), steps.translation.item(), steps.rotation_deg.item()] == pytest.approx(expected, abs=1e-6)


def test_values_worked_out_by_hand() -> None:
    truth = _along_x(0, 1, 2, 3)
    wrong = _along_x(0, 1, 2, 5)  # mean 2 against 1.5: rigid errors -.5 -.5 -.5 1.5
    assert pose.ate(wrong, truth, "none").item() == pytest.approx(1.0)
    assert pose.ate(wrong, truth, "se3").item() == pytest.approx(np.sqrt((0.25 * 3 + 2.25) / 4))
    # scale: Σ (g−ḡ)(p−p̄) / Σ (p−p̄)² = 8 / 14; residual Σ g² − 8²/14 = 5 − 64/14
    assert pose.ate(wrong, truth, "sim3").item() == pytest.approx(np.sqrt((5 - 64 / 14) / 4))
    assert pose.rpe(wrong, truth, "se3").translation.item() == pytest.approx(np.sqrt((0 + 0 + 4) / 3))
    steps = 8 / 14 * np.array([1, 1, 3]) - 1
    assert pose.rpe(wrong, truth, "sim3").translation.item() == pytest.approx(np.sqrt(np.mean(steps**2)))


def test_rotation_errors_worked_out_by_hand() -> None:
    truth = _along_x(0, 1, 2, angles_deg=(0, 10, 20))
    turned = _along_x(0, 1, 2, angles_deg=(0, 10, 51))
    assert pose.rpe(turned, truth, "none").rotation_deg.item() == pytest.approx(np.sqrt((0 + 31**2) / 2))
    errors = pose.pair_errors(turned, truth)
    assert errors.rotation_deg.tolist() == pytest.approx([0, 31, 31], abs=1e-9)
    assert pose.rra(errors, 15).item() == pytest.approx(1 / 3)
    # frame 0 → 1, 0 → 2 and 1 → 2 share directions with the truth (the starting camera is right in each)
    assert errors.translation_deg.tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    # one pair of three is below every limit of 1 … 30, the others below none
    assert pose.auc(errors).item() == pytest.approx(1 / 3)


def test_translation_directions_worked_out_by_hand() -> None:
    truth = _along_x(0, 1, 2)
    truth[2, :3, 3] = truth[1, :3, 3]  # frame 2 stays where 1 is
    sideways = truth.clone()
    sideways[1:, :3, 3] = torch.tensor([1.0, 1, 0], dtype=torch.float64)
    errors = pose.pair_errors(sideways, truth)
    assert errors.moving.tolist() == [True, True, False]
    assert errors.translation_deg.tolist() == pytest.approx([45, 45, 0])
    assert pose.rta(errors, 50).item() == 1
    assert pose.rta(errors, 40).item() == 0
    assert pose.auc(errors).item() == pytest.approx(1 / 3)  # the still pair counts by rotation alone
    still = pose.pair_errors(_along_x(0, 0, 0), truth)
    assert still.translation_deg.tolist() == [90, 90, 0]
    backwards = pose.pair_errors(_along_x(0, -1, -1), truth)  # the sign of a direction is not judged
    assert backwards.translation_deg.tolist() == [0, 0, 0]


def _pairs_by_numpy(p: np.ndarray, g: np.ndarray) -> tuple[list[float], list[float]]:
    rotation, translation = [], []
    for i in range(len(g)):
        for j in range(i + 1, len(g)):
            a, b = np.linalg.inv(p[i]) @ p[j], np.linalg.inv(g[i]) @ g[j]
            cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
            rotation.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
            cosine = a[:3, 3] @ b[:3, 3] / np.linalg.norm(a[:3, 3]) / np.linalg.norm(b[:3, 3])
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
            translation.append(min(angle, 180 - angle))
    return rotation, translation


def _umeyama_by_numpy(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    mx, my = x.mean(0), y.mean(0)
    u, d, vt = np.linalg.svd((y - my).T @ (x - mx) / len(x))
    s = np.diag([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / ((x - mx) ** 2).sum(1).mean()
    return scale, rotation, my - scale * rotation @ mx


def test_everything_equals_a_plain_implementation() -> None:
    truth = _trajectory(0, 4, 6)
    prediction = _near(truth, 1, size=0.3)
    errors, steps, ate = (
        pose.pair_errors(prediction, truth),
        pose.rpe(prediction, truth, "sim3"),
        pose.ate(prediction, truth, "sim3"),
    )
    for clip in range(4):
        p, g = prediction[clip].numpy(), truth[clip].numpy()
        rotation, translation = _pairs_by_numpy(p, g)
        np.testing.assert_allclose(errors.rotation_deg[clip], rotation, atol=1e-6)
        np.testing.assert_allclose(errors.translation_deg[clip], translation, atol=1e-6)
        worse = np.maximum(rotation, translation)
        histogram = np.histogram(worse, bins=np.arange(31))[0] / len(worse)
        assert pose.auc(errors)[clip].item() == pytest.approx(np.cumsum(histogram).mean(), abs=1e-12)
        scale, turn, shift = _umeyama_by_numpy(p[:, :3, 3], g[:, :3, 3])
        residual = scale * p[:, :3, 3] @ turn.T + shift - g[:, :3, 3]
        assert ate[clip].item() == pytest.approx(np.sqrt((residual**2).sum(1).mean()), abs=1e-12)
        squares = []
        for i in range(5):
            q, e = np.linalg.inv(g[i]) @ g[i + 1], np.linalg.inv(p[i]) @ p[i + 1]
            e[:3, 3] *= scale
            squares.append(((np.linalg.inv(q) @ e)[:3, 3] ** 2).sum())
        assert steps.translation[clip].item() == pytest.approx(np.sqrt(np.mean(squares)), abs=1e-12)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
@settings(max_examples=25)
def test_world_frame_and_unit_of_the_prediction_do_not_matter_under_sim3(seed: int, scale: float) -> None:
    truth = _trajectory(seed, 7)
    prediction = _near(truth, seed + 1)
    moved = _moved(prediction, seed + 2, scale)
    torch.testing.assert_close(pose.ate(moved, truth, "sim3"), pose.ate(prediction, truth, "sim3"), rtol=1e-7, atol=0)
    before, after = (pose.rpe(x, truth, "sim3") for x in (prediction, moved))
    torch.testing.assert_close(after.translation, before.translation, rtol=1e-7, atol=0)
    torch.testing.assert_close(after.rotation_deg, before.rotation_deg, rtol=1e-7, atol=1e-9)
    a, b = pose.pair_errors(prediction, truth), pose.pair_errors(moved, truth)
    torch.testing.assert_close(a.rotation_deg, b.rotation_deg, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(a.translation_deg, b.translation_deg, rtol=1e-7, atol=1e-7)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
@settings(max_examples=10)
def test_errors_after_alignment_are_in_the_truths_unit_and_blind_to_its_frame(seed: int, scale: float) -> None:
    truth = _trajectory(seed, 6)
    prediction = _near(truth, seed + 1)
    moved = _moved(truth, seed + 3, scale)
    expected = scale * pose.ate(prediction, truth, "sim3")
    torch.testing.assert_close(pose.ate(prediction, moved, "sim3"), expected, rtol=1e-7, atol=0)


def test_a_perfect_prediction_scores_perfectly() -> None:
    truth = _trajectory(5, 3, 5)
    copy = _moved(truth, 6, 3.0)
    assert pose.ate(copy, truth, "sim3").max() < 1e-12
    assert pose.rpe(copy, truth, "sim3").translation.max() < 1e-12
    errors = pose.pair_errors(copy, truth)
    assert pose.auc(errors).tolist() == pose.rra(errors, 1).tolist() == pose.rta(errors, 1).tolist() == [1, 1, 1]


def test_alignments_form_an_order() -> None:
    truth = _trajectory(7, 20, 8)
    prediction = _near(truth, 8, 0.5)
    none, se3, sim3 = (pose.ate(prediction, truth, alignment) for alignment in ("none", "se3", "sim3"))
    assert bool(((sim3 <= se3 + 1e-12) & (se3 <= none + 1e-12)).all())


def test_a_camera_that_stands_still_gets_the_extent_and_a_line_fits_a_line() -> None:
    truth = _trajectory(9, 10)
    still = torch.eye(4, dtype=torch.float64).expand(10, 4, 4)
    for alignment in ("se3", "sim3"):
        assert pose.ate(still, truth, alignment).item() == pytest.approx(pose.extent(truth).item(), abs=1e-12)
    line = _along_x(0, 1, 2, 3)
    assert pose.ate(_moved(line, 3, 7.0), line, "sim3").item() < 1e-12


def test_steps_between_cameras_do_not_count() -> None:
    truth = _along_x(0, 1, 2, 3)
    jump = _along_x(0, 1, 50, 51)
    same = torch.tensor([True, False, True])
    assert pose.rpe(jump, truth, "none", same).translation.item() == pytest.approx(0, abs=1e-12)
    assert pose.rpe(jump, truth, "none", same & False).translation.item() == 0


def test_tum_files(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    path.write_text(
        "# time tx ty tz qx qy qz qw\n1.5 1 2 3 0 0 0 2\n\n2.5 4 5 6 0 0 0.7071067811865476 0.7071067811865476\n"
    )
    times, poses = pose.read_tum(path)
    assert times.tolist() == [1.5, 2.5]
    assert poses[:, :3, 3].tolist() == [[1, 2, 3], [4, 5, 6]]
    turned = poses[1, :3, :3] @ torch.tensor([1.0, 0, 0], dtype=torch.float64)  # a quarter turn about z
    torch.testing.assert_close(turned, torch.tensor([0.0, 1, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    "line", ["1 2 3", "a b c d e f g h", "1 0 0 0 0 0 0 0", "1 0 0 0 0 0 0 1 1", "nan 0 0 0 0 0 0 1"]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "poses.txt"
    path.write_text(f"0 0 0 0 0 0 0 1\n{line}\n")
    with pytest.raises(UserError, match=r"poses\.txt:2"):
        pose.read_tum(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="no pose"):
        pose.read_tum(path)


def test_nearest_times_within_a_bound() -> None:
    a = torch.tensor([0.0, 1.0, 2.0, 3.0])
    b = torch.tensor([0.004, 1.5, 2.991, 2.995, 3.2, 4.0])
    index_a, index_b = pose.associate(a, b)
    assert (index_a.tolist(), index_b.tolist()) == ([0, 3], [0, 3])
    index_b, index_a = pose.associate(b, a)
    assert (index_a.tolist(), index_b.tolist()) == ([0, 3], [0, 3])
    single, other = pose.associate(torch.tensor([1.0]), torch.tensor([1.0]))
    assert (single.tolist(), other.tolist()) == ([0], [0])
