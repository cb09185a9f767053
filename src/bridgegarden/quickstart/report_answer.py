"""One answer of the quickstart, token by token: what colours it and what its cards say."""

import re
from typing import Any

from markupsafe import Markup

from bridgegarden.quickstart.result import QuickstartResult, TokenView
from bridgegarden.report.scale import number
from bridgegarden.report.tokens import ROLES, Layer, RoleLayer, Thought, Token, ValueLayer, token_data, token_text


def answer_section(result: QuickstartResult) -> Markup:
    """The problem, the answer and how to read it."""
    answer = result.answer
    return Markup(
        "<p>{} wrote this, sampling at temperature 1. Point at a token, tap it or walk there with the arrow keys to "
        "see what the teacher and every student expected at that place{}.</p><blockquote>{}</blockquote>{}"
    ).format(
        f"The student of “{answer.written_by}”",
        "; the students are those of the first seed" if len(result.settings.seeds) > 1 else "",
        answer.prompt,
        token_text(_tokens(result), _layers(result), label="The answer"),
    )


def answer_data(result: QuickstartResult) -> dict[str, Any]:
    """The same for the page's script."""
    return token_data(_tokens(result), _layers(result))


def _layers(result: QuickstartResult) -> list[Layer]:
    views = result.answer.tokens
    layers: list[Layer] = [
        RoleLayer(
            values=tuple(view.role for view in views),
            group="What it decides",
            about="Read off the process that the teacher learned, not guessed from the models.",
        )
    ]
    for rule in views[0].soft_weights if views else ():
        layers.append(
            ValueLayer(
                values=tuple(view.soft_weights[rule] for view in views),
                name=rule.replace("_", "-"),
                group="Soft weight λ of",
                scale="weight",
                most=1.0,
                ends=("0: hard label", "1: soft label"),
                about="How much of the loss at a position this rule takes from the teacher's whole distribution.",
            )
        )
    surprises = [value for view in views for value in view.student_surprise.values()]
    most = max([1.0, *surprises])
    for objective in views[0].student_surprise if views else ():
        layers.append(
            ValueLayer(
                values=tuple(view.student_surprise[objective] for view in views),
                name=result.label(objective),
                group="Surprise of",
                scale="surprise",
                most=most,
                ends=("0 nats", f"{number(most, 2)} nats"),
                about="How unexpected the written token was to this student. One scale for all students.",
            )
        )
    return layers


def _tokens(result: QuickstartResult) -> list[Token]:
    return [_token(result, view, first=index == 0) for index, view in enumerate(result.answer.tokens)]


def _token(result: QuickstartResult, view: TokenView, *, first: bool) -> Token:
    # The world's tokens are words and marks; its decoder puts spaces between words.
    glued = first or re.fullmatch(r"[.,!?]", view.text)
    weights = " · ".join(f"{rule.replace('_', '-')} {number(value, 2)}" for rule, value in view.soft_weights.items())
    students = tuple(
        Thought(
            model=result.label(objective),
            top=top,
            note=f"surprise {view.student_surprise[objective]:.2f}",
        )
        for objective, top in view.student_tops.items()
    )
    return Token(
        text=view.text,
        gap="" if glued else " ",
        facts=(("role", ROLES[view.role]), ("soft weight λ", weights)),
        thoughts=(Thought(model="teacher", top=view.teacher_top), *students),
    )
