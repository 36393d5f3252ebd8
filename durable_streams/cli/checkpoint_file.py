"""A reader's position in a file, replaced as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .. import Checkpoint, InvalidArgumentError
from .failures import CommandError


class CheckpointFile:
    """The position of one reader of one stream.

    The file is one line of JSON: a `Checkpoint` and the stream's URL, so that no stream is read from another's
    position. A crash at any time leaves the old position or the new one.

    Args:
        path: The file; it need not exist.
        url: The stream's URL.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = url
        self._saved: Checkpoint | None = None

    def load(self) -> Checkpoint | None:
        """The position saved last, or None if there is no file.

        Raises:
            CommandError: the file holds something else, or the position of another stream.
        """
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read the checkpoint {self._path}: {error}") from error
        try:
            self._saved = Checkpoint.loads(text)
        except InvalidArgumentError as error:
            raise CommandError(
                f"{self._path} holds no checkpoint ({error}); give another file, or remove it to begin anew"
            ) from error
        url = json.loads(text).get("url", self._url)
        if url != self._url:
            raise CommandError(f"{self._path} is the position in another stream, {url}; give each stream a file")
        return self._saved

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the position. When this returns, it is on the disk.

        Raises:
            CommandError: the file cannot be written.
        """
        if checkpoint == self._saved:
            return
        line = json.dumps({"url": self._url, **checkpoint.to_dict()}) + "\n"
        new = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with new.open("w") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            raise CommandError(f"cannot save the checkpoint {self._path}: {error}") from error
        self._saved = checkpoint
