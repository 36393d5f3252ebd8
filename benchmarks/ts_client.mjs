// The official TypeScript client as a contender; the same commands and answers as client.py.

import { createInterface } from "node:readline"
import { DurableStream, IdempotentProducer, stream } from "../tests/interop/node_modules/@durable-streams/client/dist/index.js"

const open = (url) => stream({ url, live: false })

const producerOf = (url, contentType) => new IdempotentProducer(new DurableStream({ url, contentType }), "bench")

const work = {
  async read_bytes(url) {
    let count = 0
    for await (const piece of (await open(url)).bodyStream()) count += piece.length
    return count
  },

  async read_json_items(url) {
    let count = 0
    for await (const _ of (await open(url)).jsonStream()) count += 1
    return count
  },

  // `response.closed` resolves before the last batches have been delivered, so the end is read off the batches.
  async read_json_batches(url) {
    let count = 0
    const response = await open(url)
    await new Promise((resolve, reject) => {
      response.closed.catch(reject)
      response.subscribeJson((batch) => {
        count += batch.items.length
        if (batch.upToDate) resolve()
      })
    })
    return count
  },

  async append_many(url, { size, count }) {
    const message = new Uint8Array(size).fill(120)
    const producer = producerOf(url, "application/octet-stream")
    for (let number = 0; number < count; number++) producer.append(message)
    await producer.flush()
    await producer.detach()
    return count
  },

  async append_many_json(url, { value, count }) {
    const producer = producerOf(url, "application/json")
    for (let number = 0; number < count; number++) producer.append(JSON.stringify(value))
    await producer.flush()
    await producer.detach()
    return count
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, url, ...options } = JSON.parse(line)
  const started = performance.now()
  try {
    const count = await work[name](url, options)
    console.log(JSON.stringify({ seconds: (performance.now() - started) / 1000, count }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }))
  }
}
