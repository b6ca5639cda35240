// The public suite of the open protocol, pointed at a served proxy.
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

runConformanceTests({
  baseUrl: process.env.CONFORMANCE_TEST_URL,
  longPollTimeoutMs: 4000,
  subscriptions: process.env.CONFORMANCE_SUBSCRIPTIONS === "1",
})
