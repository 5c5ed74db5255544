"""How good the answers are, how fast and how small: every method on the same cases."""

from samkv_rag.evaluation.folder import cases_from_folder
from samkv_rag.evaluation.options import EvaluationOptions
from samkv_rag.evaluation.recommendation import Evidence, Recommendation, recommend
from samkv_rag.evaluation.records import Prediction, read_predictions
from samkv_rag.evaluation.run import evaluate
from samkv_rag.evaluation.summary import EvaluationMetrics, RunMetrics

__all__ = [
    "EvaluationMetrics",
    "EvaluationOptions",
    "Evidence",
    "Prediction",
    "Recommendation",
    "RunMetrics",
    "cases_from_folder",
    "evaluate",
    "read_predictions",
    "recommend",
]
