"""Carries rows of a database to a stream, once each and in order, however often it is killed.

The rows wait in an "outbox" table, where an application put them in the transaction that they tell of. Their ids rise,
so they serve as `seq`: the server refuses an append whose `seq` is not above the last one. A row that was stored, but
not ticked off because of a kill, is recognised that way. There must be one such program at a time.

Needs a server: `durable-streams serve`, and a stream: `durable-streams create URL --json`.
"""

import sqlite3

import anyio

from durable_streams import DurableStream, SeqConflictError

URL = "http://localhost:4437/v1/stream/outbox"


async def main() -> None:
    db = sqlite3.connect("application.sqlite")
    rows = db.execute("SELECT id, body FROM outbox WHERE NOT sent ORDER BY id").fetchall()

    async with DurableStream(URL) as stream:
        for row, body in rows:
            try:
                await stream.append(body, seq=f"{row:020}")  # compared byte by byte, hence the zeros
            except SeqConflictError:
                print(row, "was stored before", flush=True)
            else:
                print(row, "stored", flush=True)
            with db:
                db.execute("UPDATE outbox SET sent = 1 WHERE id = ?", (row,))
    db.close()


anyio.run(main)
