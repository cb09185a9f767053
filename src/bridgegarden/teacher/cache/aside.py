"""Shards that cannot be used are put aside under another name, never removed: they may be hours of a teacher."""

import filecmp
import logging
import os
import re
from pathlib import Path

from bridgegarden.teacher.cache.manifest import writing

logger = logging.getLogger(__name__)

OWN_FILE = re.compile(r"[0-9]{5,12}\.(arrow|json)(\.aside(-[0-9]+)?)?")
"""Every file that a cache has in ``shards/``, but for half-written ones."""
HALF_WRITTEN = re.compile(r"\.[0-9]{5,12}\.(arrow|json)\.partial")


def put_aside(folder: Path, shard: Path, reason: str) -> None:
    """Rename a shard, and what lies beside it, so that it is not read; and say so.

    Raises:
        ConfigError: the folder may not be written to.
    """
    kept = "nothing of it is left"
    for path in (shard.with_suffix(".json"), shard):
        if path.exists():
            with writing(folder, path):
                os.rename(path, name := _free_name(path))
            kept = f"it is kept as {name.name}"
    logger.warning("%s: %s; %s, and its rows are asked again", shard, reason, kept)


def drop_copies_aside(shard: Path) -> None:
    """Remove what was put aside and is, byte for byte, the shard that has now been written in its place.

    A build that is killed between a shard and the file beside it leaves that.
    """
    for path in shard.parent.glob(f"{shard.name}.aside*"):
        if path.is_file() and filecmp.cmp(path, shard, shallow=False):
            path.unlink()


def _free_name(path: Path) -> Path:
    name, number = path.with_name(f"{path.name}.aside"), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}.aside-{number}"), number + 1
    return name
