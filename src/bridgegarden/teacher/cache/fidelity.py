"""What an objective loses where of the teacher only the likeliest tokens are kept, as far as it was measured."""

import csv
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bridgegarden.objective.divergences import DIVERGENCES
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.teacher.cache.info import kept_tokens
from bridgegarden.teacher.cache.manifest import read_spec
from bridgegarden.teacher.cache.spec import Support

FIDELITY = Path(__file__).with_name("fidelity.csv")
GOOD_RATIO, GOOD_COSINE = 0.9, 0.99
"""From here on nothing is said. Beside a hard label, what is left of a loss decides how much it weighs, too."""
MOST_KEPT = 1024
"""Tokens a position at most, of a cache that is advised; `--mass` keeps fewer wherever the teacher is sure."""
ALPHA_BETAS = {
    (1.0, 0.0): "forward_kl",
    (0.0, 1.0): "reverse_kl",
    (0.5, 0.5): "alpha_beta(0.5, 0.5)",
    (0.2, 0.7): "alpha_beta(0.2, 0.7)",
    (0.0, 0.0): "alpha_beta(0, 0)",
}
"""Exponents of the alpha-beta divergences in :data:`FIDELITY`."""
ENDS: Mapping[tuple[str, float | None], str] = {
    ("jensen_shannon", 0.0): "forward_kl",
    ("jensen_shannon", 1.0): "reverse_kl",
    ("skewed_forward_kl", 0.0): "forward_kl",
    ("skewed_reverse_kl", 0.0): "reverse_kl",
}
"""Divergences that at this value of their option are another one."""


class Fidelity(NamedTuple):
    """What was left of a soft loss where the likeliest tokens and the tail were kept; see docs/cache.md."""

    loss: str
    """Name of the divergence, with the exponents of an alpha-beta divergence."""
    temperature: float
    """Of the loss."""
    k: int
    """Kept tokens."""
    mass: float
    """What they held of the teacher's probability at this temperature, on average."""
    ratio: float
    """Mean loss over the one of the whole vocabulary."""
    cosine: float
    """Between the gradients of both with respect to the student's logits."""

    @property
    def is_good(self) -> bool:
        """Whether little was lost."""
        return self.ratio >= GOOD_RATIO and self.cosine >= GOOD_COSINE


@functools.cache
def fidelity() -> tuple[Fidelity, ...]:
    """What ``benchmarks/cache_fidelity.py`` measured on a real pair, ascending in the number of kept tokens."""
    with FIDELITY.open(encoding="utf-8", newline="") as file:
        return tuple(
            Fidelity(loss, float(temperature), int(k), *map(float, numbers))
            for loss, temperature, k, *numbers in list(csv.reader(file))[1:]
        )


def truncation_warning(
    objective: HybridObjective, support: Support, *, mass: float | None = None, kept_in: str
) -> str | None:
    """One line on what `objective` loses where of the teacher only `support` is kept; None where that is little.

    Args:
        objective: what is minimised. Of a divergence that was not measured nothing is known, so nothing is said.
        support: what is kept, and less than the vocabulary.
        mass: what the kept tokens hold, at the temperature of :func:`softest`; None where nobody has measured it, and
            the support alone is known.
        kept_in: ``cache`` for one that was built here, ``answers`` or ``scored`` for a server's, ``imported`` for
            one of another program's file, or ``memory``.
    """
    loss = measured_loss(objective)
    if loss is None or support.kind == "sampled":
        return None
    if mass is None and softest(objective) == 1:
        mass = support.mass
    rows = sorted((row for row in fidelity() if row.loss == loss), key=lambda row: row.mass)
    at_temperature = [row for row in rows if (row.temperature > 1) == (objective.temperature > 1)]
    if mass is None:
        below = [row for row in at_temperature if row.k <= support.k]
    else:
        below = [row for row in rows if row.mass <= mass]
    # Rounded down: what is said is then what was lost with no more than is kept.
    like = below[-1] if below else rows[0]
    if like.is_good:
        return None
    told = f"{_written(objective)}{_at(objective.temperature)}"
    hold = "" if mass is None else f", with {mass:.3f} of its probability{_at(softest(objective))} on average"
    return (
        f"objective: {told} depends on what is not kept of the teacher. Kept is {support}{hold}. Where {like.mass:.3f} "
        f"was kept (top {like.k}{_at(like.temperature)}, docs/cache.md), {like.ratio:.0%} of {loss} was left, and its "
        f"gradient had a cosine of {like.cosine:.2f} to the one over the whole vocabulary. "
        f"{_remedy(objective, at_temperature, kept_in)}"
    )


