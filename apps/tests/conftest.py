"""The fixtures that all applications' tests share."""

from support.commands import model_folder, run

__all__ = ["model_folder", "run"]
