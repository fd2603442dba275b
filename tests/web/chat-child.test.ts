import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { resolve } from "node:path";
import type { ChatToken } from "../../src/core/chat.ts";
import { ChatChild } from "../../src/web/chat-child.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { replyOptions, specOf, writeChatModel } from "../run/chat-world.ts";

const program = [process.execPath, resolve(import.meta.dir, "../../src/cli/main.ts")];
const folder = new TemporaryFolder();
afterAll(() => folder[Symbol.dispose]());
for (const name of ["model", "slow"]) mkdirSync(folder.file(name));
const model = writeChatModel(folder.file("model"));
const slow = writeChatModel(folder.file("slow"), 5, { max_position_embeddings: 8192, num_hidden_layers: 6 });

const engine = { device: "cpu", threads: 1, dtype: "float32", max_length: 8192 } as const;
const childOf = (idleMs?: number) => new ChatChild(program, engine, idleMs);
const long = replyOptions({ max_new_tokens: 8000, temperature: 0 });
const hello = [{ role: "user" as const, content: "hello there" }];

describe("the chat process", () => {
  test("opens, streams, reuses, answers mistakes, ends when nobody calls", async () => {
    const child = childOf(300);
    expect(child.pid).toBeUndefined();
    const info = await child.open(specOf("m", model), []);
    expect([info.context, info.thinking, child.models.get("m")]).toEqual([512, true, info]);
    const streamed: ChatToken[] = [];
    const { reply } = child.reply("m", hello, replyOptions({ alternatives: 3 }), (tokens) =>
      streamed.push(...tokens),
    );
    const got = await reply;
    expect(streamed.map((t) => t.text).join("")).toBe(got.answer);
    expect(streamed.filter((t) => t.logprob !== null).length).toBe(got.tokens);
    expect(streamed[0]!.alternatives.length).toBe(3);
    const again = await child.reply("m", hello, replyOptions({ draw: 1 }), () => {}).reply;
    expect(again.encodedTokens).toBe(1);
    expect(child.reply("other", hello, replyOptions(), () => {}).reply).rejects.toMatchObject({
      mistake: true,
    });
    expect(child.open(specOf("x", folder.path), [])).rejects.toMatchObject({ mistake: true });
    expect(child.open(specOf("x", "nobody/nothing"), [])).rejects.toThrow(
      "no such model here: nobody/nothing",
    );
    await child.reply("m", hello, replyOptions(), () => {}).reply;
    for (let i = 0; child.pid !== undefined && i < 100; i++) await Bun.sleep(50);
    expect([child.pid, child.models.size]).toEqual([undefined, 0]);
    // The next call starts it anew, and the model is to be opened again.
    expect(child.reply("m", hello, replyOptions(), () => {}).reply).rejects.toThrow("not open");
    await child.close();
  }, 60_000);

  test("a stop ends a reply as it is", async () => {
    const child = childOf();
    await child.open(specOf("s", slow), []);
    let tokens = 0;
    const call = child.reply("s", hello, long, (some) => {
      tokens += some.length;
      if (tokens > 100) call.stop();
    });
    const reply = await call.reply;
    expect(reply.finish).toBe("stop");
    expect(reply.tokens).toBeLessThan(7000);
    await child.close();
    expect(child.pid).toBeUndefined();
  }, 60_000);

  test("a crash fails what was under way with what to do, and the next call starts anew", async () => {
    const child = childOf();
    await child.open(specOf("s", slow), []);
    const { reply } = child.reply("s", hello, long, () => process.kill(child.pid!, "SIGSEGV"));
    await expect(reply).rejects.toThrow(/died of SIGSEGV: nothing of the conversation is lost/);
    const opening = child.open(specOf("s", slow), []);
    process.kill(child.pid!, "SIGKILL");
    await expect(opening).rejects.toThrow(/SIGKILL; if nobody did, the system ran out of memory/);
    await child.open(specOf("m", model), []);
    expect((await child.reply("m", hello, replyOptions(), () => {}).reply).tokens).toBeGreaterThan(0);
    await child.close();
  }, 60_000);

  test("it ends with its parent, and is not started by hand", async () => {
    const parent = Bun.spawn([process.execPath, "-e", orphan], { stdout: "pipe" });
    const reader = parent.stdout.getReader();
    const pid = Number(new TextDecoder().decode((await reader.read()).value));
    expect(pid).toBeGreaterThan(1);
    parent.kill("SIGKILL");
    await parent.exited;
    const alive = () => {
      try {
        process.kill(pid, 0);
        return true;
      } catch {
        return false;
      }
    };
    for (let i = 0; alive() && i < 100; i++) await Bun.sleep(50);
    expect(alive()).toBe(false);
    const byHand = Bun.spawnSync([...program, "__chat"]);
    expect([byHand.exitCode, byHand.stderr.toString()]).toEqual([
      2,
      "rlv: error: __chat is started by rlv, not by hand\n",
    ]);
  }, 60_000);
});

const orphan = `
const { ChatChild } = await import(${JSON.stringify(resolve(import.meta.dir, "../../src/web/chat-child.ts"))});
const child = new ChatChild(${JSON.stringify(program)}, ${JSON.stringify(engine)});
await child.open(${JSON.stringify(specOf("m", model))}, []);
console.log(child.pid);
setInterval(() => {}, 1000);
`;
