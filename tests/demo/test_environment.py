"""The requirements that `make up` and `make test` install, and what is said when that fails."""

import re
import sys
from pathlib import Path

import pytest

from demo import environment

ROOT = Path(__file__).parents[2]
FILES = ["requirements.txt", "requirements-demo.txt", "requirements-dev.txt"]


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([\w.\[\]-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("name", FILES)
def test_every_pin_has_its_hashes_and_no_host_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    for block in re.split(r"^(?=[\w.\[\]-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block
    assert "://" not in text


def test_all_install_the_same_versions() -> None:
    core, demo, dev = map(pins, FILES)
    assert core.items() <= demo.items() <= dev.items()


@pytest.mark.parametrize("name", FILES[1:])
def test_uv_is_installed_from_its_own_pin(name: str) -> None:
    block = environment.uv_pin(ROOT / name)
    assert re.fullmatch(r"uv==[\d.]+ \\\n(?:    --hash=sha256:\w{64}(?: \\)?\n)+", block)


@pytest.mark.parametrize(
    ("output", "meaning"),
    [
        ("error: Failed to fetch\n cause: dns error: no such host", "index cannot be reached"),
        ("ERROR: No matching distribution found for x==1", "no wheel for this Python"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "not the one that was pinned"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("something new", "something new"),
    ],
)
def test_a_failure_gets_its_reason(
    output: str, meaning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "LOG", tmp_path / "install.log")
    assert meaning in environment.explain(output)


def test_a_python_that_is_too_old_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(sys, "version", "3.9.2 (default)")
    with pytest.raises(SystemExit, match="1"):
        environment.main(["requirements-demo.txt"])
    assert "needs Python 3.11 or newer, this is 3.9.2" in capsys.readouterr().err
