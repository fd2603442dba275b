import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RolloutsDb } from "../../src/io/rollouts-db.ts";
import type { RolloutPage, RunList } from "../../src/web/api.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { Scratch, Site } from "./site.ts";

let scratch: Scratch;
let site: Site;
let run: string;
const SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>\u2028";

beforeAll(async () => {
  scratch = new Scratch();
  const root = join(scratch.dir, "runs");
  const dir = makeRun(root, "one", { rows: steps(5), checkpoints: ["step-3", "final"], outcome: 0 });
  writeFileSync(join(dir, "train.log"), `${SCRIPT}\nstep 1/5  loss 1\n`);
  using db = new RolloutsDb(join(dir, "rollouts.sqlite"));
  const row = { step: 1, epoch: 0, prompt_index: 0, rollout_index: 0, reward: 1, advantage: 0 };
  db.add({ ...row, prompt: SCRIPT, completion: SCRIPT });
  writeFileSync(join(scratch.dir, "secret.txt"), "outside of the runs");
  site = new Site(root);
  run = (await site.get<RunList>("/api/runs")).runs[0]!.id;
});

afterAll(async () => {
  await site[Symbol.asyncDispose]();
  scratch[Symbol.dispose]();
});

const PATHS = () => ["/", "/api/runs", `/api/runs/${run}`, "/api/events", "/api/no-such", "/no-such.js"];

describe("who may ask", () => {
  test("nobody without the token, on no address", async () => {
    for (const path of PATHS())
      for (const headers of <Record<string, string>[]>[
        {},
        { authorization: "" },
        { authorization: "Bearer wrong" },
        { authorization: `Basic ${site.server.token}` },
        { cookie: `rlv_${site.server.port}=${site.server.token}` },
      ]) {
        const response = await fetch(`${site.base}${path}`, { headers });
        expect([path, headers, response.status]).toEqual([path, headers, 401]);
        expect(await response.text()).not.toContain("one");
      }
    expect((await fetch(`${site.base}/api/runs?token=wrong`)).status).toBe(401);
    // What others may not do they may not learn about either.
    for (const method of ["POST", "DELETE", "OPTIONS"])
      expect((await fetch(`${site.base}/api/runs`, { method })).status).toBe(401);
  });

  test("the address with the token gives a cookie that scripts and other sites do not get", async () => {
    const opened = await fetch(site.server.address, { redirect: "manual" });
    expect(opened.status).toBe(303);
    expect(opened.headers.get("location")).toBe("/");
    const given = opened.headers.get("set-cookie")!;
    expect(given).toMatch(/; HttpOnly; SameSite=Strict$/);
    expect(given).not.toContain(site.server.token);
    const cookie = given.split(";")[0]!;
    expect((await fetch(`${site.base}/api/runs`, { headers: { cookie } })).status).toBe(200);
    expect((await fetch(site.base, { headers: { cookie: `other=1; ${cookie}` } })).status).toBe(200);
    // A link on another site leads here: the cookie is kept back until a page of ours leads on.
    const linked = await fetch(site.server.address, {
      redirect: "manual",
      headers: { "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate" },
    });
    expect(linked.status).toBe(200);
    expect(await linked.text()).toContain('http-equiv="refresh"');
    // For scripts: the token in the address of a question itself.
    const direct = await fetch(`${site.base}/api/runs?token=${site.server.token}`, { redirect: "manual" });
    expect(direct.status).toBe(200);
  });

  test("the token for a browser's command line works once", async () => {
    const address = site.server.openingAddress();
    expect(address).not.toContain(site.server.token);
    expect((await fetch(address, { redirect: "manual" })).status).toBe(303);
    expect((await fetch(address, { redirect: "manual" })).status).toBe(401);
  });

  test("foreign Host: 403 everywhere, the token notwithstanding", async () => {
    const { port } = site.server;
    const foreign = [
      "evil.example",
      `evil.example:${port}`,
      `127.0.0.1:${port + 1}`,
      "127.0.0.1",
      `127.0.0.1.evil.example:${port}`,
      `0.0.0.0:${port}`,
      `127.0.0.1:${port}, evil.example`,
      `evil@127.0.0.1:${port}`,
    ];
    for (const path of PATHS())
      for (const host of foreign)
        expect([path, host, await site.status(`GET ${path} HTTP/1.1`, [`Host: ${host}`])]).toEqual([
          path,
          host,
          403,
        ]);
    // Two of them, in either order: whichever a proxy or a browser believed.
    for (const hosts of [
      ["evil.example", `127.0.0.1:${port}`],
      [`127.0.0.1:${port}`, "evil.example"],
    ])
      expect([400, 403]).toContain(
        await site.status(
          "GET /api/runs HTTP/1.1",
          hosts.map((host) => `Host: ${host}`),
        ),
      );
    expect(await site.status(`GET http://evil.example/api/runs HTTP/1.1`, [`Host: evil.example`])).toBe(403);
    for (const host of [`localhost:${port}`, `LOCALHOST:${port}`, `[::1]:${port}`])
      expect(await site.status("GET /api/runs HTTP/1.1", [`Host: ${host}`])).toBe(200);
    expect([400, 403]).toContain(
      Number(
        / (\d+)/.exec(await site.raw("GET /api/runs HTTP/1.1\r\nConnection: close\r\n\r\n"))?.[1] ?? 400,
      ),
    );
  });

  test("foreign Origin: 403 everywhere, streams and requests to become a websocket included", async () => {
    const { port } = site.server;
    const foreign = [
      "http://evil.example",
      "null",
      `https://127.0.0.1:${port}`,
      `http://127.0.0.1:${port + 1}`,
      "http://127.0.0.1",
      `http://127.0.0.1:${port}.evil.example`,
      "file://",
    ];
    for (const path of PATHS())
      for (const origin of foreign) {
        expect((await site.fetch(path, { headers: { origin } })).status).toBe(403);
        expect((await site.post(path, {}, { origin })).status).toBe(403);
      }
    const upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"];
    const key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    for (const path of ["/api/events", "/"]) {
      const lines = [...upgrade, key];
      expect(await site.status(`GET ${path} HTTP/1.1`, [...lines, "Origin: http://evil.example"])).toBe(403);
      // There are none here: it never becomes one.
      expect(await site.status(`GET ${path} HTTP/1.1`, lines)).not.toBe(101);
    }
    expect((await site.fetch("/api/runs", { headers: { origin: site.base } })).status).toBe(200);
  });

  test("a page of another site or port that the browser names: 403, but for links to the page", async () => {
    for (const where of ["cross-site", "same-site"]) {
      const headers = { "sec-fetch-site": where };
      for (const path of PATHS()) expect((await site.fetch(path, { headers })).status).toBe(403);
      const link = { ...headers, "sec-fetch-mode": "navigate" };
      expect((await site.fetch("/", { headers: link })).status).toBe(200);
      expect((await site.fetch("/api/runs", { headers: link })).status).toBe(403);
    }
    expect((await site.fetch("/api/runs", { headers: { "sec-fetch-site": "same-origin" } })).status).toBe(
      200,
    );
  });
});

