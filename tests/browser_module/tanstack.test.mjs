// TanStack AI's own client on `durableTransport`: `node --test tanstack.test.mjs`, with PROXY_URL.
import assert from "node:assert/strict"
import { test } from "node:test"
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client"
import { MemoryStorage, PROXY, freshSession, says, turns, until, vendor, wire } from "./harness.mjs"
import { durableTransport } from "./modules/streamkeep-tanstack.js"

const WORDS = ["Hello", " wörld", " ☃", "\n\nand", " more"]
const TEXT = WORDS.join("")

function events(run) {
  const ids = { threadId: "t", runId: run }
  const chunks = [
    { type: "RUN_STARTED", ...ids },
    { type: "TOOL_CALL_START", toolCallId: `call-${run}`, toolCallName: "look", parentMessageId: run },
    { type: "TOOL_CALL_ARGS", toolCallId: `call-${run}`, delta: '{"at":"☃"}' },
    { type: "TOOL_CALL_END", toolCallId: `call-${run}` },
    { type: "TEXT_MESSAGE_START", messageId: run, role: "assistant" },
    ...WORDS.map((delta) => ({ type: "TEXT_MESSAGE_CONTENT", messageId: run, delta })),
    { type: "TEXT_MESSAGE_END", messageId: run },
    { type: "RUN_FINISHED", ...ids },
  ]
  return chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`)
}

async function answering({ turn } = {}) {
  let answers = 0
  const headers = { "Content-Type": "text/event-stream" }
  return vendor((exchange) => says(events(`run-${++answers}`), { headers, turn })(exchange))
}

function page(session, storage, api, more = {}) {
  const durable = durableTransport(session, { proxyUrl: PROXY, storage, api, ...more })
  const errors = []
  const client = new ChatClient({ ...durable.durableSession, onError: (error) => errors.push(error) })
  client.attach()
  return { durable, client, errors }
}

const texts = ({ client }) =>
  client.getMessages().map(({ parts }) => parts.map((part) => (part.type === "text" ? part.content : "")).join(""))
const shows = (one, text) => until(() => texts(one).at(-1)?.includes(text), `${text} is shown`)

for (const more of [{}, { fetchServerSentEvents }]) {
  const whose = more.fetchServerSentEvents ? "the SDK's connection" : "our own connection"

  test(`${whose}: a chat of two turns is there when the page is loaded again`, async () => {
    const { url, calls } = await answering()
    const [session, storage] = [freshSession(), new MemoryStorage()]
    const first = page(session, storage, url, more)
    await first.client.sendMessage("one")
    await first.client.sendMessage("two")
    assert.deepEqual(texts(first), ["one", TEXT, "two", TEXT])
    const sent = JSON.parse(calls[1].body)
    assert.deepEqual([sent.threadId, sent.messages.filter(({ role }) => role === "user").length], [session, 2])
    const again = page(session, storage, url, more)
    await shows(again, TEXT)
    assert.deepEqual(texts(again), ["one", TEXT, "two", TEXT])
    assert.equal(calls.length, 2)
  })

  test(`${whose}: W25: a page that is loaded in the middle of an answer gets all of it once, tools too`, async () => {
    const { turn, give } = turns()
    const { url, calls } = await answering({ turn })
    const [session, storage] = [freshSession(), new MemoryStorage()]
    const left = page(session, storage, url, more)
    left.client.sendMessage("one")
    give(7)
    await shows(left, "wörld")
    const again = page(session, storage, url, more)
    const elsewhere = page(session, new MemoryStorage(), url, more)
    for (const one of [again, elsewhere]) await shows(one, "wörld")
    give(20)
    for (const one of [again, elsewhere]) await until(() => one.client.getStatus() === "ready")
    assert.deepEqual([texts(again), texts(elsewhere)], [["one", TEXT], [TEXT]])
    const { parts } = again.client.getMessages().at(-1)
    assert.deepEqual(parts.filter(({ type }) => type === "tool-call").map((part) => part.arguments), ['{"at":"☃"}'])
    assert.equal(calls.length, 1)
  })
}

for (const isReloaded of [false, true]) {
  test(`a stop ${isReloaded ? "after a reload " : ""}closes upstream, and it stays stopped`, async () => {
    const { turn, give } = turns()
    const { url, calls } = await answering({ turn })
    const [session, storage] = [freshSession(), new MemoryStorage()]
    let shown = page(session, storage, url)
    shown.client.sendMessage("one")
    give(6)
    await shows(shown, "Hello")
    if (isReloaded) {
      shown = page(session, storage, url)
      await shows(shown, "Hello")
    }
    shown.client.stop()
    await until(() => calls[0].isGone)
    const again = page(session, storage, url)
    await shows(again, "Hello")
    await until(() => again.client.getStatus() === "ready")
    assert.deepEqual([texts(again), again.errors, calls.length], [["one", "Hello"], [], 1])
  })
}

test("messages are there while the proxy is away", async () => {
  const { url } = await answering()
  const line = await wire(PROXY)
  const [session, storage] = [freshSession(), new MemoryStorage()]
  await page(session, storage, url).client.sendMessage("one")
  line.isDown = true
  const again = page(session, storage, url, { proxyUrl: line.url, patience: { sendSeconds: 0.01 } })
  await shows(again, TEXT)
  assert.deepEqual(texts(again), ["one", TEXT])
})

test("W25: an answer that broke off is an error, and no end", async () => {
  const { url } = await vendor(async ({ response }) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" })
    for (const event of events("half").slice(0, 7)) response.write(event)
    await new Promise((resolve) => setTimeout(resolve, 50))
    response.destroy()
  })
  const [session, storage] = [freshSession(), new MemoryStorage()]
  const shown = page(session, storage, url)
  await shown.client.sendMessage("one")
  const again = page(session, storage, url)
  await until(() => again.errors.length)
  for (const one of [shown, again]) {
    assert.deepEqual(texts(one), ["one", "Hello wörld"])
    assert.equal(one.errors.length, 1)
  }
})
