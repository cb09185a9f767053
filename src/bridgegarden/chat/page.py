"""The page of a chat: what is on it, and how a token of an answer is told to its script."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bridgegarden.chat.session import Chat, Ending, Expectation, Written
from bridgegarden.diagnostics.diagnosis import Likely
from bridgegarden.report.page import embedded_json, own_file, policy
from bridgegarden.report.tokens import NumberLayer, Thought, Token, card, heatmap, stylesheet, visible
from bridgegarden.table import number, probability

RAREST = 6.9
"""Surprise at the end of the colours, in nats: one in a thousand."""
WIDE = 4.0
"""Entropy at the end of the colours, in nats: as undecided as between 55 tokens."""
WORDS: dict[Ending, str] = {
    "turn": "",
    "length": "Cut at the most tokens that were asked for.",
    "room": "Cut: the models can read no more tokens. Begin a new conversation.",
}
"""What is said of an answer's end."""


class ChatPage(NamedTuple):
    """A page, and what its browser is told about it."""

    html: str
    policy: str
    """Content-Security-Policy."""


def chat_page(chat: Chat) -> ChatPage:
    """The page on which `chat` is led."""
    own = files("bridgegarden.chat")
    script = own_file("tokens.js") + own.joinpath("chat.js").read_text("utf-8")
    layers = chat_layers(chat)
    data = {
        "layers": [layer.scale for layer in layers],
        "turns": chat.takes_turns,
        "against": chat.teacher_name is not None,
    }
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = template.from_string(own.joinpath("chat.html").read_text("utf-8")).render(
        name=chat.name,
        against=chat.teacher_name,
        turns=chat.takes_turns,
        room=chat.room,
        colours=heatmap((), (), layers),
        style=Markup(own_file("page.css") + stylesheet() + own.joinpath("chat.css").read_text("utf-8")),
        script=Markup(script),
        data=embedded_json(data),
    )
    return ChatPage(html, policy(script, "connect-src 'self'", "frame-ancestors 'none'"))


def chat_layers(chat: Chat) -> Sequence[NumberLayer]:
    """What tokens can be coloured by, the first one chosen; `event` gives each token a value of every one."""
    ends = ("certain", "1 in 1,000")
    student = (
        _layer("student's probability", RAREST, ends, "How likely the student held the token that it wrote."),
        _layer("student's entropy", WIDE, ("0", f"{WIDE:g} nats"), "How undecided the student was before it."),
    )
    if chat.teacher_name is None:
        return student
    apart = "How much of their probability the two models put on other tokens (total variation)."
    signed = (
        "The teacher's log-probability of the token less the student's: negative where the teacher would hold back."
    )
    return (
        _layer("apart", 1.0, ("agree", "nothing in common"), apart),
        _layer("teacher's probability", RAREST, ends, "How likely the teacher held the token that was written."),
        *student,
        NumberLayer(
            values=(),
            name="teacher less student",
            group="",
            scale="signed",
            most=RAREST,
            ends=(f"\N{MINUS SIGN}{RAREST} nats", f"+{RAREST} nats"),
            about=f"{signed} Colours grow with the square root.",
        ),
    )


def _layer(name: str, most: float, ends: tuple[str, str], about: str) -> NumberLayer:
    return NumberLayer(values=(), name=name, group="", scale="surprise", most=most, ends=ends, about=about)


def event(chat: Chat, written: Written) -> dict[str, Any]:
    """One token as JSON, for the page's script."""
    student, teacher = written.student, written.teacher
    values = [-student.log_prob, student.entropy]
    facts = [("student", _words(student))]
    thoughts = [_thought(chat, chat.name, student)]
    if teacher is not None and written.distance is not None:
        values = [written.distance, -teacher.log_prob, *values, teacher.log_prob - student.log_prob]
        facts = [("teacher", _words(teacher)), *facts, ("apart", probability(written.distance))]
        thoughts = [_thought(chat, str(chat.teacher_name), teacher), *thoughts]
    layers = chat_layers(chat)
    levels = [layer.level_of(value) for layer, value in zip(layers, values, strict=True)]
    told = Token(text=written.piece.text, facts=tuple(facts), thoughts=tuple(thoughts))
    return {
        "gap": written.piece.gap,
        "text": visible(written.piece.text),
        "said": written.said,
        "levels": levels,
        "parts": teacher is not None and teacher.top[0].token != student.top[0].token,
        "card": card(told),
        "end": None if written.ending is None else WORDS[written.ending],
    }


def _words(found: Expectation) -> str:
    return f"{probability(found.prob)} for this token"


def _thought(chat: Chat, name: str, found: Expectation) -> Thought:
    def shown(likely: Likely) -> tuple[str, float]:
        return chat.text_of(likely.token), likely.prob

    return Thought(model=name, top=tuple(map(shown, found.top)), note=f"entropy {number(found.entropy, 2)}")
