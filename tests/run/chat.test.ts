import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import fc from "fast-check";
import type { ChatReply, ChatToken, ChatTurn, ReplyOptions } from "../../src/core/chat.ts";
import { UsageError } from "../../src/core/errors.ts";
import { ChatEngine } from "../../src/run/chat/engine.ts";
import type { ChatModel } from "../../src/run/chat/model.ts";
import { ThinkingParts } from "../../src/run/chat/thinking.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { replyOptions, specOf, writeChatAdapter, writeChatDual, writeChatModel } from "./chat-world.ts";

const folder = new TemporaryFolder();
afterAll(() => folder[Symbol.dispose]());
for (const name of ["model", "other", "a1", "a2", "dual"]) mkdirSync(folder.file(name));
const model = writeChatModel(folder.file("model"));
const other = writeChatModel(folder.file("other"), 6);
const a1 = writeChatAdapter(folder.file("a1"), model, 1);
const a2 = writeChatAdapter(folder.file("a2"), model, 2);
const dual = writeChatDual(folder.file("dual"), model, 3);

const engineOf = (available?: () => number) =>
  new ChatEngine({ device: "cpu", threads: 2, dtype: "float32", max_length: 8192 }, available);

const never = new AbortController().signal;
const user = (content: string): ChatTurn => ({ role: "user", content });
const assistant = (content: string): ChatTurn => ({ role: "assistant", content });

interface Said {
  readonly reply: ChatReply;
  readonly tokens: readonly ChatToken[];
}

async function say(
  chat: ChatModel,
  messages: readonly ChatTurn[],
  extra: Partial<ReplyOptions> = {},
  /** Stops the reply at this token. */
  stopAt = Number.POSITIVE_INFINITY,
): Promise<Said> {
  const tokens: ChatToken[] = [];
  const stop = new AbortController();
  const reply = await chat.reply(
    messages,
    replyOptions(extra),
    (token) => {
      tokens.push(token);
      if (tokens.length >= stopAt) stop.abort();
    },
    stop.signal,
  );
  return { reply, tokens };
}

/** Everything of a reply but what it cost. */
const said = ({ reply, tokens }: Said) => ({
  ...{ content: reply.content, thinking: reply.thinking, answer: reply.answer, finish: reply.finish },
  ...{ count: reply.tokens, prompt: reply.promptTokens, logprob: reply.logprob, tokens },
});

