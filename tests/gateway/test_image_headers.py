"""The header reader against Pillow, an independent reader that the gateway itself never uses."""

import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.errors import InvalidImage
from gateway.images import ImageLimits
from gateway.images.headers import (
    GIF_STEPS_MAX,
    SEGMENTS_MAX,
    ImageFormat,
    ImageHeader,
    check_file_size,
    check_header,
    read_header,
)

FORMATS = list(ImageFormat)
LIMITS = ImageLimits()
PARSER_CODES = {"image_parse_error", "unsupported_image_media_type"}


def draw(
    image_format: ImageFormat, width_px: int = 9, height_px: int = 7, mode: str = "RGB", **save: Any
) -> bytes:
    file = BytesIO()
    image = Image.radial_gradient("L").resize((width_px, height_px)).convert(mode)
    image.save(file, image_format.value, **save)
    return file.getvalue()


def animate(image_format: ImageFormat, frames: int = 2, **save: Any) -> bytes:
    pictures = [Image.new("RGB", (9, 7), (40 * n, 0, 200 - 40 * n)) for n in range(frames)]
    file = BytesIO()
    pictures[0].save(
        file, image_format.value, save_all=True, append_images=pictures[1:], duration=100, **save
    )
    return file.getvalue()


def read(body: bytes) -> ImageHeader:
    header = read_header(body, file_bytes=len(body))
    assert header is not None
    return header


def read_by_pillow(body: bytes) -> ImageHeader:
    with Image.open(BytesIO(body)) as image:
        kind = ImageFormat("jpeg" if image.format == "MPO" else str(image.format).lower())
        return ImageHeader(kind, *image.size, getattr(image, "is_animated", False))


def refusal(body: bytes, file_bytes: int | None = None) -> str | None:
    with pytest.raises(InvalidImage) as caught:
        read_header(body, file_bytes=len(body) if file_bytes is None else file_bytes)
    return caught.value.code


def verdict(body: bytes) -> ImageHeader | str | None:
    """Return the header, or the code of the refusal; any other exception is a failure."""
    try:
        return read(body)
    except InvalidImage as error:
        return error.code


def exif(padding_bytes: int, orientation: int = 1) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010E] = "x" * padding_bytes
    return block


SAVE_OPTIONS: dict[ImageFormat, st.SearchStrategy[dict[str, Any]]] = {
    ImageFormat.JPEG: st.fixed_dictionaries(
        {
            "progressive": st.booleans(),
            "quality": st.integers(1, 95),
            "subsampling": st.sampled_from([0, 1, 2]),
            "mode": st.sampled_from(["L", "RGB", "CMYK"]),
            "exif": st.builds(exif, st.sampled_from([0, 40_000]), st.integers(1, 8)),
            "icc_profile": st.sampled_from([b"", b"\xff\xc0" * 50_000]),
            "comment": st.binary(max_size=20),
        }
    ),
    ImageFormat.PNG: st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["1", "L", "LA", "I;16", "P", "RGB", "RGBA"]),
            "compress_level": st.integers(0, 9),
            "exif": st.builds(exif, st.sampled_from([0, 40_000])),
        }
    ),
    ImageFormat.WEBP: st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["RGB", "RGBA"]),
            "lossless": st.booleans(),
            "quality": st.integers(0, 100),
            "method": st.just(0),
            "exif": st.one_of(st.just(b""), st.builds(exif, st.just(40_000), st.integers(1, 8))),
        }
    ),
    ImageFormat.GIF: st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["1", "L", "P", "RGB", "RGBA"]),
            "interlace": st.booleans(),
            "comment": st.binary(max_size=600),
        }
    ),
}


@pytest.mark.parametrize("image_format", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), width_px=st.integers(1, 300), height_px=st.integers(1, 300))
def test_the_header_equals_pillows(
    image_format: ImageFormat, data: st.DataObject, width_px: int, height_px: int
) -> None:
    options = data.draw(SAVE_OPTIONS[image_format])

    body = draw(image_format, width_px, height_px, **options)

    assert read(body) == read_by_pillow(body)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (4097, 3), (255, 257)])
def test_odd_sizes_equal_pillows(image_format: ImageFormat, size: tuple[int, int]) -> None:
    body = draw(image_format, *size)

    assert read(body) == ImageHeader(image_format, *size) == read_by_pillow(body)


