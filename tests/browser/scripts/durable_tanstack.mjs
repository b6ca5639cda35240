// A page that chats with TanStack AI's `useChat` over the proxy's own module, in strict mode; the query says where: `proxy`, `upstream`.
import { fetchServerSentEvents, useChat } from "@tanstack/ai-react"
import { StrictMode, createElement as h, useState } from "react"
import { createRoot } from "react-dom/client"

const { proxy, upstream } = Object.fromEntries(new URLSearchParams(location.search))
const { durableTransport } = await import(`${proxy}/streamkeep-tanstack.js`)
const durable = durableTransport("my-chat", { proxyUrl: proxy, api: upstream, fetchServerSentEvents })

function Chat() {
  const { messages, sendMessage, stop, status, error } = useChat(durable.durableSession)
  return h(
    "section",
    null,
    messages.map(({ id, role, parts }) => h("p", { key: id, className: role }, parts.map((part) => part.content ?? "").join(""))),
    h("output", null, error ? String(error) : status),
    h("button", { onClick: () => sendMessage("Hello") }, "Send"),
    h("button", { onClick: stop }, "Stop"),
  )
}

function App() {
  const [isShown, setShown] = useState(true)
  return h("main", null, isShown && h(Chat), h("button", { onClick: () => setShown(!isShown) }, "Toggle"))
}

createRoot(document.querySelector("main")).render(h(StrictMode, null, h(App)))
