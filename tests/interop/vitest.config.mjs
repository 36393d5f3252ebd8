import { defineConfig } from "vitest/config"

// vitest gives a test 5 seconds; on a machine with other work that is too little for those with large bodies.
export default defineConfig({ test: { include: ["server-conformance.test.mjs"], testTimeout: 30_000 } })
