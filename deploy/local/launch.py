"""Becomes another program that ends when its supervisor ends, as another account where asked.

Run as a script without site-packages, because it stands in front of every start:
``python -I -S launch.py <json> program argument…``. A small program in between is safer than
``preexec_fn``, which runs Python code in the fork of a process that may have several threads.

The JSON object has the keys ``parent`` (process id of the supervisor), ``signal`` (number of the
signal to get when the supervisor dies; Linux only), ``account`` (user and group id to become, or
null) and ``override`` (true: keep the right to pass folders that are closed to that account).
"""

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator

# From linux/prctl.h and linux/capability.h.
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapabilityData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def become(user: int, group: int, *, override: bool) -> None:
    """Gives up root for good; ``override`` keeps CAP_DAC_OVERRIDE and nothing else (Linux).

    Raises:
        OSError: the kernel refused; the caller must not continue as root.
    """
    if override:
        _checked(_libc().prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    if override:
        mask = 1 << CAP_DAC_OVERRIDE
        header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
        # Two elements: version 3 of the call carries 64 bits in two halves.
        data = (_CapabilityData * 2)(_CapabilityData(mask, mask, mask), _CapabilityData(0, 0, 0))
        _checked(_libc().capset(ctypes.byref(header), data), "set capabilities")
        ambient = _libc().prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)
        _checked(ambient, "raise a capability")


def die_with_parent(parent: int, signal_number: int) -> None:
    """Asks the kernel for a signal at the supervisor's death, and ends if it is dead already."""
    if sys.platform == "linux":
        _checked(_libc().prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "watch the supervisor")
    if os.getppid() != parent:
        sys.exit("the supervisor ended before this program began")


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Makes a grandchild whose parent ends meanwhile this process's own child (Linux)."""
    _checked(_libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "adopt")
    try:
        yield
    finally:
        _libc().prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def name_process(name: str) -> None:
    """Gives this process the name that `top` shows, of at most 15 characters (Linux)."""
    _libc().prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")


def main() -> None:
    """Prepares this process as the first argument says and becomes the program after it."""
    wanted = json.loads(sys.argv[1])
    program = sys.argv[2:]
    if wanted["account"] is not None:
        user, group = wanted["account"]
        become(user, group, override=wanted["override"])
    # After the change of account, which clears the signal.
    die_with_parent(wanted["parent"], wanted["signal"])
    os.execv(program[0], program)  # noqa: S606  # becoming that program is this script's one job


if __name__ == "__main__":
    main()
