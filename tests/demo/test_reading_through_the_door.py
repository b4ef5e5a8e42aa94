"""The whole way of a picture: a client, the door, the demo backend, and its words read back."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gateway.models import Model
from tests import factories
from tests.demo.conftest import SIGN, Server, content_of, data_url, encoded, user
from tests.door import Door
from tests.factories import Tenant

pytestmark = pytest.mark.xdist_group("demo_backend")

FORMS = ["PNG", "JPEG", "WEBP", "GIF"]
SIGN_TOKENS = 4 * 1601  # 960 × 640 on 2 × 2 tiles


@pytest.fixture(scope="module")
def reader(django_db_setup: None, django_db_blocker: Any, server: Server) -> Model:
    """A model of the door that is the demo's image-reader."""
    with django_db_blocker.unblock():
        backend = factories.backend(f"{server.url}/v1")
        return factories.model(backend, backend_model="image-reader")


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has the sign in all formats."""
    directory = tmp_path_factory.mktemp("signs")
    for form in FORMS:
        (directory / f"sign.{form.lower()}").write_bytes(sign_as(form))
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def sign_as(form: str) -> bytes:
    with Image.open(Path(SIGN)) as sign:
        return encoded(sign.convert("RGB"), form)


@pytest.mark.parametrize("way", ["data URL", "URL"])
@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_read_and_counted(
    door: Door, alice: Tenant, reader: Model, signs: str, form: str, way: str
) -> None:
    door.wait_for_model(alice, reader.name)
    url = f"{signs}/sign.{form.lower()}"
    if way == "data URL":
        url = data_url(sign_as(form), f"image/{form.lower()}")

    answer = door.chat(
        alice, model=reader.name, messages=[user("What is in this image?", url)]
    ).json()

    said = content_of(answer)
    assert f"{form} image of 960 × 640 pixels" in said
    assert "台北車站地下街" in said
    assert "No smoking" in said
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == SIGN_TOKENS