@pytest.mark.parametrize("image_format", [ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.GIF])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_an_animation_is_known_by_its_second_frame(image_format: ImageFormat, frames: int) -> None:
    body = animate(image_format, frames)

    assert read(body) == read_by_pillow(body)
    assert read(body).is_animated is (frames > 1)


@pytest.mark.parametrize("options", [{"loop": 0}, {"disposal": 2}, {"comment": b"," * 300}, {}])
def test_a_gifs_frames_are_counted_and_its_extensions_are_not(options: dict[str, Any]) -> None:
    assert read(animate(ImageFormat.GIF, 3, **options)).is_animated
    assert not read(animate(ImageFormat.GIF, 1, **options)).is_animated


def test_a_png_with_a_picture_beside_its_animation_is_animated() -> None:
    assert read(animate(ImageFormat.PNG, 3, default_image=True)).is_animated


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_the_orientation_is_not_applied(image_format: ImageFormat, orientation: int) -> None:
    body = draw(image_format, 90, 70, exif=exif(0, orientation))

    assert read(body) == ImageHeader(image_format, 90, 70)


# --- a part of the file


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_cut_anywhere_is_refused_or_read_right(image_format: ImageFormat) -> None:
    body = draw(image_format)
    whole = read(body)

    verdicts = {verdict(body[:size]) for size in range(len(body))}

    assert verdicts <= {whole, *PARSER_CODES}


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_prefix_gives_the_answer_or_asks_for_more(image_format: ImageFormat) -> None:
    body = draw(image_format, 60, 50)

    answers = [read_header(body[:size], file_bytes=len(body)) for size in range(len(body) + 1)]

    enough = answers.index(read(body))
    assert answers[:enough] == [None] * enough
    assert answers[enough:] == [read(body)] * (len(body) + 1 - enough)


def test_a_prefix_of_a_gif_never_calls_an_animation_still() -> None:
    body = animate(ImageFormat.GIF)

    answers = [read_header(body[:size], file_bytes=len(body)) for size in range(len(body))]

    assert {answer.is_animated for answer in answers if answer} == {True}


@pytest.mark.parametrize(
    ("image_format", "head_bytes", "options"),
    [
        (ImageFormat.PNG, 41, {}),
        (ImageFormat.WEBP, 30, {"lossless": False}),
        (ImageFormat.WEBP, 25, {"lossless": True}),
        (ImageFormat.JPEG, 700, {}),
        (ImageFormat.JPEG, 42_000, {"exif": exif(40_000)}),
    ],
)
def test_a_short_prefix_is_enough(
    image_format: ImageFormat, head_bytes: int, options: dict[str, Any]
) -> None:
    body = draw(image_format, 300, 200, **options)

    assert read_header(body[:head_bytes], file_bytes=len(body)) == read(body)


@pytest.mark.parametrize("image_format", [ImageFormat.PNG, ImageFormat.JPEG, ImageFormat.WEBP])
def test_a_file_shorter_than_its_own_lengths_is_refused_by_its_head(
    image_format: ImageFormat,
) -> None:
    head = draw(image_format, 300, 200, exif=exif(40_000))[:1000]

    assert refusal(head, file_bytes=30_000) == "image_parse_error"


def test_a_png_that_is_cut_inside_its_data_is_refused() -> None:
    assert refusal(draw(ImageFormat.PNG)[:-30]) == "image_parse_error"


def test_a_jpeg_without_its_end_is_left_to_the_decoder() -> None:
    body = draw(ImageFormat.JPEG, 300, 200)

    assert read(body[:-100]) == read(body)


# --- what is not taken


@pytest.mark.parametrize(
    "body",
    [
        b"II*\x00\x08\x00\x00\x00" + bytes(20),
        b"MM\x00*\x00\x00\x00\x08" + bytes(20),
        b"BM" + bytes(60),
        b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(20),
        b"\xff\x4f\xff\x51" + bytes(20),
        b"\x00\x00\x00\x1cftypavif" + bytes(20),
        b"\x00\x00\x00\x18ftypheic" + bytes(20),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='7'/>",
        b"<?xml version='1.0'?><svg/>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"SIMPLE  =                    T",
        b"<!doctype html><title>no</title>",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"\x89PN",
        b"\xff\xd8",
        b"x",
    ],
)
def test_other_formats_are_not_supported(body: bytes) -> None:
    assert refusal(body) == "unsupported_image_media_type"


