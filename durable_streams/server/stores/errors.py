"""What can go wrong with a store as a whole; a request that is merely refused is answered with `Refused`.

DurableStreamError
└── StoreError                 STORE_ERROR         reading failed; the store goes on
    ├── StoreInUseError        STORE_IN_USE        opening: another process has it open
    ├── StoreFormatError       STORE_FORMAT        opening: no store of ours, of a newer release, or damaged
    └── StoreFailedError       STORE_FAILED        writing failed; the store has stopped for good
"""

from __future__ import annotations

from ...errors import DurableStreamError


class StoreError(DurableStreamError):
    """The store could not do what it was asked to, for a reason that lies in it or below it.

    The message names the store and has the words of the layer below, which is the `__cause__`.
    """

    code = "STORE_ERROR"


class StoreInUseError(StoreError):
    """Another process, or another object in this one, has the store open.

    A store has one owner: live readers are woken in memory, and two owners would not hear of each other's appends.
    The lock goes with the process that holds it, however that ends, so there is never anything to clean up.
    """

    code = "STORE_IN_USE"


class StoreFormatError(StoreError):
    """The file is not a store, was made by a newer release, or is damaged. It was not changed."""

    code = "STORE_FORMAT"


class StoreFailedError(StoreError):
    """A commit failed (disk full, I/O error, damage), and the store has stopped: every later call raises this, too.

    What was acknowledged before is safe on disk; what this error answers may or may not have been stored. After a
    failed fsync nobody knows which pages reached the disk, and a second fsync may claim success for pages that the
    system has dropped. So nothing is tried again in this process: end it, see to the disk, start anew. Opening the
    store reads back what is really there.
    """

    code = "STORE_FAILED"
