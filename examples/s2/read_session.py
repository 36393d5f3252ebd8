"""Follow a stream while another task writes it, and go on after a break where one was.

Needs a server: `s2 lite --port 8080`.
"""

from uuid import uuid4

import anyio

from durable_streams.s2 import S2, BasinConfig, Stream


async def write(stream: Stream) -> None:
    """Append a thousand readings, one by one."""
    async with stream.producer() as producer:
        for number in range(1000):
            await producer.submit(f"reading {number}")


async def main() -> None:
    async with S2("ignored", endpoints="http://localhost:8080") as s2:
        await s2.basins.ensure("my-basin", config=BasinConfig(create_stream_on_append=True))
        name = f"readings/{uuid4().hex[:8]}"
        await s2.basin("my-basin").streams.create(name)
        stream = s2.basin("my-basin").stream(name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, stream)
            async with stream.read_session(clamp=True, tail_offset=10) as session:
                async for record in session.iter_records():
                    if record.seq_num == 499:
                        break
                position = session.next_read_position
        assert position is not None
        print("stopped before record", position.seq_num)

        async with stream.read_session(seq_num=position.seq_num, wait=0) as session:
            found = [record.body.decode() async for record in session.iter_records()]
        print("then came", found[0], "to", found[-1])


anyio.run(main)
