// The protocol's reference server with its file store, or in memory where no folder is given; its first line of output is the base URL.
import { DurableStreamTestServer } from "@durable-streams/server"

// What it logs goes to stderr: the first line of stdout is awaited.
console.log = console.info = console.error
const server = new DurableStreamTestServer({ port: 0, host: "127.0.0.1", dataDir: process.argv[2] })
process.stdout.write(`${await server.start()}\n`)
process.on("SIGTERM", () => server.stop().finally(() => process.exit()))
