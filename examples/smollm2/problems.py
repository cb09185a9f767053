"""Problems of the package reasoning-gym with worked solutions: its tasks, and what each problem is solved by.

A solution is made from the words of the problem alone and ends, as GSM8K's do, with ``#### ANSWER``. Numbers are worked
out digit by digit where a small model could not see the result, and letters stand apart, for tokens hide them.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import add, floordiv, mul, sub
from types import MappingProxyType
from typing import Any

from bridgegarden.errors import ConfigError, DataError

Row = dict[str, str]
INSTALL = "the problems are those of the package reasoning-gym, which is not installed: pip install reasoning-gym"
SIZE = 200_000
"""Problems of a task that are looked at, at most."""
OPERATORS: Mapping[type, tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", add),
    ast.Sub: ("-", sub),
    ast.Mult: ("*", mul),
    ast.FloorDiv: ("/", floordiv),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of problem."""

    generator: str
    """Of reasoning-gym, by its name there."""
    solve: Callable[[str], list[str]]
    """From the words of a problem to the lines of its solution, the answer alone on the last; none if it has none."""
    settings: Mapping[str, Any]
    """Of reasoning-gym's generator: problems that a model of 135 million weights can learn in minutes or hours."""

    def solution(self, question: str) -> str | None:
        """The worked solution of a problem; None if it has none."""
        lines = self.solve(question)
        return "\n".join([*lines[:-1], f"#### {lines[-1]}"]) if lines else None


def solve_sum(question: str) -> list[str]:
    """``4 - 1 - 7 =``, from left to right."""
    return work_out(question.partition(":")[2].strip().removesuffix("="))


def solve_arithmetic(question: str) -> list[str]:
    """``Calculate ( 5 - 3 ) * -6.``, the inner operations first."""
    return work_out(question.removeprefix("Calculate ").removesuffix("."))


def work_out(expression: str) -> list[str]:
    """One operation a line, in the order in which Python does them; a quotient is rounded down."""
    lines: list[str] = []

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
                return -number
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                negated = value(inner)
                lines.append(f"-({negated}) = {-negated}")
                return -negated
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
                first, second = value(left), value(right)
                sign, apply = OPERATORS[type(operator)]
                result = apply(first, second)
                lines.append(f"{first} {sign} {second} = {result}")
                return result
        raise DataError(f"{expression!r} is no sum, product or quotient of whole numbers.")

    answer = value(parsed(expression.replace("/", "//")))
    return [*lines, str(answer)]


def parsed(expression: str) -> ast.expr:
    """The expression as a tree; leading zeros are refused by Python, and reasoning-gym writes none."""
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise DataError(f"{expression!r} is no expression.") from error


def solve_product(question: str) -> list[str]:
    """``12 * 34``: by one digit of the second number at a time, and the sum of that."""
    first, second = (int(number) for number in re.findall(r"\d+", question))
    parts = [int(digit) * 10**power for power, digit in enumerate(reversed(str(second))) if digit != "0"] or [0]
    lines = [f"{first} * {part} = {first * part}" for part in parts]
    total = first * parts[0]
    for part in parts[1:]:
        lines.append(f"{total} + {first * part} = {total + first * part}")
        total += first * part
    return [*lines, str(total)]


def solve_gcd(question: str) -> list[str]:
    """Euclid's divisions, until nothing is left."""
    larger, smaller = sorted((int(number) for number in re.findall(r"\d+", question)), reverse=True)
    lines = []
    while smaller:
        quotient, rest = divmod(larger, smaller)
        lines.append(f"{larger} = {quotient} * {smaller} + {rest}")
        larger, smaller = smaller, rest
    return [*lines, str(larger)]


def solve_equation(question: str) -> list[str]:
    """``56 - 98*e = -1218``: the constant to the other side, then a division. Nothing where any number would do."""
    found = re.search(r": (?P<left>.+) = (?P<right>-?\d+)$", question)
    if found is None:
        raise DataError(f"{question!r} holds no equation.")
    right = int(found["right"])
    factor, constant = linear(parsed(found["left"]))
    if not factor:  # some are made in which the unknown is multiplied by nothing, such as 0 = 0
        return []
    name = re.sub(r"[^a-z]", "", found["left"])
    lines = []
    if constant:
        left = f"{factor}*{name}"
        sign, size = ("-", constant) if constant > 0 else ("+", -constant)
        lines = [f"{left} = {right} {sign} {size}", f"{left} = {right - constant}"]
    answer = (right - constant) // factor
    return [*lines, f"{name} = {right - constant} / {factor} = {answer}", str(answer)]