describe("a turn costs its new tokens and changes no bit", () => {
  type Act =
    | { readonly kind: "say"; readonly text: string; readonly stopAt: number }
    | { readonly kind: "regenerate" }
    | { readonly kind: "undo" }
    | { readonly kind: "reset" }
    | { readonly kind: "edit"; readonly turn: number; readonly text: string }
    | { readonly kind: "system"; readonly text: string };
  const text = fc.constantFrom(
    "What is 2 + 3?",
    "hello there",
    "and the other one, what of it?",
    "no",
    "é😀",
  );
  const act: fc.Arbitrary<Act> = fc.oneof(
    {
      weight: 5,
      arbitrary: fc.record({ kind: fc.constant("say" as const), text, stopAt: fc.constantFrom(3, 99) }),
    },
    fc.constantFrom<Act>({ kind: "regenerate" }, { kind: "undo" }, { kind: "reset" }),
    fc.record({ kind: fc.constant("edit" as const), turn: fc.nat(3), text }),
    fc.record({ kind: fc.constant("system" as const), text }),
  );

  test("whatever a person does: warm = cold, token for token and log-probability for log-probability", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(act, { minLength: 2, maxLength: 8 }),
        fc.record({
          thinking: fc.constantFrom(null, true, false),
          temperature: fc.constantFrom(0, 1),
          alternatives: fc.constantFrom(0, 3),
        }),
        async (acts, extra) => {
          const engine = engineOf();
          try {
            engine.open(specOf("warm", model));
            let turns: ChatTurn[] = [];
            let draw = 0;
            const ask = async (messages: readonly ChatTurn[], stopAt: number) => {
              const options = { ...extra, draw };
              const warm = await say(engine.chat("warm"), messages, options, stopAt);
              engine.open(specOf("cold", model));
              const cold = await say(engine.chat("cold"), messages, options, stopAt);
              engine.close("cold");
              expect(said(warm)).toEqual(said(cold));
              expect(cold.reply.reusedTokens).toBe(0);
              expect(warm.reply.encodedTokens + warm.reply.reusedTokens).toBe(warm.reply.promptTokens);
              turns = [...messages, assistant(warm.reply.content)];
              return warm.reply;
            };
            for (const a of acts) {
              const users = turns.map((t, i) => (t.role === "user" ? i : -1)).filter((i) => i >= 0);
              if (a.kind === "say") {
                draw = 0;
                await ask([...turns, user(a.text)], a.stopAt);
              } else if (a.kind === "reset") turns = [];
              else if (a.kind === "system")
                turns = [{ role: "system", content: a.text }, ...turns.filter((t) => t.role !== "system")];
              else if (users.length === 0) continue;
              else if (a.kind === "undo") turns = turns.slice(0, users.at(-1)!);
              else if (a.kind === "regenerate") {
                draw++;
                await ask(turns.slice(0, users.at(-1)! + 1), 99);
              } else {
                const at = users[a.turn % users.length]!;
                await ask([...turns.slice(0, at), user(a.text)], 99);
              }
            }
          } finally {
            engine.dispose();
          }
        },
      ),
      { numRuns: 12, seed: 3 },
    );
  }, 300_000);

  test("a second turn encodes what is new: the end of the reply, the message and the opening of the next", async () => {
    const engine = engineOf();
    engine.open(specOf("m", model));
    const chat = engine.chat("m");
    const first = [user(`Tell me about numbers. ${"one two three ".repeat(20)}`)];
    const one = await say(chat, first, { thinking: false });
    expect(one.reply.encodedTokens).toBe(one.reply.promptTokens);
    // The template says the same of an earlier reply, so all of it stays.
    const second = [...first, assistant("plain words"), user("And?")];
    const two = await say(chat, second, { thinking: null });
    expect(two.reply.reusedTokens).toBeGreaterThan(100);
    expect(two.reply.encodedTokens).toBeLessThan(30);
    const again = await say(chat, second, { draw: 1 });
    expect(again.reply.encodedTokens).toBe(1);
    expect(again.reply.content).not.toBe(two.reply.content);
    const same = await say(chat, second, { draw: 0 });
    expect(said(same)).toEqual(said(two));
    engine.dispose();
  });

  test("memory is flat over a hundred turns, and pages come back", async () => {
    const engine = engineOf();
    engine.open(specOf("m", model));
    const chat = engine.chat("m");
    const turn = async (i: number, before: readonly ChatTurn[]) => {
      const messages = [...before, user(`turn ${i}`)];
      const { reply } = await say(chat, messages, { max_new_tokens: 6 });
      return [...messages, assistant(reply.content)].slice(-6);
    };
    let turns: readonly ChatTurn[] = [];
    for (let i = 0; i < 30; i++) turns = await turn(i, turns);
    Bun.gc(true);
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 100; i++) turns = await turn(i, turns);
    Bun.gc(true);
    expect(process.memoryUsage().rss - before).toBeLessThan(24 << 20);
    expect(chat.memory.used).toBe(0);
    chat.forget();
    expect(chat.engine.store.freePages).toBe(chat.engine.store.pages);
    engine.dispose();
  }, 120_000);

  test("long messages are encoded in pieces, which a stop interrupts", async () => {
    const engine = engineOf();
    engine.open(specOf("m", model));
    const chat = engine.chat("m");
    const long = [user("a b c d e f g h ".repeat(32))];
    const { reply } = await say(chat, long);
    expect(reply.promptTokens).toBeGreaterThan(300);
    chat.forget();
    const stop = new AbortController();
    stop.abort();
    const stopped = await chat.reply(long, replyOptions(), () => expect.unreachable(), stop.signal);
    expect([stopped.finish, stopped.tokens, stopped.content]).toEqual(["stop", 0, ""]);
    expect((await say(chat, long)).reply.content).toBe(reply.content);
    engine.dispose();
  });
});

