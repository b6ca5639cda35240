// A transport for `useChat` of the AI SDK: answers go on after a refresh, and messages are kept in the page's storage.
import { accepted, jsonEvents, messagesIn, stopAll } from "./streamkeep-chat.js"
import { createFetchClient } from "./streamkeep.js"

const resolved = (value) => (typeof value === "function" ? value() : value)

export function durableTransport(sessionId, fetchOptions, transportOptions = {}, durableOptions = {}) {
  const durable = createFetchClient(fetchOptions)
  const kept = messagesIn(fetchOptions.storage, sessionId, durableOptions.messages?.ttlMs)
  let requestId
  const { api = "/api/chat", prepareSendMessagesRequest, prepareReconnectToStreamRequest } = transportOptions

  const chunksOf = async (response) => {
    const { body, headers } = await accepted(response)
    requestId = headers.get("X-Request-ID")
    return jsonEvents(body)
  }

  const common = async ({ chatId, body, headers, metadata }) => ({
    api,
    id: chatId,
    body: { ...(await resolved(transportOptions.body)), ...body },
    headers: merged(await resolved(transportOptions.headers), headers),
    credentials: await resolved(transportOptions.credentials),
    requestMetadata: metadata,
  })

  const transport = {
    // A resumed answer comes from its first chunk on, and replaces what was shown of it.
    resumeStreamIsReplay: true,

    async sendMessages({ abortSignal, ...options }) {
      const { messages, trigger, messageId } = options
      kept.save(messages)
      const asked = { ...(await common(options)), messages, trigger, messageId }
      const prepared = (await prepareSendMessagesRequest?.(asked)) ?? {}
      const sent = merged({ "Content-Type": "application/json" }, prepared.headers ?? asked.headers)
      sent.set("X-Session-ID", sessionId)
      const response = await durable(prepared.api ?? api, {
        method: "POST",
        headers: sent,
        body: JSON.stringify(prepared.body ?? { ...asked.body, id: asked.id, messages, trigger, messageId }),
        credentials: prepared.credentials ?? asked.credentials,
        signal: abortSignal,
      })
      return chunksOf(response)
    },

    async reconnectToStream({ abortSignal, ...options }) {
      const asked = await common(options)
      const prepared = (await prepareReconnectToStreamRequest?.(asked)) ?? {}
      const sent = merged(prepared.headers ?? asked.headers)
      sent.set("X-Session-ID", sessionId)
      sent.set("X-Resume-Active-Generation", "true")
      sent.set("X-Replay-From-Start", "true")
      const { ttlMs } = durableOptions.activeGeneration ?? {}
      if (ttlMs !== undefined) sent.set("X-Active-Generation-TTL", ttlMs)
      const response = await durable("", { headers: sent, signal: abortSignal })
      return response.status === 204 ? null : chunksOf(response)
    },
  }

  const onFinish = (finished) => {
    // What can be resumed is not kept in part, or the rest would be put behind a half of it.
    if (!durable.pending(sessionId).includes(requestId)) kept.save(finished.messages)
    return durableOptions.onFinish?.(finished)
  }

  return {
    durableSession: { id: sessionId, transport, resume: true, onFinish },
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

function merged(...many) {
  const headers = new Headers()
  for (const one of many) new Headers(one).forEach((value, name) => headers.set(name, value))
  return headers
}
