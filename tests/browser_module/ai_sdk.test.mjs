// The AI SDK's own chat on `durableTransport`: `node --test ai_sdk.test.mjs`, with PROXY_URL.
import assert from "node:assert/strict"
import { test } from "node:test"
import { AbstractChat } from "ai"
import { MemoryStorage, PROXY, freshSession, says, turns, until, vendor, wire } from "./harness.mjs"
import { durableTransport } from "./modules/streamkeep-ai-sdk.js"

const WORDS = ["Hello", " wörld", " ☃", "\n\nand", " more"]
const TEXT = WORDS.join("")

function events(id) {
  const chunks = [
    { type: "start", messageId: id },
    { type: "text-start", id: "0" },
    ...WORDS.map((delta) => ({ type: "text-delta", id: "0", delta })),
    { type: "text-end", id: "0" },
    { type: "finish" },
  ]
  return [...chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`), "data: [DONE]\n\n"]
}

/** A vendor that answers with a chunk for each turn. */
async function answering({ turn } = {}) {
  let answers = 0
  const headers = { "Content-Type": "text/event-stream", "x-vercel-ai-ui-message-stream": "v1" }
  return vendor((exchange) => says(events(`answer-${++answers}`), { headers, turn })(exchange))
}

class Chat extends AbstractChat {
  constructor({ messages = [], ...options }) {
    const state = {
      status: "ready",
      error: undefined,
      messages,
      pushMessage: (message) => (state.messages = [...state.messages, message]),
      popMessage: () => (state.messages = state.messages.slice(0, -1)),
      replaceMessage: (index, message) => (state.messages = state.messages.with(index, structuredClone(message))),
      snapshot: (value) => structuredClone(value),
    }
    super({ ...options, state })
  }
}

/** What a page does when it is loaded. */
function page(session, storage, url, { proxyUrl = PROXY, sendSeconds = 10, ...durableOptions } = {}) {
  const patience = { sendSeconds, silenceSeconds: 0.5 }
  const durable = durableTransport(session, { proxyUrl, storage, patience }, { api: url }, durableOptions)
  const chat = new Chat({ ...durable.durableSession, messages: durable.initialMessages })
  return { durable, chat, resumed: chat.resumeStream() }
}

const texts = ({ chat }) => chat.messages.map(({ parts }) => parts.map(({ text }) => text ?? "").join(""))
const shows = (one, text) => until(() => texts(one).at(-1)?.includes(text), `${text} is shown`)

test("a chat of two turns calls upstream with all messages, and is there when the page is loaded again", async () => {
  const { url, calls } = await answering()
  const [session, storage] = [freshSession(), new MemoryStorage()]
  const finished = []
  const first = page(session, storage, url, { onFinish: (found) => finished.push(found.messages.length) })
  await first.resumed
  await first.chat.sendMessage({ text: "one" })
  await first.chat.sendMessage({ text: "two" })
  assert.deepEqual(texts(first), ["one", TEXT, "two", TEXT])
  const sent = JSON.parse(calls[1].body)
  assert.deepEqual([sent.id, sent.trigger, sent.messages.length], [session, "submit-message", 3])
  const second = page(session, storage, url)
  await second.resumed
  assert.deepEqual(texts(second), ["one", TEXT, "two", TEXT])
  assert.deepEqual([finished, second.chat.status, calls.length], [[2, 4], "ready", 2])
})

test("a page that is loaded in the middle of an answer goes on with it, and so does another tab", async () => {
  const { turn, give } = turns()
  const { url, calls } = await answering({ turn })
  const [session, storage] = [freshSession(), new MemoryStorage()]
  const left = page(session, storage, url)
  left.chat.sendMessage({ text: "one" })
  give(4)
  await shows(left, "wörld")
  const tabs = [page(session, storage, url), page(session, storage, url)]
  for (const tab of tabs) await shows(tab, "wörld")
  give(20)
  await Promise.all(tabs.map(({ resumed }) => resumed))
  for (const tab of tabs) assert.deepEqual(texts(tab), ["one", TEXT])
  assert.deepEqual(texts(page(session, storage, url)), ["one", TEXT])
  assert.equal(calls.length, 1)
})

test("an answer is found before its first byte, and when the storage was cleared", async () => {
  const { turn, give } = turns()
  const { url, calls } = await answering({ turn })
  const [session, storage] = [freshSession(), new MemoryStorage()]
  page(session, storage, url).chat.sendMessage({ text: "one" })
  await until(() => calls.length === 1)
  const second = page(session, storage, url)
  const third = page(session, new MemoryStorage(), url)
  give(3)
  for (const one of [second, third]) await shows(one, "Hello")
  give(20)
  await Promise.all([second.resumed, third.resumed])
  assert.deepEqual([texts(second), texts(third)], [["one", TEXT], [TEXT]])
  assert.equal(calls.length, 1)
})

for (const how of ["the chat's stop", "the chat's stop after a reload", "the session's stop"]) {
  test(`${how} closes upstream, keeps the part that came, and the page that is loaded again stays stopped`, async () => {
    const { turn, give } = turns()
    const { url, calls } = await answering({ turn })
    const [session, storage] = [freshSession(), new MemoryStorage()]
    let shown = page(session, storage, url)
    shown.chat.sendMessage({ text: "one" })
    give(3)
    await shows(shown, "Hello")
    if (how.endsWith("reload")) {
      shown = page(session, storage, url)
      await shows(shown, "Hello")
    }
    await (how.startsWith("the chat") ? shown.chat.stop() : shown.durable.stop())
    await until(() => calls[0].isGone)
    await until(() => shown.chat.status === "ready")
    const again = page(session, storage, url)
    await again.resumed
    assert.deepEqual([texts(again), again.chat.status], [["one", "Hello"], "ready"])
  })
}

test("an answer that was lost on the way is not kept in part, and comes whole when the page is loaded again", async () => {
  const { turn, give } = turns()
  const { url } = await answering({ turn })
  const line = await wire(PROXY)
  const [session, storage] = [freshSession(), new MemoryStorage()]
  const cut = page(session, storage, url, { proxyUrl: line.url })
  await cut.resumed
  const sending = cut.chat.sendMessage({ text: "one" })
  give(3)
  await shows(cut, "Hello")
  line.isDown = true
  line.cut()
  await sending
  assert.equal(cut.chat.status, "error")
  line.isDown = false
  give(20)
  const again = page(session, storage, url, { proxyUrl: line.url })
  await again.resumed
  assert.deepEqual(texts(again), ["one", TEXT])
})

test("upstream's refusal is the chat's error, and a broken answer is kept in part", async () => {
  const refusing = await vendor(says(["too many"], { status: 429 }))
  const first = page(freshSession(), new MemoryStorage(), refusing.url)
  await first.chat.sendMessage({ text: "one" })
  assert.deepEqual([first.chat.status, first.chat.error.message], ["error", "too many"])
  const breaking = await vendor(async ({ response }) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" })
    for (const event of events("half").slice(0, 4)) response.write(event)
    await new Promise((resolve) => setTimeout(resolve, 50))
    response.destroy()
  })
  const [session, storage] = [freshSession(), new MemoryStorage()]
  const second = page(session, storage, breaking.url)
  await second.chat.sendMessage({ text: "one" })
  assert.deepEqual([second.chat.status, second.chat.error.code], ["error", "upstream_failed"])
  const again = page(session, storage, breaking.url)
  await again.resumed
  assert.deepEqual(texts(again), ["one", "Hello wörld"])
})

test("requests are prepared, messages expire, and a session that is cleared is empty", async () => {
  const { url, calls } = await answering()
  const [session, storage] = [freshSession(), new MemoryStorage()]
  const transportOptions = {
    api: "http://127.0.0.1:1/unused",
    headers: () => ({ "X-App": "app" }),
    body: { model: "demo" },
    prepareSendMessagesRequest: ({ body, messages }) => ({ api: url, body: { ...body, last: messages.at(-1).id } }),
  }
  const durable = durableTransport(session, { proxyUrl: PROXY, storage }, transportOptions, { messages: { ttlMs: 60_000 } })
  const chat = new Chat(durable.durableSession)
  await chat.sendMessage({ text: "one" })
  assert.deepEqual(Object.keys(JSON.parse(calls[0].body)), ["model", "last"])
  assert.equal(calls[0].request.headers["x-app"], "app")
  assert.equal(durable.initialMessages.length, 2)
  const late = durableTransport(session, { proxyUrl: PROXY, storage }, {}, { messages: { ttlMs: -1 } })
  assert.deepEqual(late.initialMessages, [])
  await chat.sendMessage({ text: "two" })
  durable.clearSession()
  assert.equal(storage.length, 0)
})

test("a call that was lost earlier does not keep a later answer from being kept", async () => {
  const { url } = await answering()
  const line = await wire(PROXY)
  const [session, storage] = [freshSession(), new MemoryStorage()]
  const shown = page(session, storage, url, { proxyUrl: line.url, sendSeconds: 0.01 })
  await shown.resumed
  line.isDown = true
  line.cut()
  await shown.chat.sendMessage({ text: "one" })
  assert.equal(shown.chat.status, "error")
  line.isDown = false
  await shown.chat.regenerate()
  assert.deepEqual(texts(shown), ["one", TEXT])
  const again = page(session, storage, url)
  await again.resumed
  assert.deepEqual(texts(again), ["one", TEXT])
})

for (const stored of ["5", "null", "[]", "{", '{"messages":5,"at":AT}', '{"messages":{"filter":1},"at":AT}', '{"messages":[null,7,{}],"at":AT}']) {
  test(`what is no messages is none: ${stored}`, () => {
    const storage = new MemoryStorage()
    storage.setItem("streamkeep/messages/chat", stored.replace("AT", Date.now()))
    assert.deepEqual(durableTransport("chat", { proxyUrl: PROXY, storage }).initialMessages, [])
  })
}

test("messages of sessions that nobody came back to go", () => {
  const storage = new MemoryStorage()
  const kept = (days) => JSON.stringify({ messages: [{ id: "one", role: "user", parts: [] }], at: Date.now() - days * 86_400_000 })
  for (let number = 0; number < 300; number++) storage.setItem(`streamkeep/messages/old-${number}`, kept(8))
  storage.setItem("streamkeep/messages/other", kept(6))
  storage.setItem("theirs", kept(9))
  durableTransport("chat", { proxyUrl: PROXY, storage })
  assert.equal(storage.length, 2)
})
