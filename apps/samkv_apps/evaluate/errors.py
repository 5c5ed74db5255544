"""Errors of evaluations."""

from __future__ import annotations

from samkv_rag.exceptions import SamKVError


class EvaluationError(SamKVError):
    """The figures of an evaluation would be wrong."""


class CaseFileError(EvaluationError):
    """A case file cannot be read; the message names the file and the line."""
