// Chat front ends on an app of ours: `node frontends.mjs SCENARIO BASE_URL_OR_FILE` prints one JSON object.
import { readFile } from "node:fs/promises"
import { EventSchemas } from "@ag-ui/core/schemas"
import { createDurableChatTransport } from "@durable-streams/aisdk-transport"
import { durableStreamConnection, materializeSnapshotFromDurableStream } from "@durable-streams/tanstack-ai-transport"
import { StreamProcessor } from "@tanstack/ai/client"
import { DefaultChatTransport, readUIMessageStream, uiMessageChunkSchema } from "ai"

const [scenario, argument] = process.argv.slice(2)

async function all(iterable) {
  const items = []
  for await (const item of iterable) items.push(item)
  return items
}

async function uiMessage(stream) {
  const errors = []
  const states = await all(readUIMessageStream({ stream, onError: (error) => errors.push(error.message) }))
  return { message: states.at(-1) ?? null, errors }
}

function tanstackMessages(chunks) {
  const errors = []
  const processor = new StreamProcessor({ events: { onError: (error) => errors.push(error.message) } })
  for (const chunk of chunks) processor.processChunk(chunk)
  return { messages: processor.getMessages(), errors }
}

const messages = [{ id: "1", role: "user", parts: [{ type: "text", text: "Hello" }] }]
const question = { trigger: "submit-message", chatId: "chat", messages }

const scenarios = {
  // Every chunk by the packages' own schemas, and what they make of all.
  async chunks() {
    const { aiSdk, tanstack } = JSON.parse(await readFile(argument, "utf-8"))
    for (const chunk of aiSdk.flat()) {
      const checked = await uiMessageChunkSchema().validate(chunk)
      if (!checked.success) throw checked.error
    }
    for (const chunk of tanstack.flat()) EventSchemas.parse(chunk)
    return {
      aiSdk: await Promise.all(aiSdk.map((chunks) => uiMessage(ReadableStream.from(chunks)))),
      tanstack: tanstack.map(tanstackMessages),
    }
  },

  async durable() {
    const transport = createDurableChatTransport({ api: `${argument}/api/durable` })
    const idle = await transport.reconnectToStream({ chatId: "chat" })
    const sent = await transport.sendMessages(question)
    const reconnected = await transport.reconnectToStream({ chatId: "chat" })
    const [first, second] = await Promise.all([uiMessage(sent), uiMessage(reconnected)])
    return { idle, first, second, over: await transport.reconnectToStream({ chatId: "chat" }) }
  },

  async plain() {
    const transport = new DefaultChatTransport({ api: `${argument}/api/plain` })
    const sent = await transport.sendMessages(question)
    const reconnected = await transport.reconnectToStream({ chatId: "chat" })
    const [first, second] = await Promise.all([uiMessage(sent), uiMessage(reconnected)])
    return { idle: null, first, second, over: await transport.reconnectToStream({ chatId: "chat" }) }
  },

  async tanstack() {
    const options = { sendUrl: `${argument}/api/tanstack/chat`, readUrl: `${argument}/streams/chat` }
    const live = durableStreamConnection({ ...options, emitSnapshotOnSubscribe: false })
    const reading = new AbortController()
    const chunks = []
    const following = (async () => {
      for await (const chunk of live.subscribe(reading.signal)) {
        chunks.push(chunk)
        if (chunk.type === "RUN_FINISHED") return
      }
    })()
    await live.send(messages, {})
    await following
    reading.abort()
    const later = new AbortController()
    const { value: snapshot } = await durableStreamConnection(options).subscribe(later.signal).next()
    later.abort()
    const materialized = await materializeSnapshotFromDurableStream({ readUrl: options.readUrl })
    const told = await (await fetch(`${argument}/api/tanstack/chat/snapshot`)).json()
    return { ...tanstackMessages(chunks), snapshot, materialized, told }
  },
}

console.log(JSON.stringify(await scenarios[scenario]()))
process.exit(0)
