import { expect, test } from "bun:test";
import { connect } from "node:net";
import { events, Router } from "../../src/web/router.ts";
import { startServer } from "../../src/web/server.ts";

/** Waits until something is so. */
async function until(what: () => boolean): Promise<void> {
  for (const end = Date.now() + 20_000; !what(); await Bun.sleep(20))
    if (Date.now() > end) throw new Error(`never: ${what}`);
}

test("a reader of events that does not read is cut off before it fills the memory", async () => {
  const router = new Router();
  const state = { sent: 0, ended: 0 };
  const line = "x".repeat(1 << 20);
  router.add("GET", "/api/flood", (call) =>
    events(call, (stream) => {
      const timer = setInterval(() => {
        if (stream.send("flood", line)) state.sent += 1;
      }, 2);
      return () => {
        clearInterval(timer);
        state.ended += 1;
      };
    }),
  );
  const server = startServer({ host: "127.0.0.1", port: 0 }, router);
  const socket = connect(server.port, "127.0.0.1", () => {
    socket.write(
      `GET /api/flood HTTP/1.1\r\nHost: 127.0.0.1:${server.port}\r\nAuthorization: Bearer ${server.token}\r\n\r\n`,
    );
    socket.pause();
  });
  try {
    await until(() => state.ended === 1);
    expect(state.sent).toBeLessThan(64);
    // One that goes by itself is noticed too.
    const stop = new AbortController();
    const headers = { authorization: `Bearer ${server.token}` };
    const response = await fetch(`http://127.0.0.1:${server.port}/api/flood`, {
      headers,
      signal: stop.signal,
    });
    const reader = response.body!.getReader();
    for (let bytes = 0; bytes < 20 << 20; ) bytes += (await reader.read()).value!.byteLength;
    expect(state.ended).toBe(1);
    stop.abort();
    await until(() => state.ended === 2);
  } finally {
    socket.destroy();
    await server.stop();
  }
});
