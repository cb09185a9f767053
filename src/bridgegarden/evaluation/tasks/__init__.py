"""Tasks for lm-eval: its YAML files, and what they refer to. lm-eval takes this folder as an ``include_path``."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the YAML files are."""
