// A chat in the AI SDK's form: the messages and calls of `useChat`, without React, over the transport that ships.
import { durableTransport } from "./streamkeep-ai-sdk.js"

export class AiSdkChat {
  messages = []
  status = "ready"
  error = null
  #running = Promise.resolve()
  #stopper = null

  /** `changed` is called after each change, `received` with each chunk. */
  constructor(sessionId, proxyUrl, api, { changed, received }) {
    this.durable = durableTransport(sessionId, { proxyUrl }, { api })
    Object.assign(this, { sessionId, changed, received })
  }

  /** Show the messages that are kept, and go on with the answer that runs. */
  resume() {
    this.messages = this.durable.initialMessages
    const { transport } = this.durable.durableSession
    return this.#follow("resuming", (options) => transport.reconnectToStream(options))
  }

  send(text) {
    this.messages = [...this.messages, { id: crypto.randomUUID(), role: "user", parts: [{ type: "text", text }] }]
    return this.#ask("submit-message")
  }

  /** Ask the last question again. */
  retry() {
    this.messages = this.messages.slice(0, this.messages.findLastIndex(({ role }) => role === "user") + 1)
    return this.#ask("regenerate-message")
  }

  async stop() {
    this.#stopper?.abort()
    await Promise.all([this.#running, this.durable.stop()])
  }

  async clear() {
    await this.stop()
    this.durable.clearSession()
    this.messages = []
    this.#become("ready")
  }

  /** What a view shows of a message. */
  static partsOf({ parts }) {
    return parts.map((part) => {
      if (part.type === "text") return { kind: "text", text: part.text }
      if (part.type === "reasoning") return { kind: "thought", text: part.text }
      const input = part.input === undefined ? part.inputText : JSON.stringify(part.input)
      return { kind: "tool", name: part.type.replace("tool-", ""), input, output: part.output && JSON.stringify(part.output) }
    })
  }

  #ask(trigger) {
    const { transport } = this.durable.durableSession
    return this.#follow("submitted", (options) => transport.sendMessages({ ...options, trigger, messages: this.messages }))
  }

  #follow(status, open) {
    this.#running = this.#read(status, open)
    return this.#running
  }

  async #read(status, open) {
    const stopper = (this.#stopper = new AbortController())
    this.#become(status)
    let isOpen = false
    try {
      const chunks = await open({ chatId: this.sessionId, abortSignal: stopper.signal })
      isOpen = chunks !== null
      for (const reader = chunks?.getReader(); reader; ) {
        const { done, value } = await reader.read()
        if (done) break
        this.received(value)
        this.#apply(value)
        this.#become("streaming")
      }
      this.#become("ready")
    } catch (error) {
      if (error.name === "AbortError") this.#become("ready")
      else this.#become("error", error)
    }
    const message = this.messages.at(-1)
    if (isOpen && message?.role === "assistant") this.durable.durableSession.onFinish({ message, messages: this.messages })
  }

  #become(status, error = null) {
    Object.assign(this, { status, error })
    this.changed()
  }

  #apply(chunk) {
    if (chunk.type === "start") return this.#begin(chunk.messageId)
    if (chunk.type === "error") throw new Error(chunk.errorText)
    const message = this.messages.at(-1)
    const parts = partsAfter(message.parts, chunk)
    this.messages = [...this.messages.slice(0, -1), { ...message, parts }]
  }

  /** A replayed answer comes from its first chunk on, and takes the place of what was kept of it. */
  #begin(id) {
    const others = this.messages.filter((message) => message.id !== id)
    this.messages = [...others, { id, role: "assistant", parts: [] }]
  }
}

function partsAfter(parts, chunk) {
  const change = (isMeant, changed) => {
    const index = parts.findLastIndex(isMeant)
    return index < 0 ? parts : parts.with(index, { ...parts[index], ...changed(parts[index]) })
  }
  const isCall = ({ toolCallId }) => toolCallId === chunk.toolCallId
  switch (chunk.type) {
    case "text-start":
    case "reasoning-start":
      return [...parts, { type: chunk.type.replace("-start", ""), text: "", state: "streaming" }]
    case "text-delta":
    case "reasoning-delta":
      return change(({ state }) => state === "streaming", ({ text }) => ({ text: text + chunk.delta }))
    case "text-end":
    case "reasoning-end":
      return change(({ state }) => state === "streaming", () => ({ state: "done" }))
    case "tool-input-start":
      return [...parts, { type: `tool-${chunk.toolName}`, toolCallId: chunk.toolCallId, state: "input-streaming", inputText: "" }]
    case "tool-input-delta":
      return change(isCall, ({ inputText }) => ({ inputText: inputText + chunk.inputTextDelta }))
    case "tool-input-available":
      return change(isCall, () => ({ state: "input-available", input: chunk.input }))
    case "tool-output-available":
      return change(isCall, () => ({ state: "output-available", output: chunk.output }))
    default:
      return parts
  }
}
