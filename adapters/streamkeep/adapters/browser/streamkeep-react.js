// A durable chat as a hook. React is the caller's own: `const useDurableChat = createUseDurableChat(React)`.
import { createDurableChat } from "./streamkeep-sessions.js"

const CALLBACKS = ["onResponse", "onChunk", "onFinish", "onError", "onMessagesChange"]
const MEMBERS = [
  ...["sendMessage", "append", "reload", "stop", "clear", "addToolResult", "addToolApprovalResponse", "fork", "typing"],
  ...["registerAgents", "unregisterAgent", "connect", "disconnect", "pause", "resume"],
]

export function createUseDurableChat({ useEffect, useMemo, useRef, useSyncExternalStore }) {
  return function useDurableChat({ autoConnect = true, client: given, ...options }) {
    const newest = useRef(options)
    const client = useMemo(
      () => given ?? createDurableChat({ ...options, ...callbacksOf(newest) }),
      [given, options.sessionId, options.proxyUrl, options.actorId],
    )
    useEffect(() => {
      newest.current = options
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

// Those of the last render are called, whichever made the client.
function callbacksOf(newest) {
  return Object.fromEntries(CALLBACKS.map((name) => [name, (...told) => newest.current[name]?.(...told)]))
}