@pytest.mark.parametrize("image_format", FORMATS)
@settings(max_examples=150, deadline=None)
@given(rest=st.binary(max_size=400))
def test_junk_after_a_signature_never_raises_anything_else(
    image_format: ImageFormat, rest: bytes
) -> None:
    signature = draw(image_format)[: 12 if image_format is ImageFormat.WEBP else 8]

    answer = verdict(signature + rest)

    assert answer in PARSER_CODES or isinstance(answer, ImageHeader)


@pytest.mark.parametrize("image_format", FORMATS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_raise_anything_else(
    image_format: ImageFormat, data: st.DataObject
) -> None:
    body = bytearray(draw(image_format))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    answer = verdict(bytes(body))

    assert answer in PARSER_CODES or isinstance(answer, ImageHeader)


# --- broken headers, by hand


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width_px: int, height_px: int, *before_data: bytes) -> bytes:
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + ihdr + b"".join(before_data) + rest


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def frame(width_px: int, height_px: int, *, marker: int = 0xC0, bits: int = 8) -> bytes:
    components = b"\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    return segment(marker, struct.pack(">BHH", bits, height_px, width_px) + components)


SCAN = segment(0xDA, b"\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00") + b"\x00\xff\xd9"


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + SCAN


def gif(*blocks: bytes, screen: tuple[int, int] = (9, 7)) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0, 0, 0) + b"".join(blocks)


def gif_image(left: int, top: int, width_px: int, height_px: int) -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width_px, height_px, 0) + b"\x02\x01\x00\x00"


def spoil(body: bytes, position: int, bits: int) -> bytes:
    return body[:position] + bytes([body[position] ^ bits]) + body[position + 1 :]


def test_a_damaged_ihdr_is_refused() -> None:
    body = spoil(png(9, 7), 19, 0x01)  # the width, and not its checksum

    assert refusal(body) == "image_parse_error"


def test_a_png_that_states_its_size_twice_is_refused_where_pillow_believes_the_second() -> None:
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 1120, 1120, 8, 2, 0, 0, 0))
    body = png(560, 560, second)

    assert read_by_pillow(body).width_px == 1120
    assert refusal(body) == "image_parse_error"


def test_a_jpeg_that_states_its_size_twice_is_refused_where_pillow_believes_the_second() -> None:
    body = jpeg(frame(560, 560), frame(1120, 1120))

    assert read_by_pillow(body).width_px == 1120
    assert refusal(body) == "image_parse_error"


def test_a_gif_whose_image_is_larger_than_its_screen_counts_as_the_image() -> None:
    body = gif(gif_image(10, 20, 1000, 500), b";", screen=(1, 1))

    assert read(body) == read_by_pillow(body) == ImageHeader(ImageFormat.GIF, 1010, 520)


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB])
@pytest.mark.parametrize("bits", [8, 12])
def test_every_kind_of_single_jpeg_frame_is_read(marker: int, bits: int) -> None:
    body = jpeg(frame(90, 70, marker=marker, bits=bits))

    assert read(body) == ImageHeader(ImageFormat.JPEG, 90, 70)


@pytest.mark.parametrize("marker", [0xC5, 0xC7, 0xC8, 0xCD, 0xCF, 0xDE, 0xD8, 0xD9, 0xF0, 0x02])
def test_markers_that_no_decoder_follows_are_refused(marker: int) -> None:
    assert refusal(jpeg(segment(marker, b"\x00" * 8), frame(90, 70))) == "image_parse_error"


def test_a_frame_header_inside_a_metadata_block_is_not_the_frame() -> None:
    body = jpeg(segment(0xE1, b"Exif\x00\x00" + frame(1, 1)), frame(90, 70))

    assert read(body) == ImageHeader(ImageFormat.JPEG, 90, 70) == read_by_pillow(body)


def test_markers_without_a_length_are_skipped() -> None:
    body = jpeg(b"\xff\x01\xff\xd0", frame(90, 70))

    assert read(body) == ImageHeader(ImageFormat.JPEG, 90, 70)


