"""Draw one answer with the soft weight of every token: how sure a teacher is, word by word.

    python docs/figures/draw_bridges_and_gardens.py --teacher MODEL --prompt TEXT --completion TEXT

writes ``bridges-and-gardens.svg`` beside this file. Dark: the teacher is sure (a Bridge: hard labels). Light: it could
have said something else (a Garden: soft labels). The shade is the confidence rule's soft weight, 1 - max p.
"""

import argparse
from html import escape
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridgegarden.data import tokenise_row
from bridgegarden.data.chat import Columns, conversation
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.soft_weight import ConfidenceWeight
from bridgegarden.teacher.live import LiveTeacher

WIDTH, LINE, GLYPH, MARGIN = 760, 30, 8.43, 16
"""Pixels: page, line pitch, one character of 14 px monospace, border."""


def weighed_tokens(teacher: str, prompt: str, completion: str) -> list[tuple[str, float]]:
    """The answer's tokens as text, each with the soft weight of the position that predicts it."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    live = LiveTeacher(AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32))
    columns = Columns(prompt="question", completion="answer")
    chat = conversation({"question": prompt, "answer": completion}, columns, place="the row")
    row = tokenise_row(chat, tokenizer)
    positions = SupervisedPositions.from_labels(torch.tensor([row.labels]))
    source = live.at(positions, {"input_ids": torch.tensor([row.input_ids])}, vocab_size=len(tokenizer), exponents=())
    weights = ConfidenceWeight()(source[0 : len(positions)])
    texts = [tokenizer.decode([token]) for token in positions.target.tolist()]
    return list(zip(texts, weights.tolist(), strict=True))[:-1]  # without the end of the turn


def colour(weight: float) -> tuple[str, str]:
    """Background and text colour, from deep blue (0) to pale sand (1); told apart by lightness alone."""
    dark, light = (31, 78, 121), (250, 240, 214)
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(dark, light, strict=True))
    return f"rgb({red},{green},{blue})", "#ffffff" if weight < 0.45 else "#1b1b1b"


def draw(tokens: list[tuple[str, float]]) -> str:
    """An SVG of the tokens, line by line."""
    x, y, parts = MARGIN, MARGIN, []
    for text, weight in tokens:
        for piece in text.splitlines(keepends=True):
            shown = piece.rstrip("\n")
            width = len(shown) * GLYPH
            if x + width > WIDTH - MARGIN:
                x, y = MARGIN, y + LINE
            if shown:
                fill, ink = colour(weight)
                parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="24" rx="3" fill="{fill}"/>')
                words = escape(shown).replace(" ", "\N{NO-BREAK SPACE}")
                parts.append(f'<text x="{x:.1f}" y="{y + 17}" fill="{ink}" textLength="{width:.1f}">{words}</text>')
            x += width + 1.5
            if piece.endswith("\n"):
                x, y = MARGIN, y + LINE
    y += LINE + 14
    parts.append(legend(y))
    style = "font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
    size = f'width="{WIDTH}" height="{y + 40}" viewBox="0 0 {WIDTH} {y + 40}"'
    title = "<title>One answer, each token shaded by how sure the teacher is</title>"
    page = '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>'
    body = "".join([title, page, *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}" role="img">{body}</svg>\n'


def legend(y: int) -> str:
    """What the shades mean."""
    swatches = "".join(
        f'<rect x="{276 + 20 * i}" y="{y}" width="20" height="16" fill="{colour(i / 10)[0]}"/>' for i in range(11)
    )
    words = 'font-family="system-ui, sans-serif" font-size="13" fill="#333333"'
    left = f'<text x="{MARGIN}" y="{y + 13}" {words}>Bridge: one right token, hard label</text>'
    right = f'<text x="{WIDTH - MARGIN}" y="{y + 13}" text-anchor="end" {words}>Garden: may vary, soft label</text>'
    return left + swatches + right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--completion", required=True)
    arguments = parser.parse_args()
    tokens = weighed_tokens(arguments.teacher, arguments.prompt, arguments.completion)
    target = Path(__file__).with_name("bridges-and-gardens.svg")
    target.write_text(draw(tokens), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
