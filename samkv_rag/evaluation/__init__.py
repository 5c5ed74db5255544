"""How good the answers are, how fast and how small: every method on the same cases."""

from samkv_rag.evaluation.options import EvaluationOptions
from samkv_rag.evaluation.run import evaluate
from samkv_rag.evaluation.summary import EvaluationMetrics, RunMetrics

__all__ = ["EvaluationMetrics", "EvaluationOptions", "RunMetrics", "evaluate"]
