"""Names of tasks to lm-eval's objects, with their data, or why that cannot be."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from bridgegarden.errors import BridgegardenError, ConfigError, DataError
from bridgegarden.evaluation.groups import GROUPS, OWN_TASKS, RUNS_CODE
from bridgegarden.evaluation.results import reported_ks
from bridgegarden.evaluation.tasks import FOLDER

SAMPLED = "_sampled"
"""Ends lm-eval's name of the variant of a task whose answers are drawn."""


@dataclass(frozen=True)
class LoadedTask:
    """What one name stands for."""

    name: str
    """As it was asked for."""
    objects: tuple[Any, ...]
    """lm-eval's tasks and groups: of our own tasks the greedy and, if wanted, the sampled variant."""

    @property
    def tasks(self) -> list[Any]:
        """Every single task."""
        return [task for item in self.objects for task in (item.get_all_tasks() if isinstance(item, Group) else [item])]

    @property
    def groups(self) -> list[Any]:
        """Every group of lm-eval, those within others included."""
        return [group for item in self.objects if isinstance(item, Group) for group in (item, *item.get_all_groups())]

    @property
    def names(self) -> list[str]:
        """lm-eval's names of all of it, groups first."""
        return list(dict.fromkeys([*(group.name for group in self.groups), *(task.task_name for task in self.tasks)]))


def load_tasks(names: Sequence[str], *, samples: int, temperature: float) -> list[LoadedTask]:
    """Tasks with their data, all of them before any is run.

    Args:
        names: of tasks, or of groups of lm-eval.
        samples: answers drawn to each problem of our own tasks; 0 is no such variant.
        temperature: of these draws.

    Raises:
        ConfigError: a name is unknown, a package is missing, or a task would run programs unconfined.
        DataError: data sets cannot be had; names all of them.
    """
    # Indexing lm-eval's own thousands of tasks takes ten seconds.
    manager = TaskManager(include_path=str(FOLDER), include_defaults=not OWN_TASKS.issuperset(names))
    for name in names:
        _check_name(name, manager)
    loaded: list[LoadedTask] = []
    missing: dict[str, Exception] = {}
    for name in names:
        try:
            found = LoadedTask(name, tuple(_objects(name, manager, samples, temperature)))
        except BridgegardenError:
            raise
        except ImportError as error:
            raise ConfigError(f"{name}: needs a package that is not installed ({_first_line(error)}).") from error
        except Exception as error:  # the hub's clients raise kinds of their own, which share no base
            missing[name] = error
            continue
        for task in found.tasks:
            if getattr(task, "UNSAFE_CODE", False) and name not in OWN_TASKS:
                raise _unconfined(task.task_name)
        loaded.append(found)
    if missing:
        raise DataError(_missing(missing, manager))
    return loaded


def _check_name(name: str, manager: TaskManager) -> None:
    entry = manager.task_index.get(name)
    if entry is None:
        close = get_close_matches(name, [*GROUPS, *manager.all_tasks], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"--tasks: unknown task {name!r}.{hint} Known: the groups {', '.join(GROUPS)}, and all that "
            "`lm-eval ls tasks` lists."
        )
    if (entry.cfg or {}).get("unsafe_code") and name not in OWN_TASKS:
        raise _unconfined(name)


def _unconfined(name: str) -> ConfigError:
    return ConfigError(
        f"{name}: lm-eval runs what the model writes with all the rights of this process, so it is not run here. What "
        f"is run, confined: {', '.join(sorted(RUNS_CODE))}."
    )


def _objects(name: str, manager: TaskManager, samples: int, temperature: float) -> list[Any]:
    loaded = manager.load([name])
    groups = loaded.get("groups", {})
    inner = {child for group in groups.values() for child in group.child_names}
    objects: list[Any] = [group for group in groups.values() if group.name not in inner]
    objects += [] if groups else list(loaded["tasks"].values())
    if name in OWN_TASKS and samples:
        objects += manager.load([_sampled(name, samples, temperature)])["tasks"].values()
    return objects


def _sampled(name: str, samples: int, temperature: float) -> dict[str, Any]:
    """The task `name` with `samples` draws from the model's whole distribution in the place of the greedy answer."""
    config = load_yaml(FOLDER / f"{name}.yaml")
    usual = config["metric_list"][0]
    metrics = [{**usual, "metric": f"pass@{k}"} for k in reported_ks(samples) if k > 1]
    draws = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return {
        **config,
        "task": name + SAMPLED,
        "repeats": samples,
        "metric_list": [usual, *metrics],
        "generation_kwargs": {**config["generation_kwargs"], **draws},
    }


def _missing(errors: Mapping[str, Exception], manager: TaskManager) -> str:
    sets = {name: sorted(set(_data_sets(name, manager))) for name in errors}
    listed = ", ".join(f"{name} ({', '.join(found) or 'unknown data set'})" for name, found in sets.items())
    first = next(iter(errors))
    return (
        f"nothing was run: there is no data for {listed}. For {first}: {_first_line(errors[first])}. Check the network "
        "and, for sets with restricted access, `hf auth login`; or fetch them where there is a network (`hf download "
        f"--repo-type dataset {(sets[first] or ['NAME'])[0]}`) and copy the cache (HF_HOME) here; or leave these tasks "
        "out with --tasks. --tasks offline needs no network."
    )


def _data_sets(name: str, manager: TaskManager) -> Iterator[str]:
    """Names on the hub of what a task, or a group with all its tasks, reads."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    if "dataset_path" in config:
        yield config["dataset_path"]
        return
    members = config.get("task")
    # A tag is an entry whose `tags` are its members; a task's own name is no member of it.
    for member in members if isinstance(members, list) else entry.tags:
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(inner, str) and inner != name:
            yield from _data_sets(inner, manager)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(" .")
