"""How the program world names and words things: to weight, the likeliest first; no phrase begins another."""

from types import MappingProxyType

from bridgegarden.exact.phrases import Phrases

VARIABLES = ("a", "b", "c", "d", "e", "f")

ASKED_OPERATORS = MappingProxyType({"add": "plus", "mul": "times", "sub": "minus"})
"""What a prompt calls an operator."""

ASKED_COMPARATORS = MappingProxyType({">": "over", "<": "under"})
"""What a prompt calls a comparator."""

TEMPORARIES: Phrases = MappingProxyType({"t": 0.5, "u": 0.25, "v": 0.15, "w": 0.1})
"""Names of a temporary; the number of its assignment is put behind."""

SEPARATOR: Phrases = MappingProxyType({";": 0.5, "# so ;": 0.25, "# then ;": 0.15, "# next ;": 0.1})
"""Ends an assignment, with or without a comment."""

IN_ORDER = 0.6
"""Probability that the operands of a commutative operator stand in the order of the prompt."""

PROMPT_START: Phrases = MappingProxyType({"Take": 0.5, "Compute": 0.3, "Start from": 0.2})
"""Opens a problem, before the first operation."""

PROMPT_TEST: Phrases = MappingProxyType({"If it is": 0.5, "When it is": 0.3, "Where it is": 0.2})
"""Opens a test, before its comparator."""

PROMPT_OTHERWISE: Phrases = MappingProxyType({"Otherwise return": 0.5, "Else return": 0.3, "If not return": 0.2})
"""Opens the last sentence of a problem."""
