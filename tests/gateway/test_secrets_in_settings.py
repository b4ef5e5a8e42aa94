"""Secrets come from the environment or a file; one that is too short stops the process, by name and without a leak."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from gateway.env import env_secret

NAME = "TESSERA_TESTED_SECRET"


def test_a_secret_that_is_too_short_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "hunter2")

    with pytest.raises(ImproperlyConfigured) as refused:
        env_secret(NAME, chars_min=32)

    assert f"{NAME} has 7 characters, and needs 32" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_one_from_a_file_is_measured_without_its_newline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    monkeypatch.setenv(f"{NAME}_FILE", str(file))

    file.write_text("x" * 31 + "\n")
    with pytest.raises(ImproperlyConfigured, match="31 characters"):
        env_secret(NAME, chars_min=32)
    file.write_text("x" * 32 + "\n")
    assert env_secret(NAME, chars_min=32) == "x" * 32


def test_a_default_is_ours_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)

    assert env_secret(NAME, default="", chars_min=16) == ""
