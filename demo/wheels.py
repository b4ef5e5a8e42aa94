"""Programs that come inside wheels."""

from importlib.util import find_spec
from pathlib import Path


class NotInstalled(Exception):
    """The package is missing, or has nothing for this platform."""


def program(package: str, pattern: str) -> Path:
    """Find the program in an installed package. Does not import it: imports may have effects."""
    found = find_spec(package)
    if found is not None and found.origin is not None:
        for path in sorted(Path(found.origin).parent.glob(pattern)):
            return path
    raise NotInstalled(f"The package {package} is not installed for this platform; try `make up`.")
