"""The smallest server that a producer can be tested against: a JSON stream for one producer, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from durable_streams._core import json_mode
from durable_streams._core.exchange import Head, Request


@dataclass
class Server:
    """The decision list of the protocol, section 5.2.1, for one producer id. Messages are numbers.

    Attributes:
        log: Everything that was stored.
    """

    log: list[object] = field(default_factory=list)
    epoch: int | None = None
    seq: int = -1
    closed: bool = False
    closed_by: tuple[int, int] | None = None

    def apply(self, request: Request) -> Head:
        epoch, seq = int(request.headers["producer-epoch"]), int(request.headers["producer-seq"])
        closes = request.headers.get("stream-closed") == "true"
        tail = {"stream-next-offset": f"{len(self.log):08}"}
        echo = {"producer-epoch": str(epoch)}
        if self.closed:
            if self.closed_by == (epoch, seq):
                return Head(204, tail | echo | {"producer-seq": str(self.seq), "stream-closed": "true"})
            return Head(409, tail | {"stream-closed": "true"})
        if self.epoch is None:
            if seq != 0:
                return Head(409, {"producer-expected-seq": "0", "producer-received-seq": str(seq)})
        elif epoch < self.epoch:
            return Head(403, {"producer-epoch": str(self.epoch)})
        elif epoch > self.epoch:
            if seq != 0:
                return Head(400, {})
        elif seq <= self.seq:
            return Head(204, tail | echo | {"producer-seq": str(self.seq)})
        elif seq > self.seq + 1:
            return Head(409, {"producer-expected-seq": str(self.seq + 1), "producer-received-seq": str(seq)})
        self.epoch, self.seq = epoch, seq
        if request.body:
            self.log += json_mode.decode_items([request.body])
        if closes:
            self.closed, self.closed_by = True, (epoch, seq)
        tail = {"stream-next-offset": f"{len(self.log):08}"}
        status = 204 if closes and not request.body else 200
        return Head(status, tail | echo | {"producer-seq": str(seq)} | ({"stream-closed": "true"} if closes else {}))
