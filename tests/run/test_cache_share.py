"""A cache to a repository and back; nothing is sent anywhere here."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from bridgegarden.cli.main import cli
from bridgegarden.data import TeacherPrompt
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.recipe import Recipe
from bridgegarden.run.cache_share import own_files, pull_cache, push_cache
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.spec import Support
from tests.teacher.cache.conftest import build, cache_rows, cache_spec


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def cache(tmp_path) -> Path:
    folder = build(tmp_path / "cache")
    (folder / "build.lock").write_text("somebody")
    (folder / "shards" / "00000.arrow.aside").write_text("put aside")
    return folder


def content(folder):
    return {name: (folder / name).read_bytes() for name in own_files(folder)}


class Hub:
    """Stands for the hub: folders under one, by name; takes the arguments of huggingface_hub 2."""

    def __init__(self, root: Path) -> None:
        self.root, self.created, self.failure = root, {}, None

    def __call__(self):
        return self

    def create_repo(self, repo_id, *, private=None, repo_type=None, exist_ok=False):
        assert (repo_type, exist_ok) == ("dataset", True)
        self.created.setdefault(repo_id, private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id, folder_path, commit_message=None, repo_type=None, allow_patterns=None):
        assert repo_type == "dataset"
        if self.failure is not None:
            raise self.failure
        for name in allow_patterns:
            (self.root / repo_id / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(folder_path) / name, self.root / repo_id / name)
        return f"https://huggingface.co/datasets/{repo_id}/commit/0"

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, repo_type=None, commit_message=None):
        (self.root / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def snapshot_download(self, repo_id, *, repo_type=None, local_dir=None, allow_patterns=None):
        assert repo_type == "dataset"
        if self.failure is not None:
            raise self.failure
        if not (self.root / repo_id).is_dir():
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RepositoryNotFoundError("404: no such repository\nmore", response=response)
        if local_dir is None:
            return str(self.root / repo_id)
        shutil.copytree(self.root / repo_id, local_dir, dirs_exist_ok=True)
        (Path(local_dir) / ".cache" / "huggingface").mkdir(parents=True)
        (Path(local_dir) / ".cache" / "huggingface" / "x.lock").write_text("")
        return str(local_dir)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.mark.parametrize("repo", ["folder", "file", "hub"])
def test_what_is_pulled_is_what_was_pushed_byte_for_byte_and_nothing_else(cache, tmp_path, hub, repo):
    name = {"folder": f"{tmp_path}/shared", "file": f"file://{tmp_path}/shared", "hub": "ada/said"}[repo]
    pushed = run("cache", "push", cache, name)
    assert pushed.exit_code == 0, pushed.output
    assert "every byte of the shards is as it was written" in pushed.stdout
    there = hub.root / name if repo == "hub" else tmp_path / "shared"
    files = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert files == {*own_files(cache), "README.md"}
    pulled = run("cache", "pull", name, tmp_path / "pulled")
    assert pulled.exit_code == 0, pulled.output
    assert content(tmp_path / "pulled") == content(cache)
    assert {str(p.relative_to(tmp_path / "pulled")) for p in (tmp_path / "pulled").rglob("*") if p.is_file()} == {
        *own_files(cache)
    }
    assert yaml.safe_load(pulled.stdout.splitlines()[-1])["teacher"] == {
        "model": "tiny",
        "cache": str(tmp_path / "pulled"),
        "only_cache": True,
    }
    assert len(TeacherCache(tmp_path / "pulled")) == 24
    assert not list(tmp_path.glob(".*"))
    assert "it was there already" in run("cache", "pull", name, tmp_path / "pulled").stdout
    assert run("cache", "push", cache, name).exit_code == 0


def test_a_teacher_s_folder_that_others_will_see_is_said(tmp_path):
    spec = replace(cache_spec(Support(k=4)), teacher="/home/ada/big", weights="0" * 64)
    build(tmp_path / "local", spec)
    pushed = run("cache", "push", tmp_path / "local", f"{tmp_path}/shared")
    assert "who pulls it sees that the teacher is in /home/ada/big" in pushed.stdout


def test_a_cache_is_not_pushed_into_itself(cache):
    for name in (cache, cache / "shards", f"file://{cache}/more"):
        refused = run("cache", "push", cache, name)
        assert refused.exit_code == 2
        assert "is the cache itself, or in it; give another folder" in refused.stderr


@pytest.mark.parametrize("name", ["shared", "a/b/c", "ada/", "a da/said"])
def test_what_is_no_name_on_the_hub_is_asked_for_as_a_folder(cache, tmp_path, hub, name):
    for arguments in (("push", cache, name), ("pull", name, tmp_path / "pulled")):
        refused = run("cache", *arguments)
        assert refused.exit_code == 2
        assert f"{name}: expected OWNER/NAME of a data set on the hub, or a folder (./{name})" in refused.stderr


def test_the_card_says_what_the_cache_is_and_how_to_use_it(cache, tmp_path, hub):
    push_cache(cache, "ada/said")
    card = (hub.root / "ada/said" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "teacher-cache" in front["tags"]
    info = TeacherCache(cache)
    for words in ("`tiny` (local)", "top 16 of 259 tokens, 8 bits", info.spec.tokenizer, "| rows | 24, of at most 64"):
        assert words in card
    assert "bridgegarden cache pull ada/said caches/pulled" in card
    assert 'teacher: {model: "tiny", cache: "caches/pulled", only_cache: true}' in card


@pytest.mark.parametrize(("options", "private"), [((), True), (("--public",), False), (("--private",), True)])
def test_a_new_repository_is_private_unless_asked_otherwise(cache, hub, options, private):
    assert run("cache", "push", cache, "ada/said", *options).exit_code == 0
    assert hub.created == {"ada/said": private}


def test_a_damaged_cache_is_neither_pushed_nor_pulled(cache, tmp_path):
    shared = tmp_path / "shared"
    push_cache(cache, str(shared))
    path = shared / "shards" / "00001.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"shared: its cache is damaged.*00001\.arrow: its SHA-256"):
        pull_cache(str(shared), tmp_path / "pulled")
    assert sorted(os.listdir(tmp_path)) == ["cache", "shared"]
    with pytest.raises(DataError, match=r"00001\.arrow"):
        push_cache(shared, str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_folder_that_lacks_a_shard_is_named_with_what_is_missing(cache, tmp_path):
    shared = tmp_path / "shared"
    push_cache(cache, str(shared))
    (shared / "shards" / "00001.arrow").unlink()
    with pytest.raises(DataError, match=r"shared: shards/00001\.arrow is missing\. Push the cache anew"):
        pull_cache(str(shared), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    push_cache(cache, str(shared))
    pull_cache(str(shared), tmp_path / "pulled")


def test_a_pull_that_was_interrupted_goes_on(cache, tmp_path):
    shared, arriving = tmp_path / "shared", tmp_path / ".pulled.partial"
    push_cache(cache, str(shared))
    (arriving / "shards").mkdir(parents=True)
    shutil.copyfile(shared / "shards" / "00000.arrow", arriving / "shards" / "00000.arrow")
    (arriving / "shards" / ".00001.arrow.partial").write_bytes(b"half")
    before = (arriving / "shards" / "00000.arrow").stat().st_ino
    pull_cache(str(shared), tmp_path / "pulled")
    assert (tmp_path / "pulled" / "shards" / "00000.arrow").stat().st_ino == before
    assert content(tmp_path / "pulled") == content(cache)


def test_nothing_else_is_written_over(cache, tmp_path):
    shared = tmp_path / "shared"
    push_cache(cache, str(shared))
    other = build(tmp_path / "other", cache_spec(Support(k=8)))
    with pytest.raises(ConfigError, match="holds another cache, and is not written over: support top 8, not top 16"):
        push_cache(other, str(shared))
    fewer = build(tmp_path / "fewer", rows=cache_rows(3))
    with pytest.raises(ConfigError, match="which would be lost"):
        push_cache(fewer, str(shared))
    with pytest.raises(ConfigError, match="other: holds something else"):
        pull_cache(str(shared), other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("work")
    with pytest.raises(ConfigError, match=r"is not empty and no cache \(it holds work\.txt\)"):
        push_cache(cache, str(tmp_path / "mine"))
    with pytest.raises(ConfigError, match="mine: holds something else"):
        pull_cache(str(shared), tmp_path / "mine")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OfflineModeIsEnabled("Cannot reach it: offline mode is enabled."), "offline mode is enabled"),
        (LocalTokenNotFoundError("Token is required, but no token found."), "no token found"),
        (ConnectionError("no route to host\nmore"), "no route to host"),
    ],
)
def test_what_the_hub_refuses_is_one_line(cache, tmp_path, hub, failure, words):
    hub.failure = failure
    for arguments in (("push", cache, "ada/said"), ("pull", "ada/said", tmp_path / "pulled")):
        result = run("cache", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert "hf auth login" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_repository_that_goes_away_while_it_is_pulled_is_named_first(cache, tmp_path, hub, monkeypatch):
    assert run("cache", "push", cache, "ada/said").exit_code == 0

    def gone(repo_id, *, repo_type=None, local_dir=None, allow_patterns=None):
        if local_dir is not None:
            raise OfflineModeIsEnabled("no network")
        return str(hub.root / repo_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    refused = run("cache", "pull", "ada/said", tmp_path / "pulled")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: ada/said on the hub: could not be pulled")


def test_a_repository_is_private_for_who_says_nothing_in_python_too(cache, hub):
    push_cache(cache, "ada/said")
    assert hub.created == {"ada/said": True}


def test_a_repository_that_is_not_there_or_holds_no_cache_is_named(tmp_path, hub):
    for name in ("ada/nothing", str(tmp_path / "nothing")):
        with pytest.raises(ConfigError, match="holds no cache, or is not there"):
            pull_cache(name, tmp_path / "pulled")
    (tmp_path / "hub" / "ada" / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="of a data set, not of a model"):
        pull_cache("ada/model", tmp_path / "pulled")


def test_a_prompt_of_the_teacher_s_own_goes_into_card_and_recipe(tmp_path):
    spec = cache_spec(prompt=TeacherPrompt(system="Be exact."))
    push_cache(build(tmp_path / "cache", spec), str(tmp_path / "shared"))
    pulled = pull_cache(str(tmp_path / "shared"), tmp_path / "pulled")
    section = yaml.safe_load(str(pulled).splitlines()[-1])["teacher"]
    smallest = {"student": {"model": "s"}, "data": {"train": "rows"}, "output": "o"}
    assert Recipe.from_dict(smallest | {"teacher": section}).teacher.prompt == spec.prompt
    assert "Be exact." in (tmp_path / "shared" / "README.md").read_text()
