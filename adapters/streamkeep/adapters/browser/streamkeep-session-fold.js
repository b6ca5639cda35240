// A durable session out of its events, one after the other. The rules are those of the Python package `streamkeep.sessions`,
// where they are explained; tests hold the two equal. All that a fold knows is plain data, so that a cache can keep a copy.

const VERSION = 3
const START = "-1"
const ROLES = ["user", "assistant", "system"]
const OPERATIONS = ["insert", "update", "upsert", "delete"]
const TURN_KINDS = ["message", "answers", "regenerate", "agent"]
const MAX_INDEX = 999
const MAX_TOKENS = 1e9
const MAX_DEPTH = 100
// Which may be too large: with an exponent of two digits, one of more than two hundred may.
const LARGE_NUMBER = /\d[eE]\+?\d{3}|\d{200}/
const CONTROLS = ["snapshot-start", "snapshot-end", "reset"]

export class SessionFold {
  #offset = START
  #position = 0
  #state = emptyState()
  #touched
  #before
  #after

  static from(snapshot) {
    const { version, offset, position, state } = structuredClone(snapshot ?? {})
    if (version !== VERSION) throw new TypeError("this is no snapshot of a session, or one of another version")
    const fold = new SessionFold()
    fold.#offset = offset
    fold.#position = position
    fold.#state = state
    return fold
  }

