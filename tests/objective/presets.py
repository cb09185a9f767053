"""Presets for tests that take long: one of everything that an objective can do. Divergences have tests of their own."""

from bridgegarden.objective.methods import PRESETS, MixedDivergence


def _is_a_divergence_alone(fields) -> bool:
    return fields.keys() == {"divergence", "soft_weight"} and not isinstance(fields["divergence"], MixedDivergence)


RANKED = ("token_importance",)
"""Those that compare the positions of a batch: a number that is a little off, or a batch that is cut elsewhere, may
choose others."""
MECHANISMS = tuple(
    name for name, fields in PRESETS.items() if not _is_a_divergence_alone(fields) and name not in RANKED
)
