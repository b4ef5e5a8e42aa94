"""Base64 images, lifted out of a JSON body before it is parsed and put back when it is written.

A JSON parser looks at each byte of a string, once for every level that it is nested in: 2 ms for an image of
1 MB. Nobody reads these strings but `gateway.images`, so a short mark stands in their place meanwhile.
"""

import secrets
from typing import TypeAlias

Piece: TypeAlias = bytes | memoryview

START = b";base64,"
PREFIX_BYTES_MAX = 256  # from the string's quote to the payload
STRING_BYTES_MIN = 4096  # shorter ones are not worth it


class Lifted:
    """A body without its long data URLs: `document` is JSON of the same shape.

    The marks hold 64 random bits, so that no client can write one.
    """

    def __init__(self, body: bytes, *, bytes_min: int = STRING_BYTES_MIN) -> None:
        self._bytes_min = bytes_min
        self._strings: dict[bytes, memoryview] = {}
        self._taken: set[bytes] = set()
        self.document = self._lift(body) if START in body else body

    def __bool__(self) -> bool:
        return bool(self._strings)

    @property
    def is_taken(self) -> bool:
        """Return whether every string that was lifted was asked for: if not, one was no image."""
        return len(self._taken) == len(self._strings)

    def take(self, mark: bytes) -> memoryview | None:
        """Return the string that the mark stands for, None if it is no mark."""
        string = self._strings.get(mark)
        if string is not None:
            self._taken.add(mark)
        return string

    def put_back(self, document: bytes) -> list[Piece]:
        """Return the document with the strings in the place of their marks, in pieces: nothing long is copied."""
        parts: list[Piece] = []
        for mark, string in self._strings.items():
            before, found, after = document.partition(mark)
            if found:
                parts += (before, string)
                document = after
        return [*parts, document]

    def _lift(self, body: bytes) -> bytes:
        token = secrets.token_hex(8).encode()
        view = memoryview(body)
        parts: list[Piece] = []
        done = position = 0
        while (found := body.find(START, position)) >= 0:
            begin = body.rfind(b'"', max(done, found - PREFIX_BYTES_MAX), found) + 1
            end = position = body.find(b'"', found)
            if end < 0:
                break  # no JSON; the parser will say so
            if not begin or end - begin < self._bytes_min or body.find(b"\\", begin, end) >= 0:
                continue
            mark = b"%b-%d" % (token, len(self._strings))
            self._strings[mark] = view[begin:end]
            parts += (view[done:begin], mark)
            done = end
        return b"".join((*parts, view[done:])) if parts else body
