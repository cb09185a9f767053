"""A whole diagnosis in a second: the small world, and two students of it."""

from collections.abc import Sequence
from typing import Any

from bridgegarden.data.audit import Piece
from bridgegarden.diagnostics.diagnose import diagnose
from bridgegarden.diagnostics.diagnosis import Diagnosis, DiagnosisSettings, Findings, ModelUsed, PromptsUsed
from tests.diagnostics.worlds import HORIZON, VOCABULARY, World, make_world

EVIL = '<script>document.title="taken"</script>'
WORDS = (".", EVIL, "\x1b[2Jred", "two words", "café")
"""What the tokens of the world say; one is markup, one would clear a terminal."""


class Words:
    """A reader: token ids to `WORDS`."""

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[index] for index in ids)

    def token(self, index: int) -> Piece:
        return Piece(WORDS[index] if index < len(WORDS) else "(outside)", gap=" ")

    def is_special(self, index: int) -> bool:
        return index == 0

    def pieces(self, before: Sequence[int], ids: Sequence[int]) -> list[Piece]:
        return [self.token(index) for index in ids]


def students(difference: float = 0.7) -> dict[str, World]:
    """Worlds with one teacher and students that are near it and farther away."""
    return {"near": make_world(0, difference=difference / 2), f"far {EVIL}": make_world(0, difference=difference)}


def small_settings(**changes: Any) -> DiagnosisSettings:
    """Few tokens."""
    given = {"samples": 2, "max_new_tokens": HORIZON, "budget": 3_000, "rounds": 4, "shown": 2, "max_rows": 500}
    return DiagnosisSettings(**(given | changes))


def small_findings(prompts: int = 20, names: Sequence[str] | None = None, **changes: Any) -> Findings:
    """What `diagnose` finds in the small world."""
    worlds = students()
    chosen = {name: worlds[name].student for name in names or worlds}
    return diagnose(
        worlds["near"].teacher,
        chosen,
        [()] * prompts,
        small_settings(**changes),
        vocab_size=VOCABULARY,
        reader=Words(),
    )


def small_diagnosis(findings: Findings | None = None, **changes: Any) -> Diagnosis:
    """The same as the command has it."""
    found = findings or small_findings(**changes)

    def used(name: str) -> ModelUsed:
        return ModelUsed(name=name, model=f"models/{name}", commit=None, parameters=1000, dtype="float32")

    return Diagnosis(
        teacher=used("teacher"),
        students=tuple(used(student.name) for student in found.students),
        prompts=PromptsUsed(source="prompts.jsonl", used=20, left_out=(), tokens=60),
        settings=small_settings(**changes),
        vocab_size=VOCABULARY,
        findings=found,
        warnings=("a warning",),
        command="bridgegarden diagnose recipe.yaml",
        started="2026-11-26T10:00:00+00:00",
        device="cpu",
        versions={"python": "3.11"},
    )
