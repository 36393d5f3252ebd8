"""In a loop, write a message to a stream and read it back, and say how long the way there and back was.

Needs a server: `s2 lite --port 8080`.
"""

import anyio

from durable_streams.s2 import S2, BasinConfig
from durable_streams.s2.patterns import JSON, DeserializingReadSession, SerializingAppendSession


async def main() -> None:
    async with S2("ignored", endpoints="http://localhost:8080") as s2:
        await s2.basins.ensure("my-basin", config=BasinConfig(create_stream_on_append=True))
        stream = s2.basin("my-basin").stream("test/read-write/0001")
        start = await stream.append("a new loop")

        session = stream.read_session(seq_num=start.end.seq_num, ignore_command_records=True)
        async with (
            SerializingAppendSession(stream.append_session(), JSON, dedupe_seq=0) as writer,
            DeserializingReadSession(session, JSON) as reader,
        ):
            for number in range(5):
                began = anyio.current_time()
                await writer.submit({"number": number})
                message = await anext(reader)
                took = (anyio.current_time() - began) * 1000
                print(f"message {message['number']} was read after {took:.1f} ms")


anyio.run(main)
