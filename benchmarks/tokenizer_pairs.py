"""What is sure between two tokenizers: ``python benchmarks/tokenizer_pairs.py TEACHER STUDENT TEXTS.jsonl COLUMN``.

TEACHER and STUDENT are folders or names that `AutoTokenizer` loads. No model is needed: at every student position of
the texts it is decided which student token the teacher's own token begins, and that is held against the student's own.
"""

import json
from collections import Counter
from pathlib import Path

import click
from transformers import AutoTokenizer

from bridgegarden.teacher.translation.align import align
from bridgegarden.teacher.translation.byte_view import ByteView
from bridgegarden.teacher.translation.first_token import FirstTokens


def tally(teacher: ByteView, student: ByteView, texts: list[str]) -> Counter[str]:
    """Student positions of `texts` of each kind."""
    first, found = FirstTokens(teacher, student), Counter[str]()
    for text in texts:
        theirs, ours = teacher.encode(text.encode()), student.encode(text.encode())
        if theirs is None or ours is None:
            found["cannot be written"] += 1
            continue
        held = align(teacher, student, theirs, ours)
        for token, inside, target in zip(held.token.tolist(), held.inside.tolist(), ours, strict=True):
            found["positions"] += 1
            found["conditional" if inside else "aligned"] += 1
            known = first.after((theirs[token],), inside)
            if known.token < 0:
                found["open"] += 1
                found["open, but not to the text's token"] += not known.reaches(student.ranks[target])
            else:
                found["proved" if known.proved else "tried"] += 1
                found["proved, but wrong" if known.proved else "tried, but wrong"] += known.token != target
    return found


@click.command()
@click.argument("teacher")
@click.argument("student")
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("column")
@click.option("--rows", default=100, show_default=True, help="Last rows that are read.")
def main(teacher: str, student: str, texts: Path, column: str, rows: int) -> None:
    """Print the shares."""
    lines = texts.read_text(encoding="utf-8").splitlines()[-rows:]
    views = [ByteView(AutoTokenizer.from_pretrained(name), name=name) for name in (teacher, student)]
    found = tally(views[0], views[1], [json.loads(line)[column] for line in lines])
    for name, count in found.items():
        click.echo(f"{name}: {count} ({count / max(found['positions'], 1):.2%})")


if __name__ == "__main__":
    main()