  snapshot() {
    return structuredClone({ version: VERSION, offset: this.#offset, position: this.#position, state: this.#state })
  }

  get offset() {
    return this.#offset
  }

  get position() {
    return this.#position
  }

  apply(events, offset) {
    const begin = this.#offset
    const sets = ["messageIds", "actorIds", "agentIds", "txids", "turnIds"].map((name) => [name, new Set()])
    this.#touched = { ...Object.fromEntries(sets), wasReset: false, session: false }
    this.#after = { position: this.#position, offset: begin, subOffset: 0 }
    for (const [index, event] of events.entries()) {
      this.#before = this.#after
      const position = this.#before.position + 1
      const isLast = index + 1 === events.length
      this.#after = isLast ? { position, offset, subOffset: 0 } : { position, offset: begin, subOffset: index + 1 }
      this.#take(event)
    }
    this.#position = this.#after.position
    this.#offset = offset
    const { wasReset, session, ...touched } = this.#touched
    return { ...Object.fromEntries(Object.entries(touched).map(([name, ids]) => [name, [...ids]])), wasReset, session }
  }

  get messages() {
    return Array.from(this.#state.messages.values(), messageView)
  }

  message(messageId) {
    const found = this.#state.messages.get(messageId)
    return found && messageView(found)
  }

  get toolCalls() {
    return this.#calls().map(callView)
  }

  toolCall(toolCallId) {
    const found = this.#state.calls.get(toolCallId)
    return found && callView(found)
  }

  get toolResults() {
    return this.#calls().flatMap(({ result }) => result ?? [])
  }

  get approvals() {
    return [...this.#state.approvals.values()]
  }

  approval(approvalId) {
    return this.#state.approvals.get(approvalId)
  }

  get activeGenerations() {
    const { active, pending, messages } = this.#state
    const begun = Array.from(active.values(), ({ id, actorId, createdAt, lastChunkAt, lastChunkSeq }) => ({
      messageId: id,
      actorId,
      startedAt: createdAt,
      lastChunkAt,
      lastChunkSeq,
    }))
    const awaited = [...pending.values()].filter(({ messageId }) => !messages.has(messageId))
    const began = awaited.map(({ messageId, agentId, createdAt: at }) => {
      return { messageId, actorId: agentId, startedAt: at, lastChunkAt: at, lastChunkSeq: -1 }
    })
    return [...begun, ...began]
  }

  get session() {
    return this.#state.session
  }

  get turns() {
    return [...this.#state.turns.values()]
  }

  get pendingTurns() {
    return [...this.#state.pending.values()]
  }

  turnOf(messageId) {
    return this.#state.turns.get(this.#state.answers.get(messageId))
  }

  callsToRun(messageIds = this.#state.messages.keys()) {
    const messages = Array.from(messageIds, (id) => this.#state.messages.get(id)).filter(Boolean)
    return messages.flatMap(({ calls }) => [...calls.values()].filter(isForClient).map(callView))
  }

  get agents() {
    return [...this.#state.agents.values()]
  }

  get presence() {
    return [...this.#state.presence.values()]
  }

  get participants() {
    return [...this.#state.participants.values()]
  }

  get statistics() {
    const { counts, messages, approvals } = this.#state
    return told({
      ...counts,
      messageCount: messages.size,
      toolCallCount: this.#calls().length,
      approvalCount: approvals.size,
      activeGenerationCount: this.activeGenerations.length,
    })
  }

  #calls() {
    return [...this.#state.messages.values()].flatMap(({ calls }) => [...calls.values()])
  }

  #take(event) {
    const found = parseEvent(event)
    if (found?.control === "reset") {
      this.#state = emptyState()
      this.#touched.wasReset = true
    }
    if (!found?.operation) return
    if (found.txid != null) this.#touched.txids.add(found.txid)
    if (found.type === "chunk" && found.operation === "delete") this.#deleteRow(found.key)
    else if (found.type === "chunk") this.#takeChunk(parseChunk(found))
    else if (found.type === "turn") this.#takeTurn(found)
    else if (found.type === "session") this.#takeSession(found)
    else if (found.type === "presence") this.#takePresence(found)
    else if (found.type === "agent") this.#takeAgent(found)
  }

  #deleteRow(key) {
    const [, messageId, digits] = /^(.+):([0-9]{1,15})$/s.exec(key) ?? []
    const message = this.#state.messages.get(messageId)
    if (!message) return
    const { nextSeq, seqsAhead, deleted } = message
    const seq = Number(digits)
    if (seq < nextSeq || seqsAhead.has(seq)) deleted.add(seq)
    if (deleted.size && deleted.size === nextSeq + seqsAhead.size) this.#deleteMessage(message)
  }

  #deleteMessage({ id, role, actorId, calls, approvalIds }) {
    const { messages, active, gone, counts, participants, approvals } = this.#state
    messages.delete(id)
    active.delete(id)
    gone.add(id)
    for (const call of calls.values()) if (this.#state.calls.get(call.id) === call) this.#state.calls.delete(call.id)
    for (const approvalId of approvalIds) approvals.delete(approvalId)
    if (role === "user") counts.userMessageCount--
    if (role === "assistant") counts.assistantMessageCount--
    const author = participants.get(actorId)
    participants.set(actorId, { ...author, messageCount: author.messageCount - 1 })
    this.#settleTurn(id)
    this.#touched.messageIds.add(id)
    this.#touched.actorIds.add(actorId)
  }

  #takeTurn({ key, operation, value }) {
    const { turns, answers, pending, messages, gone } = this.#state
    if (operation === "delete") {
      const turn = taken(turns, key)
      if (!turn) return
      pending.delete(turn.messageId)
      this.#touched.turnIds.add(key)
      if (!messages.has(turn.messageId)) gone.add(turn.messageId)
      return
    }
    const said = parseTurn(key, value, this.#before)
    if (!said || turns.has(key) || answers.has(said.messageId)) return
    const message = messages.get(said.messageId)
    const isPending = !gone.has(said.messageId) && !(message && isWritten(message))
    const turn = { ...said, isPending }
    if (isPending) pending.set(turn.messageId, turn)
    turns.set(key, turn)
    answers.set(turn.messageId, key)
    this.#touched.turnIds.add(key)
  }

  // Its answer has ended, or is gone.
  #settleTurn(messageId) {
    const turn = taken(this.#state.pending, messageId)
    if (!turn) return
    this.#state.turns.set(turn.id, { ...turn, isPending: false })
    this.#touched.turnIds.add(turn.id)
  }

  #takeSession({ key, value }) {
    this.#touched.session = true
    if (!isObject(value)) return
    const { name, createdAt, forkedFrom } = value
    const source = isObject(forkedFrom) && textOr(forkedFrom.sessionId)
    const origin = source ? told({ sessionId: source, atMessageId: textOr(forkedFrom.atMessageId) }) : null
    this.#state.session = told({ id: key, name: textOr(name), createdAt: textOr(createdAt, ""), forkedFrom: origin })
  }

  #takeChunk(chunk) {
    if (!chunk || this.#state.gone.has(chunk.messageId)) return
    if (chunk.type === "tool-result") this.#takeResultOfClient(chunk)
    else if (chunk.type === "approval-response") this.#takeAnswer(chunk)
    else this.#write(chunk)
  }

  #write(chunk) {
    const known = this.#state.messages.get(chunk.messageId)
    const isWhole = chunk.type === "user-message" && isObject(chunk.fields.message)
    if (known ? known.isWhole : chunk.type === "user-message" && !isWhole) return
    const message = known ?? this.#begin(chunk, isWhole ? chunk.fields.message : null)
    if (!takes(message, chunk.seq)) return
    views.delete(message)
    message.end = this.#after
    message.lastChunkAt = chunk.createdAt
    message.lastChunkSeq = chunk.seq ?? message.lastChunkSeq
    this.#countTokens(chunk.fields)
    if (!message.isWhole) {
      this.#writeOn(message, chunk)
      if (isComplete(message)) this.#state.active.delete(message.id)
    }
    if (isWritten(message)) this.#settleTurn(message.id)
    this.#saw(chunk, known ? 0 : 1)
    this.#touched.messageIds.add(message.id)
  }

  #begin(chunk, whole) {
    const message = newMessage(chunk, this.#before, this.#after)
    if (whole) writeWhole(message, whole)
    else this.#state.active.set(message.id, message)
    this.#state.messages.set(message.id, message)
    const { counts } = this.#state
    if (message.role === "user") counts.userMessageCount++
    if (message.role === "assistant") counts.assistantMessageCount++
    counts.firstMessageAt ||= message.createdAt || null
    counts.lastMessageAt = message.createdAt || counts.lastMessageAt
    return message
  }

  #writeOn(message, chunk) {
    const { type, fields } = chunk
    if (type === "tool_call") {
      const { toolCall, index } = fields
      if (!isObject(toolCall) || !isObject(toolCall.function)) return
      const known = Number.isInteger(index) && index >= 0 && index <= MAX_INDEX ? index : null
      const call = this.#call(message, chunk, calledId(message, toolCall.id, known))
      if (!call) return
      call.index ??= known
      writeCall(message, call, toolCall.function)
      this.#settleEarly(call)
    } else if (type === "tool-input-available") {
      const call = this.#call(message, chunk, answeredId(message, fields.toolCallId, ({ hasInput }) => !hasInput))
      if (!call) return
      call.hasInput = true
      call.input = fields.input ?? null
      this.#settleEarly(call)
      endIfItWaits(message)
    } else if (type === "approval-requested") {
      this.#ask(message, chunk)
      endIfItWaits(message)
    } else if (type === "tool_result") this.#takeResultOfAgent(message, chunk)
    else write(message, chunk)
  }

  // The tool call that a chunk is about; a new one where there is none.
  #call(message, chunk, callId) {
    if (!isName(callId)) return
    let call = message.calls.get(callId)
    if (!call) {
      call = newCall(callId, message, chunk, this.#before)
      message.calls.set(callId, call)
      this.#state.calls.set(callId, call)
    }
    call.name ||= textOr(chunk.fields.toolName, "")
    call.end = this.#after
    views.delete(call)
    return call
  }

  #ask(message, chunk) {
    const { approval, toolCallId, input } = chunk.fields
    const id = isObject(approval) && approval.id
    if (!isName(id) || this.#state.approvals.has(id)) return
    const call = this.#call(message, chunk, answeredId(message, toolCallId, ({ approvalId }) => approvalId === null))
    if (!call) return
    call.approvalId = id
    call.approved = null
    const asked = told({
      id,
      toolCallId: call.id,
      messageId: message.id,
      toolName: call.name,
      input,
      status: "pending",
      requestedBy: chunk.actorId,
      requestedAt: chunk.createdAt,
    })
    this.#state.approvals.set(id, asked)
    message.approvalIds.push(id)
    const early = taken(this.#state.earlyAnswers, id)
    if (early) this.#answer(asked, early)
    this.#settleEarly(call)
  }

  #takeAnswer(chunk) {
    const { approvalId, approved } = chunk.fields
    if (typeof approvalId !== "string" || typeof approved !== "boolean") return
    this.#saw(chunk)
    const answer = { approved, actorId: chunk.actorId, at: chunk.createdAt }
    const asked = this.#state.approvals.get(approvalId)
    if (asked?.status === "pending") this.#answer(asked, answer)
    else if (!asked && !this.#state.earlyAnswers.has(approvalId)) this.#state.earlyAnswers.set(approvalId, answer)
  }

  #answer(asked, { approved, actorId, at }) {
    const status = approved ? "approved" : "denied"
    this.#state.approvals.set(asked.id, { ...asked, status, respondedBy: actorId, respondedAt: at })
    const call = this.#state.messages.get(asked.messageId).calls.get(asked.toolCallId)
    if (call.approvalId === asked.id) call.approved = approved
    this.#changed(call)
  }

  #takeResultOfAgent(message, chunk) {
    const { content } = chunk.fields
    const toolCallId = answeredId(message, chunk.fields.toolCallId, ({ result }) => result === null)
    if (!isName(toolCallId) || content === undefined) return
    const error = textOr(chunk.fields.error) || null
    putResult(message, toolCallId, content, error)
    this.#settle(message, toolCallId, { ...resultOf(chunk, content, error), isOfClient: false })
  }

  #takeResultOfClient(chunk) {
    const { toolCallId, output, error } = chunk.fields
    if (!isName(toolCallId)) return
    this.#saw(chunk)
    const result = { ...resultOf(chunk, output ?? null, error == null ? null : asText(error)), isOfClient: true }
    this.#settle(this.#state.messages.get(chunk.messageId), toolCallId, result)
  }

  // Give a result to its call: that of the message it names, or else the newest, in whatever message it was made.
  #settle(named, callId, came) {
    const call = named?.calls.get(callId) ?? this.#state.calls.get(callId)
    if (!call) return void this.#state.earlyResults.set(callId, came)
    const { isOfClient, ...result } = came
    call.result = told({ toolCallId: callId, ...result, messageId: call.messageId })
    call.isResultOfClient = isOfClient
    if (isOfClient) putResult(this.#state.messages.get(call.messageId), callId, result.output, result.error)
    this.#changed(call)
  }

  #settleEarly(call) {
    const early = taken(this.#state.earlyResults, call.id)
    if (early) this.#settle(this.#state.messages.get(call.messageId), call.id, early)
  }

  #changed(call) {
    call.end = this.#after
    views.delete(call)
    views.delete(this.#state.messages.get(call.messageId))
    this.#touched.messageIds.add(call.messageId)
  }

  #takePresence({ key, operation, value }) {
    if (operation === "delete") {
      if (this.#state.presence.delete(key)) this.#touched.actorIds.add(key)
      return
    }
    const said = parsePresence(key, value)
    if (!said) return
    this.#state.presence.set(key, said)
    this.#participate(key, said.actorType, said.lastSeenAt, 0, said.name)
    this.#touched.actorIds.add(key)
  }

  #takeAgent({ key, operation, value }) {
    if (operation === "delete") {
      if (this.#state.agents.delete(key)) this.#touched.agentIds.add(key)
      return
    }
    if (!isObject(value)) return
    const { name, endpoint, triggers } = value
    const known = triggers === "all" || triggers === "user-messages" ? triggers : null
    const agent = told({ id: key, name: textOr(name), endpoint: textOr(endpoint), triggers: known })
    this.#state.agents.set(key, agent)
    if (this.#state.participants.has(key)) this.#participate(key, "agent", "", 0, agent.name)
    this.#touched.agentIds.add(key)
  }

  #saw({ actorId, actorName, role, createdAt }, messages = 0) {
    this.#participate(actorId, role === "assistant" ? "agent" : "user", createdAt, messages, actorName)
    this.#touched.actorIds.add(actorId)
  }

  #participate(actorId, kind, at, messages, name) {
    const known = this.#state.participants.get(actorId)
    const agent = this.#state.agents.get(actorId)
    const participant = told({
      actorId,
      actorType: kind === "agent" || agent ? "agent" : (known?.actorType ?? "user"),
      name: name || known?.name || agent?.name,
      messageCount: (known?.messageCount ?? 0) + messages,
      lastActiveAt: at || (known?.lastActiveAt ?? ""),
    })
    this.#state.participants.set(actorId, participant)
  }

  #countTokens({ usage }) {
    if (!isObject(usage)) return
    const { counts } = this.#state
    counts.promptTokens += tokens(usage, "promptTokens", "prompt_tokens")
    counts.completionTokens += tokens(usage, "completionTokens", "completion_tokens")
    counts.totalTokens += tokens(usage, "totalTokens", "total_tokens")
  }
}

export function textOf({ parts }) {
  return parts.map((part) => (part.type === "text" ? part.content : "")).join("")
}

export function isStale({ lastSeenAt }, now = Date.now(), afterSeconds = 60) {
  return !(now - Date.parse(lastSeenAt) <= afterSeconds * 1000)
}

// What came early waits by the id that it answers. `calls` are the newest by their ids. `answers` are the ids of turns by their
// answers, `pending` the turns by answers that have not ended, `gone` the ids of deleted messages.
function emptyState() {
  const counts = { userMessageCount: 0, assistantMessageCount: 0, firstMessageAt: null, lastMessageAt: null }
  const answering = ["calls", "approvals", "earlyResults", "earlyAnswers", "turns", "answers", "pending"]
  const names = ["messages", "active", "agents", "presence", "participants", ...answering]
  const maps = Object.fromEntries(names.map((name) => [name, new Map()]))
  const tokens = { promptTokens: 0, completionTokens: 0, totalTokens: 0 }
  return { ...maps, gone: new Set(), session: null, counts: { ...counts, ...tokens } }
}

// Events

function parseEvent(event) {
  if (!isObject(event) || !isObject(event.headers)) return
  const { type, key, value, headers } = event
  if (Object.hasOwn(headers, "control")) return CONTROLS.includes(headers.control) ? { control: headers.control } : undefined
  const { operation, txid, timestamp } = headers
  const isSound = OPERATIONS.includes(operation) && (operation === "delete" || value !== undefined) && isName(type) && isName(key)
  if (isSound && [txid, timestamp].every((one) => one == null || isName(one))) return { type, key, operation, value, txid }
}

function parseChunk({ operation, value }) {
  if (operation === "delete" || !isObject(value)) return
  const { messageId, actorId, role, seq, createdAt } = value
  const fields = typeof value.chunk === "string" ? parsed(value.chunk) : null
  if (!isName(messageId) || typeof actorId !== "string" || !ROLES.includes(role)) return
  if (!isObject(fields) || typeof fields.type !== "string") return
  const number = Number.isSafeInteger(seq) ? seq : null
  const author = { actorId, actorName: textOr(value.actorName) || null, role }
  return { messageId, ...author, seq: number, createdAt: textOr(createdAt, ""), type: fields.type, fields }
}

function parsePresence(actorId, value) {
  if (!isObject(value)) return
  const { actorType, name, status, lastSeenAt } = value
  if (!["user", "agent"].includes(actorType) || !["online", "offline", "away"].includes(status)) return
  const typing = value.typing === true
  return told({ actorId, actorType, name: textOr(name), status, lastSeenAt: textOr(lastSeenAt, ""), typing })
}

function parseTurn(id, value, start) {
  if (!isObject(value)) return
  const { agentId, messageId, causeId, kind, depth, createdAt, specId } = value
  if (typeof agentId !== "string" || !isName(messageId) || typeof causeId !== "string") return
  if (!TURN_KINDS.includes(kind) || !Number.isInteger(depth) || depth < 1 || depth > 1e6) return
  return told({ id, agentId, messageId, causeId, kind, depth, createdAt: textOr(createdAt, ""), start, specId: textOr(specId) })
}

// Messages

// Parts are named by their index: `segment` is the text so far, `results` are of tools.
function newMessage({ messageId, role, actorId, actorName, createdAt }, start, end) {
  const rows = { lastChunkAt: createdAt, lastChunkSeq: 0, nextSeq: 0, seqsAhead: new Set(), deleted: new Set() }
  const place = { start, end, ...rows, approvalIds: [] }
  const ending = { isWhole: false, hasStart: false, hasEnd: false, endedBy: null, finishReason: null, error: null }
  const content = { parts: [], results: new Map(), thinking: null, segment: [], segmentText: "" }
  const calling = { calls: new Map(), namesakes: new Map(), hasOpenCalls: false, hasCallsSinceText: false }
  return { id: messageId, role, actorId, actorName, createdAt, ...place, ...ending, ...content, ...calling }
}

const views = new WeakMap()

// The same object until what it tells of changes.
function viewed(state, view) {
  if (!views.has(state)) views.set(state, view(state))
  return views.get(state)
}

function messageView(message) {
  return viewed(message, ({ id, role, parts, actorId, actorName, createdAt, endedBy, finishReason, error, start, end }) => {
    const ending = { isComplete: isComplete(message), endedBy, finishReason, error }
    return told({ id, role, parts: parts.map(partView), actorId, actorName, createdAt, ...ending, start, end })
  })
}

const isComplete = ({ isWhole, endedBy }) => isWhole || endedBy !== null

// Whether nothing more is to come: what announced its beginning announces its end too.
const isWritten = (message) => (message.hasStart ? message.hasEnd : isComplete(message))

// Whether a chunk of that number is a new one. One without a number always is.
function takes(message, seq) {
  const { seqsAhead } = message
  if (seq === null) return true
  if (seq < message.nextSeq || seqsAhead.has(seq)) return false
  seqsAhead.add(seq)
  while (seqsAhead.delete(message.nextSeq)) message.nextSeq++
  return true
}

// A user's message, which comes in one piece; its own role and time win over its row's.
function writeWhole(message, { role, parts, content, createdAt }) {
  message.isWhole = true
  if (ROLES.includes(role)) message.role = role
  message.createdAt = textOr(createdAt) || message.createdAt
  const written = Array.isArray(parts) ? parts : typeof content === "string" ? [{ type: "text", content }] : []
  message.parts = written.filter(isObject).map((part) => {
    const isText = part.type === "text" && typeof part.content === "string"
    return { kind: "fixed", part: isText ? { type: "text", content: part.content } : part }
  })
}

// Take a chunk of a message that streams. What is malformed changes nothing.
function write(message, { type, fields }) {
  if (type === "content") {
    completeCalls(message)
    writeText(message, fields)
  } else if (type === "thinking") {
    writeThinking(message, fields)
  } else if (type === "done") {
    completeCalls(message)
    message.finishReason = textOr(fields.finishReason)
    if (message.finishReason === "tool_calls") endIfItWaits(message)
    else end(message, "done")
  } else if (type === "error") {
    message.error = errorText(fields.error)
    end(message, "error")
  } else if (type === "stop") {
    end(message, "stop")
  } else if (type === "message-start") {
    message.hasStart = true
  } else if (type === "message-end") {
    message.hasEnd = true
    end(message, ["done", "stop", "error"].includes(fields.reason) ? fields.reason : "message-end")
  }
}

function end(message, by) {
  message.endedBy ??= by
  completeCalls(message)
}

// Its author has announced tool calls, and one of them is a client's to run or to approve.
function endIfItWaits(message) {
  if (message.finishReason === "tool_calls" && [...message.calls.values()].some(waitsForClient)) end(message, "done")
}

function completeCalls(message) {
  if (!message.hasOpenCalls) return
  message.hasOpenCalls = false
  for (const call of message.calls.values()) call.partState = "input-complete"
}

function writeText(message, fields) {
  const content = textOr(fields.content)
  // Agents tell the whole text with every chunk, and may begin anew after a tool call.
  const isUnrelated = message.hasCallsSinceText && content !== null && !content.startsWith(message.segmentText)
  if (message.segment.length && isUnrelated) {
    message.segment = []
    message.segmentText = ""
    message.hasCallsSinceText = false
  }
  const added = textOr(fields.delta) || rest(content ?? "", message.segmentText)
  if (!added) return
  const last = message.parts.length - 1
  if (message.segment.length && message.segment.at(-1) === last) message.parts[last].text += added
  else {
    message.segment.push(message.parts.length)
    message.parts.push({ kind: "text", text: added })
  }
  message.segmentText += added
}

function writeThinking(message, fields) {
  if (message.thinking === null) {
    message.thinking = message.parts.length
    message.parts.push({ kind: "thinking", text: "" })
  }
  const thought = message.parts[message.thinking]
  thought.text += textOr(fields.delta) || rest(textOr(fields.content, ""), thought.text)
}

// What a cumulative text adds.
function rest(content, text) {
  if (content.startsWith(text)) return content.slice(text.length)
  return text.startsWith(content) ? "" : content
}

// Tool calls

// The own id of the call of which a piece came: calls of one id, or of none, are apart by their index.
function calledId({ calls, namesakes }, shared, index) {
  if (typeof shared !== "string" || index === null) return shared
  const first = calls.get(shared)
  if (shared && (!first || first.index === null || first.index === index)) return shared
  const own = `${shared || "call"}-${index}`
  const same = namesakes.get(shared) ?? (shared ? [shared] : [])
  if (!same.includes(own)) namesakes.set(shared, [...same, own])
  return own
}

// The own id of the call that something is for which names it by the id it may share: the first that has none.
function answeredId({ calls, namesakes }, shared, isOpen) {
  return namesakes.get(shared)?.find((own) => isOpen(calls.get(own))) ?? shared
}

// `hasPart` when its arguments were streamed, so that it stands among its message's parts.
function newCall(id, message, { actorId, createdAt }, start) {
  const input = { index: null, arguments: "", partState: "awaiting-input", hasPart: false, hasInput: false, input: null }
  const answer = { approvalId: null, approved: null, result: null, isResultOfClient: false }
  return { id, messageId: message.id, name: "", actorId, createdAt, start, end: start, ...input, ...answer }
}

// Take a piece of a tool call's arguments.
function writeCall(message, call, { name, arguments: argument }) {
  message.hasCallsSinceText = true
  const piece = textOr(argument, "")
  if (!call.hasPart) {
    call.hasPart = true
    message.parts.push({ kind: "call", call })
  }
  if (piece && call.partState === "awaiting-input") call.partState = "input-streaming"
  message.hasOpenCalls ||= call.partState !== "input-complete"
  call.arguments += piece
  call.name ||= textOr(name, "")
}

// Show a tool's result; a later one takes the place of an earlier one.
function putResult(message, toolCallId, output, error) {
  const state = error == null ? "complete" : "error"
  const part = told({ type: "tool-result", toolCallId, content: asText(output ?? null), state, error })
  const index = message.results.get(toolCallId) ?? message.parts.length
  message.results.set(toolCallId, index)
  message.parts[index] = { kind: "fixed", part }
}

function resultOf({ messageId, actorId, createdAt }, output, error = null) {
  return { messageId, output, error, actorId, createdAt }
}

function callState({ result, approvalId, approved, hasInput }) {
  if (result) return result.error == null ? "complete" : "error"
  if (approved === false) return "denied"
  if (approvalId !== null && approved === null) return "approval-requested"
  return hasInput || approved ? "executing" : "pending"
}

// Whether its author can do nothing before somebody answers.
const waitsForClient = ({ result, hasInput, approvalId, approved }) =>
  result === null && (hasInput || (approvalId !== null && approved === null))

// Whether whoever called it counts on somebody else to run it, now.
const isForClient = ({ result, hasInput, approvalId, approved }) => result === null && hasInput && (approvalId === null || approved === true)

function callView(call) {
  return viewed(call, ({ id, messageId, name, hasInput, actorId, createdAt, approvalId, result, start, end }) => {
    const input = hasInput ? call.input : parsed(call.arguments)
    const asked = { name, arguments: call.arguments, input, state: callState(call) }
    return told({ id, messageId, ...asked, actorId, createdAt, approvalId, result, start, end })
  })
}

function partView(part) {
  if (part.kind === "call") return callPart(part.call)
  return part.kind === "fixed" ? part.part : { type: part.kind, content: part.text }
}

function callPart({ id, name, arguments: text, partState, approvalId, approved, result, isResultOfClient }) {
  const isAsked = approvalId !== null
  const isAnswered = result !== null && isResultOfClient
  const state = isAsked ? `approval-${approved === null ? "requested" : "responded"}` : partState
  const approval = isAsked ? told({ id: approvalId, approved, needsApproval: true }) : null
  const output = isAnswered ? (result.error == null ? result.output : { error: result.error }) : null
  return told({ type: "tool-call", id, name, arguments: text, state: isAnswered ? "input-complete" : state, approval, output })
}

// Values

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value)
const isName = (value) => typeof value === "string" && value !== ""
const textOr = (value, other = null) => (typeof value === "string" ? value : other)

