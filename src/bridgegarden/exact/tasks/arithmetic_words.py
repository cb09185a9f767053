"""How the arithmetic world may word what it says: phrase to weight, the likeliest first.

Within one table no phrase begins another, and all have the same number of tokens, so that the distance between what
must be copied and where it is copied to does not vary and tiny models learn it in few steps. Few distinct words, many
choices: entropy rules divide by the logarithm of the vocabulary, and a real one is no wider than its choices are many.
"""

from types import MappingProxyType

from bridgegarden.exact.phrases import Phrases

OPERATORS = ("plus", "minus", "times")

START: Phrases = MappingProxyType(
    {
        "We begin at": 0.24,
        "We start with": 0.18,
        "I begin with": 0.15,
        "First we have": 0.12,
        "I start at": 0.10,
        "Let us take": 0.08,
        "First comes just": 0.07,
        "Our number is": 0.06,
    }
)
"""Opens an answer, before the starting value."""

OPENING: Phrases = MappingProxyType(
    {
        "Then": 0.24,
        "Next": 0.18,
        "Now": 0.15,
        "So": 0.12,
        "And": 0.10,
        "Here": 0.08,
        "Again": 0.07,
        "Thus": 0.06,
    }
)
"""Opens a step, before its operator."""

LINKING: Phrases = MappingProxyType(
    {
        "gives": 0.24,
        "makes": 0.18,
        "is": 0.15,
        "leaves": 0.12,
        "equals": 0.10,
        "becomes": 0.08,
        "yields": 0.07,
        "means": 0.06,
    }
)
"""Leads from a step's operand to its result."""

CLOSING: Phrases = MappingProxyType({".": 0.45, ",": 0.3, "!": 0.25})
"""Ends a sentence."""

ANSWER: Phrases = MappingProxyType(
    {
        "The answer is": 0.24,
        "The result is": 0.18,
        "We end at": 0.15,
        "Our answer is": 0.12,
        "So we have": 0.10,
        "Our number becomes": 0.08,
        "The end is": 0.07,
        "I end with": 0.06,
    }
)
"""Opens the last sentence, before the final value. `check_answer` looks for one of these."""

PROMPT_START: Phrases = MappingProxyType({"Start with": 0.4, "Begin at": 0.3, "Take just": 0.2, "Begin with": 0.1})
"""Opens a problem, before the starting value."""

PROMPT_JOINING: Phrases = MappingProxyType({",": 0.4, "then": 0.3, "and": 0.2, "next": 0.1})
"""Stands before each operator of a problem."""

PROMPT_QUESTION: Phrases = MappingProxyType(
    {
        ". What is it modulo": 0.4,
        ". What have we modulo": 0.3,
        ". Where are we modulo": 0.2,
        ". What comes out modulo": 0.1,
    }
)
"""Ends a problem, before the modulus and a question mark."""
