/** The proxy's own credentials, as headers: a record, or a function that is asked before every request. */
export type Auth = HeadersInit | (() => HeadersInit | Promise<HeadersInit>)

/** What this client needs of a `Storage`: `localStorage`, `sessionStorage`, or one of your own. */
export type MarkStorage = Pick<Storage, "length" | "key" | "getItem" | "setItem" | "removeItem">

export interface FetchClientOptions {
  /** The proxy, with or without `/api` behind it; relative to the page. */
  proxyUrl: string
  auth?: Auth
  /** Where marks of unfinished generations are kept: `localStorage` unless given; `null` for nowhere. */
  storage?: MarkStorage | null
  patience?: {
    /** For how long a request that is not answered is repeated; 30. */
    sendSeconds?: number
    /** For how long a body is waited for while the proxy cannot be heard; 120. */
    silenceSeconds?: number
    /** After how long a connection without even a heartbeat is replaced; 45. */
    stallSeconds?: number
  }
}

/** A generation as the proxy lists it. */
export interface Generation {
  sessionId: string
  requestId: string
  state: "creating" | "running" | "done" | "error" | "cancelled"
  /** How it ended. */
  code?: string
  streamUrl: string
  controlUrl: string
  contentType: string | null
  /** `null` until upstream has answered. */
  upstreamStatus: number | null
  upstreamHeaders: Record<string, string>
  /** ISO 8601. */
  createdAt: string
}

/**
 * `fetch` through a proxy. Headers of a request steer it: `X-Session-ID`, `X-Request-ID`, `X-Resume-Active-Generation`,
 * `X-Replay-From-Start`, `X-Active-Generation-TTL` (milliseconds).
 *
 * The signal of a request stops upstream. Cancelling the body, or leaving the page, does not: the generation goes on.
 */
export interface FetchClient {
  (input: RequestInfo | URL, init?: RequestInit): Promise<Response>
  /** A session's generations that run or ended within the hour, newest first. */
  active(sessionId: string, signal?: AbortSignal): Promise<Generation[]>
  /** Stop a generation, for every reader; its state then, or nothing where there is none. */
  cancel(sessionId: string, requestId: string): Promise<Generation["state"] | "cancelling" | undefined>
  /** The request ids of a session's generations that were neither read to their ends here nor stopped, newest first. */
  pending(sessionId: string): string[]
  /** Forget what the storage knows of a session. What runs goes on. */
  forget(sessionId: string): void
}

export function createFetchClient(options: FetchClientOptions): FetchClient

/**
 * A generation has ended, and is not done: what a body errors with after all of its bytes. `name` is `GenerationError`, or
 * `AbortError` for one that somebody cancelled.
 */
export class GenerationError extends Error {
  readonly code: string
  /** Whether the fault was the proxy's, so that asking again may help. */
  readonly retryable: boolean
  readonly sessionId: string
  readonly requestId: string
}
