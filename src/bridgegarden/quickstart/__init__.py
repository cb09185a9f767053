"""The packaged teacher, the world it was trained on, and how both were made. Needs no network."""

from pathlib import Path

TEACHER = Path(__file__).parent / "teacher"
"""Folder of the packaged teacher, for `from_pretrained`."""
