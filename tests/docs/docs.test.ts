/** Runs every command block of README.md and docs/, each document in a folder of its own from its top to its end. */
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HubServer } from "../io/hub-server.ts";
import { type Block, blocksOf, commandsOf } from "./blocks.ts";
import { makeWorld, repositoryOf, root, writePrograms } from "./world.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-docs-"));
// What documents call by a name of the hub.
const hub = await HubServer.start();
afterAll(async () => {
  await hub[Symbol.asyncDispose]();
  rmSync(scratch, { recursive: true, force: true });
});

const documents = [
  "README.md",
  ...readdirSync(join(root, "docs"))
    .filter((name) => name.endsWith(".md"))
    .sort()
    .map((name) => `docs/${name}`),
];

/** Nothing of a document may reach the hub, a browser or a person's own files. */
const env = (folder: string) => {
  const { DISPLAY: _, WAYLAND_DISPLAY: __, ...rest } = process.env;
  return {
    ...rest,
    PATH: `${folder}:${join(folder, "node_modules/.bin")}:${process.env.PATH}`,
    // In a container tests are root.
    OMPI_ALLOW_RUN_AS_ROOT: "1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1",
    HF_HUB_OFFLINE: "0",
    HF_ENDPOINT: hub.endpoint,
    HF_HUB_CACHE: join(scratch, "hub"),
    XDG_CACHE_HOME: join(scratch, "cache"),
    XDG_STATE_HOME: join(scratch, "state"),
  };
};

interface Ran {
  readonly code: number;
  readonly said: string;
}

async function run(commands: string, folder: string, { stdin, until }: Block): Promise<Ran> {
  const child = Bun.spawn(["sh", "-e", "-c", until === null ? commands : `exec ${commands}`], {
    cwd: folder,
    env: env(folder),
    stdin: new Blob([stdin]),
    stdout: "pipe",
    stderr: "pipe",
  });
  let said = "";
  let asked = false;
  const read = async (stream: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      said += decoder.decode(chunk, { stream: true });
      // Asked twice, a program ends at once.
      if (asked || until === null || !said.includes(until)) continue;
      asked = true;
      child.kill("SIGTERM");
    }
  };
  await Promise.all([read(child.stdout), read(child.stderr)]);
  return { code: await child.exited, said };
}

/** What a block needs and this machine lacks. */
function lacks({ needs }: Block): string | null {
  if (needs === null) return null;
  const { stdout } = Bun.spawnSync(["sh", "-c", needs.command], { stderr: "ignore" });
  return stdout.toString().includes(needs.text) ? null : `${needs.command} does not say ${needs.text}`;
}

async function runBlock(block: Block, folder: string): Promise<void> {
  writePrograms(folder, block.append);
  const text = commandsOf(block);
  if (block.until === null) {
    const { code, said } = await run(text, folder, block);
    expect(code, `${text}\n${said}`).toBe(0);
    return;
  }
  for (const line of text.split("\n").filter((each) => each.trim() !== "" && !each.startsWith("#"))) {
    const { code, said } = await run(line, folder, block);
    expect(said, line).toContain(block.until);
    // A training that is asked to end saves and says 130.
    expect([0, 130], `${line}\n${said}`).toContain(code);
  }
}

const world = join(scratch, "world");
mkdirSync(world);
makeWorld(world);
hub.repos.set("models/Qwen/Qwen3-0.6B", repositoryOf(join(world, "Qwen3-0.6B")));

for (const file of documents) {
  const blocks = blocksOf(file, readFileSync(join(root, file), "utf8"));
  if (blocks.length === 0) continue;
  const folder = join(scratch, file.replaceAll("/", "-"));
  cpSync(world, folder, { recursive: true, verbatimSymlinks: true });
  describe(file, () => {
    for (const block of blocks) {
      const title = `${block.file}:${block.line}: ${block.text.split("\n")[0]}`;
      const skip = block.skip ?? lacks(block);
      if (skip !== null) process.stdout.write(`skip ${title}: ${skip}\n`);
      for (const { text, why } of block.leaveOut)
        process.stdout.write(`skip ${block.file}:${block.line}: ${text}: ${why}\n`);
      test.skipIf(skip !== null)(title, () => runBlock(block, folder));
    }
  });
}

describe("directives", () => {
  const markdown = (...lines: string[]) => `${lines.join("\n")}\n`;
  const one = (...lines: string[]) => blocksOf("a.md", markdown(...lines))[0]!;

  test("stand before their block, and nothing else does", () => {
    const block = one(
      "<!-- test: append train --num_train_steps 2 -->",
      "<!-- test: append make-x.ts --steps 5 -->",
      "<!-- test: stdin hello there -->",
      "<!-- test: leave out git clone: this is the clone -->",
      "```sh",
      "git clone x",
      "rlv train",
      "```",
    );
    expect(block).toMatchObject({ line: 5, skip: null, until: null, stdin: "hello there\n" });
    expect([...block.append]).toEqual([
      ["make-x.ts", "--steps 5"],
      ["train", "--num_train_steps 2"],
    ]);
    expect(commandsOf(block)).toBe("rlv train");
    expect(commandsOf({ ...block, replace: new Map([["train", "eval"]]) })).toBe("rlv eval");
    expect(() => commandsOf({ ...block, replace: new Map([["chat", "eval"]]) })).toThrow(
      "nothing to replace",
    );
    expect(() => commandsOf({ ...block, text: "rlv train" })).toThrow("nothing to leave out");
    expect(() => one("<!-- test: slip it -->", "```sh", "x", "```")).toThrow("not a directive: a.md:1");
    expect(() => one("<!-- test: skip -->", "```sh", "x", "```")).toThrow("not a directive");
    expect(() => one("```sh", "x")).toThrow("a block without an end");
  });

  test("blocks of other languages are none, prompts of a console go", () => {
    const text = markdown(
      "```ts",
      "```sh",
      "```",
      "```console",
      "$ rlv version",
      "rlv 1",
      "```",
      "```yaml",
      "```",
    );
    expect(blocksOf("a.md", text).map((each) => each.text)).toEqual(["rlv version"]);
  });

  test("a block that fails, or that goes on without its word, fails", async () => {
    const folder = join(scratch, "fails");
    mkdirSync(folder);
    await expect(runBlock(one("```sh", "false", "true", "```"), folder)).rejects.toThrow();
    await expect(
      runBlock(one("<!-- test: until ready -->", "```sh", "echo no", "```"), folder),
    ).rejects.toThrow();
    await runBlock(
      one(
        "<!-- test: until ready -->",
        "```sh",
        "sh -c \"trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done\"",
        "```",
      ),
      folder,
    );
  });
});
