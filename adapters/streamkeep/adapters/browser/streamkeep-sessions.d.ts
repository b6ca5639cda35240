import type {
  ActiveGeneration,
  ActorType,
  Approval,
  MessagePart,
  Participant,
  Presence,
  Role,
  SessionAgent,
  SessionInfo,
  SessionMessage,
  SessionStatistics,
  ToolCall,
  Turn,
} from "./streamkeep-session-fold.js"
import type { Auth } from "./streamkeep.js"

export * from "./streamkeep-session-fold.js"

/** An agent: an HTTP endpoint that streams its answers. Its headers are kept by the server and shown to nobody. */
export interface AgentSpec {
  id: string
  name?: string
  endpoint: string
  method?: "POST"
  headers?: Record<string, string>
  /** What wakes it, beside being named: `user-messages` unless given. */
  triggers?: "all" | "user-messages"
  bodyTemplate?: Record<string, unknown>
  /** Told by its first event unless given. */
  format?: "openai" | "openai-responses" | "anthropic" | "ai-sdk" | "tanstack"
  maxTurns?: number
}

export type Tool = (input: any) => unknown

/** Where folds are kept between visits. Values are to be cloned, as IndexedDB does. */
export interface FoldCache {
  load(key: string): Promise<unknown>
  save(key: string, fold: unknown): Promise<unknown>
  remove(key: string): Promise<unknown>
}

/** A message as it is shown. `isPending` until it is known to be stored. */
export interface ChatMessage extends Partial<Omit<SessionMessage, "createdAt">> {
  id: string
  role: Role
  parts: MessagePart[]
  createdAt?: Date
  isPending?: true
}

export type ConnectionStatus = "disconnected" | "connecting" | "connected" | "error"

/** What is shown; it never changes. A message is the same object until it does. */
export interface ChatSnapshot {
  messages: ChatMessage[]
  /** Whether an agent is called, or answers. */
  isLoading: boolean
  error: Error | null
  connectionStatus: ConnectionStatus
  isPaused: boolean
  session: SessionInfo | null
  toolCalls: ToolCall[]
  approvals: Approval[]
  activeGenerations: ActiveGeneration[]
  agents: SessionAgent[]
  turns: Turn[]
  /** Who is there now. */
  presence: Presence[]
  /** Everybody who ever wrote or was there. */
  participants: Participant[]
  statistics: SessionStatistics
}

export interface DurableChatOptions {
  sessionId: string
  /** The proxy; relative to the page. */
  proxyUrl: string
  /** Who writes: the same after a refresh, unless given. With a token that names somebody, it has to be that name. */
  actorId?: string
  actorType?: ActorType
  /** How others call this actor. */
  name?: string
  auth?: Auth
  /** Headers for the proxy, where there is no `auth`. */
  stream?: { headers?: HeadersInit }
  /** Called for each message of a person here, beside the agents that are registered. */
  agent?: AgentSpec
  /** The endpoint of such an agent, where there is no `agent`. */
  api?: string
  /** Goes into the requests to either. */
  body?: Record<string, unknown>
  /** Run here, once, when an answer to this actor's message calls them. */
  tools?: Record<string, Tool> | { name: string; execute: Tool }[]
  /** Shown until the session's own are there. */
  initialMessages?: ChatMessage[]
  /** Tell others that this actor is here: every 50 s, when the page is hidden or shown, and when it is left. */
  presence?: boolean
  /** IndexedDB unless given; `null` for none. */
  cache?: FoldCache | null
  patience?: {
    /** For how long what is written is repeated; 30. */
    sendSeconds?: number
    /** For how long an outage may last; for ever, unless given. */
    silenceSeconds?: number
    /** After how long a connection without even a heartbeat is replaced; 45. */
    stallSeconds?: number
  }
  /** A write was answered. */
  onResponse?(response: Response): void
  /** A chunk of an answer has come, while this page was connected. */
  onChunk?(chunk: { type: string; messageId: string; [field: string]: any }): void
  /** An answer has ended. */
  onFinish?(message: ChatMessage): void
  /** Something was refused, the session cannot be read, or an answer ended with an error. */
  onError?(error: Error): void
  onMessagesChange?(messages: ChatMessage[]): void
}

/** A session as one page sees it. What it writes is shown at once, and taken back if it was refused. */
export interface DurableChat extends Pick<ChatSnapshot, "messages" | "isLoading" | "error" | "connectionStatus"> {
  readonly sessionId: string
  readonly actorId: string
  readonly collections: ChatSnapshot
  /** Make the session if there is none, and read it; resolves when the page has all of it. May be called again. */
  connect(): Promise<void>
  /** Stop reading, and say goodbye. What is being written is written all the same. */
  disconnect(): void
  dispose(): void
  /** Stop reading for a while. What is written shows at once all the same. */
  pause(): void
  resume(): void
  /** Called after each change, until the function that it gives is. */
  subscribe(listener: () => void): () => void
  getSnapshot(): ChatSnapshot
  /** Resolves with the message's id when it is stored; agents answer after that. */
  sendMessage(message: string | { text: string } | { content: string }): Promise<string>
  /** A message of any role; only those of users wake agents. The same id is stored once. */
  append(message: { id?: string; role?: Role; content?: string; parts?: MessagePart[] }): Promise<string>
  /** Answer a message anew, the last of a person unless given; with `content` it is changed, too. What followed it goes. */
  reload(options?: { fromMessageId?: string; content?: string }): Promise<void>
  /** Stop one answer, or all that is being answered. Failures are told by `error`. */
  stop(messageId?: unknown): Promise<void>
  /** Hide what was said so far, on this page alone. */
  clear(): void
  /** Remove what the cache holds of the session. */
  forget(): Promise<void>
  addToolResult(result: { toolCallId: string; output: unknown; error?: string | null; messageId?: string }): Promise<void>
  addToolApprovalResponse(answer: { id: string; approved: boolean }): Promise<void>
  /** A session that begins as this one, up to the end of a message, or of all. */
  fork(options?: { atMessageId?: string; newSessionId?: string; name?: string }): Promise<{ sessionId: string; streamUrl: string; offset: string }>
  registerAgents(agents: AgentSpec[]): Promise<void>
  unregisterAgent(agentId: string): Promise<void>
  /** To be called at each key: others see for 3 s that this actor types. */
  typing(isTyping?: boolean): void
}

export function createDurableChat(options: DurableChatOptions): DurableChat
