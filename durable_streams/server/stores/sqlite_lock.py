"""Keeps a second server process out of a store.

The lock is an advisory lock of the operating system (`flock`, on Windows a locked byte) on a file of its own beside the
database, `<name>-lock`. The kernel drops it when its holder ends, also by SIGKILL or a power cut, so it cannot be left
behind; the file itself stays and means nothing. Two alternatives do not work here:

- SQLite's own `locking_mode=EXCLUSIVE` would keep our readers out, too: they have connections of their own.
- A POSIX record lock on the database would be lost as soon as anything in the process closes that file, and closing
  our handle would drop SQLite's locks.

Whoever gets the lock writes its process number into the file, for the error message of whoever does not.
"""

from __future__ import annotations

import os
import sys

from .errors import StoreError, StoreInUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Windows locks bytes, and locked bytes cannot be read: lock one far behind the process number.
_LOCKED_BYTE = 1 << 30


class ExclusiveLock:
    """The exclusive right to a store, from construction until `release`.

    Args:
        path: Path of the database.

    Raises:
        StoreInUseError: if somebody else has it.
        StoreError: if the lock file cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._file = -1
        try:
            file = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(f"{path}: cannot open its lock file: {error.strerror}") from error
        try:
            _lock(file)
        except OSError as error:
            holder = os.read(file, 20).decode("ascii", "replace")
            os.close(file)
            who = f"process {holder}" if holder else "another process"
            raise StoreInUseError(f"{path}: {who} has this store open") from error
        os.ftruncate(file, 0)
        os.write(file, b"%d" % os.getpid())
        self._file = file

    def release(self) -> None:
        """Give the right up. Idempotent."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _lock(file: int) -> None:
    if sys.platform == "win32":
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
