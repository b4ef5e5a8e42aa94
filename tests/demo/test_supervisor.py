"""What happens to children that die, and in which order they end."""

from pathlib import Path

import pytest

from demo.child import Child, StartFailed, never
from demo.supervisor import RESTARTS_MAX, Supervisor


class Sleeper(Child):
    def __init__(self, var: Path, name: str) -> None:
        self.name = name
        super().__init__(var)

    def command(self) -> list[str]:
        script = 'trap "echo $0 >> ended; exit" TERM; echo up; sleep 9 & wait'
        return ["sh", "-c", f'cd "$1"; {script}', self.name, str(self.var)]

    def is_ready(self) -> bool:
        return "up" in self.log_tail()


class Doomed(Sleeper):
    def command(self) -> list[str]:
        return ["sh", "-c", "echo up; echo out of luck >&2; exit 3"]


def test_a_child_that_keeps_dying_ends_it_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("demo.supervisor.RESTART_PAUSE_S", 0)
    monkeypatch.setattr("demo.supervisor.WATCH_S", 0.02)
    with Doomed(tmp_path, "doomed") as child, pytest.raises(StartFailed, match="6th time") as end:
        Supervisor([child]).watch(never)
    assert end.value.tail.endswith("out of luck")
    assert capsys.readouterr().out.count("starting it again") == RESTARTS_MAX


def test_children_end_in_reverse_order(tmp_path: Path) -> None:
    children = [Sleeper(tmp_path, name) for name in ("store", "worker", "gateway")]
    for child in children:
        child.start()
    Supervisor(children).stop(never)
    assert (tmp_path / "ended").read_text().split() == ["gateway", "worker", "store"]


def test_the_hurried_wait_for_nobody(tmp_path: Path) -> None:
    with Sleeper(tmp_path, "gateway") as child:
        Supervisor([child]).stop(lambda: True)
        assert not child.is_alive()
    assert not child.pid_file.is_held()