describe("what may be asked", () => {
  test("no path leads out of the runs", async () => {
    const tricks = [
      "/../secret.txt",
      "/..%2fsecret.txt",
      "/%2e%2e/secret.txt",
      "/%2e%2e%2fsecret.txt",
      "/..\\secret.txt",
      "/..%5csecret.txt",
      "//etc/passwd",
      "///etc/passwd",
      "/%2fetc/passwd",
      "/index.html%00.js",
      "/index.html\u0000",
      "/./index.html/..%2f..%2fpackage.json",
      "/build/web/index.html",
      "/content.json",
      "/api/runs/..",
      "/api/runs/../../secret.txt",
      "/api/runs/..%2f..%2fsecret.txt",
      "/api/runs/%2e%2e%2f/log",
      "/api/runs/one/log",
      "/api/runs/%2Fetc/log",
      `/api/runs/${run}%2f..%2f..%2fsecret.txt`,
      `/api/runs/${run}/../../secret.txt`,
      `/api/runs/${run}%00`,
      `/api/runs/${run}/rollouts/..%2f..`,
      `/api/runs/${run}/rollouts/1-0-0-0%00`,
      "/api//runs",
      "/API/runs",
    ];
    for (const path of tricks) {
      const answer = await site.raw(
        `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${site.server.port}\r\nAuthorization: Bearer ${site.server.token}\r\nConnection: close\r\n\r\n`,
      );
      expect([path, /^HTTP\/1\.1 (\d+)/.exec(answer)?.[1]]).toEqual([
        path,
        expect.stringMatching(/^(40[04]|505)$/),
      ]);
      expect(answer).not.toMatch(/outside of the runs|root:/);
    }
    for (const name of ["..", "%2e%2e", "..%2fone", "step-3%2f..%2f..", "nope", "."]) {
      const response = await site.post(`/api/runs/${run}/checkpoints/${name}/delete`, {});
      expect([name, response.status]).toEqual([name, 404]);
    }
    expect((await site.get<RunList>("/api/runs")).runs.length).toBe(1);
  });

  test("a link in the runs' folder is a run to look at; what is behind it is not removed", async () => {
    using other = new Scratch();
    const real = makeRun(other.dir, "real", { rows: steps(2), checkpoints: ["step-1", "final"], outcome: 0 });
    using mine = new Scratch();
    mkdirSync(join(mine.dir, "runs"));
    symlinkSync(real, join(mine.dir, "runs", "link"));
    await using linked = new Site(join(mine.dir, "runs"));
    const [found] = (await linked.get<RunList>("/api/runs")).runs;
    expect(found!.name).toBe("link");
    const path = `/api/runs/${found!.id}/checkpoints/step-1/delete`;
    const { confirm } = (await (await linked.post(path, {})).json()) as { confirm: string };
    expect((await linked.post(path, { confirm })).status).toBe(409);
    expect(existsSync(join(real, "checkpoints/step-1"))).toBe(true);
  });

  test("methods, types, sizes and forms of bodies", async () => {
    const path = `/api/runs/${run}/checkpoints/step-3/delete`;
    for (const method of ["PUT", "DELETE", "PATCH", "OPTIONS", "GET"]) {
      const response = await site.fetch(path, { method });
      expect([method, response.status, response.headers.get("allow")]).toEqual([method, 405, "POST"]);
    }
    expect((await site.post("/api/runs", {})).status).toBe(405);
    expect((await site.post("/", {})).status).toBe(405);
    expect(await site.status("BREW /api/runs HTTP/1.1")).toBeOneOf([0, 400, 405, 501]);
    for (const type of [
      "text/plain",
      "application/x-www-form-urlencoded",
      "multipart/form-data",
      "",
      "application/jsonp",
    ])
      expect((await site.post(path, {}, { "content-type": type })).status).toBe(415);
    for (const body of [
      "",
      "{",
      "nope",
      "[]",
      "null",
      "1",
      '{"confirm": 3}',
      '{"confirm": {}}',
      '{"a":1}{"b":2}',
    ])
      expect([body, (await site.post(path, body)).status]).toEqual([body, 400]);
    const invalid = ["Content-Type: application/json", "Content-Length: 2"];
    expect(await site.status(`POST ${path} HTTP/1.1`, invalid, "\xff\xfe")).toBe(400);
    expect((await site.post(path, `{"confirm":"${"x".repeat(2 << 20)}"}`)).status).toBe(413);
    const announced = ["Content-Type: application/json", "Content-Length: 99999999999"];
    expect(await site.status(`POST ${path} HTTP/1.1`, announced, "{}")).toBe(413);
    const piece = `10000\r\n${"y".repeat(0x10000)}\r\n`;
    const chunked = ["Content-Type: application/json", "Transfer-Encoding: chunked"];
    expect(await site.status(`POST ${path} HTTP/1.1`, chunked, piece.repeat(40))).toBeOneOf([0, 400, 413]);
    // Still there, and it still answers.
    expect((await site.fetch("/api/runs")).status).toBe(200);
    expect(existsSync(join(scratch.dir, "runs/one/checkpoints/step-3"))).toBe(true);
  });

  test("questions out of range are refused in words", async () => {
    const bad = [
      `/api/runs/${run}/rollouts?limit=0`,
      `/api/runs/${run}/rollouts?limit=100000`,
      `/api/runs/${run}/rollouts?offset=-1`,
      `/api/runs/${run}/rollouts?offset=1.5`,
      `/api/runs/${run}/rollouts?reward_min=abc`,
      `/api/runs/${run}/rollouts?reward_min=NaN`,
      `/api/runs/${run}/rollouts?sort=password`,
      `/api/runs/${run}/rollouts?table=sqlite_master`,
      `/api/runs/${run}/rollouts?search=${"x".repeat(2000)}`,
      `/api/runs/${run}/log?bytes=99999999999`,
      "/api/metrics",
      `/api/metrics?runs=${run}&points=1e9`,
      `/api/metrics?runs=${Array.from({ length: 300 }, () => run).join(",")}`,
    ];
    for (const path of bad) {
      const response = await site.fetch(path);
      expect([path, response.status]).toEqual([path, 400]);
      expect(((await response.json()) as { error: string }).error.length).toBeGreaterThan(5);
    }
    for (const path of [
      "/api/runs/0000000000000000",
      `/api/runs/${run}/rollouts/9-9-9-9`,
      "/api/compare?a=x&b=y",
    ])
      expect((await site.fetch(path)).status).toBe(404);
    const search = encodeURIComponent("' OR 1=1 --%_\"");
    expect((await site.get<RolloutPage>(`/api/runs/${run}/rollouts?search=${search}`)).total).toBe(0);
    expect(
      (await site.get<RolloutPage>(`/api/runs/${run}/rollouts/?`.replace("/?", "?mode=%27"))).total,
    ).toBe(0);
  });
});

