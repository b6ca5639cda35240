// A chat in TanStack AI's form: its messages, and the calls of its client, without React, over the connection that ships.
import { durableTransport } from "./streamkeep-tanstack.js"

export class TanStackChat {
  messages = []
  status = "ready"
  error = null
  #running = Promise.resolve()
  #stopper = null

  /** `changed` is called after each change, `received` with each chunk. */
  constructor(sessionId, proxyUrl, api, { changed, received }) {
    this.durable = durableTransport(sessionId, { proxyUrl, api })
    Object.assign(this, { sessionId, changed, received })
  }

  /** Show the messages that are kept, and join the run that goes on. */
  resume() {
    const { connection } = this.durable.durableSession
    this.messages = this.durable.initialMessages
    return this.#follow("resuming", async function* (signal) {
      const { activeRun } = await connection.hydrate()
      if (activeRun) yield* connection.joinRun(activeRun.runId, signal)
    })
  }

  send(text) {
    this.messages = [...this.messages, { id: crypto.randomUUID(), role: "user", parts: [{ type: "text", content: text }] }]
    return this.#ask()
  }

  /** Ask the last question again. */
  retry() {
    this.messages = this.messages.slice(0, this.messages.findLastIndex(({ role }) => role === "user") + 1)
    return this.#ask()
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
      if (part.type === "text") return { kind: "text", text: part.content }
      if (part.type === "thinking") return { kind: "thought", text: part.content }
      return { kind: "tool", name: part.name, input: part.arguments, output: part.output }
    })
  }

  #ask() {
    const { connection, threadId } = this.durable.durableSession
    const run = { threadId, runId: crypto.randomUUID() }
    return this.#follow("submitted", (signal) => connection.connect(this.messages, undefined, signal, run))
  }

  #follow(status, open) {
    this.#running = this.#read(status, open)
    return this.#running
  }

  async #read(status, open) {
    const stopper = (this.#stopper = new AbortController())
    let run = null
    this.#become(status)
    try {
      for await (const chunk of open(stopper.signal)) {
        this.received(chunk)
        if (chunk.type === "RUN_STARTED") run = chunk.runId
        if (chunk.type === "RUN_ERROR") throw new Error(chunk.message)
        this.#apply(chunk, `${run}-answer`)
        this.#become("streaming")
      }
      this.#become("ready")
    } catch (error) {
      if (error.name === "AbortError") this.#become("ready")
      else this.#become("error", error)
    }
    const message = this.messages.at(-1)
    if (run && message?.role === "assistant") this.durable.durableSession.onFinish(message)
  }

  #become(status, error = null) {
    Object.assign(this, { status, error })
    this.changed()
  }

  /** All of a run is shown as one message. A run that is joined comes from its first chunk on. */
  #apply(chunk, id) {
    if (chunk.type === "RUN_STARTED") {
      const others = this.messages.filter((message) => message.id !== id)
      this.messages = [...others, { id, role: "assistant", parts: [] }]
      return
    }
    const message = this.messages.at(-1)
    this.messages = [...this.messages.slice(0, -1), { ...message, parts: partsAfter(message.parts, chunk) }]
  }
}

function partsAfter(parts, chunk) {
  const change = (isMeant, changed) => {
    const index = parts.findLastIndex(isMeant)
    return index < 0 ? parts : parts.with(index, { ...parts[index], ...changed(parts[index]) })
  }
  const isOf = (kind) => ({ type }) => type === kind
  const isCall = ({ id }) => id === chunk.toolCallId
  switch (chunk.type) {
    case "TEXT_MESSAGE_START":
      return [...parts, { type: "text", content: "" }]
    case "TEXT_MESSAGE_CONTENT":
      return change(isOf("text"), ({ content }) => ({ content: content + chunk.delta }))
    case "REASONING_MESSAGE_START":
      return [...parts, { type: "thinking", content: "" }]
    case "REASONING_MESSAGE_CONTENT":
      return change(isOf("thinking"), ({ content }) => ({ content: content + chunk.delta }))
    case "TOOL_CALL_START":
      return [...parts, { type: "tool-call", id: chunk.toolCallId, name: chunk.toolCallName, arguments: "", state: "input-streaming" }]
    case "TOOL_CALL_ARGS":
      return change(isCall, (call) => ({ arguments: call.arguments + chunk.delta }))
    case "TOOL_CALL_END":
      return change(isCall, () => ({ state: "input-complete" }))
    case "TOOL_CALL_RESULT":
      return change(isCall, () => ({ state: "complete", output: chunk.content }))
    default:
      return parts
  }
}
