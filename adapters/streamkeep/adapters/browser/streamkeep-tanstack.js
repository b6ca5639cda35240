// A connection for `useChat` of TanStack AI: its client finds the messages and what runs when it is mounted, and joins it.
import { accepted, jsonEvents, messagesIn, stopAll } from "./streamkeep-chat.js"
import { createFetchClient } from "./streamkeep.js"

export function durableTransport(sessionId, transportOptions, durableOptions = {}) {
  const { api = "/api/chat", credentials, headers, body, fetchServerSentEvents, ...fetchOptions } = transportOptions
  const durable = createFetchClient(fetchOptions)
  const kept = messagesIn(fetchOptions.storage, sessionId, durableOptions.messages?.ttlMs)
  const { ttlMs } = durableOptions.activeGeneration ?? {}

  // The run's id names the generation, so that its client can join it.
  const named = (init, requestId) => {
    const sent = new Headers(init.headers)
    sent.set("X-Session-ID", sessionId)
    if (requestId) sent.set("X-Request-ID", requestId)
    return { ...init, headers: sent }
  }

  const chunksOf = async function* (response) {
    // A reader, since not every browser can iterate over a stream.
    const reader = jsonEvents((await accepted(response)).body).getReader()
    try {
      for (let read; !(read = await reader.read()).done; ) yield read.value
    } finally {
      reader.cancel().catch(() => {})
    }
  }

  const own = {
    async *connect(messages, data, signal, context = {}) {
      const { threadId = sessionId, runId = crypto.randomUUID(), forwardedProps, clientTools = [], ...more } = context
      const props = { ...body, ...forwardedProps, ...data }
      const input = { threadId, runId, messages, tools: clientTools, state: {}, context: [], forwardedProps: props, data: props }
      const asked = new Headers({ "Content-Type": "application/json", ...headers, ...more.headers })
      const sent = JSON.stringify({ ...input, parentRunId: more.parentRunId, resume: more.resume })
      const init = { method: "POST", headers: asked, body: sent, credentials, signal }
      yield* chunksOf(await durable(typeof api === "function" ? api() : api, named(init, runId)))
    },
  }
  // The SDK's own, where it is given, writes its messages in its own way.
  const sending = fetchServerSentEvents?.(api, {
    credentials,
    headers,
    body,
    fetchClient: (url, init) => durable(url, named(init, new Headers(init.headers).get("X-Run-Id"))),
  })

  const connection = {
    async *connect(messages, data, signal, context) {
      kept.save(messages, context?.runId)
      yield* (sending ?? own).connect(messages, data, signal, context)
    },

    async *joinRun(runId, signal) {
      const resume = { "X-Resume-Active-Generation": "true", "X-Replay-From-Start": "true" }
      if (ttlMs !== undefined) resume["X-Active-Generation-TTL"] = ttlMs
      // An impatient client gives up a join before the first chunk: that is no stop.
      const stopper = new AbortController()
      let hasBegun = false
      let leave
      const left = new Promise((resolve) => (leave = () => resolve({ done: true })))
      const aborted = () => (hasBegun ? stopper.abort(signal.reason) : leave())
      signal?.addEventListener("abort", aborted)
      const found = durable("", named({ headers: resume, signal: stopper.signal }, runId))
      const chunks = (async function* () {
        const response = await found
        if (response.status !== 204) yield* chunksOf(response)
      })()
      try {
        for (let read; !(read = await Promise.race([chunks.next(), left])).done; ) {
          hasBegun = true
          yield read.value
        }
      } finally {
        signal?.removeEventListener("abort", aborted)
        chunks.return().catch(() => {})
      }
    },

    async hydrate() {
      const [pending] = durable.pending(sessionId)
      // A client that is told nothing begins anew, and its next message would take the place of those that are kept.
      const listed = await durable.active(sessionId).catch(() => [])
      const running = listed.find(({ state }) => state === "creating" || state === "running")
      const unread = pending === listed[0]?.requestId ? pending : undefined
      // The client tells nobody what came of an answer that was stopped or broke off: it is joined to be shown again.
      const broken = listed.find((one) => one.upstreamStatus && one.requestId === kept.unanswered())
      const runId = running?.requestId ?? unread ?? broken?.requestId
      return { messages: kept.load(), activeRun: runId ? { runId } : null, interrupts: null }
    },
  }

  const onFinish = (message) => {
    const others = kept.load().filter(({ id }) => id !== message.id)
    kept.save([...others, message])
    return durableOptions.onFinish?.(message)
  }

  return {
    durableSession: { id: sessionId, threadId: sessionId, connection, persistence: true, onFinish },
    get initialMessages() {
      return kept.load()
    },
    stop: () => stopAll(durable, sessionId),
    clearSession() {
      kept.clear()
      durable.forget(sessionId)
    },
  }
}