def linear(node: ast.expr) -> tuple[int, int]:
    """Factor of the unknown, and constant, of a linear expression."""
    match node:
        case ast.Name():
            return 1, 0
        case ast.Constant(value=int(number)):
            return 0, number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            factor, constant = linear(inner)
            return -factor, -constant
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as operator, right=right):
            one, other = linear(left), linear(right)
            apply = OPERATORS[type(operator)][1]
            return apply(one[0], other[0]), apply(one[1], other[1])
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            (factor, constant), (none, times) = linear(left), linear(right)
            if factor and none:
                raise DataError(f"{ast.unparse(node)!r} is not linear.")
            return factor * times + none * constant, constant * times
    raise DataError(f"{ast.unparse(node)!r} is not linear.")


def solve_backward(question: str) -> list[str]:
    """The letters, then the same from the end."""
    word = question.rpartition(": ")[2]
    return [" ".join(word), " ".join(reversed(word)), word[::-1]]


def solve_bits(question: str) -> list[str]:
    """Halved until nothing is left; the rests are counted as they come."""
    number = int(question.rpartition(" ")[2].removesuffix("?"))
    lines, bits = [], 0
    while number:
        half, rest = divmod(number, 2)
        bits += rest
        lines.append(f"{number} = 2 * {half} + {rest}: {bits}")
        number = half
    return [*lines, str(bits)]


def solve_letters(question: str) -> list[str]:
    """Word by word, with the count so far."""
    found = re.fullmatch(r'How many times does the letter "(.)" appear in the text: "(.*)"\?', question)
    if found is None:
        raise DataError(f"{question!r} asks for no letter.")
    letter, text = found.groups()
    lines, count = [], 0
    for word in text.split():
        count += word.lower().count(letter)
        lines.append(f"{' '.join(word)}: {count}")
    return [*lines, str(count)]


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "chain_sum": Task(generator="chain_sum", solve=solve_sum, settings={"max_terms": 4, "max_digits": 2}),
        "basic_arithmetic": Task(
            generator="basic_arithmetic", solve=solve_arithmetic, settings={"max_terms": 4, "max_digits": 2}
        ),
        "products": Task(generator="products", solve=solve_product, settings={"max_digits": 3}),
        "gcd": Task(generator="gcd", solve=solve_gcd, settings={"max_value": 200}),
        "simple_equations": Task(generator="simple_equations", solve=solve_equation, settings={"max_value": 20}),
        "spell_backward": Task(generator="spell_backward", solve=solve_backward, settings={}),
        "count_bits": Task(generator="count_bits", solve=solve_bits, settings={"max_n": 16_383}),
        "letter_counting": Task(generator="letter_counting", solve=solve_letters, settings={"max_words": 8}),
        "short_sum": Task(generator="chain_sum", solve=solve_sum, settings={"max_terms": 5, "max_digits": 1}),
        "short_arithmetic": Task(
            generator="basic_arithmetic", solve=solve_arithmetic, settings={"max_terms": 4, "max_digits": 1}
        ),
    }
)
"""By reasoning-gym's names; and sums and arithmetic of one digit, which ten layers learn from some thousand rows."""


def distinct_rows(name: str, *, seed: int) -> Iterator[Row]:
    """Problems of a task with worked solutions, none twice, the same for the same seed; without end or until it has
    no more.

    Raises:
        ConfigError: reasoning-gym is not installed.
        DataError: a solution does not come to the answer that reasoning-gym accepts.
    """
    try:
        import reasoning_gym  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ConfigError(f"{INSTALL} ({error})") from error

    task, seen = TASKS[name], set()
    problems = reasoning_gym.create_dataset(task.generator, seed=seed, size=SIZE, **task.settings)
    for problem in problems:
        question = problem["question"]
        solution = None if question in seen else task.solution(question)
        if solution is None:
            continue
        seen.add(question)
        if problems.score_answer(solution.rpartition("#### ")[2], problem) != 1.0:
            raise DataError(f"{name}: {solution!r} does not answer {question!r}, whose answer is {problem['answer']}.")
        yield {"prompt": question, "completion": solution, "task": name}
