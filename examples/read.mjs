// One URL, three readers: this one with the npm package `@durable-streams/client`. `node examples/read.mjs URL`
import { stream } from "@durable-streams/client"

const response = await stream({ url: process.argv[2], live: true, warnOnHttp: false })
for await (const text of response.textStream()) process.stdout.write(text)
