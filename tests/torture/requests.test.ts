/** Requests that no well-behaved client sends: an answer or a closed connection, never a stack or an error of the server, and the page lives on. */
import { expect, test } from "bun:test";
import { connect } from "node:net";
import { join } from "node:path";
import fc from "fast-check";
import type { RunList } from "../../src/web/api.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { Scratch, Site } from "../web/site.ts";
import { Ledger, LONG_LIMIT, long, SEED } from "./ledger.ts";

const CASES = long ? Number(process.env.RLV_TORTURE_CASES ?? 100_000) : 400;
const AT_ONCE = 16;
/** Milliseconds for an answer. */
const PATIENCE = 10_000;

/** What a server answers to bytes; the connection's writing side ends behind them. */
function exchange(port: number, parts: readonly Buffer[]): Promise<{ text: string; late: boolean }> {
  return new Promise((done) => {
    let text = "";
    let late = false;
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true }, () => {
      for (const part of parts) socket.write(part);
      socket.end();
    });
    const timer = setTimeout(() => {
      // A stream of events stays open by design.
      late = !text.includes("text/event-stream");
      socket.destroy();
    }, PATIENCE);
    socket.on("data", (chunk) => {
      text += chunk.toString("latin1");
      if (text.includes("text/event-stream")) socket.destroy();
    });
    socket.on("error", () => socket.destroy());
    socket.on("end", () => socket.destroy());
    socket.on("close", () => {
      clearTimeout(timer);
      done({ text, late });
    });
  });
}

const METHODS = [
  "GET",
  "POST",
  "PUT",
  "DELETE",
  "OPTIONS",
  "HEAD",
  "PATCH",
  "CONNECT",
  "TRACE",
  "get",
  "",
  "G\0T",
];
const odd = fc.oneof(fc.string({ maxLength: 30 }), fc.string({ unit: "binary", maxLength: 10 }));

function requests(run: string, port: number, token: string): fc.Arbitrary<Buffer[]> {
  const path = fc.oneof(
    fc.constantFrom(
      "/",
      "/api/runs",
      `/api/runs/${run}`,
      "/api/events",
      "/api/no",
      "*",
      "//",
      "/../../etc/passwd",
    ),
    fc
      .tuple(
        fc.constantFrom("metrics", "rollouts", "log", "checkpoints", "tags", "delete", "rename", "config"),
        odd,
      )
      .map(([what, more]) => `/api/runs/${run}/${what}?${more.replace(/[\r\n ]/g, "")}`),
    fc
      .tuple(fc.constantFrom("cursor", "step", "limit", "names", "table", "page", "after", "points"), odd)
      .map(([name, value]) => `/api/runs/${run}/metrics?${name}=${encodeURIComponent(value.toWellFormed())}`),
    odd.map((text) => `/api/${text}`),
    odd,
    fc.constantFrom(
      "/%",
      "/%ff%fe",
      "/api/runs/%00",
      `/api/runs/${"a/".repeat(2000)}`,
      `/${"a".repeat(70_000)}`,
    ),
  );
  const header = fc.oneof(
    fc.constantFrom(
      "Content-Type: application/json",
      "Content-Type: text/plain",
      "Expect: 100-continue",
      "Range: bytes=5-1",
    ),
    fc.constantFrom(
      "Content-Length: 5",
      "Content-Length: -1",
      "Content-Length: 99999999999999999999",
      "Content-Length: 0",
    ),
    fc.constantFrom(
      "Transfer-Encoding: chunked",
      "Transfer-Encoding: gzip, chunked",
      "Upgrade: websocket",
      "Connection: upgrade",
    ),
    fc.constantFrom(
      "Origin: http://evil.example",
      "Cookie: =;;=",
      "Accept-Encoding: gzip",
      "If-None-Match: *",
      "Host: evil",
    ),
    fc.tuple(odd, odd).map(([name, value]) => `${name}: ${value}`),
    odd,
    fc.constant(`X: ${"a".repeat(20_000)}`),
  );
  const body = fc.oneof(
    fc.constantFrom(
      "",
      "{}",
      '{"name":"../x"}',
      "null",
      "[]",
      `${"[".repeat(5000)}`,
      '{"a":',
      "5\r\nhello\r\n0\r\n\r\n",
    ),
    fc.constantFrom(
      "zz\r\nhello\r\n",
      "ffffffffffffffff\r\na",
      "5\r\nhel",
      "-1\r\n\r\n",
      "5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n",
    ),
    fc.json({ maxDepth: 3 }),
    odd,
  );
  const usual = [`Host: 127.0.0.1:${port}`, `Authorization: Bearer ${token}`];
  const ends = fc.constantFrom("\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r");
  return fc
    .record({
      method: fc.oneof({ weight: 3, arbitrary: fc.constantFrom("GET", "POST") }, fc.constantFrom(...METHODS)),
      path,
      version: fc.constantFrom("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""),
      headers: fc.array(header, { maxLength: 4 }),
      known: fc.integer({ min: 0, max: 9 }),
      body,
      end: ends,
      cut: fc.option(fc.nat({ max: 400 }), { freq: 8 }),
    })
    .map(({ method, path, version, headers, known, body, end, cut }) => {
      const lines = [
        `${method} ${path} ${version}`,
        ...(known > 0 ? usual : []),
        ...headers,
        "Connection: close",
      ];
      const bytes = Buffer.from(`${lines.join(end)}${end}${end}${body}`);
      if (cut === null) return [bytes];
      return [bytes.subarray(0, cut), ...(known % 2 ? [bytes.subarray(cut)] : [])];
    });
}

test(
  "requests by chance",
  async () => {
    const ledger = new Ledger("fuzzed: HTTP requests");
    const seed = SEED;
    using scratch = new Scratch();
    const root = join(scratch.dir, "runs");
    makeRun(root, "one", { rows: steps(5), checkpoints: ["final"], outcome: 0 });
    await using site = new Site(root);
    const { port, token } = site.server;
    const run = (await site.get<RunList>("/api/runs")).runs[0]!.id;
    const all = requests(run, port, token);
    for (let tried = 0; tried < CASES; tried += AT_ONCE) {
      const some = fc.sample(all, { numRuns: AT_ONCE, seed: seed + tried });
      const answers = await Promise.all(some.map((parts) => exchange(port, parts)));
      for (const [i, { text, late }] of answers.entries()) {
        const status = /^HTTP\/1\.1 (\d+)/.exec(text)?.[1] ?? "";
        let lost: string | null = null;
        if (late) lost = "no answer and no end";
        else if (status.startsWith("5") && status !== "505" && status !== "501") lost = text.slice(0, 600);
        else if (/\n\s+at .*:\d+:\d+/.test(text)) lost = `a stack: ${text.slice(0, 600)}`;
        else if (status === "" && text !== "") lost = `no HTTP: ${text.slice(0, 200)}`;
        ledger.enter(
          `seed ${seed + tried}, ${JSON.stringify(Buffer.concat(some[i]!).toString("latin1").slice(0, 600))}`,
          lost,
        );
      }
    }
    expect((await site.fetch("/api/runs")).status).toBe(200);
    ledger.close();
  },
  long ? LONG_LIMIT : 120_000,
);
