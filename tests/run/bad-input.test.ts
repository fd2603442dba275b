import { afterAll, describe, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { verifyCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { digest, rlv, SHORT } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-bad-"));
afterAll(() => {
  if (mounted) Bun.spawnSync(["umount", disk]);
  rmSync(scratch, { recursive: true, force: true });
});
const builtin = join(import.meta.dir, "../../src/recipe/arithmetic/model");

let serial = 0;
/** A copy of the small model, spoilt. */
function spoilt(spoil: (folder: string) => void): string {
  const folder = join(scratch, `model-${serial++}`);
  cpSync(builtin, folder, { recursive: true });
  spoil(folder);
  return folder;
}

function edit(folder: string, change: (config: Record<string, unknown>) => void): void {
  const path = join(folder, "config.json");
  const config = JSON.parse(readFileSync(path, "utf8"));
  change(config);
  writeFileSync(path, JSON.stringify(config));
}

function jsonl(name: string, lines: readonly string[]): string {
  const path = join(scratch, name);
  writeFileSync(path, lines.join("\n"));
  return path;
}
const good = JSON.stringify({ prompt: "What is 2 + 3? Answer with an integer.", answer: "5" });

/** One line on stderr, the code, and no trace of a run. */
async function refused(
  args: readonly string[],
  code: number,
  text: string | RegExp,
  env: Record<string, string> = {},
) {
  const runs = join(scratch, `runs-${serial++}`);
  const ended = await rlv(["train", ...SHORT, "--output_dir", runs, "--run_name", "r", ...args], env);
  expect(ended.err.trimEnd().split("\n").length).toBe(1);
  expect(ended.err).toMatch(/^rlv: error: /);
  expect(ended.err).toMatch(text);
  expect(ended.code).toBe(code);
  const left = existsSync(join(runs, "r")) ? readdirSync(join(runs, "r")) : [];
  expect(left.filter((name) => name.startsWith("checkpoints") || name.startsWith(".tmp"))).toEqual([]);
}

describe("models", () => {
  const cases: [string, (folder: string) => void, RegExp][] = [
    ["no weights", (f) => rmSync(join(f, "model.safetensors")), /no model\.safetensors/],
    ["truncated weights", (f) => truncateSync(join(f, "model.safetensors"), 900_000), /model\.safetensors/],
    ["a header cut off", (f) => truncateSync(join(f, "model.safetensors"), 100), /model\.safetensors/],
    [
      "another shape",
      (f) =>
        edit(f, (c) => {
          c.hidden_size = 64;
        }),
      /weights do not fit Qwen3ForCausalLM: .*expected \[/,
    ],
    [
      "fewer layers",
      (f) =>
        edit(f, (c) => {
          c.num_hidden_layers = 3;
        }),
      /unexpected model\.layers\.3/,
    ],
    [
      "unknown architecture",
      (f) =>
        edit(f, (c) => {
          c.architectures = ["GPT2LMHeadModel"];
        }),
      /GPT2LMHeadModel.*Qwen3ForCausalLM/,
    ],
    ["no tokenizer", (f) => rmSync(join(f, "tokenizer.json")), /no tokenizer\.json/],
    ["broken tokenizer", (f) => writeFileSync(join(f, "tokenizer.json"), "{"), /tokenizer\.json/],
    ["no config", (f) => rmSync(join(f, "config.json")), /config\.json/],
  ];
  test.each(cases)("%s", async (_name, spoil, text) => {
    await refused(["--model", spoilt(spoil)], 2, text);
  });
  test("weights of a foreign type", async () => {
    const folder = spoilt((f) => {
      const path = join(f, "model.safetensors");
      const bytes = readFileSync(path);
      const length = Number(bytes.readBigUInt64LE());
      const header = bytes
        .subarray(8, 8 + length)
        .toString()
        .replaceAll('"BF16"', '"I16"')
        .padEnd(length);
      writeFileSync(
        path,
        Buffer.concat([
          bytes.subarray(0, 8),
          Buffer.from(header.slice(0, length)),
          bytes.subarray(8 + length),
        ]),
      );
    });
    await refused(["--model", folder], 2, /I16, expected F32, BF16 or F16/);
  });
});

describe("data", () => {
  const cases: [string, readonly string[], RegExp][] = [
    ["a broken line", [good, "{broken", good], /broken\.jsonl(:2| line 2|, line 2)/],
    ["an empty file", [""], /empty|no rows|no examples/],
    ["no answer", [good, JSON.stringify({ prompt: "What?" })], /answer/],
    ["a prompt that is no text", [JSON.stringify({ prompt: 5, answer: "5" })], /prompt/],
    [
      "a prompt longer than allowed",
      [JSON.stringify({ prompt: "x ".repeat(200), answer: "5" })],
      /longer than 64/,
    ],
  ];
  test.each(cases)("%s", async (_name, lines, text) => {
    await refused(["--train_file", jsonl("broken.jsonl", lines)], 2, text);
  });
  test("more tokens than the model's context", async () => {
    await refused(["--max_prompt_length", "120", "--max_completion_length", "20"], 2, /context of 128/);
  });
  test("a missing file", async () => {
    await refused(["--train_file", join(scratch, "none.jsonl")], 2, /none\.jsonl/);
  });
  test("an answer that is no integer names its row", async () => {
    const file = jsonl("answer.jsonl", [JSON.stringify({ prompt: "What is 1 + 1?", answer: "two" })]);
    const ended = await rlv([
      "train",
      ...SHORT,
      "--output_dir",
      scratch,
      "--run_name",
      "answer",
      "--train_file",
      file,
    ]);
    expect([1, 2]).toContain(ended.code);
    expect(ended.err).toMatch(/answer/);
  });
});

describe("flags, configs, folders", () => {
  test.each([
    [["--learning_rat", "1"], /--learning_rat.*learning_rate/],
    [["--learning_rate", "fast"], /learning_rate/],
    [["--device", "tpu"], /device.*auto.*cpu/],
    [["--loss_type", "cispo"], /epsilon_high/],
  ] as [string[], RegExp][])("%p", async (args, text) => {
    await refused(args, 2, text);
  });
  test("an unknown recipe", async () => {
    const ended = await rlv(["train", "arithmetics"]);
    expect([ended.code, ended.err]).toEqual([
      2,
      expect.stringMatching(/arithmetics.*arithmetic/) as unknown as string,
    ]);
  });
  test("a config of the wrong type", async () => {
    const file = join(scratch, "wrong.yaml");
    writeFileSync(file, "recipe: arithmetic\nbatch_size: many\n");
    const ended = await rlv(["train", file]);
    expect(ended.code).toBe(2);
    expect(ended.err).toMatch(/batch_size.*many/);
  });
  test("an output folder that cannot be", async () => {
    const file = join(scratch, "file");
    writeFileSync(file, "");
    const ended = await rlv(["train", ...SHORT, "--output_dir", join(file, "runs")]);
    expect(ended.code).toBe(2);
    expect(ended.err).toMatch(/cannot be written/);
  });
});

// A disk with room for a run folder and one or two checkpoints of 10 MB.
const disk = join(scratch, "disk");
mkdirSync(disk);
const mounted = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk]).exitCode === 0;

test.skipIf(!mounted)(
  `a full disk: earlier checkpoints stay whole${mounted ? "" : " (skipped: tmpfs cannot be mounted here)"}`,
  async () => {
    const args = [
      "--num_train_steps",
      "4",
      "--batch_size",
      "2",
      "--group_size",
      "2",
      "--save_every",
      "1",
      "--eval_every",
      "-1",
    ];
    const ended = await rlv(["train", ...args, "--output_dir", disk, "--run_name", "full"]);
    expect(ended.code).toBe(1);
    expect(ended.err).toMatch(/^rlv: error: disk full: /);
    const saved = join(disk, "full/checkpoints");
    const kept = readdirSync(saved);
    expect(kept).toContain("step-1");
    expect(kept.flatMap((name) => verifyCheckpoint(join(saved, name)))).toEqual([]);
    const before = digest(join(saved, "step-1"));
    // With room again the run goes on from it.
    Bun.spawnSync(["mount", "-o", "remount,size=200m", disk]);
    const resumed = await rlv(["train", "--resume_from", join(disk, "full"), "--save_every", "-1"]);
    expect([resumed.err, resumed.code]).toEqual(["", 0]);
    expect(digest(join(saved, "step-1"))).toEqual(before);
  },
);
