"""Messages of a type of one's own, of any size, written with retries and read once.

A message may be larger than a record of S2: it is cut up, and comes back whole. A retry may store records twice: their
numbers tell, and each message comes once.

Needs a server: `s2 lite --port 8080`.
"""

from dataclasses import asdict, dataclass

import anyio

from durable_streams.s2 import S2, BasinConfig
from durable_streams.s2.patterns import JSON, DeserializingReadSession, SerializingAppendSession


@dataclass
class ChatMessage:
    """What somebody said."""

    user: str
    text: str


async def main() -> None:
    async with S2("ignored", endpoints="http://localhost:8080") as s2:
        await s2.basins.ensure("my-basin", config=BasinConfig(create_stream_on_append=True))
        stream = s2.basin("my-basin").stream("chat")
        start = await stream.append("the chat begins")

        messages = [ChatMessage("alice", "hello"), ChatMessage("bob", "a long story: " + "and then " * 400_000)]
        async with SerializingAppendSession(stream.append_session(), JSON, dedupe_seq=0) as writer:
            for message in messages:
                ack = await writer.submit(asdict(message))
                print(message.user, "wrote", ack.end - ack.start, "records")

        session = stream.read_session(seq_num=start.end.seq_num, wait=0, ignore_command_records=True)
        async with DeserializingReadSession(session, JSON) as reader:
            async for fields in reader:
                message = ChatMessage(**fields)
                print(f"[{message.user}] {message.text[:20]} ({len(message.text)} characters)")


anyio.run(main)
