"""Tables of what a recipe can name: what the package has, and what installed packages add through an entry point."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from bridgegarden.errors import ConfigError, foreign

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name. Other packages are looked at when a name is none of our own, or when all are listed."""

    def __init__(
        self,
        group: str,
        own: Mapping[str, T],
        *,
        is_entry: Callable[[object], bool],
        expected: str,
        base: "Registry[T] | None" = None,
    ) -> None:
        """
        Args:
            group: the entry point group that adds to the table.
            own: the package's entries.
            is_entry: whether an object can be one.
            expected: what it should be, for an error.
            base: a table whose entries are here, too.
        """
        self.group, self.own, self.base = group, dict(own), base
        self._is_entry, self._expected = is_entry, expected

    def __getitem__(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            KeyError: there is none.
            ConfigError: an installed package's entry point cannot be loaded, or is something else; names it.
        """
        if name in self.own:
            return self.own[name]
        if self.base is not None and name in self.base:
            return self.base[name]
        return self._load(self._added()[name])

    def __contains__(self, name: object) -> bool:
        return name in self.own or (self.base is not None and name in self.base) or name in self._added()

    def __iter__(self) -> Iterator[str]:
        if self.base is not None:
            yield from self.base
        yield from self.own
        yield from self._added()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _added(self) -> dict[str, EntryPoint]:
        """What installed packages add, unloaded.

        Raises:
            ConfigError: a name is taken.
        """
        found: dict[str, EntryPoint] = {}
        for point in _entry_points(self.group):
            if point.name in self.own or (self.base is not None and point.name in self.base) or point.name in found:
                raise ConfigError(f"{self._where(point)}: the name is taken. Rename or uninstall it.")
            found[point.name] = point
        return found

    def _load(self, point: EntryPoint) -> T:
        remedy = "Mend or uninstall that package."
        with foreign(lambda words: ConfigError(f"{self._where(point)} cannot be loaded: {words} {remedy}")):
            found = point.load()
        if not self._is_entry(found):
            raise ConfigError(f"{self._where(point)} must be {self._expected}, is {found!r}. {remedy}")
        return found

    def _where(self, point: EntryPoint) -> str:
        package = "an installed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        return f"entry point {point.name!r} ({point.value}) in the group {self.group!r} of {package}"


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))
