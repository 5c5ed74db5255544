"""The command line and a tiny model's folder, for every application."""

from support.commands import model_folder, run

__all__ = ["model_folder", "run"]
