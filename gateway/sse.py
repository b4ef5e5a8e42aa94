"""Server-sent events as chat completions use them: bytes in, whole events out, within a bound."""

from collections.abc import Iterator

DATA = b"data:"
OBJECT = b"data: {"
DONE = b"[DONE]"
END = b"\n\n"  # of an event


class StreamBroken(Exception):
    """The backend's stream is not what it should be."""


class EventSplitter:
    """Cuts a stream of bytes into events, wherever the network cut it. Holds at most `event_bytes_max` bytes."""

    def __init__(self, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that are now complete, without the empty lines that end them. Line ends become \\n."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            # A lone \r at the very end may be half of \r\n: it waits in the rest, being no event's end.
            data = data.replace(b"\r\n", b"\n")
        events = data.split(END)
        self._rest = events.pop()
        # Whole events that came with it pass first; the next reading finds it too long as well.
        if len(self._rest) > self._event_bytes_max and not events:
            raise StreamBroken(f"an event is longer than {self._event_bytes_max} bytes")
        return events if all(events) else [event for event in events if event]

    @property
    def rest(self) -> bytes:
        """Return what came after the last whole event: not empty if the stream broke off inside one."""
        return self._rest.strip()


def payload(event: bytes) -> bytes:
    """Return the event's data without its field name; b"" for a comment. Several data lines are joined."""
    if b"\n" not in event:
        if event.startswith(OBJECT):  # nearly all
            return event[6:]
        if event.startswith(DATA):
            return event[5:].strip()
    return b"\n".join(_data_lines(event)).strip()


def _data_lines(event: bytes) -> Iterator[bytes]:
    for line in event.split(b"\n"):
        if line.startswith(DATA):
            yield line[5:].removeprefix(b" ")
