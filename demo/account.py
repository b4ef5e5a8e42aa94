"""The account of a program that refuses to run as root."""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROBE = 'test -w "$2" && exec "$1" --version'
PROBE_TIMEOUT_S = 10


class NoAccount(Exception):
    """Root has no way here to run a program as someone else."""


@dataclass(frozen=True)
class Account:
    """How to run as someone other than root: the words before the command, the files' owner."""

    prefix: tuple[str, ...]
    uid: int
    gid: int

    def can_run(self, program: Path, directory: Path) -> bool:
        """Try it: start the program, and may it write to the directory?"""
        command = [*self.prefix, "sh", "-c", PROBE, "sh", str(program), str(directory)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return (
            done.returncode == 0 and not done.stderr
        )  # PostgreSQL complains of its own path there


def ordinary_account(program: Path, directory: Path) -> Account:
    """Return the account for `program` with its data in `directory`: our own, unless we are root.

    Root tries a user namespace of one user first (no file changes hands, and it has no rights over
    others' files), then `nobody` with the one right to pass closed directories, which most
    containers leave to root where they forbid namespaces. Raise NoAccount.
    """
    if os.geteuid() != 0:
        return Account((), os.geteuid(), os.getegid())
    for account in _accounts_of_root():
        if account.can_run(program, directory):
            return account
    raise NoAccount(
        f"{program.name} does not run as root, and neither unshare nor setpriv works here: "
        "run as an ordinary user, or set DATABASE_URL."
    )


def own(directory: Path, account: Account) -> None:
    """Give a tree to the account. For others than root: PermissionError, unless it is theirs."""
    if directory.stat().st_uid == account.uid:
        return
    for folder, _, names in os.walk(directory):
        for name in (".", *names):
            os.chown(Path(folder, name), account.uid, account.gid, follow_symlinks=False)


def _accounts_of_root() -> list[Account]:
    nobody = _someone_ordinary()
    if nobody is None:
        return []
    user, group = str(nobody.pw_uid), str(nobody.pw_gid)
    namespace = ("unshare", "--user", f"--map-user={user}", f"--map-group={group}", "--")
    setpriv = (
        *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
        *("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"),
        # Else access(2), by which PostgreSQL looks for its own binary, would not count the right.
        *("--securebits=+no_setuid_fixup", "--"),
    )
    accounts = []
    if shutil.which("unshare"):
        accounts.append(Account(namespace, 0, 0))
    if shutil.which("setpriv"):
        accounts.append(Account(setpriv, nobody.pw_uid, nobody.pw_gid))
    return accounts


def _someone_ordinary() -> pwd.struct_passwd | None:
    """Return nobody, else anyone but root who has a name: initdb refuses a nameless user."""
    ordinary = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    return next((e for e in ordinary if e.pw_name == "nobody"), ordinary[0] if ordinary else None)
