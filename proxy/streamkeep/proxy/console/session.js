// One durable session, live: what was said, by whom, and the events that it is made of.

import { SessionFold, isStale } from "../streamkeep-session-fold.js"
import { follow, get, post, request, streamPath } from "./api.js"
import { dialog, empty, every, field, h, pill, setText, tell, tellError, throttled } from "./dom.js"
import { remove, rename, sessionAddress, sessionPath } from "./durable.js"
import { moment, visible } from "./format.js"
import { streamAddress } from "./streams.js"

const MAX_MESSAGES = 200
const MAX_EVENTS = 200
const MAX_CHARACTERS = 20_000
const DRAW_MS = 100
const FACTS = { state: "State", messages: "Messages", calls: "Tool calls", tokens: "Tokens", events: "Events", offset: "Offset", began: "Began", origin: "Forked from" }

export async function showSession(main, { parts: [sessionId], signal }) {
  const { createdAt } = await get(sessionPath(sessionId), {}, { signal })
  const view = new SessionView(sessionId, createdAt)
  const path = `sessions/${sessionId}`
  const actions = h(
    "div",
    { class: "actions" },
    view.stop,
    h("a", { href: streamAddress(path) }, "Its stream"),
    button("Rename…", () => rename(sessionId, view.name)),
    button("Fork…", () => fork(sessionId, view.lastMessageId)),
    button("Delete…", async () => { if (await remove(sessionId)) location.hash = "#/durable" }, "danger"),
  )
  main.replaceChildren(
    h("nav", { class: "crumbs", "aria-label": "Where you are" }, h("a", { href: "#/durable" }, "All durable sessions")),
    h("div", { class: "head" }, view.title, actions),
    view.element,
  )
  let waiting = []
  const draw = throttled(async () => view.draw(), DRAW_MS, signal)
  follow(streamPath(path), {
    signal,
    onData: (bytes) => void (waiting = waiting.concat(JSON.parse(new TextDecoder().decode(bytes)))),
    onControl: ({ streamNextOffset }) => {
      view.take(waiting, streamNextOffset)
      waiting = []
      draw()
    },
  }).catch((error) => {
    if (!signal.aborted) main.replaceChildren(empty("The session is gone", error.message))
  })
  every(5000, signal, async () => view.draw())
}

function button(text, act, look = "") {
  return h("button", { type: "button", class: look, on: { click: () => act().catch(tellError) } }, text)
}

async function fork(sessionId, lastMessageId) {
  const input = h("input", { name: "name", maxlength: 200, autocomplete: "off" })
  let made
  const values = await dialog("Fork this session", field("Name", input, "The new session shares all that was said until now."), {
    confirm: "Fork",
    act: async (form) => { made = await post(sessionPath(sessionId, "fork"), { atMessageId: lastMessageId, ...(form.get("name").trim() && { name: form.get("name").trim() }) }) },
  })
  if (!values) return
  tell("Forked")
  location.hash = sessionAddress(made.sessionId)
}

class SessionView {
  constructor(sessionId, createdAt) {
    this.sessionId = sessionId
    this.fold = new SessionFold()
    this.shown = new Map()
    this.title = h("h1", {}, visible(sessionId))
    this.facts = Object.fromEntries(Object.keys(FACTS).map((name) => [name, h("dd", {})]))
    setText(this.facts.began, moment(createdAt))
    this.messages = h("ol", { class: "messages" })
    this.earlier = h("p", { class: "dim" })
    this.lists = Object.fromEntries(["people", "calls", "approvals", "turns", "agents"].map((name) => [name, h("ul", { class: "things" })]))
    this.events = h("ol", { class: "events" })
    this.stop = button("Stop", () => stop(sessionId), "danger")
    this.stop.hidden = true
    const side = [["Participants", "people"], ["Tool calls", "calls"], ["Approvals", "approvals"], ["Turns", "turns"], ["Agents", "agents"]]
    this.element = h(
      "div",
      { class: "session" },
      h("dl", { class: "facts" }, Object.entries(FACTS).map(([name, label]) => h("div", {}, h("dt", {}, label), this.facts[name]))),
      h(
        "div",
        { class: "split" },
        h("section", { "aria-label": "Messages" }, h("h2", {}, "Messages"), this.earlier, this.messages),
        h("div", { class: "side" }, side.map(([label, name]) => h("section", { "aria-label": label }, h("h2", {}, label), this.lists[name]))),
      ),
      h("section", { "aria-label": "Events" }, h("h2", {}, "Events"), this.events),
    )
  }

  get name() {
    return this.fold.session?.name
  }

  get lastMessageId() {
    return this.fold.messages.at(-1)?.id
  }

  take(events, offset) {
    this.fold.apply(events, offset)
    const first = this.fold.position - events.length
    this.events.append(...events.slice(-MAX_EVENTS).map((event, index, { length }) => eventItem(event, first + events.length - length + index)))
    while (this.events.childElementCount > MAX_EVENTS) this.events.firstElementChild.remove()
  }

  draw() {
    const { fold, facts } = this
    const { messageCount, toolCallCount, promptTokens, completionTokens, activeGenerationCount } = fold.statistics
    setText(this.title, visible(this.name ?? this.sessionId))
    const state = activeGenerationCount ? "answering" : "idle"
    if (facts.state.textContent !== state) facts.state.replaceChildren(pill(activeGenerationCount ? "running" : "done", state))
    this.stop.hidden = !activeGenerationCount
    setText(facts.messages, String(messageCount))
    setText(facts.calls, String(toolCallCount))
    setText(facts.tokens, promptTokens + completionTokens ? `${promptTokens} in, ${completionTokens} out` : "–")
    setText(facts.events, String(fold.position))
    setText(facts.offset, fold.offset)
    this.drawOrigin()
    this.drawMessages()
    this.drawThings()
  }

