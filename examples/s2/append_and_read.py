"""Append text and binary records with headers, and read them back.

Needs a server: `s2 lite --port 8080`. For s2.dev, set S2_ACCESS_TOKEN and use `S2.from_env()`.
"""

import anyio

from durable_streams.s2 import S2, AppendRecord, BasinConfig


async def main() -> None:
    async with S2("ignored", endpoints="http://localhost:8080") as s2:
        await s2.basins.ensure("my-basin", config=BasinConfig(create_stream_on_append=True))
        print("my basins:", [basin.name for basin in await s2.basins.list()])
        stream = s2.basin("my-basin").stream("my-stream")

        ack = await stream.append(
            [
                AppendRecord.text("Hello, world!", {"foo": "bar"}),
                AppendRecord(b"\x01\x02\x03", {b"type": b"binary"}),
            ]
        )
        page = await stream.read(seq_num=ack.start.seq_num, count=10)
        for record in page.records:
            print("record", record.seq_num, record.body, dict(record.headers))


anyio.run(main)
