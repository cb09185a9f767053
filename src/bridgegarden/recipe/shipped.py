"""The recipes that come with the package."""

from importlib.resources import files

from bridgegarden.errors import ConfigError
from bridgegarden.registry import unknown_name

SUFFIX = ".yaml"


def list_recipes() -> tuple[str, ...]:
    """The names of the shipped recipes, sorted."""
    folder = files("bridgegarden") / "recipes"
    return tuple(sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX)))


def read_recipe_text(name: str) -> str:
    """A shipped recipe as it is written, comments included.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in list_recipes():
        raise unknown_name(name, list_recipes(), field="recipes", kind="recipe")
    return (files("bridgegarden") / "recipes" / f"{name}{SUFFIX}").read_text(encoding="utf-8")


def describe_recipe(name: str) -> str:
    """The first line of a shipped recipe's comment.

    Raises:
        ConfigError: there is none of that name, or it does not begin with a comment.
    """
    first = read_recipe_text(name).splitlines()[0]
    if not first.startswith("# "):
        raise ConfigError(f"recipes/{name}{SUFFIX}: expected a comment that says what it is on the first line.")
    return first.removeprefix("# ")
