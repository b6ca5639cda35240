// The published transports for chat front ends, on the JSON view: `node transports.mjs BASE_URL UPSTREAM_URL SCENARIO` prints one JSON object.
import { createDurableChatTransport } from "@durable-streams/aisdk-transport"
import { stream } from "@durable-streams/client"
import { durableStreamConnection, materializeSnapshotFromDurableStream } from "@durable-streams/tanstack-ai-transport"
import { readUIMessageStream } from "ai"

const [base, upstream, scenario] = process.argv.slice(2)
const chat = `${base}/api/chat`
const api = `${chat}/1`
const headers = { "X-Proxy-Url": upstream, "Streamkeep-View": "json" }

async function all(iterable) {
  const items = []
  for await (const item of iterable) items.push(item)
  return items
}

// Where a front end without such a transport would find the stream.
async function streamUrl() {
  const created = await fetch(api, { method: "POST", headers })
  return (await created.json()).streamUrl
}

async function message(chunks) {
  const [forChunks, forMessage] = chunks.tee()
  const errors = []
  const [read, messages] = await Promise.all([
    all(forChunks),
    all(readUIMessageStream({ stream: forMessage, onError: (error) => errors.push(String(error)) })),
  ])
  return { chunks: read, text: messages.at(-1)?.parts.map((part) => part.text ?? "").join("") ?? null, errors }
}

const scenarios = {
  async aisdk() {
    const transport = createDurableChatTransport({ api, reconnectApi: api, headers })
    const messages = [{ id: "m", role: "user", parts: [{ type: "text", text: "Hello" }] }]
    const chunks = await transport.sendMessages({ trigger: "submit-message", chatId: "chat", messages })
    const sending = message(chunks)
    const reconnected = await transport.reconnectToStream({ chatId: "chat" })
    return { sent: await sending, reconnected: await message(reconnected) }
  },

  // A chat of several messages: each is a generation of its own, and a page that comes back finds the one that runs.
  async conversation() {
    async function fetchClient(url, init) {
      if (init.method === "POST") return fetch(`${chat}/${crypto.randomUUID()}`, init)
      const generations = await (await fetch(`${chat}/active`, init)).json()
      const running = generations.find(({ state }) => state === "creating" || state === "running")
      return running ? Response.json(running) : new Response(null, { status: 204 })
    }
    const transport = createDurableChatTransport({ api: chat, headers, fetchClient })
    const texts = []
    for (const text of ["first", "second"]) {
      const messages = [{ id: text, role: "user", parts: [{ type: "text", text }] }]
      const chunks = await transport.sendMessages({ trigger: "submit-message", chatId: "chat", messages })
      const reconnected = await transport.reconnectToStream({ chatId: "chat" })
      const reads = await Promise.all([message(chunks), message(reconnected)])
      texts.push(reads.map((read) => read.text))
    }
    return { texts, idle: await transport.reconnectToStream({ chatId: "chat" }) }
  },

  async tanstack() {
    const readUrl = await streamUrl()
    const options = { sendUrl: api, readUrl, emitSnapshotOnSubscribe: false }
    const chunks = await all(durableStreamConnection(options).subscribe())
    return { chunks, snapshot: await materializeSnapshotFromDurableStream({ readUrl }) }
  },

  // The protocol's own client: live in both modes, and from every offset that it was given.
  async client() {
    const url = await streamUrl()
    const read = (options) => stream({ url, json: true, warnOnHttp: false, ...options })
    const live = ["sse", "long-poll"].map(async (mode) => all((await read({ live: mode })).jsonStream()))
    const batches = []
    const following = await read({ live: "sse" })
    await new Promise((resolve) => {
      following.subscribeJson(({ items, offset, streamClosed }) => {
        batches.push({ items, offset })
        if (streamClosed) resolve()
      })
    })
    const [sse, longPoll] = await Promise.all(live)
    const rests = await Promise.all(batches.map(async ({ offset }) => (await read({ live: false, offset })).json()))
    return { sse, longPoll, batches, rests }
  },
}

console.log(JSON.stringify(await scenarios[scenario]()))
