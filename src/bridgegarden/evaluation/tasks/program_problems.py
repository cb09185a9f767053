"""Small programming problems in HumanEval's manner, from the very easy to those that take some thought.

Each function is a problem: its signature and docstring are what a model is shown, its body is a right answer, and the
``check_...`` function with its name is the test. :mod:`bridgegarden.evaluation.tasks.programs` cuts them out of this
file's text.
"""

from collections.abc import Callable
from typing import Any


def add(a: int, b: int) -> int:
    """Return the sum of a and b.

    >>> add(2, 3)
    5
    """
    return a + b


def check_add(candidate: Callable[..., Any]) -> None:
    assert candidate(2, 3) == 5
    assert candidate(-4, 4) == 0
    assert candidate(10, -7) == 3


def is_even(n: int) -> bool:
    """Return True if n is even and False if it is odd.

    >>> is_even(4)
    True
    >>> is_even(7)
    False
    """
    return n % 2 == 0


def check_is_even(candidate: Callable[..., Any]) -> None:
    assert candidate(0) is True
    assert candidate(7) is False
    assert candidate(-2) is True
    assert candidate(101) is False


def largest(numbers: list[int]) -> int:
    """Return the largest of the numbers. The list is not empty.

    >>> largest([3, 9, 2])
    9
    """
    return max(numbers)


def check_largest(candidate: Callable[..., Any]) -> None:
    assert candidate([3, 9, 2]) == 9
    assert candidate([-5, -2, -9]) == -2
    assert candidate([4]) == 4
    assert candidate([1, 7, 7, 0]) == 7


def reverse_text(text: str) -> str:
    """Return the text backwards.

    >>> reverse_text("abc")
    'cba'
    """
    return text[::-1]


def check_reverse_text(candidate: Callable[..., Any]) -> None:
    assert candidate("abc") == "cba"
    assert candidate("") == ""
    assert candidate("never odd") == "ddo reven"


def count_vowels(text: str) -> int:
    """Return how many letters of the text are vowels (a, e, i, o or u), in upper or lower case.

    >>> count_vowels("Garden")
    2
    """
    return sum(letter in "aeiou" for letter in text.lower())


def check_count_vowels(candidate: Callable[..., Any]) -> None:
    assert candidate("Garden") == 2
    assert candidate("BRIDGE") == 2
    assert candidate("rhythm") == 0
    assert candidate("AEIOU aeiou") == 10
    assert candidate("") == 0


def squares(n: int) -> list[int]:
    """Return the squares of 1, 2, ..., n in that order.

    >>> squares(4)
    [1, 4, 9, 16]
    """
    return [i * i for i in range(1, n + 1)]


def check_squares(candidate: Callable[..., Any]) -> None:
    assert candidate(4) == [1, 4, 9, 16]
    assert candidate(1) == [1]
    assert candidate(0) == []


def factorial(n: int) -> int:
    """Return the product 1 * 2 * ... * n. The factorial of 0 is 1.

    >>> factorial(5)
    120
    """
    product = 1
    for i in range(2, n + 1):
        product *= i
    return product


def check_factorial(candidate: Callable[..., Any]) -> None:
    assert candidate(0) == 1
    assert candidate(1) == 1
    assert candidate(5) == 120
    assert candidate(20) == 2432902008176640000


def clamp(value: float, low: float, high: float) -> float:
    """Return value, but not less than low and not more than high.

    >>> clamp(12, 0, 10)
    10
    """
    return max(low, min(value, high))


def check_clamp(candidate: Callable[..., Any]) -> None:
    assert candidate(12, 0, 10) == 10
    assert candidate(-1, 0, 10) == 0
    assert candidate(2.5, 0, 10) == 2.5
    assert candidate(3, 3, 3) == 3


def without_duplicates(items: list[int]) -> list[int]:
    """Return the items in their order, each only where it comes first.

    >>> without_duplicates([3, 1, 3, 2, 1])
    [3, 1, 2]
    """
    return list(dict.fromkeys(items))


def check_without_duplicates(candidate: Callable[..., Any]) -> None:
    assert candidate([3, 1, 3, 2, 1]) == [3, 1, 2]
    assert candidate([]) == []
    assert candidate([5, 5, 5]) == [5]
    assert candidate([9, 8, 7]) == [9, 8, 7]


def is_palindrome(text: str) -> bool:
    """Return whether the letters and digits of the text read the same backwards, in any case.

    Everything that is neither letter nor digit is left out.

    >>> is_palindrome("Never odd or even!")
    True
    >>> is_palindrome("bridge")
    False
    """
    kept = [letter.lower() for letter in text if letter.isalnum()]
    return kept == kept[::-1]


