"""Become somebody who may run Postgres, tie our life to the parent's, and turn into the program. Run as a script:

    python -I -S _launch.py IDENTITY PARENT_PID WORKING_DIRECTORY PROGRAM ARGUMENT…

A script, and not code between fork and exec, because the parent has threads by then, and because only a process with a
single thread may enter a user namespace. It imports little: Postgres is started in twice the time that this takes.

IDENTITY is `same`, `user:UID:GID` (drop root for good) or `namespace:UID:GID` (stay who we are on the outside, and look
like UID from the inside, which is all that Postgres checks).
"""

from __future__ import annotations

import os
import signal
import sys
from ctypes import CDLL, get_errno

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
CANNOT_LAUNCH = 125
ENDED = b"."


def main(identity: str, parent: str, working_directory: str, *command: str) -> None:
    try:
        become(identity)
        follow(int(parent))
        os.chdir(working_directory)
        os.execv(command[0], command)
    except OSError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(CANNOT_LAUNCH)


def become(identity: str) -> None:
    if identity == "same":
        return
    way, uid, gid = identity.split(":")
    if way == "namespace":
        enter_user_namespace(int(uid), int(gid))
    else:
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))


def enter_user_namespace(uid: int, gid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    if CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        raise OSError(get_errno(), "user namespaces are not allowed here")
    for name, content in [
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    ]:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def follow(parent: int) -> None:
    """Have this process sent SIGINT (to Postgres: a fast, clean shutdown) when the parent dies, in whatever way."""
    if sys.platform == "linux":
        # Only now: a change of uid would have cleared it. The kernel means the parent's *thread* that started us.
        if CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0) != 0:
            raise OSError(get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        interrupt_at_end_of_input(os.getpid())
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone already")


def interrupt_at_end_of_input(pid: int) -> None:
    """For kernels without a parent-death signal: an onlooker waits at our standard input, whose other end the parent holds.

    A parent that has seen the program's end writes `ENDED` before it closes: the pid may be somebody else's by then.
    """
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    if os.fork():  # The onlooker must not be a child of Postgres, which reaps its children.
        os._exit(0)
    os.setsid()
    for fd in (1, 2):
        os.close(fd)
    try:
        if not os.read(0, 1):
            os.kill(pid, signal.SIGINT)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
