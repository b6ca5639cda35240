import type { Lifetimes } from "./streamkeep-chat.js"
import type { FetchClientOptions } from "./streamkeep.js"

export interface TransportOptions extends FetchClientOptions {
  /** Your own route, which answers with AG-UI events; `/api/chat` unless given. */
  api?: string | (() => string)
  credentials?: RequestCredentials
  headers?: Record<string, string>
  body?: Record<string, unknown>
  /** The SDK's own, for requests in the form that its version writes; without it, messages are sent as they are. */
  fetchServerSentEvents?: any
}

/** A connection of TanStack AI, seen from its shape alone. */
export interface Connection {
  connect(messages: any[], data?: any, signal?: AbortSignal, context?: any): AsyncIterable<any>
  joinRun(runId: string, signal?: AbortSignal): AsyncIterable<any>
  hydrate(threadId?: string): Promise<{ messages: any[]; activeRun: { runId: string } | null; interrupts: null }>
}

export interface DurableChat {
  /** To be spread into `useChat`. */
  durableSession: {
    id: string
    threadId: string
    connection: Connection
    persistence: true
    onFinish(message: any): void
  }
  readonly initialMessages: any[]
  /** Stop what runs in the session, whoever began it. */
  stop(): Promise<void>
  /** Forget messages and marks. */
  clearSession(): void
}

export function durableTransport(
  sessionId: string,
  transportOptions: TransportOptions,
  durableOptions?: Lifetimes & { onFinish?(message: any): void },
): DurableChat
