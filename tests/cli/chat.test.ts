import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { History } from "../../src/cli/chat-history.ts";
import { printable } from "../../src/cli/chat-terminal.ts";
import { TemporaryFolder } from "../io/temporary.ts";
import { KEYS, Pty } from "../pty.ts";
import { writeChatAdapter, writeChatModel } from "../run/chat-world.ts";

const main = resolve(import.meta.dir, "../../src/cli/main.ts");
const folder = new TemporaryFolder();
afterAll(() => folder[Symbol.dispose]());
for (const name of ["model", "a1", "state", "slow"]) mkdirSync(folder.file(name));
const model = writeChatModel(folder.file("model"));
const a1 = writeChatAdapter(folder.file("a1"), model, 1);
const slow = writeChatModel(folder.file("slow"), 5, { max_position_embeddings: 8192, num_hidden_layers: 6 });
const env = { XDG_STATE_HOME: folder.file("state"), RLV_THREADS: "1" };

const chat = (...args: string[]) => Pty.rlv(["chat", model, "--max_new_tokens", "12", ...args], { env });
const END = /tokens \(\w+\).*prompt \d+: (\d+) reused, (\d+) encoded/;
const figures = (text: string) => END.exec(text)!.slice(1).map(Number) as [number, number];

describe("at a terminal", () => {
  test("messages, costs, settings, draws, edits, transcripts", async () => {
    await using pty = chat("--thinking", "off");
    await pty.waitFor("> ");
    const ask = async (line: string) => {
      pty.write(`${line}${KEYS.enter}`);
      const text = await pty.waitFor(END);
      await pty.waitFor("> ");
      return text;
    };
    const command = async (line: string, answer: string | RegExp) => {
      pty.write(`${line}${KEYS.enter}`);
      const text = await pty.waitFor(answer);
      await pty.waitFor("> ");
      return text;
    };
    const [reused, encoded] = figures(await ask("Hello there, who are you and what is two and two?"));
    expect(reused).toBe(0);
    expect(encoded).toBeGreaterThan(20);
    const second = figures(await ask("And then?"));
    expect(second[0]).toBeGreaterThan(20);
    expect(second[1]).toBeLessThan(encoded + 25);
    expect(figures(await ask("/regen"))[1]).toBe(1);
    await ask("/edit And now?");
    await command("/help", "as /exit");
    await command("/temp 0.5", "temperature 0.5");
    await command("/temp hot", /temperature expects a number.*"hot"/);
    await command("/top_p 0.9", "top_p 0.9");
    await command("/top_k -1", "top_k expects");
    await command("/system Be brief.", "system: Be brief.");
    await command("/think on", "think on");
    await command("/think maybe", "on, off or auto");
    await command("/scales 1 0", "no adapters to scale");
    await command("/settings", /temperature 0.5.*top_p 0.9.*think on.*Be brief/);
    await command("/nonsense", "no command /nonsense");
    await command(`/save ${folder.file("talk.md")}`, "saved");
    await command(`/save ${folder.file("talk.jsonl")}`, "saved");
    writeFileSync(folder.file("there.md"), "mine");
    await command(`/save ${folder.file("there.md")}`, "already");
    await command("/undo", "1 are left");
    await command("/reset", "forgotten");
    await command("/undo", "nothing has been said yet");
    await command(`/model ${folder.path}`, "config.json");
    await command(`/model ${a1}`, /a1: context of 512/);
    await ask("Hello again");
    pty.write(`/exit${KEYS.enter}`);
    expect(await pty.exit()).toBe(0);

    expect(readFileSync(folder.file("there.md"), "utf8")).toBe("mine");
    const markdown = readFileSync(folder.file("talk.md"), "utf8");
    expect(markdown).toContain("## System\n\nBe brief.");
    expect(markdown).toContain("## You\n\nAnd now?");
    expect(markdown).not.toContain("And then?");
    const row = JSON.parse(readFileSync(folder.file("talk.jsonl"), "utf8"));
    expect(row.messages.map((m: { role: string }) => m.role).join(" ")).toBe(
      "system user assistant user assistant",
    );
    expect(row.settings.temperature).toBe(0.5);
  }, 60_000);

  test("Ctrl-C stops a reply, clears a line, and ends; the arrow keys know earlier chats; lines go on", async () => {
    {
      await using pty = Pty.rlv(["chat", slow, "--max_new_tokens", "8000", "--temperature", "0"], { env });
      await pty.waitFor("> ");
      pty.write(`go on for long\\${KEYS.enter}`);
      await pty.waitFor("… ");
      pty.write(`and longer${KEYS.enter}`);
      await pty.waitFor("longer");
      await Bun.sleep(150);
      pty.write(KEYS.ctrlC);
      expect(await pty.waitFor(END)).toContain("(stop)");
      await pty.waitFor("> ");
      pty.write(`"""${KEYS.enter}`);
      await pty.waitFor("… ");
      pty.write("never sent");
      pty.write(KEYS.ctrlC);
      await pty.waitFor("> ");
      pty.write(`half a line`);
      await pty.waitFor("half a line");
      pty.write(KEYS.ctrlC);
      await pty.waitFor("> ");
      pty.write(KEYS.ctrlC);
      expect(await pty.exit()).toBe(0);
      expect(pty.text).not.toContain("never sent (");
    }
    await using pty = chat();
    await pty.waitFor("> ");
    pty.write(KEYS.up);
    await pty.waitFor("go on for long and longer");
    pty.write(`${KEYS.ctrlC}`);
    await pty.waitFor("> ");
    pty.write(KEYS.ctrlD);
    expect(await pty.exit()).toBe(0);
  }, 60_000);

  test("several models answer one after the other", async () => {
    await using pty = Pty.rlv(["chat", `${model},${a1}`, "--max_new_tokens", "8", "--history", "false"], {
      env,
    });
    await pty.waitFor("> ");
    pty.write(`hello${KEYS.enter}`);
    await pty.waitFor(/\/model\n[\s\S]*tokens \(/);
    await pty.waitFor(/\/a1\n[\s\S]*tokens \(/);
    pty.write(KEYS.ctrlD);
    expect(await pty.exit()).toBe(0);
    expect(readFileSync(folder.file("state/rlv/chat_history.jsonl"), "utf8")).not.toContain('"hello"');
  }, 60_000);
});

describe("without a terminal", () => {
  const piped = (input: string, ...args: string[]) => {
    const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, main, "chat", model, ...args], {
      env: { ...process.env, ...env },
      stdin: new TextEncoder().encode(input),
    });
    return { exitCode, out: stdout.toString(), err: stderr.toString() };
  };

  test("every line is a message, stdout has the answers; --save writes after every reply", () => {
    const save = folder.file("piped.jsonl");
    const flags = ["--max_new_tokens", "5", "--temperature", "0", "--save", save];
    const { exitCode, out, err } = piped("one\n/etc is a folder\\\n/reset\none\n", ...flags);
    expect([exitCode, err.includes("forgotten")]).toEqual([0, true]);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: what must not be there
    expect(out).not.toMatch(/\u001b/);
    const row = JSON.parse(readFileSync(save, "utf8"));
    expect(row.messages.length).toBe(2);
    expect(out).toEndWith(`${printable(row.messages[1].content)}\n`);
    expect(piped("one\n", ...flags).err).toContain("there is such a file already");
  }, 60_000);

  test("thoughts are left out, a context that is full ends it with what to do", () => {
    const { out, exitCode } = piped("one\n", "--max_new_tokens", "4", "--thinking", "on");
    expect([exitCode, out.trim()]).toEqual([0, ""]);
    const full = piped(`${"word ".repeat(700)}\n`);
    expect([full.exitCode, full.out]).toEqual([2, ""]);
    expect(full.err).toMatch(/fills the context of 512: .*\/reset/);
  }, 60_000);

  test.each([
    [["--model", "x"], "given twice"],
    [["--adapter", `${a1},${a1}`], "named twice"],
    [["--max_length", "3"], "max_length expects"],
  ])("%p is refused", (args, message) => {
    const { exitCode, err } = piped("", ...args);
    expect([exitCode, err.includes(message)]).toEqual([2, true]);
  });
});

test("the history is private, bounded, and no reason to fail", () => {
  const path = folder.file("deep/er/history.jsonl");
  const complaints: string[] = [];
  const history = new History((line) => complaints.push(line), path);
  for (let i = 0; i < 2500; i++) history.add(i % 2 === 0 ? `message ${i}` : `two\nlines ${i}`);
  history.add("two\nlines 2499");
  expect(statSync(path).mode & 0o777).toBe(0o600);
  writeFileSync(path, `${readFileSync(path, "utf8")}"cut off in the mid`);
  const again = new History((line) => complaints.push(line), path);
  expect(again.lines.length).toBe(1000);
  expect(again.lines.slice(0, 2)).toEqual(["two lines 2499", "message 2498"]);
  expect(readFileSync(path, "utf8").trim().split("\n").length).toBe(1000);
  expect(complaints).toEqual([]);
  const nowhere = new History((line) => complaints.push(line), `${path}/no/folder`);
  nowhere.add("x");
  nowhere.add("y");
  expect(complaints.length).toBe(1);
  expect(nowhere.lines).toEqual(["y", "x"]);
});