test("a full context is refused with what to do, and nothing is lost", async () => {
  const engine = engineOf();
  const { info } = engine.open(specOf("m", model));
  expect(info.context).toBe(512);
  const chat = engine.chat("m");
  const short = await say(chat, [user("hi")]);
  const error = await say(chat, [user("word ".repeat(600))]).catch((e) => e);
  expect(error).toBeInstanceOf(UsageError);
  expect(error.message).toMatch(/fills the context of 512: m: .*\/reset.*\/undo.*--max_length/);
  expect(said(await say(chat, [user("hi")]))).toEqual(said(short));
  // Where there is little room, a reply ends with it.
  const near = await say(chat, [user("a b c d e f g h ".repeat(30))], { max_new_tokens: 400, draw: 3 });
  expect(near.reply.promptTokens + near.reply.tokens).toBeLessThanOrEqual(512);
  engine.dispose();
});

describe("several models", () => {
  test("side by side they stream in turns, and say what each says alone", async () => {
    const engine = engineOf();
    engine.open(specOf("x", model));
    engine.open(specOf("y", other));
    const options = { max_new_tokens: 300, temperature: 1.1 };
    const alone = [
      await say(engine.chat("x"), [user("go")], options),
      await say(engine.chat("y"), [user("go")], options),
    ];
    for (const id of ["x", "y"]) engine.chat(id).forget();
    const order: string[] = [];
    const together = await Promise.all(
      ["x", "y"].map(async (id) => {
        const tokens: ChatToken[] = [];
        const reply = await engine.chat(id).reply(
          [user("go")],
          replyOptions(options),
          (token) => {
            tokens.push(token);
            if (order.at(-1) !== id) order.push(id);
          },
          never,
        );
        return { reply, tokens };
      }),
    );
    expect(together.map(said)).toEqual(alone.map(said));
    expect(alone[0]!.reply.content).not.toBe(alone[1]!.reply.content);
    engine.dispose();
  });

  test("adapters share the weights of their model, and say what they say by themselves", async () => {
    const engine = engineOf();
    const base = engine.open(specOf("base", model)).info;
    engine.open(specOf("one", model, a1));
    const two = engine.open(specOf("two", model, a2)).info;
    expect(two.parameters).toBeGreaterThan(base.parameters);
    const replies = await Promise.all(["base", "one", "two"].map((id) => say(engine.chat(id), [user("go")])));
    expect(new Set(replies.map(({ reply }) => reply.content)).size).toBe(3);
    // The one that opened the weights may close first.
    engine.close("base");
    engine.chat("one").forget();
    expect(said(await say(engine.chat("one"), [user("go")]))).toEqual(said(replies[1]!));
    engine.dispose();
    const single = engineOf();
    single.open(specOf("two", model, a2));
    expect(said(await say(single.chat("two"), [user("go")]))).toEqual(said(replies[2]!));
    single.dispose();
  });

  test("what does not fit is refused by size; models nobody uses make room, longest unused first", async () => {
    let full = false;
    const engine = engineOf(() => (full && engine.ids.length > 1 ? 1000 : 1e12));
    engine.open(specOf("x", model));
    engine.open(specOf("y", other));
    engine.open(specOf("x", model));
    full = true;
    expect(() => engine.open(specOf("z", other), ["x", "y"])).toThrow(
      /needs .*B, 1.0 kB are available: z: close another/,
    );
    expect(engine.ids).toEqual(["x", "y"]);
    // Opening x again made y the one that is longest unused.
    expect(engine.open(specOf("z", model), []).closed).toEqual(["y"]);
    engine.dispose();
  });

  test("a model that is replying takes no second message", async () => {
    const engine = engineOf();
    engine.open(specOf("x", model));
    const first = say(engine.chat("x"), [user("go")], { max_new_tokens: 40 });
    expect(say(engine.chat("x"), [user("go")])).rejects.toThrow("replying already");
    expect((await first).reply.tokens).toBeGreaterThan(0);
    expect(() => engine.chat("q")).toThrow("not open");
    engine.dispose();
  });

  test("a broken folder is refused and leaves nothing open", () => {
    const engine = engineOf();
    expect(() => engine.open(specOf("x", folder.path))).toThrow(UsageError);
    expect(() => engine.open(specOf("x", model, model))).toThrow(UsageError);
    expect(engine.ids).toEqual([]);
    engine.dispose();
  });
});

