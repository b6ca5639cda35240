// A durable chat: a session's stream folded as it grows, and what this page writes to it, shown at once.
import { SessionFold, isStale, textOf } from "./streamkeep-session-fold.js"
import { batchesOf, beating, foldsInDatabase, typingFlag } from "./streamkeep-session-io.js"
import { outageWithin, quietly, refusal, repeatedly } from "./streamkeep.js"

export { SessionFold, isStale, textOf }

const ACTOR_KEY = "streamkeep/actor"
const SAVE_MS = 1000
const LOOK_MS = 5000
const ARRIVAL_MS = 1000
const MAX_STEPS = 1000

export function createDurableChat(options) {
  const { sessionId, proxyUrl, actorId = ownActorId(), actorType = "user", name, initialMessages = [] } = options
  const { sendSeconds = 30, silenceSeconds = Infinity, stallSeconds = 45 } = options.patience ?? {}
  const { origin, pathname } = new URL(proxyUrl, globalThis.location)
  const base = origin + pathname.replace(/\/+$/, "")
  const id = encodeURIComponent(sessionId)
  const cache = options.cache === undefined ? foldsInDatabase() : options.cache
  const cacheKey = JSON.stringify([base, sessionId, actorId])
  const named = name ? { actorName: name } : {}
  const listeners = new Set()
  const started = new Set()
  const finished = new Set()
  const sending = { messages: new Map(), results: new Map(), answers: new Map() }

  let fold = new SessionFold()
  let run = null
  let status = "disconnected"
  let error = null
  let isPaused = false
  let restored
  let createdAt
  let clearedAt = 0
  let snapshot = null
  let saving

  const call = (name, told) => safely(() => options[name]?.(told))

  // Requests

  async function ask(path, { body, ...init } = {}) {
    const { auth, stream } = options
    const headers = new Headers((typeof auth === "function" ? await auth() : auth) ?? stream?.headers)
    if (body) headers.set("Content-Type", "application/json")
    const sent = { cache: "no-store", redirect: "error", ...init, headers, body: body && JSON.stringify(body) }
    const response = await fetch(new URL(path, `${base}/`), sent)
    if (!response.ok) throw await refusal(response)
    return response
  }

  // All that is written has an id of its own, so that it can be sent again.
  async function write(method, path, body, init) {
    const sent = { ...init, method, body: body && { ...body, actorId, actorType } }
    const [response, answer] = await repeatedly(outageWithin(sendSeconds), async () => {
      const response = await ask(`v1/sessions/${id}${path}`, sent)
      return [response, response.status === 204 ? null : await response.clone().json()]
    })
    call("onResponse", response)
    return answer
  }

  const post = (path, body, txid = crypto.randomUUID()) => write("POST", path, { ...body, txid })

  const reporting = (act) => async (...given) => {
    try {
      return await act(...given)
    } catch (reason) {
      throw failed(reason)
    }
  }

  // Shown at once; taken back when it was refused, or was not answered and did not come by the stream either.
  async function optimistically(kept, key, value, isThere, send) {
    if (isThere()) return reporting(send)()
    const one = { value, isThere, txid: crypto.randomUUID(), isStored: false }
    const seen = new Promise((resolve) => (one.seen = resolve))
    kept.set(key, one)
    error = null
    changed(true)
    try {
      await Promise.race([send(one.txid), seen])
      one.isStored = true
      if (value.isPending) one.value = { ...value, isPending: undefined }
      confirm([])
      changed(true)
    } catch (refused) {
      if (kept.get(key) !== one) return
      kept.delete(key)
      throw failed(refused)
    }
  }

  // What has come by the stream need not be shown apart from it.
  function confirm(txids) {
    for (const kept of Object.values(sending)) {
      for (const [key, { txid, isStored, isThere, seen }] of kept) {
        if (!(txids.includes(txid) || (isStored && isThere()))) continue
        kept.delete(key)
        seen()
      }
    }
  }

  function failed(reason) {
    error = reason
    changed(false)
    call("onError", reason)
    return reason
  }

  // Reading

  function connect() {
    if (!run) {
      run = { over: new AbortController() }
      run.ready = begin(run)
      run.ready.catch(() => {})
    }
    return run.ready
  }

  async function begin(one) {
    const { signal } = one.over
    setStatus("connecting")
    try {
      await (restored ??= restore())
      const info = await created()
      signal.throwIfAborted()
      // Of a session that was deleted, and made anew, nothing is to be kept.
      if (createdAt && info.createdAt && createdAt !== info.createdAt) forgetAll()
      createdAt = info.createdAt ?? createdAt
    } catch (reason) {
      if (run === one) end(reason)
      throw reason
    }
    const isUpToDate = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }))
    if (!isPaused) read(one)
    const clock = setInterval(look, LOOK_MS)
    clock.unref?.()
    if (options.presence) one.beat = beating({ tell: tellPresence, leave })
    const onHide = () => save()
    globalThis.addEventListener?.("pagehide", onHide)
    one.stop = () => {
      clearInterval(clock)
      globalThis.removeEventListener?.("pagehide", onHide)
      one.beat?.stop()
      save()
    }
    return isUpToDate
  }

  async function created() {
    try {
      return await write("PUT", "")
    } catch (reason) {
      // Whoever may read only can make nothing.
      if (reason.status !== 403) throw reason
      return {}
    }
  }

  // What was kept is shown first.
  async function restore() {
    const kept = await Promise.resolve(cache?.load(cacheKey)).catch(() => null)
    const found = kept && quietly(() => SessionFold.from(kept.fold))
    if (!found) return
    fold = found
    createdAt = kept.createdAt
    finish(fold.messages.map((message) => message.id), false)
    changed(true)
  }

  async function read(one) {
    one.reading = new AbortController()
    const { signal } = one.reading
    const more = { url: `${base}/v1/stream/sessions/${id}`, silenceSeconds, stallSeconds, signal }
    const get = (url, init) => ask(url, init)
    const onAway = (reason) => {
      if (status === "connected") setStatus("connecting")
      else if (reason.status) error = reason
    }
    try {
      for await (const batch of batchesOf({ ...more, get, offset: fold.offset, onAway })) {
        if (signal.aborted) return
        take(one, batch)
      }
    } catch (reason) {
      if (signal.aborted || run !== one) return
      // An offset that the stream does not have is of another one.
      if (reason.status !== 400 || !fold.position) return end(reason)
      forgetAll()
      one.isLive = false
      return read(one)
    }
  }

  function forgetAll() {
    fold = new SessionFold()
    finished.clear()
    forget().catch(() => {})
    changed(true)
  }

  function take(one, { events, offset, isUpToDate }) {
    const changes = fold.apply(events, offset)
    confirm(changes.txids)
    if (isUpToDate && status !== "connected") setStatus("connected")
    if (events.length) changed(changes.messageIds.length > 0 || changes.wasReset)
    if (one.isLive && options.onChunk) for (const chunk of events.flatMap(answerChunk)) call("onChunk", chunk)
    finish(changes.messageIds, one.isLive)
    if (!isUpToDate) return
    runTools(one.isLive ? changes.messageIds : undefined)
    if (one.isLive && changes.actorIds.includes(actorId)) stayPresent(one)
    one.isLive = true
    one.resolve()
    if (events.length && cache) saving ??= setTimeout(save, SAVE_MS)
  }

  // Callbacks hear of what came after the page was up to date.
  function finish(messageIds, isLive) {
    for (const message of messageIds.map((key) => fold.message(key))) {
      if (message?.role !== "assistant" || !message.isComplete || finished.has(message.id)) continue
      finished.add(message.id)
      if (!isLive) continue
      if (message.endedBy === "error") failed(new Error(message.error))
      call("onFinish", shown(message))
    }
  }

  function end(reason) {
    disconnect()
    setStatus("error")
    failed(reason)
  }

  function disconnect() {
    const one = run
    if (!one) return
    run = null
    one.over.abort()
    one.reading?.abort()
    one.stop?.()
    one.reject?.(one.over.signal.reason)
    setStatus("disconnected")
  }

  function setStatus(now) {
    status = now
    if (now === "connected") error = null
    changed(false)
  }

  function pause() {
    isPaused = true
    run?.reading?.abort()
    changed(false)
  }

  function resume() {
    if (!isPaused) return
    isPaused = false
    changed(false)
    if (run?.resolve) read(run)
  }

  function save() {
    clearTimeout(saving)
    saving = undefined
    if (!cache || !fold.position) return
    Promise.resolve(cache.save(cacheKey, { createdAt, fold: fold.snapshot() })).catch(() => {})
  }

  // Tools

  // Its actor's page runs what was called in answer to one of its own messages, once.
  function runTools(messageIds) {
    const toolNamed = toolsByName(options.tools)
    if (!toolNamed.size) return
    for (const call of fold.callsToRun(messageIds)) {
      const execute = toolNamed.get(call.name)
      // Some models count their calls anew in each answer.
      const key = JSON.stringify([base, sessionId, call.messageId, call.id])
      if (!execute || started.has(key) || !isMine(call.messageId)) continue
      started.add(key)
      runTool(key, call, execute).catch(() => {})
    }
  }

  function runTool(key, { id: toolCallId, messageId, input }, execute) {
    return unlessElsewhere(key, async () => {
      if (!fold.callsToRun([messageId]).some(({ id }) => id === toolCallId)) return
      await addToolResult({ toolCallId, messageId, ...(await outcomeOf(() => execute(input))) })
    })
  }

  function isMine(messageId) {
    for (let key = messageId, steps = 0; steps < MAX_STEPS; steps++) {
      const message = fold.message(key)
      if (message?.role === "user") return message.actorId === actorId
      const causeId = fold.turnOf(key)?.causeId
      if (!causeId || causeId === key) return false
      key = causeId
    }
    return false
  }

  // What is written

  async function append({ id: messageId = crypto.randomUUID(), role = "user", content, parts = [{ type: "text", content }] }) {
    if (!run) throw failed(new Error("the chat is not connected"))
    const message = { id: messageId, role, parts, actorId, createdAt: new Date(), isComplete: true, isPending: true }
    typing(false)
    const said = content === undefined ? { parts } : { content }
    const body = { messageId, role, ...said, ...named, ...(role === "user" && { agent: inlineAgent() }) }
    const isThere = () => fold.message(messageId) !== undefined
    await optimistically(sending.messages, messageId, message, isThere, (txid) => post("/messages", body, txid))
    return messageId
  }

  const sendMessage = (message) => append(typeof message === "string" ? { content: message } : { content: message.text, ...message })

  // `agent`, or whatever answers at `api`; `body` is for either.
  function inlineAgent() {
    const { agent, api, body } = options
    const found = agent ?? (api && { id: "api", endpoint: String(new URL(api, globalThis.location)) })
    return found && body ? { ...found, bodyTemplate: { ...found.bodyTemplate, ...body } } : found
  }

  const reload = reporting(async ({ fromMessageId, content } = {}) => {
    const found = fromMessageId ?? fold.messages.findLast(({ role }) => role === "user")?.id
    if (found) await post("/regenerate", { fromMessageId: found, content, agent: inlineAgent(), ...named })
  })

  // For buttons, which give it their event: whatever is wrong is told by `error`.
  async function stop(messageId) {
    const body = { messageId: typeof messageId === "string" ? messageId : null }
    await write("POST", "/stop", body).catch(failed)
  }

  async function addToolResult({ toolCallId, output, error: reason, messageId }) {
    const value = { output, error: reason ?? null }
    const body = { toolCallId, output: output ?? null, error: value.error, messageId, ...named }
    const isThere = () => Boolean(fold.toolCall(toolCallId)?.result)
    await optimistically(sending.results, toolCallId, value, isThere, (txid) => post("/tool-results", body, txid))
  }

  async function addToolApprovalResponse({ id: approvalId, approved }) {
    const path = `/approvals/${encodeURIComponent(approvalId)}`
    const isThere = () => !["pending", undefined].includes(fold.approval(approvalId)?.status)
    await optimistically(sending.answers, approvalId, approved, isThere, (txid) => post(path, { approved, ...named }, txid))
  }

  const fork = reporting((given = {}) => write("POST", "/fork", given))
  const registerAgents = reporting(async (agents) => void (await write("POST", "/agents", { agents })))
  const unregisterAgent = reporting(async (agentId) => void (await write("DELETE", `/agents/${encodeURIComponent(agentId)}`)))

  // Presence

  const presencePath = `/presence/${encodeURIComponent(actorId)}`
  const tellPresence = (said) => write("PUT", presencePath, { status: "online", ...(name && { name }), ...said })
  const leave = () => write("DELETE", presencePath, undefined, { keepalive: true })
  const typing = typingFlag((isTyping) => run && tellPresence({ typing: isTyping }).catch(() => {}))

  const present = () => fold.presence.filter((one) => one.status !== "offline" && !isStale(one))

  // Another tab of the same actor has said goodbye for both.
  function stayPresent({ beat }) {
    if (beat && !fold.presence.some((one) => one.actorId === actorId)) beat.say()
  }

  // Nobody says that he is gone for good.
  function look() {
    if (snapshot && snapshot.presence.length !== present().length) changed(false)
  }

  // What is shown

  function shown(message) {
    const { results, answers } = sending
    const isWaiting = (part) => part.type === "tool-call" && (results.has(part.id) || answers.has(part.approval?.id))
    if (!message.parts.some(isWaiting)) return uiMessage(message)
    const parts = message.parts.map((part) => (isWaiting(part) ? answeredPart(part, results, answers) : part))
    const isTold = (callId) => parts.some(({ type, toolCallId }) => type === "tool-result" && toolCallId === callId)
    for (const { id: callId } of message.parts.filter((part) => results.has(part.id))) {
      if (!isTold(callId)) parts.push(resultPart(callId, results.get(callId).value))
    }
    return { ...uiMessage(message), parts }
  }

  function messagesShown() {
    const messages = fold.messages.filter(({ start }) => start.position >= clearedAt).map(shown)
    const waiting = Array.from(sending.messages.values(), ({ value }) => value)
    return fold.position || waiting.length || status === "connected" ? [...messages, ...waiting] : initialMessages
  }

  function approvalShown(approval) {
    const waiting = sending.answers.get(approval.id)
    if (!waiting || approval.status !== "pending") return approval
    return { ...approval, status: waiting.value ? "approved" : "denied", respondedBy: actorId }
  }

  function getSnapshot() {
    if (snapshot) return snapshot
    const { activeGenerations, toolCalls, approvals, agents, participants, turns, session, statistics } = fold
    const taken = { activeGenerations, toolCalls, agents, participants, turns, session, statistics }
    const own = { connectionStatus: status, error, isPaused, isLoading: activeGenerations.length > 0 }
    const patched = { messages: messagesShown(), approvals: approvals.map(approvalShown), presence: present() }
    return (snapshot = Object.freeze({ ...patched, ...own, ...taken }))
  }

  function changed(areMessages) {
    snapshot = null
    if (areMessages && options.onMessagesChange) call("onMessagesChange", getSnapshot().messages)
    for (const listener of [...listeners]) safely(listener)
  }

  function subscribe(listener) {
    listeners.add(listener)
    return () => void listeners.delete(listener)
  }

  function clear() {
    clearedAt = fold.position
    changed(true)
  }

  async function forget() {
    clearTimeout(saving)
    saving = undefined
    await cache?.remove(cacheKey)
  }

  const methods = {
    ...{ connect, disconnect, dispose: disconnect, pause, resume, subscribe, getSnapshot, clear, forget },
    ...{ sendMessage, append, reload, stop, addToolResult, addToolApprovalResponse },
    ...{ fork, registerAgents, unregisterAgent, typing },
  }
  const views = Object.fromEntries(
    ["messages", "isLoading", "error", "connectionStatus"].map((key) => [key, { get: () => getSnapshot()[key] }]),
  )
  return Object.defineProperties({ sessionId, actorId, ...methods }, { ...views, collections: { get: getSnapshot } })
}

