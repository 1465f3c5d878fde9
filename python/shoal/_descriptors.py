"""Descriptors for a new process that are too many for one message: they wait for it in a socket.

The kernel takes 253 descriptors a message. What goes beyond is sent ahead, in as many messages as it takes, into a
socket that the process is handed like any descriptor. Used by _zygote.py alone, and imported only when needed: the
module `socket` costs each start of a worker more than all else.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

_MESSAGE = 200  # descriptors


def queue(fds: Sequence[int]) -> socket.socket:
    """A socket in which these descriptors wait. OSError: they are more than the kernel keeps in flight for a user."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.setblocking(False)  # nobody reads yet: what does not fit is an error, and not waited for
        try:
            for start in range(0, len(fds), _MESSAGE):
                socket.send_fds(ours, [b"."], list(fds[start : start + _MESSAGE]))
        except BaseException:
            theirs.close()
            raise
    return theirs


def take(channel: int, count: int) -> list[int]:
    """The descriptors that wait in a socket, which is closed. OSError: this process may not have so many open."""
    fds: list[int] = []
    with socket.socket(fileno=channel) as source:
        while len(fds) < count:
            _, received, flags, _ = socket.recv_fds(source, 1, _MESSAGE)
            fds += received
            if not received or flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, f"{count} descriptors for a new process are more than it may have open")
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds
