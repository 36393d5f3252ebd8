"""A disk for SQLite that can lose power and fail: a VFS that writes down what reaches the files, and when it is safe.

It sits in front of SQLite's own VFS and calls it for everything. Of what it has written down, `Disk.after_power_loss`
makes the files as they could be found after the power went out at some moment: what was synced is there; of what was
written since, every sector is there or not, by chance and in no order. (Sectors are written whole, and none is harmed
by the writing of another: SQLite counts on that, too, and calls it "power-safe overwrite".) That a file was deleted is
safe when the directory is synced, which SQLite does with the first sync of a file that it made.

SQLite's C interface is reached with ctypes, through the very library that Python's sqlite3 uses; `available` says
whether that works here.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import itertools
import random
import sqlite3
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

SECTOR = 512
SUFFIXES = ("", "-wal", "-journal")
_RECORDED = 0x100 | 0x800 | 0x80000  # SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_MAIN_JOURNAL, SQLITE_OPEN_WAL
_IOERR = {"write": 10 | 3 << 8, "sync": 10 | 4 << 8, "truncate": 10 | 6 << 8, "delete": 10 | 10 << 8}

Kind: TypeAlias = Literal["write", "sync", "truncate", "delete", "note"]


class _Methods(Structure):
    _fields_ = [
        ("version", c_int),
        *((name, c_void_p) for name in ("close", "read", "write", "truncate", "sync", "file_size")),
        *((f"rest{number}", c_void_p) for number in range(13)),
    ]


class _File(Structure):
    _fields_ = [("methods", POINTER(_Methods))]


class _VFS(Structure):
    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("path_size", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        *((f"rest{number}", c_void_p) for number in range(15)),
    ]


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(_File), c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)


def _library() -> Any:
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    library.sqlite3_vfs_find.restype = POINTER(_VFS)
    library.sqlite3_vfs_find.argtypes = [c_char_p]
    library.sqlite3_vfs_register.argtypes = [POINTER(_VFS), c_int]
    library.sqlite3_vfs_unregister.argtypes = [POINTER(_VFS)]
    return library


def available() -> bool:
    """Whether SQLite's C interface can be reached."""
    try:
        library = _library()
        library.sqlite3_libversion.restype = c_char_p
        version: bytes = library.sqlite3_libversion()
    except (OSError, AttributeError):
        return False
    return version.decode() == sqlite3.sqlite_version


@dataclass
class Event:
    """Something that happened to a file, or that the test noted meanwhile."""

    kind: Kind
    path: str = ""
    offset: int = 0
    data: bytes = b""
    note: Any = None


@dataclass
class Image:
    """A file on a disk: what is safe, and what was done to it since."""

    safe: bytearray = field(default_factory=bytearray)
    since: list[Event] = field(default_factory=list)
    synced: bool = False

    def sync(self) -> None:
        self.synced = True
        for event in self.since:
            _apply(self.safe, event)
        self.since.clear()

    def lose_power(self, rng: random.Random) -> bytes:
        """What may be found afterwards."""
        content = bytearray(self.safe)
        fate = rng.choice(["nothing", "everything", "some", "some", "some"])
        for event in self.since:
            if fate == "everything" or (fate == "some" and event.kind == "truncate" and rng.random() < 0.5):
                _apply(content, event)
            elif fate == "some" and event.kind == "write":
                position = 0
                while position < len(event.data):  # sector by sector of the disk
                    length = SECTOR - (event.offset + position) % SECTOR
                    if rng.random() < 0.5:
                        part = event.data[position : position + length]
                        _apply(content, Event("write", offset=event.offset + position, data=part))
                    position += length
        return bytes(content)


def _apply(content: bytearray, event: Event) -> None:
    if event.kind == "truncate":
        del content[event.offset :]
        return
    if len(content) < event.offset:
        content.extend(bytes(event.offset - len(content)))
    content[event.offset : event.offset + len(event.data)] = event.data


class Disk:
    """A VFS of its own name, for as long as the block lasts.

    Attributes:
        name: For `file:...?vfs=`.
        events: All that happened, in order.
        fails: Asked before each event; if it says yes, the event does not happen and SQLite gets an I/O error.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.name = f"disk{next(self._numbers)}"
        self.events: list[Event] = []
        self.fails: Callable[[Event], bool] = lambda event: False
        self._library = _library()
        self._real = self._library.sqlite3_vfs_find(None)
        self._real_open = _OPEN(self._real.contents.open)
        self._vfs = _VFS.from_buffer_copy(self._real.contents)
        self._vfs.name = self.name.encode()
        self._vfs.next = None
        self._real_delete = _DELETE(self._real.contents.delete)
        self._callbacks: list[Any] = [_OPEN(self._open), _DELETE(self._delete)]
        self._vfs.open = ctypes.cast(self._callbacks[0], c_void_p)
        self._vfs.delete = ctypes.cast(self._callbacks[1], c_void_p)
        self._methods: dict[int, _Methods] = {}  # ours, by the address of those they stand for
        self._paths: dict[int, str] = {}

    def __enter__(self) -> Disk:
        self._library.sqlite3_vfs_register(ctypes.byref(self._vfs), 0)
        return self

    def __exit__(self, *exception: object) -> None:
        self._library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))

    def note(self, note: Any) -> None:
        """Write down that something is known now."""
        self.events.append(Event("note", note=note))

    def after_power_loss(self, moment: int, rng: random.Random) -> tuple[dict[str, bytes], list[Any]]:
        """The files after the first `moment` events, and what had been noted."""
        files: dict[str, Image] = {}
        deleted: dict[str, Image] = {}  # and not yet safely so
        notes = []
        for event in self.events[:moment]:
            if event.kind == "note":
                notes.append(event.note)
            elif event.kind == "delete":
                deleted[event.path] = files.pop(event.path)
            else:
                image = files.setdefault(event.path, Image())
                if event.kind != "sync":
                    image.since.append(event)
                    continue
                if not image.synced:
                    deleted.clear()
                image.sync()
        found = {path: image.lose_power(rng) for path, image in files.items()}
        for path, image in deleted.items():
            if path not in found and rng.random() < 0.5:
                found[path] = image.lose_power(rng)
        return found, notes

    def begin_with(self, path: Path) -> None:
        """Forget what happened, and have what is in the files of a database written and safe."""
        self.events.clear()
        for suffix in SUFFIXES:
            name = f"{path}{suffix}"
            if Path(name).exists():
                self.events += [Event("write", name, 0, Path(name).read_bytes()), Event("sync", name)]

    def lose_power(self, old: Path, new: Path, moment: int, rng: random.Random) -> list[Any]:
        """Make the files of a database in a new place as they may be found, and return what had been noted."""
        files, notes = self.after_power_loss(moment, rng)
        for suffix in SUFFIXES:
            if f"{old}{suffix}" in files:
                Path(f"{new}{suffix}").write_bytes(files[f"{old}{suffix}"])
        return notes

    def _open(self, vfs: int, name: int, file: Any, flags: int, out: int) -> int:
        code: int = self._real_open(ctypes.addressof(self._real.contents), name, file, flags, out)
        if code == 0 and flags & _RECORDED:
            real = file.contents.methods
            address = ctypes.addressof(real.contents)
            if address not in self._methods:
                self._methods[address] = self._wrap(real.contents)
            self._paths[ctypes.addressof(file.contents)] = ctypes.string_at(name).decode()
            file.contents.methods = ctypes.pointer(self._methods[address])
        return code

    def _delete(self, vfs: int, name: int, sync_directory: int) -> int:
        real, path = ctypes.addressof(self._real.contents), ctypes.string_at(name).decode()
        if not Path(path).exists():
            return int(self._real_delete(real, name, sync_directory))
        return self._happen(Event("delete", path), lambda: self._real_delete(real, name, sync_directory))

    def _wrap(self, real: _Methods) -> _Methods:
        real_write, real_truncate, real_sync = _WRITE(real.write), _TRUNCATE(real.truncate), _SYNC(real.sync)

        def write(file: int, data: int, size: int, offset: int) -> int:
            event = Event("write", self._paths[file], offset, ctypes.string_at(data, size))
            return self._happen(event, lambda: real_write(file, data, size, offset))

        def truncate(file: int, size: int) -> int:
            return self._happen(Event("truncate", self._paths[file], size), lambda: real_truncate(file, size))

        def sync(file: int, flags: int) -> int:
            return self._happen(Event("sync", self._paths[file]), lambda: real_sync(file, flags))

        ours = _Methods.from_buffer_copy(real)
        for name, callback in (("write", _WRITE(write)), ("truncate", _TRUNCATE(truncate)), ("sync", _SYNC(sync))):
            self._callbacks.append(callback)
            setattr(ours, name, ctypes.cast(callback, c_void_p))
        return ours

    def _happen(self, event: Event, call: Callable[[], int]) -> int:
        if self.fails(event):
            return _IOERR[event.kind]
        code = call()
        if code == 0:
            self.events.append(event)
        return code
