import type { Lifetimes } from "./streamkeep-chat.js"
import type { FetchClientOptions } from "./streamkeep.js"

type Resolvable<T> = T | Promise<T> | (() => T | Promise<T>)

/** What `DefaultChatTransport` of the AI SDK takes, but for its `fetch`. */
export interface TransportOptions {
  /** Your own route, which answers with a stream of UI messages; `/api/chat` unless given. */
  api?: string
  credentials?: Resolvable<RequestCredentials>
  headers?: Resolvable<HeadersInit>
  body?: Resolvable<object>
  prepareSendMessagesRequest?(options: any): any
  prepareReconnectToStreamRequest?(options: any): any
}

/** A chat of the AI SDK (`ChatTransport`), seen from its shape alone. */
export interface Transport {
  resumeStreamIsReplay: true
  sendMessages(options: any): Promise<ReadableStream<any>>
  reconnectToStream(options: any): Promise<ReadableStream<any> | null>
}

export interface DurableChat {
  /** To be spread into `useChat`. */
  durableSession: { id: string; transport: Transport; resume: true; onFinish(finished: any): void }
  /** The messages that are kept, read anew each time: set them in an effect, so that a page rendered by a server agrees. */
  readonly initialMessages: any[]
  /** Stop what runs in the session, whoever began it. */
  stop(): Promise<void>
  /** Forget messages and marks. */
  clearSession(): void
}

export function durableTransport(
  sessionId: string,
  fetchOptions: FetchClientOptions,
  transportOptions?: TransportOptions,
  durableOptions?: Lifetimes & { onFinish?(finished: any): void },
): DurableChat
