"""What image-reader sees and says, apart from the engine that finds the text."""

import pytest
from PIL import Image

from demo.colours import Colour, main_colours
from demo.completion import tell
from demo.reading import Fragment, Reading, lines_of, read
from demo.refusals import BadImage
from demo.wording import Language, describe, language_of
from gateway.counting import counters
from tests.demo.conftest import SIGN, encoded

LATIN = "The text in it reads: Exit Y12, turn right."


class Blind:
    """A finder for pictures without text."""

    def find(self, picture: Image.Image) -> list[Fragment]:
        return []


def fragment(text: str, left: float, top: float, *, score: float = 0.99) -> Fragment:
    return Fragment(text, score, left, top, bottom=top + 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_size_and_format_are_those_of_the_image(kind: str) -> None:
    reading = read(encoded(Image.new("RGB", (70, 30), "navy"), kind), Blind())

    assert (reading.format, reading.size_px) == (kind, (70, 30))


@pytest.mark.parametrize(("orientation", "size_px"), [(1, (70, 30)), (3, (70, 30)), (6, (30, 70))])
def test_the_size_is_as_it_is_seen(orientation: int, size_px: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    reading = read(encoded(Image.new("RGB", (70, 30)), "JPEG", exif=exif), Blind())

    assert reading.size_px == size_px


def test_an_image_is_turned_upright_before_it_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("RGB", (60, 40), "white")
    lying.paste("red", (0, 0, 20, 40))  # the left, which is the top once it is turned
    seen: list[Image.Image] = []

    class Watching(Blind):
        def find(self, picture: Image.Image) -> list[Fragment]:
            seen.append(picture)
            return []

    read(encoded(lying, exif=exif), Watching())

    assert seen[0].size == (40, 60)
    assert seen[0].getpixel((20, 5)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_pixel_is_read(mode: str) -> None:
    assert read(encoded(Image.new(mode, (40, 40))), Blind()).size_px == (40, 40)


def test_what_is_transparent_is_white() -> None:
    reading = read(encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 0))), Blind())

    assert [share.colour for share in reading.colours] == [Colour.WHITE]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_image_file"),
        (b"<svg/>", "unsupported_image_media_type"),
        (encoded(Image.new("RGB", (9, 9)), "BMP"), "unsupported_image_media_type"),
        (SIGN.read_bytes()[:20_000], "image_parse_error"),
        (encoded(Image.effect_noise((90, 90), 50), "JPEG")[:2000], "image_parse_error"),
        (encoded(Image.effect_noise((90, 90), 50), "GIF")[:2000], "image_parse_error"),
        (encoded(Image.effect_noise((90, 90), 50), "WEBP")[:2000], "image_parse_error"),
        (encoded(Image.new("1", (8000, 8000))), "image_too_large"),
        (encoded(Image.new("1", (11_000, 11_000))), "image_too_large"),
    ],
    ids=["empty", "svg", "bmp", "half png", "half jpeg", "half gif", "half webp", "large", "bomb"],
)
def test_what_cannot_be_read_is_refused_with_its_code(content: bytes, code: str) -> None:
    with pytest.raises(BadImage) as refused:
        read(content, Blind())

    assert refused.value.code == code


def test_fragments_side_by_side_are_one_line() -> None:
    found = [fragment("42.00", 200, 12), fragment("Tax", 0, 50), fragment("Total", 0, 10)]

    assert lines_of(found) == ("Total  42.00", "Tax")


@pytest.mark.parametrize(
    ("text", "score", "is_kept"),
    [
        ("0", 0.99, False),
        ("8", 0.99, False),
        ("停", 0.95, True),
        ("口", 0.7, False),
        ("停車", 0.7, True),
    ],
)
def test_a_lone_character_is_noise_unless_it_is_surely_a_word(
    text: str, score: float, *, is_kept: bool
) -> None:
    assert bool(lines_of([fragment(text, 0, 0, score=score)])) is is_kept


def test_main_colours_are_named_largest_first_without_mixtures() -> None:
    picture = Image.new("RGB", (100, 100), (20, 54, 112))
    picture.paste((255, 196, 12), (0, 0, 100, 30))
    picture.paste((255, 255, 255), (0, 98, 100, 100))  # too little to name

    blue, yellow = main_colours(picture)

    assert (blue.colour, yellow.colour) == (Colour.DARK_BLUE, Colour.YELLOW)
    assert (blue.percent, yellow.percent) == pytest.approx((68, 30), abs=1)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((135, 206, 235), "light blue"),
        ((0, 0, 128), "dark blue"),
        ((34, 139, 34), "green"),
        ((128, 0, 0), "dark red"),
        ((255, 127, 80), "orange"),
        ((192, 192, 192), "light grey"),
        ((75, 0, 130), "purple"),
        ((210, 180, 140), "beige"),
    ],
)
def test_a_colour_has_the_name_that_people_use(rgb: tuple[int, int, int], name: str) -> None:
    assert main_colours(Image.new("RGB", (9, 9), rgb))[0].colour.english == name


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("這張圖裡面有什麼?", Language.CHINESE),
        ("請用 OCR 讀這張 PNG 的文字", Language.CHINESE),
        ("What is in this image?", Language.ENGLISH),
        ("What does 出口 mean?", Language.ENGLISH),
        ("この画像には何がありますか", Language.ENGLISH),
        ("¿Qué hay?", Language.ENGLISH),
        ("", Language.ENGLISH),
    ],
)
def test_the_language_is_that_of_most_words(text: str, language: Language) -> None:
    assert language_of(text) is language


@pytest.mark.parametrize("language", Language)
def test_an_image_with_nothing_in_it_is_described_as_such(language: Language) -> None:
    reading = Reading("PNG", 5, 7, lines=(), colours=())

    text = describe([reading], language, is_follow_up=False)

    nothing = "讀不到文字" if language is Language.CHINESE else "No text can be read"
    assert nothing in text
    assert "5 × 7" in text


def test_what_is_told_in_full_counts_its_end_token() -> None:
    telling = tell(LATIN)

    assert telling.text == LATIN
    assert telling.tokens == counters.get("llama-3.2-vision").count_text(LATIN) + 1
    assert telling.finish_reason == "stop"


@pytest.mark.parametrize("tokens_max", [1, 3, 7])
def test_a_telling_has_the_tokens_it_may_have(tokens_max: int) -> None:
    telling = tell(LATIN, tokens_max=tokens_max)

    assert (telling.tokens, telling.finish_reason) == (tokens_max, "length")
    assert LATIN.startswith(telling.text)
    assert len(telling.pieces) == tokens_max


def test_the_end_token_needs_room_too() -> None:
    tokens = tell(LATIN).tokens

    assert tell(LATIN, tokens_max=tokens).finish_reason == "stop"
    assert tell(LATIN, tokens_max=tokens - 1).finish_reason == "length"


@pytest.mark.parametrize("tokens_max", range(1, 12))
def test_a_character_is_never_told_in_parts(tokens_max: int) -> None:
    telling = tell("龘靐齉鱻", tokens_max=tokens_max)

    assert "龘靐齉鱻".startswith(telling.text)


def test_the_first_stop_ends_the_telling_and_its_tokens_count() -> None:
    telling = tell(LATIN, stops=["right", "reads", "absent"])

    assert telling.text == "The text in it "
    assert telling.finish_reason == "stop"
    assert telling.tokens == counters.get("llama-3.2-vision").count_text("The text in it reads")
