import { afterAll, describe, expect, test } from "bun:test";
import type { ChatReply, ChatToken } from "../../src/core/chat.ts";
import type { ChatModels } from "../../src/web/chat-api.ts";
import { eventsIn } from "../../src/web/page/chat-stream.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { replyOptions } from "../run/chat-world.ts";
import { chatWorld, serveChat } from "./chat-world.ts";

const folder = new TemporaryFolder();
const { server, ask } = serveChat(chatWorld(folder.path));
afterAll(async () => {
  await server.stop();
  folder[Symbol.dispose]();
});

const hello = [{ role: "user", content: "hello there" }];
const request = (model: string, extra: object = {}) => ({
  ...{ model, keep: [model], messages: hello, options: replyOptions() },
  ...extra,
});
const long = { options: replyOptions({ max_new_tokens: 8000, temperature: 0 }) };

type Event = ReturnType<typeof eventsIn>["events"][number];

/** Events of a reply as they come; `on` sees each. */
async function events(response: Response, on: (event: Event) => unknown = () => {}): Promise<Event[]> {
  expect(response.status).toBe(200);
  const all: Event[] = [];
  let text = "";
  for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
    const { events, rest } = eventsIn(text + piece);
    text = rest;
    for (const event of events) {
      all.push(event);
      await on(event);
    }
  }
  expect(text).toBe("");
  return all;
}
const tokensOf = (all: readonly Event[]) =>
  all.filter(({ name }) => name === "tokens").flatMap(({ data }) => data as ChatToken[]);
const models = async () => (await (await ask("/api/chat/models")).json()) as ChatModels;
const refused = async (asked: Promise<Response>) => {
  const response = await asked;
  const body = (await response.json().catch(() => null)) as { error: string } | null;
  return [response.status, body?.error ?? ""] as const;
};

test("models of the command line and of runs, by ids, without a path", async () => {
  const list = await models();
  expect(list.models.map(({ label, run, base }) => [run?.name ?? null, label, base])).toEqual([
    [null, "plain", false],
    [null, "slow", false],
    [null, "dual", false],
    ["lesson", "before", true],
    ["lesson", "step-10", false],
    ["lesson", "final", false],
  ]);
  expect(list.selected).toEqual(["given-0", "given-1", "given-2"]);
  expect(list.defaults.max_new_tokens).toBe(24);
  expect(JSON.stringify(list)).not.toContain(folder.path);
});

describe("replies", () => {
  test("begin, open, tokens, done; the second turn says what it reused; all models of a run", async () => {
    const all = await events(await ask("/api/chat/reply", request("given-0")));
    expect([...new Set(all.map(({ name }) => name))]).toEqual(["begin", "open", "tokens", "done"]);
    const done = all.at(-1)!.data as ChatReply;
    expect(
      tokensOf(all)
        .map((t) => t.text)
        .join(""),
    ).toBe(done.answer);
    const messages = [
      ...hello,
      { role: "assistant", content: done.content },
      { role: "user", content: "more" },
    ];
    const next = await events(await ask("/api/chat/reply", request("given-0", { messages })));
    expect((next.at(-1)!.data as ChatReply).reusedTokens).toBeGreaterThan(5);
    expect((await models()).models[0]!.open?.context).toBe(512);
    const said: string[] = [];
    for (const { id } of (await models()).models.slice(3)) {
      const reply = (await events(await ask("/api/chat/reply", request(id)))).at(-1)!;
      expect(reply.name).toBe("done");
      said.push((reply.data as ChatReply).content);
    }
    expect(said[0]).toBe(done.content);
    expect(said[1]).toBe(said[2]!);
    expect(said[1]).not.toBe(said[0]!);
  }, 60_000);

  test("a stop ends one as it is; the same model refuses a second at once, another one replies beside it", async () => {
    let call = "";
    let beside: Promise<Event[]> | undefined;
    let second: Promise<readonly [number, string]> | undefined;
    let tokens = 0;
    const all = await events(
      await ask("/api/chat/reply", request("given-1", long)),
      async ({ name, data }) => {
        if (name === "begin") call = (data as { call: string }).call;
        if (name === "tokens") tokens += (data as ChatToken[]).length;
        if (tokens > 0 && !beside) {
          second = refused(ask("/api/chat/reply", request("given-1")));
          beside = ask("/api/chat/reply", request("given-0")).then((response) => events(response));
          await second;
          await beside;
          expect(await (await ask("/api/chat/stop", { call })).json()).toEqual({ stopped: true });
        }
      },
    );
    const done = all.at(-1)!.data as ChatReply;
    expect([done.finish, done.tokens < 7900]).toEqual(["stop", true]);
    expect(await second).toEqual([409, "slow is replying already: stop that reply first"]);
    expect((await beside!).at(-1)!.name).toBe("done");
    expect(await (await ask("/api/chat/stop", { call })).json()).toEqual({ stopped: false });
  }, 60_000);

  test("a reader that goes away stops its reply", async () => {
    const left = await ask("/api/chat/reply", request("given-1", long));
    await left.body!.cancel();
    for (let i = 0; i < 100; i++) {
      const again = await ask("/api/chat/reply", request("given-1"));
      if (again.status === 200) {
        expect((await events(again)).at(-1)!.name).toBe("done");
        return;
      }
      expect(again.status).toBe(409);
      await Bun.sleep(150);
    }
    expect.unreachable();
  }, 60_000);

  test("a conversation that fills the context fails with what to do", async () => {
    const messages = [{ role: "user", content: "word ".repeat(700) }];
    const all = await events(await ask("/api/chat/reply", request("given-0", { messages })));
    expect(all.at(-1)!.name).toBe("failed");
    expect((all.at(-1)!.data as { error: string }).error).toMatch(/fills the context of 512/);
  }, 60_000);
});

