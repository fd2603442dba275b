/** Bad input of the recipes on preferences: one clear line, exit 2, and no trace of a run. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeWorld, SMALL, type World } from "./preference-world.ts";
import { rlv } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-hh-bad-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

let world: World;
const judge = join(scratch, "judge/checkpoints/final");
beforeAll(async () => {
  world = await makeWorld(scratch, { train: 80, test: 40, sft: 100, steps: 3 });
  const ended = await rlv([...rm("judge"), "--output_dir", scratch]);
  expect([ended.err, ended.code]).toEqual(["", 0]);
}, 60_000);

const rm = (name: string) => [
  ...["train", "hh-rm", "--model", world.policy, "--dataset", world.data, "--num_train_steps", "2"],
  ...["--batch_size", "4", "--grad_accum", "1", "--max_length", "64", "--eval_num_batches", "1"],
  ...["--log_dir", join(scratch, "logs"), "--run_name", name, ...SMALL],
];
const grpo = (name: string) => [
  ...["train", "hh-grpo", "--model", world.policy, "--dataset", world.data, "--reward_model_path", judge],
  ...["--num_train_steps", "1", "--batch_size", "2", "--group_size", "2", "--grad_accum_steps", "1"],
  ...["--max_prompt_length", "40", "--max_new_tokens", "8", "--eval_steps", "-1"],
  ...["--log_dir", join(scratch, "logs"), "--run_name", name, ...SMALL],
];

let serial = 0;
/** Flags given twice are an error of their own, so the job's are replaced. */
function replaced(job: readonly string[], flags: readonly string[]): string[] {
  const out = [...job];
  for (let i = 0; i < flags.length; i += 2) {
    const at = out.indexOf(flags[i]!);
    if (at >= 0) out.splice(at, 2);
    out.push(`${flags[i]}=${flags[i + 1]}`);
  }
  return out;
}

async function refused(
  job: (name: string) => string[],
  flags: readonly string[],
  text: RegExp,
): Promise<void> {
  const runs = join(scratch, `runs-${serial++}`);
  const ended = await rlv([...replaced(job("r"), flags), "--output_dir", runs]);
  expect(ended.err.trimEnd().split("\n").length).toBe(1);
  expect(ended.err).toMatch(/^rlv: error: /);
  expect(ended.err).toMatch(text);
  expect(ended.code).toBe(2);
  const left = existsSync(join(runs, "r")) ? readdirSync(join(runs, "r")) : [];
  expect(left.filter((name) => name.startsWith("checkpoints"))).toEqual([]);
}

/** Values out of range, and what the message names. */
const RANGES = {
  "hh-rm": [
    ["epochs", "0"],
    ["batch_size", "0"],
    ["lr", "-1"],
    ["max_length", "1"],
    ["grad_accum", "0"],
    ["max_grad_norm", "-0.1"],
    ["gradient_checkpointing", "maybe"],
    ["eval_steps", "0"],
    ["eval_num_batches", "0"],
    ["save_steps", "-2"],
    ["center_rewards_coefficient", "-1"],
    ["lora", "yes"],
    ["lora_r", "0"],
    ["lora_alpha", "0"],
    ["lora_dropout", "1"],
    ["output_dir", ""],
    ["log_dir", ""],
    ["run_name", "a/b"],
  ],
  "hh-grpo": [
    ["rm_quant_type", "int3"],
    ["ref_quant_type", "fp8"],
    ["epochs", "0"],
    ["batch_size", "0"],
    ["group_size", "1"],
    ["lr", "fast"],
    ["grad_accum_steps", "0"],
    ["max_grad_norm", "-1"],
    ["n_minibatches", "3"],
    ["kl_coef", "-0.01"],
    ["cliprange", "1.5"],
    ["eos_penalty", "-1"],
    ["max_new_tokens", "0"],
    ["temperature", "0"],
    ["eval_steps", "-3"],
    ["eval_num_prompts", "0"],
    ["save_rollouts", "2"],
    ["train_prompts", "-1"],
  ],
} as const;

describe.each(Object.entries(RANGES))("%s: flags out of range", (recipe, cases) => {
  test.each(cases.map(([flag, value]) => [flag, value] as const))("--%s %s", async (flag, value) => {
    const job = recipe === "hh-rm" ? rm : grpo;
    if (flag === "run_name") {
      const ended = await rlv([
        ...replaced(job("r"), [`--${flag}`, value]),
        "--output_dir",
        join(scratch, "x"),
      ]);
      expect([ended.code, ended.err]).toEqual([2, expect.stringMatching(/run_name/)]);
      return;
    }
    if (flag === "output_dir") {
      const ended = await rlv([...job("r"), `--${flag}=${value}`]);
      expect([ended.code, ended.err]).toEqual([2, expect.stringMatching(/output_dir/)]);
      return;
    }
    await refused(job, [`--${flag}`, value], new RegExp(flag));
  });
});

