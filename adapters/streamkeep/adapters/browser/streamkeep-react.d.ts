import type { ChatSnapshot, DurableChat, DurableChatOptions } from "./streamkeep-sessions.js"

/** What this needs of React, 18 or later. */
export interface ReactHooks {
  useEffect: any
  useMemo: any
  useSyncExternalStore: any
}

export type UseDurableChatOptions =
  | (DurableChatOptions & { autoConnect?: boolean; client?: undefined })
  /** A client of one's own is connected, and never disconnected. */
  | { client: DurableChat; autoConnect?: boolean }

export interface UseDurableChat extends Omit<DurableChat, keyof ChatSnapshot | Unused>, ChatSnapshot {
  client: DurableChat
  collections: ChatSnapshot
}

type Unused = "sessionId" | "actorId" | "dispose" | "subscribe" | "getSnapshot" | "forget"

/** Connects when it is mounted, unless `autoConnect` is false, and disconnects when it goes. */
export function createUseDurableChat(react: ReactHooks): (options: UseDurableChatOptions) => UseDurableChat