describe("thinking", () => {
  test.each([
    ["<think>\nlet me see\n</think>\n\nIt is 5.", false, "let me see", "It is 5."],
    ["let me see\n</think>\n\nIt is 5.", true, "let me see", "It is 5."],
    ["It is < 5.", false, "", "It is < 5."],
    ["  \nIt is 5.", false, "", "  \nIt is 5."],
    ["<think>\nnever ends </thi", false, "never ends </thi", ""],
    ["<think></think>x", false, "", "x"],
    ["a <think>b</think>", false, "", "a <think>b</think>"],
    ["<thi", false, "", "<thi"],
  ])("%p", (reply, opened, thinking, answer) => {
    fc.assert(
      fc.property(fc.array(fc.nat(reply.length), { maxLength: 8 }), (cuts) => {
        const at = [0, ...cuts, reply.length].sort((a, b) => a - b);
        const parts = new ThinkingParts(opened);
        const told = [...at.slice(1).flatMap((to, i) => parts.push(reply.slice(at[i], to))), ...parts.end()];
        const join = (of: boolean) =>
          told
            .filter((p) => p.thinking === of)
            .map((p) => p.text)
            .join("");
        expect([join(true), join(false)]).toEqual([thinking, answer]);
        expect([parts.thinking, parts.answer]).toEqual([thinking, answer]);
      }),
    );
  });

  test("a reply that is stopped inside its thoughts closes them in the conversation", async () => {
    const engine = engineOf();
    engine.open(specOf("m", model));
    const chat = engine.chat("m");
    const messages = [user("x")];
    const { reply, tokens } = await say(chat, messages, { thinking: true }, 4);
    expect(reply.finish).toBe("stop");
    expect(tokens.every((t) => t.thinking)).toBe(true);
    expect([reply.answer, reply.thinking === ""]).toEqual(["", false]);
    expect(reply.content).toBe(`<think>\n ${reply.thinking}\n</think>\n\n`);
    // The template drops the thought: the conversation goes on behind an empty reply.
    const next = [...messages, assistant(reply.content), user("y")];
    expect(chat.tokenizer.decode(chat.encode(next, false).ids)).not.toContain(reply.thinking.trim());
    const answered = await say(chat, next, { thinking: false });
    expect(answered.tokens.some((t) => t.thinking)).toBe(false);
    engine.dispose();
  });
});

test("scales of retain and forget adapters: other weights, nothing that was encoded holds", async () => {
  const engine = engineOf();
  engine.open(specOf("base", model));
  expect(engine.open(specOf("dual", model, dual)).info.scales).toEqual({ retain: 1, forget: 1 });
  const [chat, base] = [engine.chat("dual"), engine.chat("base")];
  const messages = [user("go")];
  const at = async (retain: number, forget: number) => {
    chat.setScales({ retain, forget });
    return say(chat, messages);
  };
  const both = await at(1, 1);
  const retain = await at(1, 0);
  const none = await at(0, 0);
  expect([retain.reply.reusedTokens, none.reply.reusedTokens]).toEqual([0, 0]);
  expect(said(none)).toEqual(said(await say(base, messages)));
  expect(retain.reply.content).not.toBe(both.reply.content);
  expect(retain.reply.content).not.toBe(none.reply.content);
  const again = await at(0, 0);
  expect(again.reply.encodedTokens).toBe(1);
  expect(said(await at(1, 1))).toEqual(said(both));
  expect(() => base.setScales({ retain: 1, forget: 0 })).toThrow("no adapters to scale");
  engine.close("dual");
  const scales = { retain: 1, forget: 0 };
  expect(engine.open({ ...specOf("dual", model, dual), scales }).info.scales).toEqual(scales);
  expect(said(await say(engine.chat("dual"), messages))).toEqual(said(retain));
  expect(() => engine.open({ ...specOf("x", model, a1), scales })).toThrow("no adapters to scale");
  expect(engine.ids).toEqual(["base", "dual"]);
  engine.dispose();
});
