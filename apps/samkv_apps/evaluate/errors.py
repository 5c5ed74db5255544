"""Errors of evaluations."""

from __future__ import annotations

from samkv_rag.exceptions import SamKVError


class EvaluationError(SamKVError):
    """An evaluation's figures would not mean what they say."""


class CaseFileError(EvaluationError):
    """A file of evaluation cases cannot be read; the message names file and line."""
