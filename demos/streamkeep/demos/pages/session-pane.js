// One person's browser: a pane with a chat of its own, which knows nothing of the other pane but what the session tells.
import { beforeDrawing, h, place } from "./dom.js"
import { markdown } from "./markdown.js"
import { createDurableChat, textOf } from "./streamkeep-sessions.js"

const STATUS = { connected: "connected", connecting: "reconnecting", disconnected: "broken", error: "broken" }

export class Pane {
  #chat
  #elements = new WeakMap()
  #draw = beforeDrawing(() => this.#show())
  #parts = {
    status: h("span", { class: "pill", role: "status" }, "…"),
    session: h("span", { class: "dim" }),
    back: h("button", { type: "button", class: "small", on: { click: () => this.open(this.first).catch(() => {}) } }, "Back"),
    people: h("p", { class: "dim people" }),
    messages: h("div", { class: "messages", role: "log", tabindex: "0" }),
    problem: h("p", { class: "problem", role: "alert" }),
    question: h("textarea", { rows: 1, placeholder: "Ask for a story, or for a table" }),
    send: h("button", { type: "submit", class: "primary" }, "Send"),
    stop: h("button", { type: "button", on: { click: () => this.#chat.stop() } }, "Stop"),
    again: h("button", { type: "button", on: { click: () => this.#chat.reload().catch(() => {}) } }, "Again"),
  }

  /** `tell` hears of changes of the connection and of what was read, in words. */
  constructor(element, { name, proxyUrl, tell = () => {} }) {
    Object.assign(this, { name, proxyUrl, tell })
    const { status, session, back, people, messages, problem, question, send, stop, again } = this.#parts
    messages.setAttribute("aria-label", `Messages of ${name}`)
    question.setAttribute("aria-label", `Message of ${name}`)
    question.addEventListener("input", () => this.#chat.typing())
    question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return
      event.preventDefault()
      this.#send()
    })
    const submit = (event) => (event.preventDefault(), this.#send())
    const composer = h("form", { class: "composer", on: { submit } }, question, h("div", { class: "actions" }, send, stop, again))
    element.prepend(h("h2", {}, name, " ", status, " ", session, " ", back), people, messages, problem, composer)
  }

  /** Show a session; the first one is that to which Back leads. */
  open(sessionId) {
    this.first ??= sessionId
    this.#chat?.disconnect()
    this.told = undefined
    const { name, proxyUrl } = this
    this.#chat = createDurableChat({ sessionId, proxyUrl, name, actorId: name.toLowerCase(), presence: true })
    this.#chat.subscribe(() => this.#changed())
    this.#changed()
    return this.#chat.connect()
  }

  get chat() {
    return this.#chat
  }

  #changed() {
    const { connectionStatus, messages } = this.#chat.getSnapshot()
    if (connectionStatus !== this.told?.connectionStatus) this.tell(connectionStatus)
    const texts = messages.filter(({ isPending }) => !isPending).map((message) => textOf(message).length)
    const characters = texts.reduce((sum, length) => sum + length, 0)
    if (connectionStatus === "connected" && characters > (this.told?.characters ?? 0)) {
      this.tell(`${characters - (this.told?.characters ?? 0)} characters more`)
    }
    this.told = { connectionStatus, characters }
    this.#draw()
  }

  async #send() {
    const { question } = this.#parts
    const text = question.value.trim()
    if (!text) return
    question.value = ""
    await this.#chat.sendMessage(text).catch(() => (question.value ||= text))
  }

  #show() {
    const { status, session, back, people, messages, problem, stop, again } = this.#parts
    const shown = this.#chat.getSnapshot()
    const { connectionStatus, isLoading, error, presence } = shown
    status.textContent = STATUS[connectionStatus]
    status.className = `pill ${STATUS[connectionStatus]}`
    session.textContent = shown.session?.forkedFrom ? "a branch" : ""
    back.hidden = this.#chat.sessionId === this.first
    const there = presence.filter(({ actorId }) => actorId !== this.#chat.actorId)
    people.textContent = there.length ? there.map(({ name, typing, status: said }) => `${name} ${typing ? "types …" : `is ${said}`}`).join(", ") : "Nobody else is here"
    problem.textContent = error?.message ?? ""
    stop.disabled = !isLoading
    again.disabled = isLoading || !shown.messages.length
    const isAtEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 60
    if (shown.messages.length) place(messages, shown.messages.map((message) => this.#elementOf(message)))
    else messages.replaceChildren(h("p", { class: "empty" }, "Nothing was said yet."))
    if (isAtEnd) messages.scrollTop = messages.scrollHeight
  }

  // Messages are replaced when they change: an element is good for as long as its message is.
  #elementOf(message) {
    if (!this.#elements.has(message)) this.#elements.set(message, this.#article(message))
    return this.#elements.get(message)
  }

  #article(message) {
    const { id, role, actorId, actorName, parts, isComplete, endedBy, error, isPending } = message
    const isOwn = actorId === this.#chat.actorId
    const fork = h("button", { type: "button", class: "quiet small", on: { click: () => this.#fork(id) } }, "Branch off here")
    const state = isPending ? "sending" : !isComplete ? "writing" : endedBy && endedBy !== "done" ? endedBy : ""
    return h(
      "article",
      { class: isOwn ? "user" : "assistant", "aria-label": isOwn ? "Own" : role, "aria-busy": !isComplete },
      h("p", { class: "author" }, h("strong", {}, actorName ?? actorId), " ", state && h("span", { class: `pill ${isComplete ? "" : "running"}` }, state), isComplete && !isPending && fork),
      parts.map((part) => this.#part(part)),
      error && h("p", { class: "problem" }, error),
    )
  }

  #part(part) {
    if (part.type === "text") return h("div", { class: "text" }, markdown(part.content))
    if (part.type === "thinking") return h("p", { class: "thought" }, part.content)
    if (part.type === "tool-result") return h("p", { class: "tool" }, part.error ?? part.content)
    if (part.type !== "tool-call") return null
    const { id, approved } = part.approval ?? {}
    const answer = (isApproved) => h("button", { type: "button", on: { click: () => this.#answer(id, isApproved) } }, isApproved ? "Approve" : "Deny")
    const state = approved === undefined ? "asked" : approved ? "approved" : "denied"
    return h(
      "div",
      { class: "tool" },
      h("p", {}, h("strong", {}, part.name), " ", h("span", { class: `pill ${approved ? "done" : "running"}` }, state)),
      h("code", {}, part.arguments),
      id && approved === undefined && h("div", { class: "actions" }, answer(true), answer(false)),
    )
  }

  // What somebody else answered meanwhile is shown, and `error` says so.
  #answer(id, approved) {
    this.#chat.addToolApprovalResponse({ id, approved }).catch(() => {})
  }

  async #fork(atMessageId) {
    const made = await this.#chat.fork({ atMessageId }).catch(() => null)
    if (made) await this.open(made.sessionId).catch(() => {})
  }
}
