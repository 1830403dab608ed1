# SPDX-License-Identifier: GPL-2.0-only
"""
What CPython runs in the sample python.parquet: it builds large data of several kinds and frees it.

Words in a list and a dictionary, an index of them that grows by doubling, large byte buffers that come
and go, and two forked children, of which one only reads what it inherited and one also changes it.
"""

import os
import sys
import zlib


def words(count: int, seed: int = 1) -> list[str]:
    """Return pseudo-random words, the same in every run."""
    result = []
    for _ in range(count):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        result.append(f"{seed:x}-{seed % 9973}")
    return result


def index(texts: list[str]) -> dict[str, list[int]]:
    """Map the last letters of the words to their places."""
    places: dict[str, list[int]] = {}
    for at, text in enumerate(texts):
        places.setdefault(text[-3:], []).append(at)
    return places


def buffers(count: int, size: int) -> int:
    """Fill large buffers, keep two at a time; return a checksum."""
    kept: list[bytearray] = []
    total = 0
    for number in range(count):
        kept.append(bytearray(size))
        kept[-1][:: 509 + number] = bytes(len(range(0, size, 509 + number)))
        total = zlib.crc32(kept[-1][: 1 << 16], total)
        del kept[:-2]
    return total


def child(texts: list[str], change: bool) -> int:
    """Fork; the child looks at every seventh word, or rewrites part of the list. Return its status."""
    pid = os.fork()
    if not pid:
        if change:
            texts[: len(texts) // 3] = [text.upper() for text in texts[: len(texts) // 3]]
        os._exit(sum(map(len, texts[::7])) & 1)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """Run it all and print one line."""
    scale = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    texts = words(3000 * scale)
    places = index(texts)
    check = buffers(12, 60_000 * scale)
    codes = [child(texts, change) for change in (False, True)]
    squares = {number: number * number for number in range(2000 * scale)}
    del texts
    joined = ",".join(map(str, squares.values())).encode()
    packed = zlib.compress(joined, 1)
    print(len(places), check, codes, len(squares), len(packed))


if __name__ == "__main__":
    main()
