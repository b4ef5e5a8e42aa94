"""KEY=value files: what is written is what a shell and we read, and only the owner can."""

import subprocess
from pathlib import Path

from demo import envfile

ODD = {"URL": "postgresql://u@/db?host=%2Fa", "QUOTED": 'it\'s a "test" $HOME `x`', "EMPTY": ""}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    envfile.write(tmp_path / "deep" / "x.env", ODD)
    assert envfile.read(tmp_path / "deep" / "x.env") == ODD


def test_a_shell_reads_the_same(tmp_path: Path) -> None:
    envfile.write(tmp_path / "x.env", ODD)
    script = f'. {tmp_path}/x.env; printf %s "$QUOTED"'
    assert subprocess.check_output(["sh", "-c", script], text=True) == ODD["QUOTED"]


def test_only_the_owner_can_read_it_even_where_others_could_before(tmp_path: Path) -> None:
    file = tmp_path / "x.env"
    file.write_text("OLD=1\n")
    file.chmod(0o644)
    envfile.write(file, {"NEW": "2"})
    assert file.stat().st_mode & 0o777 == 0o600
    assert envfile.read(file) == {"NEW": "2"}


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert envfile.read(tmp_path / "none.env") == {}
