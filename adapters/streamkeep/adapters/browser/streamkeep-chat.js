// What the adapters for chat front ends have in common.

const MESSAGES = "streamkeep/messages/"
const WEEK_MS = 7 * 24 * 3_600_000
const MAX_LINE_CHARACTERS = 16 * 1024 * 1024

/** The JSON of a body's server-sent events, each as it comes; `[DONE]` is none. */
export function jsonEvents(body) {
  const decoder = new TextDecoder()
  let rest = ""
  let data = []
  const take = (text, controller) => {
    const lines = (rest + text).split("\n")
    rest = lines.pop()
    if (rest.length > MAX_LINE_CHARACTERS) throw new Error("an event is too large")
    for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""))
      if (line !== "") continue
      const event = data.join("\n")
      data = []
      if (event !== "" && event !== "[DONE]") controller.enqueue(JSON.parse(event))
    }
  }
  const transformer = {
    transform: (bytes, controller) => take(decoder.decode(bytes, { stream: true }), controller),
    // A last event may lack its empty line.
    flush: (controller) => take(`${decoder.decode()}\n\n`, controller),
  }
  return body.pipeThrough(new TransformStream(transformer))
}

/** A session's messages in a page's storage, for a week after they were last saved. Those of other sessions go, too. */
export function messagesIn(storage, sessionId, ttlMs = WEEK_MS) {
  const key = MESSAGES + sessionId
  const quietly = (action) => {
    try {
      return action(storage === undefined ? localStorage : storage)
    } catch {
      return null
    }
  }
  const read = (name) => {
    const { messages, unanswered, at } = quietly((kept) => JSON.parse(kept.getItem(name))) ?? {}
    if (Array.isArray(messages) && Date.now() - at <= ttlMs) {
      return { messages: messages.filter((one) => typeof one?.id === "string"), unanswered }
    }
    quietly((kept) => kept.removeItem(name))
    return { messages: [] }
  }
  const all = quietly((kept) => Array.from({ length: kept.length }, (_, index) => kept.key(index))) ?? []
  for (const name of all) if (name?.startsWith(MESSAGES)) read(name)
  return {
    load: () => read(key).messages,
    /** The id of the run whose answer is not among the messages. */
    unanswered: () => read(key).unanswered,
    save: (messages, unanswered) => quietly((kept) => kept.setItem(key, JSON.stringify({ messages, unanswered, at: Date.now() }))),
    clear: () => quietly((kept) => kept.removeItem(key)),
  }
}

/** The response, if upstream took the request. Raises: Error, with what was answered instead. */
export async function accepted(response) {
  if (!response.ok) throw new Error((await response.text()) || `the answer was ${response.status}`)
  return response
}

/** Stop all that runs in a session. */
export async function stopAll(durable, sessionId) {
  const running = (await durable.active(sessionId)).filter(({ state }) => state === "creating" || state === "running")
  await Promise.all(running.map(({ requestId }) => durable.cancel(sessionId, requestId)))
}
