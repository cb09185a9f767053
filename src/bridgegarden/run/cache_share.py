"""A cache to a data set repository and back: ``bridgegarden cache push`` and ``pull``.

A repository is one on the hub, or a folder (on a disk that others see, too): the same files, card and checks. Nothing
is said to be there before every byte of it has been compared with what was written.
"""

import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.files import partial, write_text, write_whole
from bridgegarden.run.output import check_writable
from bridgegarden.run.save import CARD, Origin, card_table, code, hub_errors
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from bridgegarden.teacher.cache.info import CacheInfo, CheckResult
    from bridgegarden.teacher.cache.spec import CacheSpec

FILE = "file://"
WAYS = ("/", "./", "../", "~")
"""Beginnings of what can only be a path."""
PIECE = 1 << 24
REMEDY = (
    "Check the name (OWNER/NAME of a data set, not of a model), the network and who is logged in (hf auth login), and "
    "run the same command again."
)


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What was pushed."""

    checked: "CheckResult"
    repository: str
    local_name: str | None
    """The teacher's folder, which the cache names; None where the teacher is on the hub."""

    def __str__(self) -> str:
        """For a person."""
        seen = f"\nwho pulls it sees that the teacher is in {self.local_name}" if self.local_name else ""
        return f"{self.checked}\npushed to {self.repository}{seen}"


@dataclass(frozen=True, kw_only=True)
class PullResult:
    """What was pulled."""

    checked: "CheckResult"
    spec: "CacheSpec"
    was_there: bool

    def __str__(self) -> str:
        """For a person."""
        there = "\nit was there already" if self.was_there else ""
        return f"{self.checked}{there}\nin a recipe:\n{_recipe_line(self.spec, str(self.checked.folder))}"


class Repository(ABC):
    """Where a cache is shared."""

    @abstractmethod
    def __str__(self) -> str:
        """For messages."""

    @abstractmethod
    def index(self) -> Path | None:
        """A folder with ``cache.json`` and the small file of every shard; None where there is no repository yet.

        Raises:
            ConfigError: it cannot be reached.
        """

    @abstractmethod
    def send(self, folder: Path, names: list[str], card: str, *, private: bool) -> str:
        """Put the files `names` of `folder`, and the card, there; returns where they are.

        Raises:
            ConfigError: that is refused.
        """

    @abstractmethod
    def fetch(self, folder: Path) -> None:
        """Bring its files to `folder`; what is there of an earlier try is not brought again.

        Raises:
            ConfigError: that is refused.
        """


