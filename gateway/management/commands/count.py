"""What a request would be counted as, part by part, without sending it anywhere."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from gateway.counting import counters
from gateway.counting.counters import Counter, ImageCount, UnknownCounter
from gateway.counting.messages import IMAGE, PromptMessage
from gateway.errors import InvalidImage
from gateway.images import ImageLimits
from gateway.images.headers import ImageHeader, check_file_size, check_header, read_header
from gateway.models import Model

# Known without a catalog: the model of AFS's own examples.
MODELS_KNOWN: Final = {"llama3.2-ffm-11b-v-32k-chat": "llama-3.2-vision"}


@dataclass(frozen=True, slots=True)
class CountedImage:
    file: str
    header: ImageHeader
    count: ImageCount

    def as_json(self) -> dict[str, Any]:
        canvas = self.count.canvas
        return {
            "file": self.file,
            "format": self.header.format.value,
            "width_px": self.header.width_px,
            "height_px": self.header.height_px,
            "canvas_width_px": canvas.width_px,
            "canvas_height_px": canvas.height_px,
            "tiles": canvas.tiles,
            "tokens": self.count.tokens,
        }

    def line(self) -> str:
        canvas, header = self.count.canvas, self.header
        tiles = f"{canvas.tiles} tile{'s' if canvas.tiles > 1 else ''}"
        return (
            f"{self.file}: {header.width_px}×{header.height_px} px on a canvas of "
            f"{canvas.width_px}×{canvas.height_px} px, {tiles}"
        )


@dataclass(frozen=True, slots=True)
class Count:
    """A request's tokens, and where they come from. `tokens_in_words` are the bare texts'."""

    model: str
    counter: Counter
    images: list[CountedImage]
    tokens_in_words: int
    tokens_in_text: int

    @property
    def tokens_in_image(self) -> int:
        return sum(image.count.tokens for image in self.images)

    @property
    def tokens_in(self) -> int:
        return self.tokens_in_text + self.tokens_in_image

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "counter": self.counter.name,
            "counter_version": self.counter.version,
            "is_exact": self.counter.is_exact,
            "images": [image.as_json() for image in self.images],
            "tokens_in_text": self.tokens_in_text,
            "tokens_in_image": self.tokens_in_image,
            "tokens_in": self.tokens_in,
        }

    def lines(self) -> Iterator[str]:
        kind = "exact" if self.counter.is_exact else "an estimate: the backend's count bills"
        yield f"{self.model}: counter {self.counter.name} {self.counter.version}, {kind}"
        for image in self.images:
            yield f"{image.count.tokens:>8}  image  {image.line()}"
        words, template = self.tokens_in_words, self.tokens_in_text - self.tokens_in_words
        yield f"{self.tokens_in_text:>8}  text   words {words}, chat template {template}"
        yield f"{self.tokens_in:>8}  total"


class Command(BaseCommand):
    help = (
        "Count the tokens of a request: images and text, with the parts. Sends nothing, and needs "
        "no database for a counter's name."
    )
    requires_system_checks = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "model",
            metavar="MODEL",
            help=f"a model's public name, or {', '.join(counters.names())}",
        )
        parser.add_argument("--text", help="what the user writes")
        parser.add_argument("--system", help="the system message")
        parser.add_argument(
            "--image",
            metavar="FILE",
            action="append",
            default=[],
            help="an image, placed before the text; may be given several times",
        )
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["text"] is None and options["system"] is None and not options["image"]:
            raise CommandError("There is nothing to count: give --text, --system or --image.")
        count = _count(
            options["model"], options["image"], system=options["system"], text=options["text"]
        )
        if options["json"]:
            self.stdout.write(json.dumps(count.as_json(), ensure_ascii=False, indent=2))
            return
        for line in count.lines():
            self.stdout.write(line)


def _count(model: str, files: list[str], *, system: str | None, text: str | None) -> Count:
    counter = _counter_for(model)
    images = [_counted_image(file, counter) for file in files]
    texts = () if text is None else (text,)
    messages = [PromptMessage("user", (*(IMAGE for _ in images), *texts))]
    if system is not None:
        messages.insert(0, PromptMessage("system", (system,)))
    return Count(
        model=model,
        counter=counter,
        images=images,
        tokens_in_words=sum(counter.count_text(message.text) for message in messages),
        tokens_in_text=counter.count_prompt(messages),
    )


def _counter_for(name: str) -> Counter:
    """Return the counter of this name, or that of the model of this public name."""
    if name in counters.names():
        return counters.get(name)
    try:
        found = Model.objects.filter(name=name).values_list("counter", flat=True).first()
        why = "There is no such model"
    except DatabaseError:
        found, why = None, "The catalog cannot be read"
    try:
        return counters.get(found or MODELS_KNOWN.get(name) or name)
    except UnknownCounter as error:
        raise CommandError(f"{why}: {name!r}. {error}") from None


def _counted_image(file: str, counter: Counter) -> CountedImage:
    try:
        header = _header(Path(file))
    except InvalidImage as error:
        raise CommandError(f"{file}: {error.message}") from None
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}.") from None
    return CountedImage(file, header, counter.count_image(header.width_px, header.height_px))


def _header(path: Path) -> ImageHeader:
    limits = ImageLimits(
        file_bytes_max=settings.IMAGE_FILE_BYTES_MAX,
        pixels_max=settings.IMAGE_PIXELS_MAX,
        side_px_max=settings.IMAGE_SIDE_PX_MAX,
    )
    check_file_size(path.stat().st_size, limits)
    head = path.read_bytes()
    header = read_header(head, file_bytes=len(head))
    assert header is not None, "a whole file has a header or is refused"
    check_header(header, limits)
    return header
