"""The images of a request: measured from their first bytes, fetched safely, never decoded.

This package imports no Django: its limits come in as one frozen value.
"""

from dataclasses import dataclass

WEB_PORTS = frozenset({80, 443})


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one image may be, and what fetching it may cost. Filled from the settings."""

    file_bytes_max: int = 20 * 2**20
    pixels_max: int = 64_000_000
    side_px_max: int = 16_384
    side_px_min: int = 1
    fetch_timeout_s: float = 8.0  # the whole fetch: waiting for a slot, every redirect, every byte
    connect_timeout_s: float = 2.0  # one address, with its TLS handshake
    resolve_timeout_s: float = 2.0
    redirects_max: int = 3
    url_length_max: int = 2048
    fetches_at_once_max: int = 64
    ports: frozenset[int] = WEB_PORTS
    allow_loopback: bool = False  # demo and tests only; a loopback address may then use any port
