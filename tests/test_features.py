"""FID and FVD of held-out renders, by small networks with the published interfaces."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from four_d import fields
from four_d.errors import UserError
from four_d.evaluation import Evaluation, EvaluationConfig, evaluate
from four_d.evaluation import run as run_evaluation
from four_d.evaluation.features import videos_of
from four_d.evaluation.novel import copies, render_views
from four_d.evaluation.result import LpipsFacts, lpips_note
from four_d.metrics import frechet
from four_d.metrics.frechet import Extractor
from four_d.types import Cameras, Clip, Example, Gaussians, Prediction
from tests.helpers import Says
from tests.metrics.test_frechet import I3D, Inception, saved
from tests.test_novel import sheet

VIEWS = 11
"""Views of a clip, of a camera beside the input's; of the input's there are two more."""


def make_clip(seed: int) -> Clip:
    """Two frames of one camera; the views, in no order of time, are random images."""
    generator = torch.Generator().manual_seed(seed)
    count = 2 + VIEWS + 2
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[2 : 2 + VIEWS, 0, 3] = 0.3
    lens = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]).expand(count, 3, 3)
    images = torch.rand(count, 3, 16, 16, generator=generator) * torch.rand(count, 3, 1, 1, generator=generator)
    times = torch.cat([torch.tensor([0.0, 1.0]), torch.arange(VIEWS).flip(0) / 10, torch.tensor([0.3, 0.6])])
    ids = torch.tensor([0, 0, *[1] * VIEWS, 0, 0])

    def part(rows: slice) -> Clip:
        cameras = Cameras(world_from_camera=poses[rows], intrinsics=lens[rows])
        return Clip(images=images[rows], times=times[rows], camera_ids=ids[rows], cameras=cameras)

    return dataclasses.replace(part(slice(0, 2)), views=part(slice(2, count)))


def wall(seed: int) -> Gaussians:
    return sheet(0.2 + 0.1 * seed)


CLIPS = [make_clip(seed) for seed in range(3)]
EXAMPLES = [
    Example(
        inputs=fields.stack([dataclasses.replace(clip, views=None)]),
        targets=fields.stack([clip]),
        key=[f"clip-{seed}/0"],
    )
    for seed, clip in enumerate(CLIPS)
]


def scored(extractors: list[Extractor], count: int = 3) -> Evaluation:
    walls = iter(range(count))
    model = Says(
        lambda _: Prediction(gaussians=fields.stack([wall(next(walls))])), outputs=frozenset({"gaussians"}), times=None
    )
    return evaluate(model, EXAMPLES[:count], predictors={}, extractors=extractors, note="boxes")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Extractor]:
    folder = tmp_path_factory.mktemp("networks")
    return [
        frechet.load_extractor("fid", saved(folder, Inception())),
        frechet.load_extractor("fvd", saved(folder, I3D())),
    ]


def test_distances_are_of_all_renders_and_all_true_images(networks: list[Extractor]) -> None:
    found = scored(networks)
    views = [clip.views for clip in CLIPS if clip.views is not None]
    renders = [render_views(wall(seed), each).colour for seed, each in enumerate(views)]
    real = [each.images for each in views]
    fid, fvd = networks
    # camera 1's views were listed backwards; the input camera's two are no video
    order = torch.arange(VIEWS).flip(0)
    expected = {
        "fid": frechet.fid(fid, renders, real),
        "fvd": frechet.fvd(fvd, [each[order] for each in renders], [each[order] for each in real]),
    }
    for name, value in expected.items():
        score = found.rows["model"][name]
        assert score.mean == pytest.approx(value, rel=1e-6)
        assert value > 1
        assert (score.videos, score.excluded, score.standard_error) == (3, 0, None)
        assert name not in found.per_video["model"]
    copied = [copies(clip, each).colour for clip, each in zip(CLIPS, views, strict=True)]
    assert found.rows["copy"]["fid"].mean == pytest.approx(frechet.fid(fid, copied, real), rel=1e-6)
    assert found.note == (
        "boxes; LPIPS: not computed, no weights; structure takes its place; "
        f"FID of 39 images by network {fid.digest}; FVD of 3 videos of 10 frames or more by network {fvd.digest}"
    )


def test_figures_of_all_videos_stand_in_tables_and_files(
    networks: list[Extractor], capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(networks)
    found.print()
    assert "fid ↓" in capsys.readouterr().out
    content = found.to_dict()
    rows, metrics = content["rows"], content["metrics"]
    assert isinstance(rows, dict)
    assert isinstance(metrics, dict)
    assert rows["model"]["fvd"]["standard_error"] is None
    assert metrics["fvd"]["better"] == "lower"


def test_without_networks_the_rows_are_absent_and_the_note_says_so(networks: list[Extractor]) -> None:
    plain, one = scored([]), scored(networks[:1])
    assert not {"fid", "fvd"} & set(plain.rows["model"])
    assert plain.note.endswith("; FID, FVD: not computed, no network given")
    assert set(plain.rows["model"]) | {"fid"} == set(one.rows["model"])
    assert one.note.endswith(f"FID of 39 images by network {networks[0].digest}; FVD: not computed, no network given")
    assert len({plain.digest, one.digest, scored(networks).digest}) == 3, "figures of other networks do not compare"
    blind = evaluate(Says(), EXAMPLES[:1], predictors={}, extractors=networks)
    assert not {"fid", "fvd"} & set(blind.rows["model"])
    assert blind.note == "", "no pictures are scored"


def test_a_set_of_one_has_no_distance(networks: list[Extractor]) -> None:
    found = scored(networks, 1)
    assert "fid" in found.rows["model"]
    assert "fvd" not in found.rows["model"]
    assert found.note.endswith("FVD: not computed, 1 videos of 10 frames or more, and it needs 2")


def test_videos_are_the_views_of_a_camera_in_order() -> None:
    views = CLIPS[0].views
    assert views is not None
    assert [each.tolist() for each in videos_of(views)] == [list(range(VIEWS))[::-1]]


def test_a_network_without_pictures_to_score_is_refused(tmp_path: Path) -> None:
    settings = EvaluationConfig(data=str(tmp_path), fid_network=str(saved(tmp_path, Inception())))
    with pytest.raises(UserError, match="fid_network is given, and no pictures are scored"):
        run_evaluation(Says(), settings)
    missing = dataclasses.replace(settings, pictures=True, fid_network=str(tmp_path / "nowhere.pt"))
    with pytest.raises(UserError, match="no weights of FID at"):
        run_evaluation(Says(), missing)


def test_the_note_names_the_network_of_lpips() -> None:
    assert lpips_note(LpipsFacts(network="alex", weights="0" * 12)) == "LPIPS of alex"
    assert lpips_note(None) == "LPIPS: not computed, no weights; structure takes its place"
