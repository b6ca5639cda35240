// A page with a chat by `useDurableChat`, in strict mode; the query says where and who: `proxy`, `session`, `actor`.
import * as React from "react"
import { createRoot } from "react-dom/client"

const { StrictMode, createElement: h, useState } = React
const { proxy, session, actor } = Object.fromEntries(new URLSearchParams(location.search))
const { createUseDurableChat } = await import(`${proxy}/streamkeep-react.js`)
const useDurableChat = createUseDurableChat(React)
const finished = []

function Chat() {
  const onFinish = ({ id }) => finished.push(id)
  const tools = { clock: () => "noon" }
  const chat = useDurableChat({ sessionId: session, proxyUrl: proxy, actorId: actor, name: actor, presence: true, tools, onFinish })
  const { messages, approvals, presence, isLoading, connectionStatus, error } = chat
  const asked = approvals.filter(({ status }) => status === "pending")
  const said = ({ parts }) => parts.map((part) => (part.type === "tool-result" ? `[${part.content}]` : (part.content ?? ""))).join("")
  return h(
    "section",
    null,
    messages.map((message) => h("p", { key: message.id, className: message.isPending ? "pending" : message.role }, said(message))),
    h("output", null, error ? String(error) : `${connectionStatus}${isLoading ? ", answering" : ""}`),
    h("small", null, presence.map(({ name, typing }) => `${name}${typing ? " types" : ""}`).sort().join(", ")),
    h("i", null, `${finished.length} ended`),
    h("input", { "aria-label": "Message", onInput: () => chat.typing() }),
    h("button", { onClick: () => chat.sendMessage("Hello") }, "Send"),
    h("button", { onClick: chat.stop }, "Stop"),
    h("button", { onClick: () => (chat.connectionStatus === "connected" ? chat.disconnect() : chat.connect()) }, "Line"),
    asked.map(({ id }) => h("button", { key: id, onClick: () => chat.addToolApprovalResponse({ id, approved: true }) }, "Approve")),
  )
}

function App() {
  const [isShown, setShown] = useState(true)
  return h("main", null, isShown && h(Chat), h("button", { onClick: () => setShown(!isShown) }, "Toggle"))
}

createRoot(document.querySelector("main")).render(h(StrictMode, null, h(App)))