def test_fill_bytes_and_junk_between_jpeg_segments_are_skipped() -> None:
    body = jpeg(b"\xff\xff\xff", segment(0xFE, b"hello"), b"\x00\x00junk\xff\x00", frame(90, 70))

    assert read(body) == ImageHeader(ImageFormat.JPEG, 90, 70) == read_by_pillow(body)


@pytest.mark.parametrize(
    "body",
    [
        b"GIF89a",
        b"GIF89a" + bytes(7) + b";",
        gif(b"junk"),
        jpeg(),
        jpeg(frame(0, 7)),
        jpeg(frame(9, 0)),
        jpeg(b"\xff\xe0\x00\x01", frame(9, 7)),
        png(0, 7),
        png(9, 7, chunk(b"IEND", b"")),
        b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"x" * 13),
        b"RIFF\x16\x00\x00\x00WEBPICCP\x0a\x00\x00\x00" + bytes(10),
        spoil(draw(ImageFormat.WEBP), 20, 0x01),  # not a key frame
        spoil(draw(ImageFormat.WEBP), 25, 0x01),  # not the start code
        spoil(draw(ImageFormat.WEBP, lossless=True), 20, 0x01),  # not the signature
        spoil(draw(ImageFormat.WEBP, lossless=True), 24, 0x20),  # not version 0
    ],
)
def test_broken_headers_are_refused(body: bytes) -> None:
    assert refusal(body) == "image_parse_error"


@pytest.mark.parametrize(
    "body",
    [
        png(9, 7, *[chunk(b"tEXt", b"")] * SEGMENTS_MAX),
        jpeg(*[segment(0xFE, b"")] * SEGMENTS_MAX, frame(9, 7)),
        gif(*[b"!\xfe\x01x\x02xx\x00"] * (GIF_STEPS_MAX // 3), gif_image(0, 0, 9, 7)),
        gif(b"!\xfe" + b"\x01x\x02xx" * (GIF_STEPS_MAX // 2) + b"\x00", gif_image(0, 0, 9, 7)),
    ],
    ids=["png", "jpeg", "gif blocks", "gif sub-blocks"],
)
def test_a_walk_through_a_file_has_an_end(body: bytes) -> None:
    assert refusal(body) == "image_parse_error"


def test_a_large_gif_is_walked_in_leaps() -> None:
    for size in (254, 255):
        data = bytes([size]) + bytes(size)
        body = gif(b"," + bytes(9) + b"\x02" + data * 80_000 + b"\x00", b";")

        assert read(body) == ImageHeader(ImageFormat.GIF, 9, 7)


# --- limits


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (ImageHeader(ImageFormat.PNG, 16_385, 1), "image_too_large"),
        (ImageHeader(ImageFormat.PNG, 1, 100_000), "image_too_large"),
        (ImageHeader(ImageFormat.PNG, 65_535, 65_535), "image_too_large"),
        (ImageHeader(ImageFormat.PNG, 8001, 8000), "image_too_large"),
        (ImageHeader(ImageFormat.GIF, 9, 7, is_animated=True), "unsupported_image_media_type"),
    ],
)
def test_a_header_outside_the_limits_is_refused(header: ImageHeader, code: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        check_header(header, LIMITS)

    assert caught.value.code == code


@pytest.mark.parametrize("size", [(16_384, 1), (1, 1), (8000, 8000)])
def test_a_header_at_the_limits_is_taken(size: tuple[int, int]) -> None:
    check_header(ImageHeader(ImageFormat.PNG, *size), LIMITS)


def test_a_side_below_the_minimum_is_refused() -> None:
    with pytest.raises(InvalidImage) as caught:
        check_header(ImageHeader(ImageFormat.PNG, 100, 27), ImageLimits(side_px_min=28))

    assert caught.value.code == "image_too_small"


@pytest.mark.parametrize(
    ("file_bytes", "code"), [(0, "empty_image_file"), (20 * 2**20 + 1, "image_file_too_large")]
)
def test_a_file_outside_the_limits_is_refused(file_bytes: int, code: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        check_file_size(file_bytes, LIMITS)

    assert caught.value.code == code