  drawOrigin() {
    const origin = this.fold.session?.forkedFrom
    if (!origin) return setText(this.facts.origin, "–")
    if (!this.facts.origin.querySelector("a")) this.facts.origin.replaceChildren(h("a", { href: sessionAddress(origin.sessionId) }, visible(origin.sessionId)))
  }

  drawMessages() {
    const { messages } = this.fold
    const seen = messages.slice(-MAX_MESSAGES)
    setText(this.earlier, messages.length > seen.length ? `${messages.length - seen.length} earlier ones are not shown.` : messages.length ? "" : "Nothing was said yet.")
    this.earlier.hidden = this.earlier.textContent === ""
    const kept = new Map()
    for (const message of seen) {
      const known = this.shown.get(message.id)
      kept.set(message.id, known?.message === message ? known : { message, item: messageItem(message) })
    }
    this.shown = kept
    replace(this.messages, Array.from(kept.values(), ({ item }) => item))
  }

  drawThings() {
    const { fold, lists } = this
    const present = new Map(fold.presence.filter((one) => one.status !== "offline" && !isStale(one)).map((one) => [one.actorId, one]))
    things(lists.people, fold.participants, (one) => [one.name ?? one.actorId, present.has(one.actorId) ? status(present.get(one.actorId)) : "", `${one.actorType}, ${counted(one.messageCount, "message")}, last at ${moment(one.lastActiveAt)}`])
    things(lists.calls, fold.toolCalls, (one) => [one.name, pill(one.result ? "done" : "running", one.state), `${one.arguments}${one.result ? ` → ${one.result.error ?? JSON.stringify(one.result.output)}` : ""}`, place(one)])
    things(lists.approvals, fold.approvals, (one) => [one.toolName, pill(one.status === "pending" ? "running" : "done", one.status), one.respondedBy ? `by ${one.respondedBy}` : `asked by ${one.requestedBy}`])
    things(lists.turns, fold.turns, (one) => [one.agentId, pill(one.isPending ? "running" : "done", one.isPending ? "pending" : "over"), `${one.kind}, depth ${one.depth}, event ${one.start.position}`])
    things(lists.agents, fold.agents, (one) => [one.name ?? one.id, "", one.endpoint ?? "", one.triggers ?? ""])
  }
}

async function stop(sessionId) {
  await request(sessionPath(sessionId, "stop"), { method: "POST" })
  tell("Stopped")
}

function status({ status: said, typing }) {
  return pill("running", typing ? "typing" : said)
}

const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`
const place = ({ start, end }) => `events ${start.position} to ${end.position}`
const cut = (text) => (text.length > MAX_CHARACTERS ? `${text.slice(0, MAX_CHARACTERS)}… (${text.length} characters)` : text)

/** Children that stay are not touched, so that a selection in them stays, too. */
function replace(list, items) {
  items.forEach((item, index) => list.children[index] !== item && list.insertBefore(item, list.children[index] ?? null))
  while (list.childElementCount > items.length) list.lastElementChild.remove()
}

function things(list, values, wordsOf) {
  const items = values.slice(-MAX_MESSAGES).map(wordsOf).map(([name, mark, ...rest]) => h("li", {}, h("strong", {}, visible(name)), mark && " ", mark, h("small", {}, rest.filter(Boolean).map((text) => visible(cut(text))).join(" · "))))
  const text = items.map((item) => item.textContent).join("\n")
  if (list.dataset.text === text) return
  list.dataset.text = text
  list.replaceChildren(...(items.length ? items : [h("li", { class: "dim" }, "None")]))
}

function messageItem(message) {
  const { role, actorId, actorName, createdAt, isComplete, endedBy, error, parts } = message
  return h(
    "li",
    { class: "message" },
    h("div", { class: "toolbar" }, h("strong", {}, visible(actorName ?? actorId)), pill(isComplete ? (error ? "error" : "done") : "running", isComplete ? (endedBy ?? role) : "writing"), h("small", {}, `${moment(createdAt)} · ${place(message)}`)),
    h("div", { class: "chat" }, parts.map(partItem), error && h("p", { class: "note" }, cut(error))),
  )
}

function partItem(part) {
  if (part.type === "text") return h("p", {}, cut(part.content))
  if (part.type === "thinking") return h("p", { class: "thought" }, cut(part.content))
  if (part.type === "tool-call") return h("p", { class: "tool" }, `${part.name}(${cut(part.arguments)}) · ${part.state}`)
  if (part.type === "tool-result") return h("p", { class: "tool" }, `→ ${cut(part.error ?? part.content)}`)
  return h("p", { class: "tool" }, cut(JSON.stringify(part)))
}

function eventItem(event, position) {
  const { type, key, headers } = event ?? {}
  const title = `${position} · ${visible(String(type ?? headers?.control ?? "?"))} ${visible(String(headers?.operation ?? ""))} ${visible(String(key ?? ""))}`
  return h("li", {}, h("strong", {}, title), h("pre", {}, cut(JSON.stringify(event?.value ?? event))))
}
