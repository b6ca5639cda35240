"""The embedded Postgres and what befalls it: each trap is staged with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from streamkeep.storage.embedded import (
    BinariesMissing,
    DataDirectoryInUse,
    EmbeddedPostgres,
    InitdbFailed,
    NoPermission,
    ServerFailed,
    WrongMajorVersion,
)
from streamkeep.storage.embedded._directory import make_root
from streamkeep.storage.embedded._processes import _postmasters_by_command_line, send, server_processes
from streamkeep.storage.embedded._programs import Programs, find_programs

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

# A program that uses the embedded Postgres: says where it is, obeys the lines that it is sent, and stops at their end.
USER = """
import json, os, signal, sys, threading
from pathlib import Path
from streamkeep.storage.embedded import EmbeddedPostgres

interrupts = []
signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
say = lambda **what: print(json.dumps(what), flush=True)
with EmbeddedPostgres.start(Path(sys.argv[1])) as server:
    say(dsn=server.dsn, postmaster=server.postmaster_pid, is_supervisor="pid" in repr(server))
    for line in sys.stdin:
        if line == "fork\\n":
            child = os.fork()
            if child == 0:
                signal.pause()
            say(child=child)
        elif line == "interrupts\\n":
            say(interrupts=len(interrupts))
say(stopped=True)
"""


class User:
    """A running `USER` program."""

    def __init__(self, data_dir: Path, **popen: Any) -> None:
        popen.setdefault("stderr", None)
        command = popen.pop("command", [sys.executable, "-c", USER])
        self.process = subprocess.Popen(
            [*command, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen
        )
        self.pid = self.process.pid

    def wait_until_ready(self) -> None:
        said = self.hear()
        self.dsn: str = said["dsn"]
        self.postmaster: int = said["postmaster"]
        self.is_supervisor: bool = said["is_supervisor"]

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the program ended with status {self.process.wait()}"
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def spare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a cluster waits between the tests that use it: to make one, or to copy it, takes half a second."""
    return tmp_path_factory.mktemp("spare") / "postgres"


@pytest.fixture
def data_dir(tmp_path: Path, spare_cluster: Path) -> Iterator[Path]:
    """A data directory that was used before; nothing may be left running in it afterwards."""
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    if spare_cluster.exists():
        spare_cluster.rename(path / "postgres")
    else:
        EmbeddedPostgres.start(path).stop()
    yield path
    eventually(lambda: not server_processes(path / "postgres"))
    (path / "postgres").rename(spare_cluster)


@pytest.fixture
def use() -> Iterator[Callable[..., User]]:
    """Start a `USER` program on a data directory and wait until its server is ready."""
    with ExitStack() as users:

        def start(data_dir: Path, *, wait: bool = True, **popen: Any) -> User:
            user = User(data_dir, **popen)
            users.callback(user.close)
            if wait:
                user.wait_until_ready()
            return user

        yield start


def query(dsn: str, statement: str) -> Any:
    async def execute() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(execute())


def make_table(dsn: str) -> None:
    query(dsn, "DROP TABLE IF EXISTS kept")
    query(dsn, "CREATE TABLE kept (n int)")


def count_kept(dsn: str) -> Any:
    return query(dsn, "SELECT count(*) FROM kept")


def eventually(condition: Callable[[], object], *, deadline_seconds: float = 60) -> None:
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def wait_for_path(directory: Path, pattern: str) -> None:
    eventually(lambda: list(directory.glob(pattern)))


def answers(dsn: str) -> bool:
    try:
        return bool(query(dsn, "SELECT true"))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False


def kill_postmaster(server: EmbeddedPostgres) -> None:
    """SIGKILL, and wait until the server is back."""
    killed = server.postmaster_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: server.is_ready and server.postmaster_pid not in (killed, None))


def spawn_unsupervised(data_dir: Path) -> subprocess.Popen[bytes]:
    """A postmaster that no supervisor knows of, ready: as one that outlived its parent."""
    programs = Programs.ready_to_run(None, data_dir)
    cluster = data_dir / "postgres"
    sockets = data_dir / "socket"
    sockets.mkdir(mode=0o700, exist_ok=True)
    settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={sockets}"]
    process = programs.spawn("postgres", "-D", str(cluster), *settings, output=subprocess.DEVNULL)
    eventually(lambda: (cluster / "postmaster.pid").exists() and "ready" in (cluster / "postmaster.pid").read_text())
    return process


