import type { FetchClient, MarkStorage } from "./streamkeep.js"

export function jsonEvents(body: ReadableStream<Uint8Array>): ReadableStream<any>

export interface KeptMessages {
  load(): any[]
  unanswered(): unknown
  save(messages: readonly unknown[], unanswered?: string): void
  clear(): void
}

export function messagesIn(storage: MarkStorage | null | undefined, sessionId: string, ttlMs?: number): KeptMessages
export function accepted(response: Response): Promise<Response>
export function stopAll(durable: FetchClient, sessionId: string): Promise<void>

/** How long what is stored in the page may be used. */
export interface Lifetimes {
  /** A generation that has ended may be resumed for so long after it was last read; an hour unless given. */
  activeGeneration?: { ttlMs?: number }
  /** Messages are kept for so long after they were last saved; a week unless given. */
  messages?: { ttlMs?: number }
}
