"""Scores of a trained model: on held-out shards (`run`, `evaluate`) and under published protocols."""

from four_d.evaluation.held_out import EvaluationConfig, Videos, evaluate, evenly, frame_lists, run, usable
from four_d.evaluation.published import Published, PublishedConfig, run_protocol
from four_d.evaluation.result import Evaluation, Score, higher_is_better, image_free, score_of, summary
from four_d.evaluation.scores import Scores, score_clip

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "Published",
    "PublishedConfig",
    "Score",
    "Scores",
    "Videos",
    "evaluate",
    "evenly",
    "frame_lists",
    "higher_is_better",
    "image_free",
    "run",
    "run_protocol",
    "score_clip",
    "score_of",
    "summary",
    "usable",
]
