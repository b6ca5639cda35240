// A page that chats with the AI SDK's `useChat` over the published transport; the query says where: `proxy`, `upstream`, `chat`.
import { useChat } from "@ai-sdk/react"
import { createDurableChatTransport } from "@durable-streams/aisdk-transport"
import { createElement as h } from "react"
import { createRoot } from "react-dom/client"

const { proxy, upstream, chat } = Object.fromEntries(new URLSearchParams(location.search))
const transport = createDurableChatTransport({
  api: `${proxy}/api/${chat}`,
  headers: { "X-Proxy-Url": upstream, "Streamkeep-View": "json" },
  async fetchClient(url, init) {
    if (init.method === "POST") return fetch(`${proxy}/api/${chat}/${crypto.randomUUID()}`, init)
    const generations = await (await fetch(`${proxy}/api/${chat}/active`, init)).json()
    const running = generations.find(({ state }) => state === "creating" || state === "running")
    return running ? Response.json(running) : new Response(null, { status: 204 })
  },
})

function Chat() {
  const { messages, sendMessage, status, error } = useChat({ id: chat, transport, resume: true })
  return h(
    "main",
    null,
    messages.map(({ id, role, parts }) => h("p", { key: id, className: role }, parts.map((part) => part.text ?? "").join(""))),
    h("output", null, error ? String(error) : status),
    h("button", { onClick: () => sendMessage({ text: "Hello" }) }, "Send"),
  )
}

createRoot(document.querySelector("main")).render(h(Chat))
