"""Sizes of the quickstart's models."""

from bridgegarden.study.arms import LlamaSize

TEACHER_SIZE = LlamaSize(hidden=128, layers=3, heads=4, feed_forward=384)
"""The packaged teacher, 0.65 million parameters."""

STUDENT_SIZE = LlamaSize(hidden=64, layers=2, heads=4, feed_forward=128)
"""The quickstart's student, seven times smaller."""