// What is not there is left out.
const told = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value != null))

function taken(map, key) {
  const value = map.get(key)
  map.delete(key)
  return value
}

// What a text of JSON says; null for what is none, or cannot be read by all.
function parsed(text) {
  if (text.length > 2 * MAX_DEPTH && isDeep(text)) return null
  try {
    return LARGE_NUMBER.test(text) ? JSON.parse(text, finite) : JSON.parse(text)
  } catch {
    return null
  }
}

function finite(_, value) {
  if (value === Infinity || value === -Infinity) throw new RangeError("a number is too large")
  return value
}

// Whether arrays and objects are nested oftener than all readers can take.
function isDeep(text) {
  let depth = 0
  let isQuoted = false
  for (let at = 0; at < text.length && depth <= MAX_DEPTH; at++) {
    const character = text[at]
    if (character === '"') isQuoted = !isQuoted
    else if (isQuoted) at += character === "\\"
    else if (character === "[" || character === "{") depth++
    else if (character === "]" || character === "}") depth--
  }
  return depth > MAX_DEPTH
}

// A text as it is, and anything else as JSON.
const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value))

// An error is a text, or an object with a message.
function errorText(error) {
  const text = isObject(error) ? error.message : error
  return isName(text) ? text : "the generation failed"
}

function tokens(usage, ...names) {
  const counts = names.map((name) => usage[name])
  return counts.find((count) => Number.isInteger(count) && count > 0 && count <= MAX_TOKENS) ?? 0
}