@contextmanager
def wrapped_programs(directory: Path, postgres_script: str) -> Iterator[Path]:
    """A directory of programs in which `postgres` runs some lines of shell first."""
    real = find_programs(None)
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "initdb").symlink_to(real / "initdb")
    script = f'#!/bin/sh\n[ "$1" = --version ] || {{ {postgres_script}; }}\nexec {real}/postgres "$@"\n'
    (directory / "postgres").write_text(script)
    (directory / "postgres").chmod(0o755)
    yield directory


# Starting and stopping


def test_data_survive_a_restart(tmp_path: Path) -> None:
    with EmbeddedPostgres.start(tmp_path / "data") as first:
        query(first.dsn, "CREATE TABLE kept AS SELECT 42 AS n")
    assert "stopped" in repr(first)
    with EmbeddedPostgres.start(tmp_path / "data") as second:
        assert query(second.dsn, "SELECT n FROM kept") == 42
        assert second.dsn == first.dsn
        assert f"pid {second.postmaster_pid}" in repr(second)


def test_commits_are_durable_and_nothing_listens_on_tcp(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server:
        names = ["fsync", "synchronous_commit", "full_page_writes", "listen_addresses"]
        assert [query(server.dsn, f"SHOW {name}") for name in names] == ["on", "on", "on", ""]
        assert stat.S_IMODE((data_dir / "socket").stat().st_mode) == 0o700


def test_the_log_grows_by_small_segments_and_to_its_usual_size(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server:
        names = ["wal_segment_size", "min_wal_size", "max_wal_size"]
        assert [query(server.dsn, f"SHOW {name}") for name in names] == ["1MB", "80MB", "1GB"]


def test_settings_reach_the_server(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings={"max_connections": "17"}) as server:
        assert query(server.dsn, "SHOW max_connections") == "17"


def test_stop_is_a_clean_shutdown_and_may_be_repeated(data_dir: Path) -> None:
    server = EmbeddedPostgres.start(data_dir)
    server.stop()
    server.stop()
    assert server.postmaster_pid is None
    assert not server.is_ready
    assert "database system is shut down" in server.log_path.read_text()


def test_stop_ends_a_server_with_busy_clients(data_dir: Path) -> None:
    server = EmbeddedPostgres.start(data_dir)
    client = subprocess.Popen([find_programs(None) / "psql", server.dsn, "-c", "SELECT pg_sleep(600)"], stderr=-3)
    eventually(lambda: query(server.dsn, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    server.stop()
    assert client.wait(60) != 0


def test_a_path_too_long_for_a_socket_works_and_leaves_nothing_outside(tmp_path: Path) -> None:
    data_dir = tmp_path.joinpath(*["a-rather-long-directory-name"] * 5)
    with EmbeddedPostgres.start(data_dir) as server:
        assert answers(server.dsn)
        sockets = (data_dir / "socket").readlink()
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert not sockets.exists()
    sockets.mkdir(mode=0o777)
    sockets.chmod(0o777)
    with EmbeddedPostgres.start(data_dir) as again:
        assert answers(again.dsn)
        assert (data_dir / "socket").readlink() != sockets, "a directory that others may enter was used"
    sockets.rmdir()


def test_modes_and_owners_above_the_data_directory_stay(data_dir: Path) -> None:
    def above() -> list[tuple[int, int, int]]:
        return [(s.st_mode, s.st_uid, s.st_gid) for s in (parent.stat() for parent in data_dir.parents)]

    before = above()
    EmbeddedPostgres.start(data_dir).stop()
    assert above() == before


# Deaths


def test_the_server_stops_when_its_parent_is_killed(data_dir: Path, use: Callable[..., User]) -> None:
    use(data_dir).kill()
    eventually(lambda: not server_processes(data_dir / "postgres"))
    assert "database system is shut down" in (data_dir / "postgres.log").read_text()


def test_a_start_right_after_the_parent_was_killed(data_dir: Path, use: Callable[..., User]) -> None:
    for n in range(3):
        user = use(data_dir)
        if n == 0:
            make_table(user.dsn)
        query(user.dsn, f"INSERT INTO kept VALUES ({n})")
        user.kill()
    with EmbeddedPostgres.start(data_dir) as server:
        assert count_kept(server.dsn) == 3


def test_a_forked_child_does_not_keep_the_lock(data_dir: Path, use: Callable[..., User]) -> None:
    user = use(data_dir)
    child = user.ask("fork")["child"]
    try:
        user.kill()
        with EmbeddedPostgres.start(data_dir) as server:
            assert answers(server.dsn)
            assert "pid" in repr(server)
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_orphaned_server_is_replaced(data_dir: Path) -> None:
    orphan = spawn_unsupervised(data_dir)
    with EmbeddedPostgres.start(data_dir) as server:
        assert orphan.wait(60) == 0, "the orphan was not shut down cleanly"
        assert server.postmaster_pid != orphan.pid
        assert answers(server.dsn)


def test_a_zombie_postmaster_does_not_count_as_running(data_dir: Path) -> None:
    zombie = spawn_unsupervised(data_dir)
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    with EmbeddedPostgres.start(data_dir) as server:
        assert answers(server.dsn)
    assert zombie.wait() == -signal.SIGKILL


def test_a_lock_file_with_the_pid_of_another_program_is_stale(data_dir: Path) -> None:
    killed = spawn_unsupervised(data_dir)
    killed.kill()
    killed.wait()
    other = subprocess.Popen(["sleep", "600"])
    try:
        for lock in (data_dir / "postgres" / "postmaster.pid", data_dir / "socket" / ".s.PGSQL.5432.lock"):
            lines = lock.read_text().splitlines()
            lock.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        with EmbeddedPostgres.start(data_dir) as server:
            assert answers(server.dsn)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_killed_postmaster_comes_back_with_all_that_was_committed(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server:
        make_table(server.dsn)
        for n in range(2):
            query(server.dsn, f"INSERT INTO kept VALUES ({n})")
            kill_postmaster(server)
            assert count_kept(server.dsn) == n + 1


def test_backends_that_outlive_their_postmaster_do_not_stop_a_start(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server:
        postmaster = server.postmaster_pid
        assert postmaster is not None
        frozen = server_processes(data_dir / "postgres") - {postmaster}
        for pid in frozen:
            send(pid, signal.SIGSTOP)
        kill_postmaster(server)
        assert not frozen & server_processes(data_dir / "postgres")


def test_a_crash_of_every_process_loses_nothing(data_dir: Path, use: Callable[..., User]) -> None:
    user = use(data_dir)
    make_table(user.dsn)
    query(user.dsn, "INSERT INTO kept SELECT generate_series(1, 200000)")
    os.kill(user.pid, signal.SIGSTOP)
    for pid in server_processes(data_dir / "postgres"):
        send(pid, signal.SIGKILL)
    user.kill()
    with EmbeddedPostgres.start(data_dir) as server:
        assert count_kept(server.dsn) == 200_000
        assert "redo done" in server.log_path.read_text()


def test_an_interrupted_initdb_leaves_a_directory_that_starts(tmp_path: Path, use: Callable[..., User]) -> None:
    data_dir = tmp_path / "data"
    for mark in ("postgres.new-*/base", "postgres.new-*/base/1/PG_VERSION"):
        user = use(data_dir, wait=False)
        wait_for_path(data_dir, mark)
        user.kill()
    assert not (data_dir / "postgres").exists()
    with EmbeddedPostgres.start(data_dir) as server:
        assert answers(server.dsn)
        assert not list(data_dir.glob("postgres.new-*"))


def test_what_a_dying_initdb_kept_busy_goes_when_the_next_one_is_done(tmp_path: Path) -> None:
    directory = make_root(tmp_path)
    made = directory.new_cluster_path(None)
    (tmp_path / "postgres.new-busy").mkdir()
    (tmp_path / "postgres.new-busy" / "PG_VERSION").touch()
    directory.install_cluster(made)
    assert [path.name for path in tmp_path.iterdir()] == ["postgres"]


def test_ctrl_c_does_not_reach_the_server_before_its_parent_stops_it(data_dir: Path, use: Callable[..., User]) -> None:
    user = use(data_dir, process_group=0)
    os.killpg(user.pid, signal.SIGINT)
    eventually(lambda: user.ask("interrupts")["interrupts"])
    assert user.postmaster in server_processes(data_dir / "postgres")
    assert answers(user.dsn)
    user.stop()
    assert "received fast shutdown request" in (data_dir / "postgres.log").read_text()


def test_without_a_parent_death_signal_an_onlooker_interrupts() -> None:
    script = """
        import os, signal
        from streamkeep.storage.embedded import _launch
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Whoever runs the tests in the background ignores it.
        _launch.interrupt_at_end_of_input(os.getpid())
        os.execvp("sleep", ["sleep", "600"])
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        try:
            assert process.wait(60) == -signal.SIGINT
        finally:
            process.kill()


def test_without_proc_a_postmaster_is_found_by_its_command_line(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server:
        assert _postmasters_by_command_line(data_dir.resolve() / "postgres") == {server.postmaster_pid}


# Several processes


def test_processes_that_start_at_once_share_one_server(tmp_path: Path, use: Callable[..., User]) -> None:
    data_dir = tmp_path / "data"
    users = [use(data_dir, wait=False) for _ in range(3)]
    for user in users:
        user.wait_until_ready()
    assert len({user.postmaster for user in users}) == 1
    assert len({user.dsn for user in users}) == 1
    assert [user.is_supervisor for user in users].count(True) == 1


@pytest.mark.parametrize("leave", [User.kill, User.stop], ids=["killed", "stopped"])
def test_another_process_takes_over_from_the_supervisor(
    data_dir: Path, use: Callable[..., User], leave: Callable[[User], None]
) -> None:
    supervisor, sharer = use(data_dir), use(data_dir)
    assert (supervisor.is_supervisor, sharer.is_supervisor) == (True, False)
    make_table(sharer.dsn)
    query(sharer.dsn, "INSERT INTO kept VALUES (1)")
    leave(supervisor)
    eventually(lambda: answers(sharer.dsn))
    assert count_kept(sharer.dsn) == 1
    sharer.stop()
    assert not server_processes(data_dir / "postgres")


def test_a_sharer_that_leaves_does_not_stop_the_server(data_dir: Path, use: Callable[..., User]) -> None:
    supervisor, sharer = use(data_dir), use(data_dir)
    sharer.stop()
    assert supervisor.postmaster in server_processes(data_dir / "postgres")
    assert answers(supervisor.dsn)


def test_a_lock_whose_holder_brings_up_no_server_is_named(tmp_path: Path) -> None:
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); input()"
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        (tmp_path / "lock").write_text(f"{holder.pid}\n")
        with pytest.raises(DataDirectoryInUse) as refused:
            EmbeddedPostgres.start(tmp_path, patience_seconds=0)
        assert refused.value.pid == holder.pid
        holder.kill()


# Starts that take long, and starts that fail


def test_a_long_start_reports_its_progress_and_is_waited_for(data_dir: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    reported: list[str] = []

    def on_progress(line: str) -> None:
        reported.append(line)
        if line == "redo in progress":
            gate.write_text("go on\n")

    with (
        wrapped_programs(tmp_path / "bin", f"echo redo in progress; read _ < {gate}") as bin_dir,
        EmbeddedPostgres.start(data_dir, bin_dir=bin_dir, on_progress=on_progress) as server,
    ):
        assert answers(server.dsn)
    assert reported[0] == "redo in progress"


def test_a_start_that_stands_still_is_given_up(data_dir: Path, tmp_path: Path) -> None:
    with wrapped_programs(tmp_path / "bin", "echo last words; exec sleep 600") as bin_dir:
        with pytest.raises(ServerFailed, match="has said nothing for") as failed:
            EmbeddedPostgres.start(data_dir, bin_dir=bin_dir, patience_seconds=0)
        assert "last words" in failed.value.log


def test_a_server_that_ends_at_once_is_shown_with_its_last_words(data_dir: Path) -> None:
    with pytest.raises(ServerFailed, match="no_such_setting") as failed:
        EmbeddedPostgres.start(data_dir, settings={"no_such_setting": "1"})
    assert "no_such_setting" in failed.value.log


def test_missing_programs_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BinariesMissing, match="no postgres and no initdb in"):
        EmbeddedPostgres.start(tmp_path / "data", bin_dir=tmp_path)
    script = "from streamkeep.storage.embedded._programs import find_programs; find_programs(None)"
    source = str(Path(__file__).parents[2] / "storage")
    command = [sys.executable, "-S", "-c", script]
    ended = subprocess.run(command, env={"PYTHONPATH": source}, capture_output=True, check=False)
    assert b"pip install 'streamkeep[proxy]'" in ended.stderr


def test_data_of_another_major_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("14\n")
    with pytest.raises(WrongMajorVersion, match="written by Postgres 14") as refused:
        EmbeddedPostgres.start(tmp_path)
    assert refused.value.written_by == "14"


def test_a_failed_initdb_is_shown_with_its_last_words(tmp_path: Path) -> None:
    with wrapped_programs(tmp_path / "bin", ":") as bin_dir:
        (bin_dir / "initdb").unlink()
        (bin_dir / "initdb").write_text("#!/bin/sh\necho no room left\nexit 1\n")
        (bin_dir / "initdb").chmod(0o755)
        with pytest.raises(InitdbFailed, match="no room left"):
            EmbeddedPostgres.start(tmp_path / "data", bin_dir=bin_dir)


@pytest.mark.skipif(not DEBIAN_15.is_dir(), reason=f"there is no {DEBIAN_15}")
def test_programs_of_another_version_and_make_work_too(tmp_path: Path) -> None:
    for _ in range(2):
        with EmbeddedPostgres.start(tmp_path / "data", bin_dir=DEBIAN_15) as server:
            assert query(server.dsn, "SHOW server_version").startswith("15.")


# As whom


@pytest.fixture
def reachable_dir() -> Iterator[Path]:
    """A directory that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="streamkeep-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


def others_can_run(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], check=False).returncode == 0
    except PermissionError:
        return False


def python_for_others() -> dict[str, Any]:
    """How `use` starts a Python that every user may run: root's own often lies in a private home."""
    for python in (sys.executable, "/usr/bin/python3"):
        if others_can_run(python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"):
            packages = os.pathsep.join(path for path in sys.path if path)
            environment = os.environ | {"PYTHONPATH": packages if python != sys.executable else ""}
            return {"command": [python, "-c", USER], "env": environment}
    pytest.skip("no Python here that an unprivileged user can run")


@needs_root
def test_an_unprivileged_user_runs_it_as_himself(reachable_dir: Path, use: Callable[..., User]) -> None:
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], **python_for_others()}
    data_dir = reachable_dir / "data"
    os.chown(reachable_dir, NOBODY, NOBODY)
    for _ in range(2):
        user = use(data_dir, **as_nobody)
        assert os.stat(f"/proc/{user.postmaster}").st_uid == NOBODY
        user.kill()
    user = use(data_dir, **as_nobody)
    assert answers(user.dsn)
    user.stop()


@needs_root
def test_root_runs_it_in_a_user_namespace_and_keeps_its_files(data_dir: Path) -> None:
    if Programs.ready_to_run(None, data_dir).identity.way != "namespace":
        pytest.skip("user namespaces are not allowed here")
    with EmbeddedPostgres.start(data_dir) as server:
        assert os.stat(f"/proc/{server.postmaster_pid}").st_uid == 0
        assert {path.stat().st_uid for path in data_dir.rglob("*")} == {0}


@needs_root
def test_root_becomes_another_user_where_namespaces_are_forbidden(
    reachable_dir: Path, use: Callable[..., User]
) -> None:
    if not others_can_run(find_programs(None) / "postgres", "--version"):
        pytest.skip("the programs lie where other users cannot reach them")
    data_dir = reachable_dir / "data"
    with EmbeddedPostgres.start(data_dir) as server:
        make_table(server.dsn)
    user = use(data_dir, command=[*without_user_namespaces(reachable_dir / "root"), sys.executable, "-c", USER])
    assert os.stat(f"/proc/{user.postmaster}").st_uid != 0
    assert count_kept(user.dsn) == 0
    assert (data_dir / "postgres").stat().st_uid != 0
    user.kill()
    eventually(lambda: not os.path.exists(f"/proc/{user.postmaster}"))
    with EmbeddedPostgres.start(data_dir) as server:
        assert count_kept(server.dsn) == 0


def without_user_namespaces(root: Path) -> list[str]:
    """What to put before a command: the kernel makes no user namespace for a process in a changed root."""
    root.mkdir()
    script = 'mount --rbind / "$0" && exec chroot "$0" "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"the root directory cannot be changed here: {exc}")
    return command


@needs_root
def test_root_is_told_whom_it_could_not_become(reachable_dir: Path) -> None:
    with wrapped_programs(reachable_dir / "bin", ":") as bin_dir:
        (bin_dir / "postgres").write_text("#!/bin/sh\necho I will not run\nexit 1\n")
        before = reachable_dir.stat()
        with pytest.raises(NoPermission, match="I will not run"):
            EmbeddedPostgres.start(reachable_dir, bin_dir=bin_dir)
        assert (reachable_dir.stat().st_uid, reachable_dir.stat().st_mode) == (before.st_uid, before.st_mode)