def check_is_palindrome(candidate: Callable[..., Any]) -> None:
    assert candidate("Never odd or even!") is True
    assert candidate("bridge") is False
    assert candidate("") is True
    assert candidate("1 2 2 1") is True
    assert candidate("1 2 3 1") is False


def word_lengths(sentence: str) -> dict[str, int]:
    """Return the length of every word of the sentence. Words are separated by spaces.

    >>> word_lengths("one three")
    {'one': 3, 'three': 5}
    """
    return {word: len(word) for word in sentence.split()}


def check_word_lengths(candidate: Callable[..., Any]) -> None:
    assert candidate("one three") == {"one": 3, "three": 5}
    assert candidate("") == {}
    assert candidate("a  bb a") == {"a": 1, "bb": 2}


def gcd(a: int, b: int) -> int:
    """Return the greatest common divisor of two positive whole numbers.

    >>> gcd(12, 18)
    6
    """
    while b:
        a, b = b, a % b
    return a


def check_gcd(candidate: Callable[..., Any]) -> None:
    assert candidate(12, 18) == 6
    assert candidate(7, 13) == 1
    assert candidate(100, 10) == 10
    assert candidate(10, 100) == 10
    assert candidate(123456, 7890) == 6


def is_prime(n: int) -> bool:
    """Return whether n is a prime number. Numbers below 2 are not.

    >>> is_prime(7)
    True
    >>> is_prime(9)
    False
    """
    return n >= 2 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))


def check_is_prime(candidate: Callable[..., Any]) -> None:
    primes = [n for n in range(-3, 40) if candidate(n)]
    assert primes == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
    assert not candidate(7919 * 3)
    assert candidate(7919)


def running_totals(numbers: list[float]) -> list[float]:
    """Return a list whose i-th entry is the sum of the first i + 1 numbers.

    >>> running_totals([1, 2, 3])
    [1, 3, 6]
    """
    totals: list[float] = []
    for number in numbers:
        totals.append(number + (totals[-1] if totals else 0))
    return totals


def check_running_totals(candidate: Callable[..., Any]) -> None:
    assert candidate([1, 2, 3]) == [1, 3, 6]
    assert candidate([]) == []
    assert candidate([-1, 1, -1]) == [-1, 0, -1]
    assert candidate([0.5, 0.5]) == [0.5, 1.0]


def most_common(items: list[str]) -> str:
    """Return the item that occurs most often; of several, the one that comes first in the list.

    >>> most_common(["b", "a", "a", "b", "c"])
    'b'
    """
    return max(items, key=items.count)


def check_most_common(candidate: Callable[..., Any]) -> None:
    assert candidate(["b", "a", "a", "b", "c"]) == "b"
    assert candidate(["x"]) == "x"
    assert candidate(["p", "q", "q"]) == "q"
    assert candidate(["c", "b", "a"]) == "c"


