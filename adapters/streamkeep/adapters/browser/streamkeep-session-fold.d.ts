export type Role = "user" | "assistant" | "system"
export type ActorType = "user" | "agent"

/** Between two events of a stream: it is reached by reading from `offset` and leaving out `subOffset` messages. */
export interface Place {
  /** How many events stand before it. */
  position: number
  offset: string
  subOffset: number
}

export interface TextPart {
  type: "text"
  content: string
}

export interface ThinkingPart {
  type: "thinking"
  content: string
}

export interface ToolCallPart {
  type: "tool-call"
  id: string
  name: string
  /** JSON text, incomplete while it streams. */
  arguments: string
  state: "awaiting-input" | "input-streaming" | "input-complete" | "approval-requested" | "approval-responded"
  /** `approved` is there once somebody has answered. */
  approval?: { id: string; needsApproval: true; approved?: boolean }
  output?: any
}

export interface ToolResultPart {
  type: "tool-result"
  toolCallId: string
  /** JSON where it was no text. */
  content: string
  state: "complete" | "error"
  error?: string
}

/** A user's message may have others, which are told as they were written. */
export type MessagePart = TextPart | ThinkingPart | ToolCallPart | ToolResultPart

export interface SessionMessage {
  id: string
  role: Role
  parts: MessagePart[]
  actorId: string
  actorName?: string
  /** ISO 8601. */
  createdAt: string
  /** False while its author goes on. */
  isComplete: boolean
  endedBy?: "done" | "stop" | "error" | "message-end"
  finishReason?: string
  error?: string
  /** From `start` to `end` stand all events that made it what it is, and maybe others among them. */
  start: Place
  end: Place
}

export interface ToolResult {
  toolCallId: string
  messageId: string
  output?: any
  error?: string
  /** Whoever ran the tool. */
  actorId: string
  createdAt: string
}

export interface ToolCall {
  id: string
  messageId: string
  name: string
  arguments: string
  /** What the arguments say, once they are complete. */
  input?: any
  state: "pending" | "approval-requested" | "executing" | "denied" | "complete" | "error"
  actorId: string
  createdAt: string
  approvalId?: string
  result?: ToolResult
  start: Place
  end: Place
}

export interface Approval {
  id: string
  toolCallId: string
  messageId: string
  toolName: string
  input?: any
  status: "pending" | "approved" | "denied"
  requestedBy: string
  requestedAt: string
  respondedBy?: string
  respondedAt?: string
}

export interface ActiveGeneration {
  messageId: string
  actorId: string
  startedAt: string
  lastChunkAt: string
  /** -1 before the first chunk. */
  lastChunkSeq: number
}

/** One call of one agent, which answers the message `causeId` in the message `messageId`; pending until that has ended. */
export interface Turn {
  id: string
  agentId: string
  messageId: string
  causeId: string
  kind: "message" | "answers" | "regenerate" | "agent"
  /** How many turns follow one message of a person, up to this one. */
  depth: number
  createdAt: string
  start: Place
  specId?: string
  isPending: boolean
}

/** What a session says of itself. Without `atMessageId` it branched off at the end. */
export interface SessionInfo {
  id: string
  name?: string
  createdAt: string
  forkedFrom?: { sessionId: string; atMessageId?: string }
}

export interface SessionAgent {
  id: string
  name?: string
  endpoint?: string
  triggers?: "all" | "user-messages"
}

/** What an actor says of itself; `isStale` tells whether that still holds. */
export interface Presence {
  actorId: string
  actorType: ActorType
  name?: string
  status: "online" | "offline" | "away"
  lastSeenAt: string
  typing: boolean
}

export interface Participant {
  actorId: string
  actorType: ActorType
  name?: string
  messageCount: number
  lastActiveAt: string
}

export interface SessionStatistics {
  messageCount: number
  userMessageCount: number
  assistantMessageCount: number
  toolCallCount: number
  approvalCount: number
  activeGenerationCount: number
  firstMessageAt?: string
  lastMessageAt?: string
  promptTokens: number
  completionTokens: number
  totalTokens: number
}

/** What a batch of events touched, gone things too; a message's tool calls and approvals count as its own. */
export interface SessionChanges {
  messageIds: string[]
  actorIds: string[]
  agentIds: string[]
  txids: string[]
  turnIds: string[]
  wasReset: boolean
  /** Whether the session's own name or origin was told. */
  session: boolean
}

/** A session as its events so far make it. What it gives out never changes; a message is the same object until it does. */
export class SessionFold {
  /** Goes on where another one stood. Throws a `TypeError` if this is no snapshot of this version. */
  static from(snapshot: unknown): SessionFold
  /** All of it, for a cache that takes structured clones, as IndexedDB does. */
  snapshot(): unknown
  /** Take the events that come next; `offset` is the one after them. */
  apply(events: unknown[], offset: string): SessionChanges
  /** Where to read on. */
  readonly offset: string
  /** How many events were taken. */
  readonly position: number
  /** In the order of the stream. */
  readonly messages: SessionMessage[]
  message(messageId: string): SessionMessage | undefined
  readonly toolCalls: ToolCall[]
  toolCall(toolCallId: string): ToolCall | undefined
  readonly toolResults: ToolResult[]
  readonly approvals: Approval[]
  approval(approvalId: string): Approval | undefined
  /** Messages whose authors go on, then turns whose answers have not begun. */
  readonly activeGenerations: ActiveGeneration[]
  readonly session: SessionInfo | null
  readonly turns: Turn[]
  readonly pendingTurns: Turn[]
  /** The turn whose answer a message is, or will be. */
  turnOf(messageId: string): Turn | undefined
  /** Tool calls, of all messages or of some, that wait for a client to run the tool. */
  callsToRun(messageIds?: Iterable<string>): ToolCall[]
  readonly agents: SessionAgent[]
  readonly presence: Presence[]
  /** Everybody who ever wrote or was present, in the order in which they came. */
  readonly participants: Participant[]
  readonly statistics: SessionStatistics
}

/** All text of a message, without what was thought. */
export function textOf(message: Pick<SessionMessage, "parts">): string

/** Whether nothing was heard of an actor for so long. */
export function isStale(presence: Presence, now?: number, afterSeconds?: number): boolean
