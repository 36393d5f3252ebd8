"""A chat answer that survives a reload.

A model writes an answer token by token. A page shows the beginning, is reloaded, and goes on where it was, in the
middle of a character even: the position of a text reader includes the bytes of a character that is not complete.

Runs by itself: python examples/chat_tokens.py
"""

import anyio

from durable_streams import Checkpoint, DurableStream, stream
from durable_streams.server import Server

ANSWER = ["Streams ", "are ", "logs ", "that ", "you ", "can ", "follow", ". ", "\N{WATER WAVE}\n"]


async def model(url: str, page_is_away: anyio.Event) -> None:
    """Write the answer; its second half while nobody reads."""
    async with DurableStream(url) as answer, answer.writable(close_stream=True) as sink:
        for number, token in enumerate(ANSWER):
            if number == len(ANSWER) // 2:
                await sink.producer.flush()
                await page_is_away.wait()
            data = token.encode()
            await sink.write(data[:2])  # as a tokenizer does, which knows nothing of characters
            await sink.write(data[2:])


async def page(url: str, position: Checkpoint | None, letters: int | None) -> Checkpoint:
    """Show the answer from a position on, until so many letters are shown or the answer is complete."""
    shown = 0
    async with stream(url, offset=position, live="long-poll") as answer:
        async for batch in answer.iter_batches(as_="text"):
            print(batch.text, end="", flush=True)
            shown += len(batch.text)
            position = batch.checkpoint
            if letters is not None and shown >= letters:
                break
    assert position is not None
    return position


async def main() -> None:
    async with Server() as server, anyio.create_task_group() as tasks:
        url = f"{server.url}/chat/answer-1"
        async with DurableStream(url) as answer:
            await answer.create(content_type="text/plain; charset=utf-8")

        page_is_away = anyio.Event()
        tasks.start_soon(model, url, page_is_away)
        position = await page(url, None, letters=10)
        print("| (reload) |", end="")
        page_is_away.set()
        await page(url, position, letters=None)


anyio.run(main)
