// A page that chats with TanStack AI's `useChat` over the published transport; the query says where: `send`, `upstream`, `read`.
import { durableStreamConnection } from "@durable-streams/tanstack-ai-transport"
import { useChat } from "@tanstack/ai-react"
import { createElement as h } from "react"
import { createRoot } from "react-dom/client"

const { send, upstream, read } = Object.fromEntries(new URLSearchParams(location.search))
const connection = durableStreamConnection({ sendUrl: send, readUrl: read, headers: { "X-Proxy-Url": upstream } })

function Chat() {
  const { messages, sendMessage, status, error } = useChat({ connection, live: true })
  return h(
    "main",
    null,
    messages.map(({ id, role, parts }) => h("p", { key: id, className: role }, parts.map((part) => part.content ?? "").join(""))),
    h("output", null, error ? String(error) : status),
    h("button", { onClick: () => sendMessage("Hello") }, "Send"),
  )
}

createRoot(document.querySelector("main")).render(h(Chat))
