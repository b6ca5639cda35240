// A durable chat as a hook. React is the caller's own: `const useDurableChat = createUseDurableChat(React)`.
import { createDurableChat } from "./streamkeep-sessions.js"

const MEMBERS = [
  ...["sendMessage", "append", "reload", "stop", "clear", "addToolResult", "addToolApprovalResponse", "fork", "typing"],
  ...["registerAgents", "unregisterAgent", "connect", "disconnect", "pause", "resume"],
]

export function createUseDurableChat({ useEffect, useMemo, useSyncExternalStore }) {
  return function useDurableChat({ autoConnect = true, client: given, ...options }) {
    const { client, live } = useMemo(() => {
      const live = { ...options }
      return { client: given ?? createDurableChat(live), live }
    }, [given, options.sessionId, options.proxyUrl, options.actorId])
    // Callbacks and tools of the last render are called, whichever made the client.
    useEffect(() => {
      for (const name of Object.keys(live)) delete live[name]
      Object.assign(live, options)
    })
    useEffect(() => {
      if (!autoConnect) return
      // What is wrong is told by `error` and by `onError`.
      client.connect().catch(() => {})
      // A client that was given belongs to whoever made it.
      return given ? undefined : client.disconnect
    }, [client, autoConnect, given])
    const snapshot = useSyncExternalStore(client.subscribe, client.getSnapshot, client.getSnapshot)
    const members = useMemo(() => Object.fromEntries(MEMBERS.map((name) => [name, client[name]])), [client])
    return { ...snapshot, ...members, client, collections: snapshot }
  }
}
