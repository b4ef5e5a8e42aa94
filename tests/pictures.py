"""Pictures that tests send: made to measure, as data URLs, and on a small server on loopback."""

import base64
import functools
import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from PIL import Image

PATH = re.compile(r"/(\d+)x(\d+)\.(png|jpeg|webp|gif)")


@functools.cache
def picture(width_px: int, height_px: int, form: str = "png") -> bytes:
    """Return an image file of this size in one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width_px, height_px), "teal").save(file, form)
    return file.getvalue()


def data_url(width_px: int, height_px: int, form: str = "png") -> str:
    encoded = base64.b64encode(picture(width_px, height_px, form)).decode()
    return f"data:image/{form};base64,{encoded}"


def question(text: str, *urls: str) -> dict[str, Any]:
    """Return a user's message: the images, then the text, as the seed's samples have them."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


class PictureServer:
    """Serves `/{width}x{height}.{png|jpeg|webp|gif}` on loopback, and counts who asked."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def asked(self) -> list[str]:
        """The paths that were asked for."""
        return self._server.asked

    def url(self, width_px: int, height_px: int, form: str = "png") -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/{width_px}x{height_px}.{form}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        match = PATH.fullmatch(self.path)
        if match is None:
            self.send_error(404)
            return
        body = picture(int(match[1]), int(match[2]), match[3])
        self.send_response(200)
        self.send_header("content-type", f"image/{match[3]}")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent; `asked` remembers."""
