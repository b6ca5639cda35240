export default {
  test: { include: ["conformance.test.mjs"], exclude: [], testTimeout: 30000 },
}
