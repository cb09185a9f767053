"""Which commit is checked out, read off git's own files.

Git itself is not asked: to compare files it runs programs that the repository's configuration names
(``core.fsmonitor``, ``filter.*.clean``), and the repository may be an archive that a stranger packed. So whether files
differ from the commit is not known.
"""

import os
import re
import stat
from pathlib import Path

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
LONGEST_CHAIN = 5
"""References that name each other, as git follows them."""
LARGEST = 1 << 26
"""Bytes of one of git's files. A repository of a million references packs them into about as many."""


def git_commit() -> str | None:
    """The commit of the working directory; None outside a repository, before the first commit, and where references are
    kept in another form than files (``reftable``)."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    for folder in (here, *here.parents):
        git = _git_folder(folder)
        if git is not None:
            return _commit(git)
    return None


def _git_folder(folder: Path) -> Path | None:
    """Where the repository of a working tree is kept: in ``.git``, or where that file says (worktrees, submodules)."""
    git = folder / ".git"
    if git.is_dir():
        return git
    text = _content(git)
    return None if text is None or not text.startswith("gitdir:") else folder / text.removeprefix("gitdir:").strip()


def _commit(git: Path) -> str | None:
    # A worktree has a HEAD of its own and shares the references.
    shared = git / (_content(git / "commondir") or "").strip()
    name = "HEAD"
    for _ in range(LONGEST_CHAIN):
        found = (_content(git / name) or _content(shared / name) or _packed(shared, name)).strip()
        if HASH.fullmatch(found):
            return found
        name = found.removeprefix("ref:").strip()
        if not found.startswith("ref:") or not name.startswith("refs/") or ".." in name:
            return None
    return None


def _packed(git: Path, name: str) -> str:
    """The commit of a reference in the file that holds many; empty where it is not there."""
    for line in (_content(git / "packed-refs") or "").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return commit
    return ""


def _content(path: Path) -> str | None:
    """Of an ordinary file: a pipe would keep us waiting, and a device has no end."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST:
                return None
            return file.read(LARGEST).decode("utf-8", "replace")
    except (OSError, ValueError):  # also a path with a null character
        return None
