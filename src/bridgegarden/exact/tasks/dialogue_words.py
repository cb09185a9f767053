"""How the dialogue world may word what it says: phrase to weight, the likeliest first; no phrase begins another."""

from types import MappingProxyType

from bridgegarden.exact.phrases import Phrases

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")

THINGS = ("meeting", "parcel", "lecture", "visit", "concert", "invoice", "report", "picnic")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

DIRECTIONS = ("after", "before")

GREETING: Phrases = MappingProxyType({"Dear": 0.5, "Hello": 0.25, "Hi": 0.15, "Good morning": 0.1})
"""Opens a message, before the recipient."""

LINKING: Phrases = MappingProxyType({"is on": 0.5, "will be": 0.25, "comes next": 0.15, "falls on": 0.1})
"""Leads from a thing to its day."""

FAREWELL: Phrases = MappingProxyType({"See you": 0.5, "Until then": 0.25, "Please answer": 0.15, "Yours until": 0.1})
"""Opens the last sentence, before the day that was said last."""

PROMPT_START: Phrases = MappingProxyType({"From": 0.5, "Note from": 0.3, "Message from": 0.2})
"""Opens a problem, before the sender."""

PROMPT_LINKING: Phrases = MappingProxyType({"is": 0.5, "comes": 0.3, "falls": 0.2})
"""Leads from a thing to when it is."""
