"""Scores of a trained model: on held-out shards (`run`, `evaluate`) and under published protocols."""

from four_d.evaluation.held_out import EvaluationConfig, Videos, evaluate, evenly, frame_lists, run
from four_d.evaluation.published import Published, run_protocol
from four_d.evaluation.published_config import PublishedConfig
from four_d.evaluation.result import Evaluation, Score, image_free, score_of, summary
from four_d.evaluation.scores import Scores
from four_d.metrics.catalogue import METRICS
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Metric

__all__ = [
    "METRICS",
    "Comparison",
    "Evaluation",
    "EvaluationConfig",
    "Metric",
    "Published",
    "PublishedConfig",
    "Score",
    "Scores",
    "Videos",
    "evaluate",
    "evenly",
    "frame_lists",
    "image_free",
    "run",
    "run_protocol",
    "score_of",
    "summary",
]
