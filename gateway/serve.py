"""Serve the door: `python -m gateway.serve --host 127.0.0.1 --port 8000 --workers 1`.

Granian in front of `gateway.asgi`: it has a deadline for request heads, tells us when a client leaves, and waits
for slow readers (ADR 0001 has the measurements). A worker that dies is started again.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")

from django.conf import settings
from granian.constants import Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from gateway import memory

FLUSH_S_MAX = 15  # to settle what was cut off, flush and disconnect


def main() -> None:
    parser = argparse.ArgumentParser(prog="gateway.serve", description="Serve Tessera over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="gateway processes (default 1)")
    options = parser.parse_args()
    if not os.environ.get("TESSERA_PROCESSES"):  # with several hosts the operator sets it
        os.environ["TESSERA_PROCESSES"] = str(options.workers)
    memory.keep_freed()
    server(options.host, options.port, options.workers).serve()


def server(host: str, port: int, workers: int) -> MPServer:
    files = Path(settings.STATIC_ROOT)
    has_files = files.is_dir()  # `manage.py collectstatic` has run
    return MPServer(
        "gateway.asgi:application",
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(header_read_timeout=settings.HEADER_READ_TIMEOUT_S * 1000),
        log_level=LogLevels.warning,
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=settings.SHUTDOWN_TIMEOUT_S + FLUSH_S_MAX,
        backlog=2048,
        static_path_route=["/static"] if has_files else None,
        static_path_mount=[files] if has_files else None,
    )


if __name__ == "__main__":
    main()
