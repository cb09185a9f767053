"""How the control world may word what it says: phrase to weight, the likeliest first; no phrase begins another."""

from types import MappingProxyType

from bridgegarden.exact.phrases import Phrases

PEOPLE = ("Ida", "Jan", "Klara", "Leo", "Mina", "Nils", "Olga", "Paul")

TOPICS = ("weather", "garden", "market", "music", "river", "library", "harbour", "forest")

TONES = ("kindly", "calmly", "warmly", "plainly")

OPENING: Phrases = MappingProxyType({"Well": 0.5, "Oh": 0.25, "Now": 0.15, "Indeed": 0.1})
"""Opens a sentence."""

SUBJECT: Phrases = MappingProxyType({"it was": 0.5, "that seemed": 0.25, "all felt": 0.15, "this looked": 0.1})
"""Says what the sentence is about, which is anything."""

DEGREE: Phrases = MappingProxyType({"rather": 0.5, "quite": 0.25, "very": 0.15, "fairly": 0.1})
"""Says how much."""

QUALITY: Phrases = MappingProxyType({"nice": 0.5, "fine": 0.25, "good": 0.15, "lovely": 0.1})
"""Says what it was like."""

TIME: Phrases = MappingProxyType({"today": 0.5, "again": 0.25, "lately": 0.15, "overall": 0.1})
"""Ends a sentence, before the full stop."""

SENTENCE = (OPENING, SUBJECT, DEGREE, QUALITY, TIME)
"""The wordings of a sentence, in order."""

PROMPT_START: Phrases = MappingProxyType({"Tell": 0.5, "Answer": 0.3, "Write to": 0.2})
"""Opens a problem, before whom to tell."""