@dataclass(frozen=True)
class SharedFolder(Repository):
    """A folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def index(self) -> Path | None:
        return self.path if self.path.is_dir() and any(self.path.iterdir()) else None

    def send(self, folder: Path, names: list[str], card: str, *, private: bool) -> str:
        try:
            for name in names:
                _copy(folder / name, self.path / name)
            write_text(self.path / CARD, card)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written ({error.strerror or error}). Give another.") from error
        return str(self.path)

    def fetch(self, folder: Path) -> None:
        names = own_files(self.path)
        for name in names:
            if not (self.path / name).is_file():
                raise DataError(f"{self.path}: {name} is missing. Push the cache anew from where it was built.")
        try:
            for name in names:
                _copy(self.path / name, folder / name)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written ({error.strerror or error}). Give another.") from error


@dataclass(frozen=True)
class HubDataset(Repository):
    """A data set on the hub."""

    name: str

    def __str__(self) -> str:
        return f"{self.name} on the hub"

    def index(self) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError

        with hub_errors(f"{self}: cannot be looked at", REMEDY):
            try:
                patterns = ["*.json", "shards/*.json"]
                return Path(snapshot_download(self.name, repo_type="dataset", allow_patterns=patterns))
            except RepositoryNotFoundError:
                return None

    def send(self, folder: Path, names: list[str], card: str, *, private: bool) -> str:
        from huggingface_hub import HfApi

        api = HfApi()
        with hub_errors(f"{self}: the cache {folder} could not be pushed", REMEDY):
            api.create_repo(self.name, repo_type="dataset", private=private, exist_ok=True)
            message = "Add what a teacher said"
            done = api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                repo_type="dataset",
                allow_patterns=names,
                commit_message=message,
            )
            api.upload_file(
                path_or_fileobj=card.encode(),
                path_in_repo=CARD,
                repo_id=self.name,
                repo_type="dataset",
                commit_message=message,
            )
        return str(done)

    def fetch(self, folder: Path) -> None:
        from huggingface_hub import snapshot_download

        with hub_errors(f"{self}: could not be pulled", REMEDY):
            snapshot_download(self.name, repo_type="dataset", local_dir=folder, allow_patterns=["*.json", "shards/*"])


def repository_of(name: str) -> Repository:
    """A folder, where `name` is one, begins with ``file://`` or can only be a path; else a data set on the hub.

    Raises:
        ConfigError: it can be neither.
    """
    if name.startswith(FILE):
        return SharedFolder(Path(name.removeprefix(FILE)))
    path = Path(os.path.expanduser(name))
    if name.startswith(WAYS) or path.is_dir():
        return SharedFolder(path)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise ConfigError(f"{name}: expected OWNER/NAME of a data set on the hub, or a folder (./{name}).")
    return HubDataset(name)


def push_cache(folder: Path, name: str, *, private: bool = True) -> PushResult:
    """Put the cache in `folder` into the repository `name`, once every byte of it has been checked.

    Args:
        folder: the cache.
        name: of the repository, which is made if need be; see :func:`repository_of`.
        private: whether a new one on the hub is seen by its owner alone.

    Raises:
        ConfigError: there is no cache, the repository holds another one, or it cannot be reached.
        DataError: a shard is damaged.
    """
    from bridgegarden.teacher.cache.info import cache_info, check_cache

    checked = check_cache(folder)
    if not checked.documents:
        raise DataError(f"teacher cache {folder}: is empty, so there is nothing to push.")
    repository = repository_of(name)
    if isinstance(repository, SharedFolder) and folder.resolve() in (
        target := repository.path.resolve(),
        *target.parents,
    ):
        raise ConfigError(f"{repository}: is the cache itself, or in it; give another folder to share it.")
    there = repository.index()
    if there is not None:
        _check_there(repository, there, folder)
    info = cache_info(folder)
    card = card_text(info, None if isinstance(repository, SharedFolder) else name)
    return PushResult(
        checked=checked,
        repository=repository.send(folder, own_files(folder), card, private=private),
        local_name=info.spec.teacher if info.spec.weights is not None and os.sep in info.spec.teacher else None,
    )


def pull_cache(name: str, folder: Path) -> PullResult:
    """Bring the cache in the repository `name` to `folder`, which is there only once every byte has been checked.

    Interrupted, it goes on by the same command.

    Raises:
        ConfigError: there is no such repository or no cache in it, or the folder holds something else.
        DataError: a shard arrived damaged, or was.
    """
    from bridgegarden.teacher.cache.info import check_cache
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec

    check_writable(folder.parent, "FOLDER")
    repository = repository_of(name)
    there = repository.index()
    if there is None or not (there / MANIFEST).is_file():
        raise ConfigError(f"{repository}: holds no cache, or is not there ({MANIFEST} is missing). {REMEDY}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not _is_same(there, folder):
            raise ConfigError(
                f"{folder}: holds something else than {repository}, and is not written over. Give another."
            )
        return PullResult(checked=check_cache(folder), spec=read_spec(folder), was_there=True)
    target = Path(os.path.abspath(folder))
    arriving = partial(target)
    repository.fetch(arriving)
    _drop_others(arriving)
    try:
        checked = check_cache(arriving)
    except DataError as error:
        shutil.rmtree(arriving)
        raise DataError(
            f"{repository}: its cache is damaged, and nothing of it is kept. Push it anew from where it was built "
            f"({error})"
        ) from error
    os.replace(arriving, target)
    return PullResult(checked=replace(checked, folder=folder), spec=read_spec(folder), was_there=False)


def own_files(folder: Path) -> list[str]:
    """What makes up the cache in `folder`: every finished shard, the file beside it, the rows that a server refused,
    and at last ``cache.json``."""
    from bridgegarden.teacher.cache.manifest import LEFT_OUT, MANIFEST, SHARDS, finished_shards

    shards = [f"{SHARDS}/{path.stem}{suffix}" for path in finished_shards(folder) for suffix in (".arrow", ".json")]
    return [*shards, *([LEFT_OUT] if (folder / LEFT_OUT).exists() else []), MANIFEST]


def card_text(info: "CacheInfo", repo: str | None) -> str:
    """README.md of a cache."""
    spec = info.spec
    teacher = Origin(name=spec.teacher, is_local=spec.weights is not None, revision=spec.revision)
    front = {"tags": ["bridgegarden", "knowledge-distillation", "teacher-cache"]}
    facts = {
        "teacher": teacher.shown,
        "type": code(spec.dtype),
        "rows": f"{info.documents:,}, of at most {spec.max_length or 'any number of'} tokens",
        "positions": f"{info.positions:,}",
        "kept": f"{spec.support} of {spec.vocab_size:,} tokens, {spec.bits} bits a log-probability",
        "probability kept": f"{info.captured_mass:.4f} on average",
        "sums over the tail": ", ".join(f"p^{g:g}" for g in spec.stored_exponents) or "none",
        "entropy": f"{info.entropy:.3f} nats on average",
        "size": f"{info.bytes:,} bytes in {counted(info.shards, 'shard')}, {info.bytes_per_position:.1f} a position",
        "prompt": "the rows' own" if spec.prompt is None else code(spec.prompt),
        "tokenizer": code(spec.tokenizer),
        "chat template": code(spec.chat_template),
    }
    if spec.served is None:
        made = "The teacher read every row once; entropies and likeliest tokens are exact."
    else:
        made = f"Made of lists of likeliest tokens ({spec.served.source}); entropies are lower bounds."
    pull = f"bridgegarden cache pull {repo or 'THIS_FOLDER'} caches/pulled"
    about = (
        f"For every token that is learnt, the likeliest tokens that {teacher.shown} expected there, and the mass of "
        f"all others: made and read by [bridgegarden](https://pypi.org/project/bridgegarden/). {made}"
    )
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        "# What a teacher said",
        about,
        "It holds no text and no token ids of the rows, only their hashes: to train from it you need the same rows, "
        "tokenizer and chat template.",
        card_table("cache", facts),
        "## Train from it",
        f"```bash\n{pull}\nbridgegarden train my.yaml\n```",
        f"```yaml\n{_recipe_line(spec, 'caches/pulled')}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _recipe_line(spec: "CacheSpec", folder: str) -> str:
    told = spec.to_dict().get("prompt")
    prompt = "" if told is None else f", prompt: {json.dumps({k: v for k, v in told.items() if v is not None})}"
    return f"teacher: {{model: {json.dumps(spec.teacher)}, cache: {json.dumps(folder)}, only_cache: true{prompt}}}"


def _check_there(repository: Repository, there: Path, folder: Path) -> None:
    """Make sure that nothing in a repository would be lost."""
    from bridgegarden.teacher.cache.manifest import MANIFEST, SHARDS, finished_shards, read_spec

    if not (there / MANIFEST).exists():
        listed = there.iterdir() if isinstance(repository, SharedFolder) else ()
        if others := sorted(path.name for path in listed if path.name not in (SHARDS, CARD)):
            raise ConfigError(f"{repository}: is not empty and no cache (it holds {others[0]}); give one of its own.")
        return
    differences = read_spec(folder).differences(read_spec(there))
    if differences:
        raise ConfigError(f"{repository}: holds another cache, and is not written over: {differences}. Give another.")
    ours = {path.name: record.sha256 for path, record in finished_shards(folder).items()}
    lost = [path.name for path, record in finished_shards(there).items() if ours.get(path.name) != record.sha256]
    if lost:
        raise ConfigError(
            f"{repository}: holds {len(lost)} shards that {folder} does not have ({lost[0]}), which would be lost. "
            "Pull it, put both together (bridgegarden cache merge), and push that elsewhere."
        )


def _is_same(there: Path, folder: Path) -> bool:
    """Whether a folder is the cache of a repository, byte for byte as far as its small files tell."""
    from bridgegarden.teacher.cache.manifest import MANIFEST

    if not (folder / MANIFEST).is_file():
        return False
    names = [[name for name in own_files(where) if name.endswith(".json")] for where in (there, folder)]
    return names[0] == names[1] and all((there / n).read_bytes() == (folder / n).read_bytes() for n in names[0])


def _drop_others(folder: Path) -> None:
    """Leave nothing of what arrived but a cache's own files."""
    kept = {folder / name for name in own_files(folder)}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def _copy(source: Path, target: Path) -> None:
    """A file, whole or not at all; one of the same size is taken to be it, since all are checked in the end."""
    if target.exists() and target.stat().st_size == source.stat().st_size and target.suffix == ".arrow":
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        write_whole(target, iter(lambda: file.read(PIECE), b""))
