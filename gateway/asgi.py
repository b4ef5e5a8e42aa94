"""The ASGI application: the data plane under its prefixes, stock Django for everything else."""

import asyncio
import logging
import os
import signal

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application

control_plane = get_asgi_application()

# Django must be set up before anything that touches its models is imported.
from billing import errands  # noqa: E402
from gateway import memory  # noqa: E402
from gateway.api.requests import Receive, Scope, Send  # noqa: E402
from gateway.api.urls import PREFIXES  # noqa: E402
from gateway.handler import DataPlaneHandler  # noqa: E402
from gateway.plane import DataPlane  # noqa: E402

logger = logging.getLogger(__name__)
errands.leave_to_sweeps()

LAST_WRITES_S = (
    3  # what a client that reads needs to be told the end, and the server to see it gone
)
DATA_PLANE_PATHS = ("/healthz", *(f"/{prefix}" for prefix in PREFIXES))
BELOW_THEM = tuple(f"{path}/" for path in DATA_PLANE_PATHS)


class Application:
    """Sends each request to its plane; opens and closes the data plane with the process."""

    def __init__(self) -> None:
        self._plane: DataPlane | None = None
        self._handler: DataPlaneHandler | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and is_data_plane(scope["path"]):
            assert self._handler is not None, "the server must support ASGI lifespan"
            await self._handler(scope, receive, send)
        else:
            await control_plane(scope, receive, send)  # type: ignore[arg-type]

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._plane = DataPlane()
        self._handler = DataPlaneHandler(self._plane)
        try:
            await self._plane.start()
        except Exception as error:
            logger.exception("the door cannot open")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        self._watch_for_sigterm(self._plane)
        memory.freeze_loaded()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._plane.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _watch_for_sigterm(self, plane: DataPlane) -> None:
        """Begin to close at the signal, and hand it on to the server as SIGINT, which means the same to it.

        Granian stops to accept at the signal and then waits for every open connection, however long that takes,
        before it says lifespan.shutdown: a stream without end would never be cut off, but killed with its hold.
        """

        def begin() -> None:
            plane.close_soon()
            self._leaving = asyncio.create_task(_leave_anyway(plane), name="leave")
            os.kill(os.getpid(), signal.SIGINT)

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, begin)


async def _leave_anyway(plane: DataPlane) -> None:
    """End the process in good order although the server still waits, for a client that does not read."""
    await asyncio.sleep(settings.SHUTDOWN_TIMEOUT_S + LAST_WRITES_S)
    await plane.stop()
    logger.warning("connections that nobody reads from are dropped")
    os._exit(0)


def is_data_plane(path: str) -> bool:
    """Return whether the path is one of the data plane's prefixes or below it."""
    return path.startswith(BELOW_THEM) or path in DATA_PLANE_PATHS


application = Application()
