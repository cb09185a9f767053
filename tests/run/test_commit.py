import os
import subprocess

import pytest

from bridgegarden.run.record import git_commit


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(folder)},
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    git(folder, "init")
    (folder / "file").write_text("1\n")
    git(folder, "add", "file")
    git(folder, "commit", "-m", "first")
    monkeypatch.chdir(folder)
    return folder


def test_the_commit_is_read_wherever_git_keeps_it(repository, tmp_path, monkeypatch):
    commit = git(repository, "rev-parse", "HEAD")
    assert git_commit() == commit
    monkeypatch.chdir(repository / "inner")
    assert git_commit() == commit
    git(repository, "pack-refs", "--all")
    assert not (repository / ".git/refs/heads/main").exists()
    assert git_commit() == commit
    git(repository, "worktree", "add", "-b", "side/branch", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path / "other")
    assert git_commit() == commit
    git(tmp_path / "other", "commit", "--allow-empty", "-m", "second")
    assert git_commit() == git(tmp_path / "other", "rev-parse", "HEAD") != commit
    git(tmp_path / "other", "checkout", "--detach", commit)
    assert git_commit() == commit


def test_outside_a_repository_and_before_its_first_commit_there_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    git(tmp_path, "init")
    assert git_commit() is None


@pytest.mark.parametrize("setting", ["core.fsmonitor", "filter.x.clean", "filter.x.process", "core.hooksPath"])
def test_no_program_that_the_repository_names_is_run(repository, setting):
    script, planted = repository / "evil.sh", repository / "planted"
    script.write_text(f"#!/bin/sh\ntouch {planted}\ncat\n")
    script.chmod(0o755)
    (repository / ".gitattributes").write_text("* filter=x\n")
    commit = git(repository, "rev-parse", "HEAD")
    git(repository, "config", setting, str(script))
    (repository / "file").write_text("2\n")
    os.utime(repository / "file", (0, 0))
    assert git_commit() == commit
    assert not planted.exists()


@pytest.mark.parametrize(
    "head", ["", "ref: ", "ref: refs/heads/../../../secret", "ref: /etc/passwd", "ref: refs/heads/.invalid", "a\0b"]
)
def test_a_head_that_names_no_commit_of_the_repository_gives_none(repository, head):
    (repository / ".git/HEAD").write_text(head)
    (repository / "secret").write_text("0" * 40)
    assert git_commit() is None


def test_references_in_a_ring_and_files_without_an_end_give_none(repository):
    (repository / ".git/refs/heads/main").write_text("ref: refs/heads/main\n")
    assert git_commit() is None
    (repository / ".git/HEAD").unlink()
    os.mkfifo(repository / ".git/HEAD")
    assert git_commit() is None
    (repository / ".git/HEAD").unlink()
    (repository / ".git/HEAD").symlink_to("/dev/zero")
    assert git_commit() is None
