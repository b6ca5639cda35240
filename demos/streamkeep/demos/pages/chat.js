// The chat's page: messages, what can be done to them, and what comes in behind.
import { AiSdkChat } from "./ai-sdk-chat.js"
import { beforeDrawing, find, h, place } from "./dom.js"
import { dollars, switches, watchBill, watchFetch } from "./line.js"
import { markdown } from "./markdown.js"
import { TanStackChat } from "./tanstack-chat.js"

const SHOWN_CHUNKS = 200
const IDEAS = ["Tell me a long story", "Look up the weather"]
const CHATS = { "chat-vercel": AiSdkChat, "chat-tanstack": TanStackChat }
const STATUS = { ready: "", resuming: "Resuming …", submitted: "Thinking …", streaming: "Writing …", error: "" }

const { demo, demos, urls } = await (await fetch("/config.json")).json()
const { title } = demos.find(({ name }) => name === demo)
const Chat = CHATS[demo]
document.title = `${title} · streamkeep`
find("title").textContent = title

let line = "connected"
watchFetch([urls.proxy], (state) => {
  line = state
  draw()
})

const chunks = { count: 0, fresh: [] }
const draw = beforeDrawing(show)
const chat = new Chat(demo, urls.proxy, `${location.origin}/api/chat`, { changed: draw, received: keepChunk })

function keepChunk(chunk) {
  chunks.count++
  chunks.fresh.push(chunk)
  draw()
}

// Messages are replaced when they change: an element is good for as long as its message is.
const elements = new WeakMap()

function elementOf(message) {
  if (!elements.has(message)) {
    const parts = Chat.partsOf(message).map(part)
    elements.set(message, h("article", { class: message.role, "aria-label": message.role === "user" ? "You" : "Assistant" }, parts))
  }
  return elements.get(message)
}

function part({ kind, text, name, input, output }) {
  if (kind === "text") return h("div", { class: "text" }, markdown(text))
  if (kind === "thought") return h("p", { class: "thought" }, text)
  const state = output === undefined ? "running" : "done"
  return h(
    "div",
    { class: "tool" },
    h("p", {}, h("strong", {}, name), " ", h("span", { class: `pill ${state}` }, state)),
    h("dl", {}, h("dt", {}, "in"), h("dd", {}, input ?? ""), output !== undefined && [h("dt", {}, "out"), h("dd", {}, output)]),
  )
}

function show() {
  const { status, error, messages } = chat
  const log = find("messages")
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60
  if (messages.length) place(log, messages.map(elementOf))
  else log.replaceChildren(h("p", { class: "empty" }, "Ask for a long story, and reload the page in the middle."))
  if (isAtEnd) log.scrollTop = log.scrollHeight

  const isBusy = status !== "ready" && status !== "error"
  const badge = isBusy && line === "reconnecting" ? "reconnecting" : status === "resuming" ? "resuming" : line
  find("badge").textContent = badge
  find("badge").className = `pill ${badge}`
  find("status").textContent = STATUS[status]
  find("problem").textContent = error ? `The answer broke off: ${error.message}` : ""
  find("messages").setAttribute("aria-busy", isBusy)
  find("send").disabled = isBusy
  find("stop").disabled = !isBusy
  find("retry").disabled = isBusy || !messages.length
  find("clear").disabled = !messages.length
  for (const idea of find("ideas").children) idea.disabled = isBusy
  showChunks()
}

function showChunks() {
  const list = find("chunks")
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40
  find("count").textContent = chunks.count
  list.append(...chunks.fresh.slice(-SHOWN_CHUNKS).map((chunk) => h("li", {}, JSON.stringify(chunk))))
  chunks.fresh = []
  while (list.children.length > SHOWN_CHUNKS) list.firstChild.remove()
  if (isAtEnd) list.scrollTop = list.scrollHeight
}

function ask(text) {
  find("question").value = ""
  chat.send(text)
}

find("composer").addEventListener("submit", (event) => {
  event.preventDefault()
  const text = find("question").value.trim()
  if (text && !find("send").disabled) ask(text)
})
find("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return
  event.preventDefault()
  find("composer").requestSubmit()
})
find("stop").addEventListener("click", () => chat.stop().catch(tell))
find("retry").addEventListener("click", () => chat.retry())
find("clear").addEventListener("click", () => chat.clear().then(clearChunks).catch(tell))
find("clear-chunks").addEventListener("click", clearChunks)
find("ideas").append(...IDEAS.map((idea) => h("button", { type: "button", class: "idea", on: { click: () => ask(idea) } }, idea)))

function clearChunks() {
  Object.assign(chunks, { count: 0, fresh: [] })
  find("chunks").replaceChildren()
  draw()
}

function tell(error) {
  find("problem").textContent = error.message
}

watchBill(({ durable = { calls: 0, tokens: 0, dollars: 0 } }) => {
  find("calls").textContent = durable.calls
  find("tokens").textContent = durable.tokens
  find("cost").textContent = dollars(durable.dollars)
})
switches()
chat.resume()