// A browser is the same actor after a refresh.
function ownActorId() {
  const kept = quietly(() => localStorage.getItem(ACTOR_KEY))
  if (kept) return kept
  const made = crypto.randomUUID()
  quietly(() => localStorage.setItem(ACTOR_KEY, made))
  return made
}

function toolsByName(tools) {
  if (Array.isArray(tools)) return new Map(tools.map(({ name, execute }) => [name, execute]))
  return new Map(Object.entries(tools ?? {}))
}

async function outcomeOf(execute) {
  try {
    return { output: (await execute()) ?? null }
  } catch (error) {
    return { output: null, error: String(error?.message ?? error) }
  }
}

// Tabs of one browser have one actor: a tool runs in one of them, and in another only when that one went away before.
async function unlessElsewhere(key, act) {
  const locks = globalThis.navigator?.locks
  if (!locks) return act()
  const name = `streamkeep/tool/${key}`
  const isFirst = await locks.request(name, { ifAvailable: true }, async (lock) => lock && (await act(), true))
  if (isFirst) return
  await locks.request(name, async () => {
    await new Promise((resolve) => setTimeout(resolve, ARRIVAL_MS))
    await act()
  })
}

// What somebody's function throws is told where such things are told, and stops nothing here.
function safely(act) {
  try {
    act()
  } catch (error) {
    if (globalThis.reportError) reportError(error)
    else queueMicrotask(() => Promise.reject(error))
  }
}

function answerChunk(event) {
  const { role, chunk, messageId } = event?.value ?? {}
  if (event?.type !== "chunk" || role !== "assistant") return []
  const found = quietly(() => JSON.parse(chunk))
  return found ? [{ ...found, messageId }] : []
}

const uiMessages = new WeakMap()

// The same object until the message changes.
function uiMessage(message) {
  if (!uiMessages.has(message)) {
    const createdAt = new Date(message.createdAt)
    uiMessages.set(message, { ...message, createdAt: Number.isNaN(createdAt.getTime()) ? undefined : createdAt })
  }
  return uiMessages.get(message)
}

function answeredPart(part, results, answers) {
  const answer = answers.get(part.approval?.id)
  const answered = answer ? { state: "approval-responded", approval: { ...part.approval, approved: answer.value } } : {}
  const result = results.get(part.id)?.value
  const given = result ? { state: "input-complete", output: result.error === null ? result.output : { error: result.error } } : {}
  return { ...part, ...answered, ...given }
}

function resultPart(toolCallId, { output, error }) {
  const content = typeof output === "string" ? output : JSON.stringify(output ?? null)
  return { type: "tool-result", toolCallId, content, state: error === null ? "complete" : "error", ...(error !== null && { error }) }
}
