"""K sorted token ids in a fixed number of bytes: Elias-Fano coding.

The low bits of every id are kept as they are; the high bits, which only grow, as a string in which the i-th one stands
at (high part of id i) + i. That is within two bits an id of the least that any code for a set can take: 64 ids out of
151,936 take 106 bytes, where 16 bits each would take 128 and not suffice.

Sebastiano Vigna, Quasi-succinct indices, 2013, arXiv:1206.4300, section 3.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SortedIds:
    """The code for rows of `count` ids, each in ``0 .. largest``, in ascending order, repetitions allowed."""

    count: int
    largest: int

    @property
    def low_bits(self) -> int:
        """Bits of each id that are stored as they are."""
        return max(0, ((self.largest + 1) // self.count).bit_length() - 1)

    @property
    def high_bytes(self) -> int:
        """Bytes of a row's string of high parts."""
        return -(-(self.count + (self.largest >> self.low_bits)) // 8)

    @property
    def low_bytes(self) -> int:
        """Bytes of a row's low parts."""
        return -(-self.count * self.low_bits // 8)

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.high_bytes + self.low_bytes

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """``(N, count)`` ids to ``(N, width)`` bytes."""
        rows = np.arange(len(ids))[:, None]
        high = np.zeros((len(ids), 8 * self.high_bytes), dtype=np.uint8)
        high[rows, (ids >> self.low_bits) + np.arange(self.count)] = 1
        low = (ids[:, :, None] >> np.arange(self.low_bits)) & 1
        low = low.reshape(len(ids), self.count * self.low_bits).astype(np.uint8)
        return np.concatenate([np.packbits(bits, axis=1, bitorder="little") for bits in (high, low)], axis=1)

    def decode(self, code: np.ndarray) -> np.ndarray:
        """``(N, width)`` bytes to ``(N, count)`` ids, int64.

        Raises:
            ValueError: a row is not what `count` ids become.
        """
        bits = np.unpackbits(code[:, : self.high_bytes], axis=1, bitorder="little")
        ones, begins = np.flatnonzero(bits), np.arange(len(code)) * bits.shape[1]
        if len(ones) != len(code) * self.count:
            raise ValueError(f"not {self.count} ids")
        ones = ones.reshape(len(code), self.count)
        # As many in all may be too few in one row and too many in the next.
        if (ones[:, 0] < begins).any() or (ones[:, -1] >= begins + bits.shape[1]).any():
            raise ValueError(f"not {self.count} ids")
        high = ones - begins[:, None] - np.arange(self.count)
        return (high << self.low_bits) | self._low(code[:, self.high_bytes :])

    def _low(self, code: np.ndarray) -> np.ndarray:
        """Four bytes from where an id's low bits begin hold all of them: there are at most 24."""
        if self.low_bits == 0:
            return np.zeros((len(code), self.count), dtype=np.int64)
        padded = np.zeros((len(code), self.low_bytes + 4), dtype=np.uint8)
        padded[:, : self.low_bytes] = code
        first, shift = np.divmod(np.arange(self.count) * self.low_bits, 8)
        window = sum(padded[:, first + byte].astype(np.int64) << (8 * byte) for byte in range(4))
        return (window >> shift) & ((1 << self.low_bits) - 1)