def chunks(items: list[int], size: int) -> list[list[int]]:
    """Cut the items into consecutive lists of the given size; the last may be shorter.

    >>> chunks([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4], [5]]
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def check_chunks(candidate: Callable[..., Any]) -> None:
    assert candidate([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert candidate([], 3) == []
    assert candidate([1, 2], 5) == [[1, 2]]
    assert candidate([1, 2, 3], 1) == [[1], [2], [3]]


def fibonacci(n: int) -> list[int]:
    """Return the first n Fibonacci numbers. They begin with 0 and 1.

    >>> fibonacci(6)
    [0, 1, 1, 2, 3, 5]
    """
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]


def check_fibonacci(candidate: Callable[..., Any]) -> None:
    assert candidate(6) == [0, 1, 1, 2, 3, 5]
    assert candidate(0) == []
    assert candidate(1) == [0]
    assert candidate(2) == [0, 1]
    assert candidate(30)[-1] == 514229


def caesar(text: str, shift: int) -> str:
    """Move every letter `shift` places on in the alphabet, from z on to a. The case stays, and so do other characters.

    >>> caesar("Zebra 1", 2)
    'Bgdtc 1'
    """
    moved = ""
    for letter in text:
        if "a" <= letter <= "z" or "A" <= letter <= "Z":
            first = ord("a") if letter.islower() else ord("A")
            letter = chr((ord(letter) - first + shift) % 26 + first)
        moved += letter
    return moved


def check_caesar(candidate: Callable[..., Any]) -> None:
    assert candidate("Zebra 1", 2) == "Bgdtc 1"
    assert candidate("abc", 0) == "abc"
    assert candidate("abc", -1) == "zab"
    assert candidate("Hello, World!", 26) == "Hello, World!"
    assert candidate(candidate("round trip", 11), -11) == "round trip"


def to_binary(n: int) -> str:
    """Return the binary digits of a whole number >= 0, without leading zeros.

    >>> to_binary(10)
    '1010'
    """
    return bin(n)[2:]


def check_to_binary(candidate: Callable[..., Any]) -> None:
    assert candidate(10) == "1010"
    assert candidate(0) == "0"
    assert candidate(1) == "1"
    assert candidate(255) == "11111111"


def transpose(rows: list[list[int]]) -> list[list[int]]:
    """Swap rows and columns of a table whose rows have the same length.

    >>> transpose([[1, 2, 3], [4, 5, 6]])
    [[1, 4], [2, 5], [3, 6]]
    """
    return [list(column) for column in zip(*rows, strict=True)]


def check_transpose(candidate: Callable[..., Any]) -> None:
    assert candidate([[1, 2, 3], [4, 5, 6]]) == [[1, 4], [2, 5], [3, 6]]
    assert candidate([[7]]) == [[7]]
    assert candidate([[1], [2]]) == [[1, 2]]
    assert candidate([]) == []


def is_balanced(text: str) -> bool:
    """Return whether every bracket of the text, (), [] or {}, is closed by its own kind and in the right order.

    >>> is_balanced("f(a[1], {2})")
    True
    >>> is_balanced("(]")
    False
    """
    closing = {")": "(", "]": "[", "}": "{"}
    still_open: list[str] = []
    for letter in text:
        if letter in closing.values():
            still_open.append(letter)
        elif letter in closing and (not still_open or still_open.pop() != closing[letter]):
            return False
    return not still_open


def check_is_balanced(candidate: Callable[..., Any]) -> None:
    assert candidate("f(a[1], {2})") is True
    assert candidate("(]") is False
    assert candidate("([)]") is False
    assert candidate("((") is False
    assert candidate("))") is False
    assert candidate("") is True


def merge_sorted(first: list[int], second: list[int]) -> list[int]:
    """Merge two ascending lists into one ascending list.

    >>> merge_sorted([1, 4, 6], [2, 4])
    [1, 2, 4, 4, 6]
    """
    return sorted(first + second)


def check_merge_sorted(candidate: Callable[..., Any]) -> None:
    assert candidate([1, 4, 6], [2, 4]) == [1, 2, 4, 4, 6]
    assert candidate([], [3]) == [3]
    assert candidate([], []) == []
    assert candidate([5, 6], [1, 2]) == [1, 2, 5, 6]


def roman(n: int) -> str:
    """Write a whole number from 1 to 3999 in Roman numerals.

    >>> roman(1994)
    'MCMXCIV'
    """
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    signs = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    written = ""
    for value, sign in zip(values, signs, strict=True):
        count, n = divmod(n, value)
        written += sign * count
    return written


def check_roman(candidate: Callable[..., Any]) -> None:
    assert candidate(1994) == "MCMXCIV"
    assert candidate(4) == "IV"
    assert candidate(58) == "LVIII"
    assert candidate(3999) == "MMMCMXCIX"
    assert candidate(1) == "I"


def longest_climb(numbers: list[int]) -> int:
    """Return the length of the longest stretch of neighbours in which every number is larger than the one before it.

    >>> longest_climb([3, 5, 8, 2, 4])
    3
    """
    best = length = 0
    for place, number in enumerate(numbers):
        length = length + 1 if place and number > numbers[place - 1] else 1
        best = max(best, length)
    return best


def check_longest_climb(candidate: Callable[..., Any]) -> None:
    assert candidate([3, 5, 8, 2, 4]) == 3
    assert candidate([]) == 0
    assert candidate([7]) == 1
    assert candidate([2, 2, 2]) == 1
    assert candidate([9, 1, 2, 3, 4, 0, 5]) == 4


def change_ways(amount: int, coins: list[int]) -> int:
    """Return in how many ways coins of the given values add up to the amount; their order does not count.

    There are coins enough of every value, and no value twice.

    >>> change_ways(5, [1, 2, 5])
    4
    """
    ways = [1] + [0] * amount
    for coin in coins:
        for total in range(coin, amount + 1):
            ways[total] += ways[total - coin]
    return ways[amount]


def check_change_ways(candidate: Callable[..., Any]) -> None:
    assert candidate(5, [1, 2, 5]) == 4
    assert candidate(3, [2]) == 0
    assert candidate(0, [1, 2]) == 1
    assert candidate(100, [1, 5, 10, 25, 50]) == 292