describe("answers", () => {
  test("every one has the headers that keep others out", async () => {
    const responses = [
      await site.fetch("/"),
      await site.fetch("/api/runs"),
      await site.fetch("/no-such"),
      await fetch(site.base),
      await site.fetch("/", { headers: { origin: "http://evil.example" } }),
    ];
    for (const { headers } of responses) {
      const policy = headers.get("content-security-policy")!;
      expect(policy).toContain("default-src 'self'");
      expect(policy).toContain("frame-ancestors 'none'");
      expect(policy).not.toMatch(/unsafe|\*|https?:/);
      expect(headers.get("x-content-type-options")).toBe("nosniff");
      expect(headers.get("referrer-policy")).toBe("no-referrer");
      expect(headers.get("access-control-allow-origin")).toBeNull();
    }
    expect(responses[1]!.headers.get("cache-control")).toBe("no-store");
  });

  test("what a model wrote is JSON text, never a document", async () => {
    for (const path of ["/rollouts", "/rollouts/1-0-0-0", "/log", ""]) {
      const response = await site.fetch(`/api/runs/${run}${path}`);
      expect(response.headers.get("content-type")).toBe("application/json;charset=utf-8");
      expect(JSON.stringify(await response.json())).toContain("<script>alert(1)");
    }
    const page = await site.get<RolloutPage>(`/api/runs/${run}/rollouts`);
    expect(page.rows[0]!.completion).toBe(SCRIPT);
  });

  test("the page names no other place and has nothing inside that its policy would refuse", async () => {
    const html = await (await site.fetch("/")).text();
    expect(html).not.toMatch(/https?:\/\//);
    const files = [...html.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map((match) => match[1]!);
    expect(files.length).toBeGreaterThanOrEqual(2);
    for (const file of files) {
      const response = await site.fetch(file);
      expect(response.status).toBe(200);
      expect(response.headers.get("cache-control")).toContain("immutable");
      const etag = response.headers.get("etag")!;
      expect((await site.fetch(file, { headers: { "if-none-match": etag } })).status).toBe(304);
    }
  });
});

describe("many, slow and rude clients", () => {
  test("wrong tokens in a row are slowed down, the right one is not", async () => {
    await using own = new Site(join(scratch.dir, "runs"));
    const wrong = { authorization: "Bearer wrong" };
    const statuses = [];
    for (let i = 0; i < 40; i++)
      statuses.push((await fetch(`${own.base}/api/runs`, { headers: wrong })).status);
    expect(statuses[0]).toBe(401);
    expect(statuses.at(-1)).toBe(429);
    expect((await own.fetch("/api/runs")).status).toBe(200);
  });

  test("a hundred connections that say nothing, or half a request, keep nobody else waiting", async () => {
    const idle = Array.from({ length: 50 }, () => site.raw("", 3000));
    const half = Array.from({ length: 50 }, () => site.raw("GET / HTTP/1.1\r\nHost: ", 3000));
    await Bun.sleep(100);
    const begin = performance.now();
    expect((await site.fetch("/api/runs")).status).toBe(200);
    expect(performance.now() - begin).toBeLessThan(2000);
    await Promise.all([...idle, ...half]);
  });

  test("streams are limited in number, and end with their readers", async () => {
    const stop = new AbortController();
    const open = Array.from({ length: 70 }, () => site.fetch("/api/events", { signal: stop.signal }));
    const statuses = (await Promise.all(open)).map((response) => response.status);
    expect(statuses.filter((status) => status === 200).length).toBe(64);
    expect(statuses.filter((status) => status === 429).length).toBe(6);
    stop.abort();
    for (let tries = 0; ; tries++) {
      await Bun.sleep(50);
      const again = new AbortController();
      const { status } = await site.fetch("/api/events", { signal: again.signal });
      again.abort();
      if (status === 200) break;
      expect(tries).toBeLessThan(60);
    }
  });

  test("garbage is no request", async () => {
    for (const text of [
      "\0\0\0\0\r\n\r\n",
      "GET\r\n\r\n",
      `GET / HTTP/1.1\r\n${"A: b\r\n".repeat(5000)}\r\n`,
      "\x16\x03\x01\x02\x00",
    ])
      expect(await site.raw(text, 500)).not.toContain("200 OK");
    expect((await site.fetch("/api/runs")).status).toBe(200);
  });
});
