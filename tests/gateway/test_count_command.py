"""`manage.py count`: what a person sees, with and without a catalog."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from PIL import Image

from gateway.models import Model

SEED_MODEL = "llama3.2-ffm-11b-v-32k-chat"
QUESTION = "這張圖裡面有什麼?"

Picture = Callable[[str, int, int], str]


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    """Draw an image file and return its path."""

    def draw(name: str, width_px: int, height_px: int) -> str:
        path = tmp_path / name
        Image.new("RGB", (width_px, height_px)).save(path)
        return str(path)

    return draw


def count(*arguments: str) -> str:
    printed = StringIO()
    call_command("count", *arguments, stdout=printed)
    return printed.getvalue()


def test_the_seeds_request_is_printed_with_its_parts(picture: Picture) -> None:
    photo = picture("photo.jpg", 1280, 960)
    lines = count("llama-3.2-vision", "--image", photo, "--text", QUESTION).splitlines()
    assert lines == [
        "llama-3.2-vision: counter llama-3.2-vision 1, exact",
        f"    6404  image  {photo}: 1280×960 px on a canvas of 1120×1120 px, 4 tiles",
        "      20  text   words 9, chat template 11",
        "    6424  total",
    ]


def test_json_gives_every_figure(picture: Picture) -> None:
    first, second = picture("a.png", 600, 1200), picture("b.webp", 200, 280)
    printed = count("generic", "--image", first, "--image", second, "--system", "Hi", "--json")
    counted = json.loads(printed)
    assert [image["tiles"] for image in counted["images"]] == [2, 1]
    assert counted["images"][0] == {
        "file": first,
        "format": "png",
        "width_px": 600,
        "height_px": 1200,
        "canvas_width_px": 560,
        "canvas_height_px": 1120,
        "tiles": 2,
        "tokens": 3202,
    }
    assert counted["tokens_in"] == counted["tokens_in_text"] + 3202 + 1601
    assert counted["is_exact"] is False


def test_a_system_message_is_counted_too() -> None:
    without = json.loads(count("llama-3.2-vision", "--text", "Hi", "--json"))
    and_system = count("llama-3.2-vision", "--text", "Hi", "--system", "Be kind.", "--json")
    assert json.loads(and_system)["tokens_in_text"] == without["tokens_in_text"] + 3


@pytest.mark.django_db
def test_a_model_is_counted_as_the_catalog_says() -> None:
    Model.objects.create(name="house-vlm", counter="generic")
    assert json.loads(count("house-vlm", "--text", "Hi", "--json"))["counter"] == "generic"


@pytest.mark.django_db
def test_an_unknown_model_is_answered_with_the_counters_there_are() -> None:
    with pytest.raises(CommandError, match=r"no such model: 'gpt-9'.*llama-3\.2-vision, generic"):
        count("gpt-9", "--text", "Hi")


def test_it_needs_no_database_for_the_seeds_model() -> None:
    environment = {**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    done = subprocess.run(
        [sys.executable, "manage.py", "count", SEED_MODEL, "--text", "Hi", "--json"],
        cwd=settings.BASE_DIR,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["counter"] == "llama-3.2-vision"


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(CommandError, match="give --text, --system or --image"):
        count("generic")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "No such file"),
        ("empty.png", b"", "is empty"),
        ("notes.png", b"just some words here", "not a PNG, JPEG, WebP or static GIF"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", "cannot be read"),
    ],
)
def test_a_file_that_is_no_image_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=message) as refusal:
        count("generic", "--image", str(path))
    assert str(path) in str(refusal.value)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(CommandError, match="Animated"):
        count("generic", "--image", str(path))
