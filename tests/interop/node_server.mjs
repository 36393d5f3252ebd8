// Runs the Node reference server on a free port of 127.0.0.1 until standard input closes.
//
//   node node_server.mjs [options as JSON]       for example '{"longPollTimeout": 500}'
//
// Prints one line of JSON with its address, {"url": "http://127.0.0.1:..."}, once it accepts connections. The options
// are those of DurableStreamTestServer.

import { DurableStreamTestServer } from "@durable-streams/server"

const options = JSON.parse(process.argv[2] ?? "{}")
const server = new DurableStreamTestServer({ port: 0, ...options })
const url = await server.start()
console.log(JSON.stringify({ url }))

process.stdin.resume()
process.stdin.on("end", async () => {
  await server.stop()
  process.exit(0)
})
