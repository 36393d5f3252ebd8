// The official TypeScript client as a contender; the same commands and answers as client.py.

import { createInterface } from "node:readline"
import { DurableStream, IdempotentProducer, stream } from "../tests/interop/node_modules/@durable-streams/client/dist/index.js"

const open = (url) => stream({ url, live: false })

const median = (samples) => samples.sort((a, b) => a - b)[samples.length >> 1] / 1000

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

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

// Work that measures itself, message by message.
const single = {
  async append_one(url, { content_type, size, count }) {
    const handle = new DurableStream({ url, contentType: content_type })
    const message = new Uint8Array(size).fill(120)
    const samples = []
    for (let number = 0; number < count; number++) {
      const started = performance.now()
      await handle.append(message)
      samples.push(performance.now() - started)
    }
    return samples
  },

  async deliver_one(url, { content_type, live, count }) {
    const handle = new DurableStream({ url, contentType: content_type })
    const response = await stream({ url, offset: "now", live })
    const pieces = response.bodyStream()[Symbol.asyncIterator]()
    const samples = []
    while (samples.length < count) {
      const piece = pieces.next()
      await pause(2)
      const started = performance.now()
      const appended = handle.append(new Uint8Array([120]))
      await piece
      samples.push(performance.now() - started)
      await appended
    }
    response.cancel()
    return samples
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, url, ...options } = JSON.parse(line)
  const started = performance.now()
  const before = process.cpuUsage()
  try {
    const samples = name in single ? await single[name](url, options) : null
    const count = samples ? samples.length : await work[name](url, options)
    const seconds = samples ? median(samples) : (performance.now() - started) / 1000
    const used = process.cpuUsage(before)
    const cpu = (used.user + used.system) / 1e6
    console.log(JSON.stringify({ seconds, cpu, count, peak: process.resourceUsage().maxRSS * 1024 }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }))
  }
}
