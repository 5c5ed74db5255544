"""Compare methods on the same cases: answer quality, speed and memory."""

from samkv_apps.evaluate.folder import cases_from_folder
from samkv_apps.evaluate.long import LongAnswer, compare_long_answers
from samkv_apps.evaluate.options import EvaluationOptions
from samkv_apps.evaluate.records import Prediction, read_predictions
from samkv_apps.evaluate.run import evaluate
from samkv_apps.evaluate.summary import EvaluationMetrics, RunMetrics

__all__ = [
    "EvaluationMetrics",
    "EvaluationOptions",
    "LongAnswer",
    "Prediction",
    "RunMetrics",
    "cases_from_folder",
    "compare_long_answers",
    "evaluate",
    "read_predictions",
]