describe("models", () => {
  const copy = (of: string, change: (config: Record<string, unknown>) => void): string => {
    const folder = join(scratch, `model-${serial++}`);
    cpSync(of, folder, { recursive: true });
    const path = join(folder, "config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    change(config);
    writeFileSync(path, JSON.stringify(config));
    return folder;
  };
  test("no reward model", () =>
    refused(grpo, ["--reward_model_path", join(scratch, "none")], /no such folder/));
  test("a language model as the reward model", () =>
    refused(grpo, ["--reward_model_path", world.policy], /not a reward model: it has no value head/));
  test("a classifier of two labels", () =>
    refused(
      grpo,
      ["--reward_model_path", copy(judge, (config) => (config.id2label = { 0: "a", 1: "b" }))],
      /a classifier of 2 labels.*num_labels 1/,
    ));
  test("a reward model of another size", () =>
    refused(
      grpo,
      ["--reward_model_path", copy(judge, (config) => (config.hidden_size = 32))],
      /expected \[/,
    ));
  test("a reward model with another tokenizer", async () => {
    const folder = copy(judge, () => {});
    for (const name of ["tokenizer.json", "tokenizer_config.json"])
      writeFileSync(
        join(folder, name),
        readFileSync(join(folder, name), "utf8").replaceAll("<|end|>", "<|stop|>"),
      );
    await refused(grpo, ["--reward_model_path", folder], /different tokenizers .*--rm_retokenize true/);
    const runs = join(scratch, "retokenized");
    const flags = ["--reward_model_path", folder, "--rm_retokenize", "true"];
    const ended = await rlv([...replaced(grpo("r"), flags), "--output_dir", runs]);
    expect([ended.err, ended.code]).toEqual(["", 0]);
  });
  test("a reward model as the policy", () => refused(grpo, ["--model", judge], /not a language model/));
  test("sequences beyond the context", () =>
    refused(grpo, ["--max_prompt_length", "120", "--max_new_tokens", "20"], /context of 128/));
});

describe("data", () => {
  const row = { chosen: "\n\nHuman: a\n\nAssistant: b", rejected: "\n\nHuman: a\n\nAssistant: c" };
  const cases: [string, readonly unknown[], RegExp][] = [
    ["a broken line", [row, "{broken"], /train\.jsonl(:2| line 2|, line 2).*/],
    ["no rejected", [row, { chosen: row.chosen }], /no column "rejected".*train\.jsonl/],
    [
      "an empty answer",
      [{ ...row, rejected: "\n\nHuman: a\n\nAssistant: " }],
      /rejected has an empty answer/,
    ],
    ["numbers for text", [{ chosen: 5, rejected: 6 }], /chosen is number, not text/],
    ["a margin that is no number", [{ ...row, margin: "big" }], /margin is "big"/],
    ["nothing short enough", [{ ...row, chosen: `${row.chosen}${" b".repeat(100)}` }], /no row can be used/],
    ["no rows", [], /no rows|empty/],
  ];
  test.each(cases)("%s", async (_name, lines, text) => {
    const folder = join(scratch, `data-${serial++}`);
    mkdirSync(folder);
    const written = lines
      .map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`)
      .join("");
    writeFileSync(join(folder, "train.jsonl"), written);
    writeFileSync(join(folder, "test.jsonl"), `${JSON.stringify(row)}\n`);
    await refused(rm, ["--dataset", folder], text);
  });
  test("no such dataset", () =>
    refused(rm, ["--dataset", join(scratch, "nothing")], /no such file for --dataset/));
  test("a folder without a test split", async () => {
    const folder = join(scratch, "no-test");
    mkdirSync(folder);
    writeFileSync(join(folder, "train.jsonl"), `${JSON.stringify(row)}\n`);
    await refused(rm, ["--dataset", folder], /no test files/);
  });
});

describe("resuming", () => {
  test("a checkpoint without config", async () => {
    const folder = join(scratch, "bare");
    cpSync(judge, folder, { recursive: true });
    rmSync(join(folder, "train_config.json"));
    const ended = await rlv(["train", "--resume_from", folder]);
    expect([ended.code, ended.err]).toEqual([
      2,
      expect.stringMatching(/not a checkpoint, it has no train_config/),
    ]);
  });
  test("of another recipe", async () => {
    const ended = await rlv(["train", "hh-grpo", "--resume_from", judge]);
    expect([ended.code, ended.err]).toEqual([2, expect.stringMatching(/recipe hh-grpo.*hh-rm/)]);
  });
  test("with adapters where there were none", async () => {
    const ended = await rlv(["train", "--resume_from", judge, "--lora", "true", "--num_train_steps", "9"]);
    expect([ended.code, ended.err]).toEqual([2, expect.stringMatching(/checkpoint of a whole model/)]);
  });
  test("a damaged one", async () => {
    const run = join(scratch, "damaged/checkpoints/final");
    cpSync(join(scratch, "judge"), join(scratch, "damaged"), { recursive: true });
    const path = join(run, "optimizer.safetensors");
    const bytes = readFileSync(path);
    bytes[bytes.length - 9]! ^= 1;
    writeFileSync(path, bytes);
    const ended = await rlv(["train", "--resume_from", run, "--num_train_steps", "9"]);
    expect([ended.code, ended.err]).toEqual([2, expect.stringMatching(/not whole.*optimizer\.safetensors/)]);
  });
});
