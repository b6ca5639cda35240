// The published JavaScript client, driven against a server: `node client.mjs BASE_URL SCENARIO [URL]` prints one JSON object.
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client"

const [base, scenario, given] = process.argv.slice(2)
const url = (name) => `${base}/v1/stream/interop/${name}`

// What the client says of a request that the server refuses.
async function refusal(request) {
  try {
    await request
    return null
  } catch (error) {
    return { name: error.name, status: error.status ?? null, finalOffset: error.finalOffset ?? null }
  }
}

// Everything a live reader gets, from its first request until the chunk that says it is the last. (`bodyStream()` and
// `closed` end as soon as the client has prefetched that chunk, which is before it hands it out.)
async function follow(target, live) {
  const response = await stream({ url: target, live, offset: "-1", warnOnHttp: false })
  return await new Promise((resolve) => {
    const chunks = []
    response.subscribeBytes(({ data, offset, streamClosed }) => {
      chunks.push(data)
      if (streamClosed) resolve({ base64: Buffer.concat(chunks).toString("base64"), offset })
    })
  })
}

async function followJson(target, live) {
  const response = await stream({ url: target, live, offset: "-1", json: true, warnOnHttp: false })
  const items = []
  for await (const item of response.jsonStream()) items.push(item)
  return items
}

const scenarios = {
  async lifecycle() {
    const contentType = "text/plain"
    const created = await DurableStream.create({ url: url("life"), contentType, ttlSeconds: 600, body: "hello" })
    const again = await refusal(DurableStream.create({ url: url("life"), contentType: "application/json" }))
    await Promise.all(Array.from({ length: 20 }, () => created.append(" world")))
    await created.append("!", { seq: "0001" })
    const conflict = await refusal(created.append("?", { seq: "0001" }))
    const head = await created.head()
    const text = await (await created.stream({ live: false, offset: "-1" })).text()
    const rest = await (await created.stream({ live: false, offset: "0000000000000000_0000000000000005" })).text()
    const end = await created.close({ body: "end" })
    const endAgain = await created.close()
    const late = await refusal(created.append("late"))
    const closed = await DurableStream.head({ url: url("life") })
    await created.delete()
    const gone = await DurableStream.head({ url: url("life") })
    return { again, conflict, head, text, rest, end, endAgain, late, closed, gone }
  },

  async producer() {
    const messages = Array.from({ length: 500 }, (_, number) => ({ number, text: "é\n€" }))
    const contentType = "application/json"
    const target = await DurableStream.create({ url: url("produced"), contentType })
    const reading = ["sse", "long-poll"].map((live) => followJson(target.url, live))
    const errors = []
    const options = { lingerMs: 1, maxBatchBytes: 512, onError: (error) => errors.push(String(error)) }
    const first = new IdempotentProducer(target, "writer", { ...options, epoch: 1 })
    for (const message of messages.slice(0, 250)) first.append(JSON.stringify(message))
    await first.flush()
    // The same producer in another process, which does not know its epoch: it claims the next one.
    const second = new IdempotentProducer(target, "writer", { ...options, autoClaim: true })
    for (const message of messages.slice(250, -1)) second.append(JSON.stringify(message))
    await second.flush()
    const fenced = []
    const stale = new IdempotentProducer(target, "writer", { epoch: 1, onError: (error) => fenced.push(error.name) })
    stale.append(JSON.stringify("never"))
    await stale.flush()
    const end = await second.close(JSON.stringify(messages.at(-1)))
    const [sse, longPoll] = await Promise.all(reading)
    const caughtUp = await (await stream({ url: target.url, live: false, warnOnHttp: false })).json()
    const batches = [first.nextSeq, second.nextSeq]
    return { messages, errors, fenced, epoch: second.epoch, batches, end, sse, longPoll, caughtUp }
  },

  // Written in small pieces while they are read in both live modes.
  async pieces() {
    const bytes = Buffer.from(Array.from({ length: 4096 }, (_, n) => (n * 7 + (n >> 8)) % 256))
    const written = {
      "text/plain": "snow ☃ and 😀, line\nafter\n\n  line: ".repeat(10).match(/ ?./gsu).map((text) => Buffer.from(text)),
      "application/octet-stream": Array.from({ length: 64 }, (_, n) => bytes.subarray(n * 64, (n + 1) * 64)),
    }
    const found = {}
    for (const [contentType, pieces] of Object.entries(written)) {
      const name = contentType.replace("/", "-")
      const target = await DurableStream.create({ url: url(name), contentType, batching: false })
      const readers = ["sse", "long-poll"].map((live) => follow(target.url, live))
      for (const piece of pieces) await target.append(piece)
      await target.close()
      const [sse, longPoll] = await Promise.all(readers)
      found[contentType] = { written: Buffer.concat(pieces).toString("base64"), sse, longPoll }
    }
    return found
  },

  // A stream by a URL that somebody handed out, with its signature in the query.
  async handed() {
    const [sse, longPoll] = await Promise.all([follow(given, "sse"), follow(given, "long-poll")])
    const caughtUp = await stream({ url: given, live: false, offset: "-1", warnOnHttp: false })
    const type = caughtUp.contentType
    return { sse, longPoll, type, caughtUp: Buffer.from(await caughtUp.body()).toString("base64") }
  },
}

console.log(JSON.stringify(await scenarios[scenario]()))