def cache_warning(folder: Path, objective: HybridObjective) -> str | None:
    """:func:`truncation_warning` for the cache in `folder`, with the mass that it holds.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or damaged.
    """
    spec, exponent = read_spec(folder), 1 / softest(objective)
    if exponent not in (1.0, *spec.stored_exponents):
        return None  # training refuses it
    kept = kept_tokens(folder, exponent)
    if not kept:
        return None
    kept_in = "cache" if spec.served is None else spec.served.source
    return truncation_warning(objective, spec.support, mass=kept[-1].mass, kept_in=kept_in)


def softest(objective: HybridObjective) -> float:
    """The temperature of the teacher's distribution at which the tail of a soft loss is largest; 1 at least."""
    return max(1.0, objective.temperature / objective.sharpening)


def measured_loss(objective: HybridObjective) -> str | None:
    """The loss of :data:`FIDELITY` that is most like the objective's; None where it has none, or one of its own."""
    function, options = _parts(objective)
    name = getattr(function, "__name__", "")
    if DIVERGENCES.get(name) is not function or objective.soft_weight == StaticWeight(0.0):
        return None
    if name == "alpha_beta":
        return ALPHA_BETAS[min(ALPHA_BETAS, key=lambda at: math.dist(at, (options["alpha"], options["beta"])))]
    found = ENDS.get((name, options.get("beta", options.get("skew"))), name)
    return found if any(row.loss == found for row in fidelity()) else None


def _parts(objective: HybridObjective) -> tuple[Any, Mapping[str, float]]:
    """The divergence's function and its options."""
    divergence: Any = objective.divergence
    bound = isinstance(divergence, functools.partial)
    return (divergence.func, divergence.keywords) if bound else (divergence, {})


def _written(objective: HybridObjective) -> str:
    function, options = _parts(objective)
    inside = ", ".join(f"{name}={value:g}" for name, value in options.items())
    return f"{function.__name__}({inside})" if inside else function.__name__


def _remedy(objective: HybridObjective, rows: list[Fidelity], kept_in: str) -> str:
    """`rows` are those of the objective's loss, ascending in mass."""
    enough = next((row for row in rows if row.is_good and row.temperature == 1), None)
    if kept_in == "answers":
        ways = ["ask the server for more tokens (generate --top-logprobs)"]
    elif kept_in == "imported":
        ways = ["capture more tokens a position, and import those"]
    elif kept_in == "scored":
        ways = ["let the server list more tokens (cache build --replace --top-k)"]
    elif kept_in == "memory":
        ways = [
            "leave teacher.top_k out" if enough is None else f"raise teacher.top_k (top {enough.k} was enough there)"
        ]
    elif enough is None:
        ways = ["let the teacher stay in memory, whole (teacher.cache=null, teacher.top_k=null)"]
    else:
        # Rounded up, with room for positions at which so much takes more tokens than on average.
        mass, most = math.ceil(1000 * enough.mass) / 1000, max(MOST_KEPT, 2 * enough.k)
        ways = [f"keep {mass:g} of it (bridgegarden cache build RECIPE --replace --mass {mass:g} --top-k {most})"]
    if objective.temperature > 1:
        ways.append("train at temperature 1")
    elif measured_loss(objective) != "forward_kl":
        ways.append("train forward_kl")
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def _at(temperature: float) -> str:
    return "" if temperature == 1 else f" at temperature {temperature:g}"
