"""Keeps what it reads in a database, once each and in order, however often it is killed.

Needs a server: `durable-streams serve`, and a stream: `durable-streams create URL --json`.
"""

import sqlite3

import anyio

from durable_streams import Checkpoint, stream

URL = "http://localhost:4437/v1/stream/orders"


async def main():
    db = sqlite3.connect("orders.sqlite")
    db.execute("CREATE TABLE IF NOT EXISTS orders (item TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS position (id INTEGER PRIMARY KEY, checkpoint TEXT)")
    saved = db.execute("SELECT checkpoint FROM position").fetchone()

    async with stream(URL, offset=Checkpoint.loads(saved[0]) if saved else None) as orders:
        async for batch in orders.iter_batches(as_="json"):
            with db:  # one transaction: the effects of a batch, and the position after it
                db.executemany("INSERT INTO orders VALUES (:item)", batch.items)
                db.execute("INSERT OR REPLACE INTO position VALUES (1, ?)", (batch.checkpoint.dumps(),))
            for order in batch.items:
                print(order["item"], flush=True)
    db.close()


anyio.run(main)
