// What was said, out of the bytes of an answer: the formats that vendors stream in, as far as a reader of a chat needs them.

/** The type under which messages of a stream in JSON are shown, one a line. */
export const MESSAGES = "application/x-ndjson"

/** `feed` takes bytes and gives pieces: `{ kind, text }`, the kind being `text`, `thought`, `tool` or `note`. */
export class Transcript {
  constructor(contentType) {
    this.type = (contentType ?? "").split(";")[0].trim().toLowerCase()
    this.decoder = new TextDecoder()
    this.rest = ""
  }

  feed(bytes) {
    const text = this.decoder.decode(bytes, { stream: true })
    if (this.type === "text/event-stream") return this.events(text).flatMap((data) => said(data))
    if (this.type === MESSAGES) return this.messages(text)
    if (this.type === "application/json") {
      this.rest += text
      return []
    }
    return text ? [{ kind: "text", text }] : []
  }

  /** What can be said only once all is there. */
  finish() {
    if (this.type !== "application/json" || !this.rest) return []
    const text = this.rest
    this.rest = ""
    const found = said(text)
    return found.length ? found : [piece("text", text)]
  }

  messages(text) {
    const lines = (this.rest + text).split("\n")
    this.rest = lines.pop()
    return lines.flatMap((line) => {
      const found = said(line)
      return found.length ? found : [piece("text", `${line}\n`)]
    })
  }

  /** The data of the events that are whole. */
  events(text) {
    const blocks = (this.rest + text).replaceAll("\r\n", "\n").split("\n\n")
    this.rest = blocks.pop()
    return blocks.map(dataOf).filter((data) => data !== "")
  }
}

export function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"))
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n")
}

export function parsed(text) {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function said(data) {
  const value = parsed(data)
  if (value === undefined || value === null || typeof value !== "object") return data === "[DONE]" ? [] : [piece("text", data)]
  const found = [...chatPieces(value), ...typedPieces(value), ...partPieces(value)]
  return found.filter(({ text }) => typeof text === "string" && text !== "")
}

const piece = (kind, text) => ({ kind, text })
const list = (value) => (Array.isArray(value) ? value : [])

function* chatPieces(value) {
  for (const choice of list(value.choices)) {
    const delta = choice?.delta ?? choice?.message ?? {}
    yield piece("thought", delta.reasoning_content ?? delta.reasoning)
    yield piece("text", delta.content ?? choice?.text)
    for (const call of list(delta.tool_calls)) {
      yield piece("tool", call?.function?.name && `${call.function.name} `)
      yield piece("tool", call?.function?.arguments)
    }
  }
  for (const candidate of list(value.candidates)) {
    for (const part of list(candidate?.content?.parts)) yield piece(part?.thought ? "thought" : "text", part?.text)
  }
}

function* typedPieces({ type, delta, content_block: block, error, errorText }) {
  if (type === "content_block_delta") {
    yield piece("text", delta?.text)
    yield piece("thought", delta?.thinking)
    yield piece("tool", delta?.partial_json)
  } else if (type === "content_block_start") {
    yield piece("tool", block?.name && `${block.name} `)
  } else if (type === "response.output_text.delta" || type === "text-delta") {
    yield piece("text", delta)
  } else if (type === "response.reasoning_summary_text.delta" || type === "reasoning-delta") {
    yield piece("thought", delta)
  } else if (type === "response.function_call_arguments.delta") {
    yield piece("tool", delta)
  } else if (type === "error") {
    yield piece("note", errorText ?? error?.message ?? "an error")
  }
}

function* partPieces({ type, role, content, output }) {
  if (role !== undefined && typeof content === "string") yield piece("text", `${role}: ${content}\n`)
  if (type === "message" || type === undefined) for (const part of list(content)) yield piece("text", part?.text)
  for (const item of list(output)) for (const part of list(item?.content)) yield piece("text", part?.text)
}