test("scales of retain and forget adapters come with the message", async () => {
  const at = async (scales: object | null) => {
    const options = { ...replyOptions(), scales };
    return (await events(await ask("/api/chat/reply", request("given-2", { options })))).at(-1)!
      .data as ChatReply;
  };
  const [trained, both, none] = [
    await at(null),
    await at({ retain: 1, forget: 1 }),
    await at({ retain: 0, forget: 0 }),
  ];
  expect(both.content).toBe(trained.content);
  expect(none.content).not.toBe(both.content);
}, 60_000);

describe("refused", () => {
  const id = "0123456789abcdef_final";
  const cases: [string, string, unknown, number, RegExp][] = [
    ["an unknown model", "/api/chat/reply", request("given-9"), 404, /no such model/],
    ["an unknown run", "/api/chat/reply", request(id), 404, /no such run/],
    ["a path as a model", "/api/chat/reply", request("../../etc/passwd"), 400, /model/],
    ["an absolute path", "/api/chat/open", { id: "/etc", keep: [] }, 400, /id/],
    ["a path of one's own", "/api/chat/open", { id: "given-0", keep: [], model: "/etc" }, 400, /model/],
    ["too many beside it", "/api/chat/open", { id: "given-0", keep: Array(9).fill("a") }, 400, /keep/],
    ["no messages", "/api/chat/reply", request("given-0", { messages: [] }), 400, /messages/],
    [
      "another role",
      "/api/chat/reply",
      request("given-0", { messages: [{ role: "tool", content: "x" }] }),
      400,
      /messages.0.role/,
    ],
    [
      "a temperature below 0",
      "/api/chat/reply",
      request("given-0", { options: { ...replyOptions(), temperature: -1 } }),
      400,
      /options.temperature/,
    ],
    [
      "too many characters",
      "/api/chat/reply",
      request("given-0", { messages: [{ role: "user", content: "x".repeat(400_001) }] }),
      413,
      /at most/,
    ],
    [
      "too many turns",
      "/api/chat/reply",
      request("given-0", { messages: Array(1001).fill(hello[0]) }),
      413,
      /at most/,
    ],
    ["a body beyond all bounds", "/api/chat/reply", { x: "x".repeat(1 << 21) }, 413, /^/],
    ["no JSON", "/api/chat/reply", "{", 400, /JSON/],
    ["a stop of nothing", "/api/chat/stop", { call: "1" }, 400, /call/],
  ];
  test.each(cases)("%s", async (_, path, body, status, message) => {
    const [got, error] = await refused(ask(path, body));
    expect([got, message.test(error)]).toEqual([status, true]);
  });

  test("without the token, from a foreign origin, by GET, as another type", async () => {
    expect((await refused(ask("/api/chat/models", undefined, { authorization: "" })))[0]).toBe(401);
    expect(
      (await refused(ask("/api/chat/reply", request("given-0"), { origin: "http://evil.test" })))[0],
    ).toBe(403);
    expect((await refused(ask("/api/chat/reply")))[0]).toBe(405);
    expect(
      (
        await refused(
          ask("/api/chat/reply", JSON.stringify(request("given-0")), { "content-type": "text/plain" }),
        )
      )[0],
    ).toBe(415);
  });
});
