/** Runs that train adapters, from the command line: what they leave, resume, refuse, and what other commands do with it. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { openWeights } from "../../src/io/hf-folder.ts";
import { openSafetensors, writeSafetensors } from "../../src/io/safetensors.ts";
import { initialiseAdapters } from "../../src/nn/adapters.ts";
import { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { saveModel } from "../../src/run/open-model.ts";
import { rewardSource } from "../../src/run/reward-model.ts";
import { openTestDevice } from "../test-device.ts";
import { digest, finishRun, killRun, metrics, rlv, start } from "./program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-lora-run-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const random = new Random(Date.now() >>> 0, Purpose.data);

// Two updates a batch, dropout, several micro-batches: everything that a resumed run has to draw again.
const FLAGS: Readonly<Record<string, string>> = {
  ...{ lora: "true", lora_r: "4", lora_target_modules: "all-linear", lora_dropout: "0.1" },
  ...{ num_train_steps: "16", num_iterations: "2", loss_type: "grpo", scale_rewards: "group" },
  ...{ save_every: "1", keep_checkpoints: "2", eval_every: "8", eval_num_prompts: "8" },
  ...{ batch_size: "4", group_size: "8", micro_batch_tokens: "300", learning_rate: "1e-3" },
};
const job = (name: string, more: Readonly<Record<string, string>> = {}) => [
  "train",
  ...Object.entries({ ...FLAGS, output_dir: scratch, run_name: name, ...more }).flatMap(([flag, value]) => [
    `--${flag}`,
    value,
  ]),
];
const final = (name: string) => join(scratch, name, "checkpoints/final");

/** Runs to its end without a word on stderr. */
async function succeed(args: readonly string[]): Promise<void> {
  const { code, err } = await rlv(args);
  expect([err, code]).toEqual(["", 0]);
}

/** One line on stderr and exit code 2. */
async function refused(args: readonly string[], text: string | RegExp): Promise<void> {
  const { code, err } = await rlv(args);
  expect(err).toMatch(/^rlv: error: [^\n]*\n$/);
  expect(err).toMatch(text);
  expect(code).toBe(2);
}

let whole: Record<string, string>;
beforeAll(async () => {
  await succeed(job("whole"));
  whole = digest(final("whole"));
});

test("a checkpoint is an adapter in PEFT's format and what resuming needs", () => {
  expect(Object.keys(whole).sort()).toEqual([
    ...["adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.safetensors"],
    ...["tokenizer.json", "tokenizer_config.json", "train_config.json", "train_state.json"],
  ]);
  const config = JSON.parse(readFileSync(join(final("whole"), "adapter_config.json"), "utf8"));
  expect(config).toMatchObject({
    ...{ base_model_name_or_path: "builtin:arithmetic", task_type: "CAUSAL_LM", peft_type: "LORA" },
    ...{ r: 4, lora_alpha: 32, lora_dropout: 0.1, use_rslora: false },
  });
  using adapter = openSafetensors(join(final("whole"), "adapter_model.safetensors"));
  using optimizer = openSafetensors(join(final("whole"), "optimizer.safetensors"));
  expect(adapter.tensors.size).toBe(2 * 7 * 4);
  for (const name of adapter.tensors.keys()) {
    expect(optimizer.tensors.has(`${name}.exp_avg`)).toBe(true);
    expect(optimizer.tensors.has(`${name}.exp_avg_sq`)).toBe(true);
  }
  expect(optimizer.tensors.size).toBe(2 * adapter.tensors.size);
});

test("killed and resumed: the bytes of the unbroken run, its records whole", async () => {
  for (let kill = 0; kill < 3; kill++) {
    const name = `kill-${kill}`;
    const run = join(scratch, name);
    const child = start(job(name));
    await Bun.sleep(500 + random.below(1500));
    await killRun(child, run);
    const ended = await finishRun(run, job(name));
    if (ended === null) continue;
    expect([ended.err, ended.code]).toEqual(["", 0]);
    const got = digest(final(name));
    // The name of the run stands in its config.
    for (const file of Object.keys(whole).filter((f) => !/^(train_config|manifest)/.test(f)))
      expect([file, got[file]]).toEqual([file, whole[file]!]);
    expect(metrics(run).map((r) => r.step)).toEqual(Array.from({ length: 17 }, (_, i) => i));
  }
}, 120_000);

test.each([
  ["bfloat16 with 8-bit moments", { dtype: "bfloat16", optimizer_dtype: "8bit" }],
  ["an int8 base", { base_quant_type: "int8" }],
  ["an nf4 base and checkpointing", { base_quant_type: "int4", gradient_checkpointing: "true" }],
])(
  "%s resumes to the same bytes",
  async (title, more) => {
    const names = [`${title}-whole`, `${title}-part`].map((name) => name.replaceAll(" ", "-")) as [
      string,
      string,
    ];
    const constant = { lr_schedule: "constant", eval_every: "-1", ...more };
    await succeed(job(names[0], { ...constant, num_train_steps: "6" }));
    await succeed(job(names[1], { ...constant, num_train_steps: "3" }));
    await succeed(["train", "--resume_from", join(scratch, names[1]), "--num_train_steps", "6"]);
    const [a, b] = names.map((name) => digest(final(name)));
    for (const file of ["adapter_model.safetensors", "optimizer.safetensors", "train_state.json"])
      expect([file, b![file]]).toEqual([file, a![file]!]);
  },
  60_000,
);

test("an adapter starts another run, which keeps its settings; the reference is the model without it", async () => {
  await succeed([
    ...[
      "train",
      "--adapter",
      final("whole"),
      "--num_train_steps",
      "2",
      "--batch_size",
      "2",
      "--group_size",
      "4",
    ],
    ...["--eval_every", "-1", "--output_dir", scratch, "--run_name", "further"],
  ]);
  const config = JSON.parse(readFileSync(join(final("further"), "adapter_config.json"), "utf8"));
  expect(config).toMatchObject({ r: 4, lora_alpha: 32, lora_dropout: 0.1 });
  expect(metrics(join(scratch, "further")).at(1)!["train/kl"]).toBeGreaterThan(0);
  // The folder it came from is not needed any more.
  const moved = join(scratch, "moved");
  renameSync(join(scratch, "whole"), moved);
  await succeed(["train", "--resume_from", join(scratch, "further"), "--num_train_steps", "3"]);
  renameSync(moved, join(scratch, "whole"));
  const from = (step: string[]) => ["train", "--adapter", final("whole"), "--output_dir", scratch, ...step];
  await refused(from(["--lora_r", "8"]), /--lora_r 8, the adapter has 4/);
  await refused(from(["--use_rslora"]), /--use_rslora true, the adapter has false/);
  await refused(from(["--lora_target_modules", "q_proj"]), /the adapter has other modules/);
});

test("the memory plan knows one copy of the model, without gradients, for policy and reference", async () => {
  const planned = async (lora: string): Promise<Record<string, number>> => {
    const { out, code } = await rlv([
      ...["train", "--lora", lora, "--kl_coeff", "0.1", "--num_train_steps", "1", "--eval_every", "-1"],
      ...["--batch_size", "2", "--group_size", "4", "--output_dir", scratch, "--run_name", `plan-${lora}`],
    ]);
    expect(code).toBe(0);
    const line = out.split("\n").find((text) => text.startsWith("memory plan"))!;
    const unit = { B: 1, kB: 1e3, MB: 1e6 };
    return Object.fromEntries(
      [...line.matchAll(/(\w+) ([\d.]+) (B|kB|MB)/g)].map(([, name, n, size]) => [
        name!,
        Number(n) * unit[size as keyof typeof unit],
      ]),
    );
  };
  const [adapters, full] = [await planned("true"), await planned("false")];
  // The line rounds to two digits.
  const parameters = 0.98 * 832_896;
  expect(full.weights!).toBeGreaterThan(2 * 4 * parameters);
  expect(full.gradients!).toBeGreaterThan(4 * parameters);
  expect(adapters.weights!).toBeGreaterThan(4 * parameters);
  expect(adapters.weights!).toBeLessThan(1.3 * 4 * parameters);
  expect(adapters.gradients!).toBeLessThan(0.3 * 4 * parameters);
  expect(adapters.optimizer!).toBeLessThan(0.3 * 8 * parameters);
});

test("sft trains adapters, and writes them where it would write a model", async () => {
  const data = join(scratch, "facts.jsonl");
  writeFileSync(data, `${JSON.stringify({ prompt: "What is 2 + 3?", completion: " 5" })}\n`);
  const out = join(scratch, "sft-out");
  await succeed([
    ...[
      "train",
      "sft",
      "--model",
      "builtin:arithmetic",
      "--dataset",
      data,
      "--num_train_steps",
      "3",
      "--lora",
    ],
    ...["--learning_rate", "1e-2", "--output", out, "--output_dir", scratch, "--run_name", "sft"],
  ]);
  expect(readdirSync(out)).toContain("adapter_model.safetensors");
  const losses = metrics(join(scratch, "sft")).flatMap((row) => row["train/loss"] ?? []);
  expect(losses.at(-1)!).toBeLessThan(losses[0]!);
});

describe("other commands", () => {
  const questions = () => {
    const path = join(scratch, "in.jsonl");
    const rows = ["2 + 3", "8 + 15"].map((sum) => ({
      ...{
        prompt: `What is ${sum}? Answer with an integer.`,
        completions: [{ text: "5" }, { text: "Maybe 7." }],
      },
    }));
    writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
    return path;
  };
  const logprobs = async (...model: string[]): Promise<number[]> => {
    const out = join(scratch, `out-${random.word()}.jsonl`);
    const { code, err } = await rlv(["logprob", ...model, "--in", questions(), "--out", out]);
    expect([err.includes("error"), code]).toEqual([false, 0]);
    const rows = readFileSync(out, "utf8").trimEnd().split("\n");
    return rows.flatMap((row) =>
      JSON.parse(row).completions.flatMap((c: { logprobs: number[] }) => c.logprobs),
    );
  };
  const largest = (a: number[], b: number[]) => Math.max(...a.map((x, i) => Math.abs(x - b[i]!)));

  test("logprob with --adapter, with the checkpoint as --model, and with both merged agree", async () => {
    const base = ["--model", "builtin:arithmetic"];
    const adapted = await logprobs(...base, "--adapter", final("whole"));
    expect(await logprobs("--model", final("whole"))).toEqual(adapted);
    expect(largest(adapted, await logprobs(...base))).toBeGreaterThan(0.01);
    const out = join(scratch, "merged");
    const merged = await rlv([
      "merge",
      ...base,
      "--adapter",
      final("whole"),
      "--out",
      out,
      "--dtype",
      "float32",
    ]);
    expect(merged.code).toBe(0);
    expect(largest(adapted, await logprobs("--model", out))).toBeLessThan(1e-4);
    await refused(["merge", ...base, "--adapter", final("whole"), "--out", out], /is not empty/);
    await refused(["merge", ...base, "--out", join(scratch, "none")], /no adapter to merge/);
  });

  test("merged weights keep the stored types", async () => {
    const out = join(scratch, "merged-stored");
    const { code } = await rlv(["merge", "--model", final("whole"), "--out", out]);
    expect(code).toBe(0);
    using before = openWeights(join(import.meta.dir, "../../src/recipe/arithmetic/model"));
    using after = openWeights(out);
    expect(after.names().sort()).toEqual(before.names().sort());
    for (const name of before.names()) {
      expect(after.dtype(name)).toBe(before.dtype(name));
      const same = Buffer.compare(after.read(name), before.read(name)) === 0;
      expect([name, same]).toEqual([name, !name.endsWith("_proj.weight")]);
    }
  });

  test("the adapter of a reward model and a language model merge into a reward model", async () => {
    const base = join(import.meta.dir, "../../src/recipe/arithmetic/model");
    const [adapter, out] = [join(scratch, "reward-adapter"), join(scratch, "reward-merged")];
    const source = rewardSource(base, 1);
    const device = openTestDevice(2);
    const options = { dtype: Dtype.f32, trainable: false, maxPositions: 64 };
    const model = new Transformer(device, source.config, {
      ...options,
      lora: { r: 4, alpha: 8, targets: ["q_proj", "up_proj"], modulesToSave: ["score"], base },
    });
    source.load(model);
    initialiseAdapters(model.adapters!, model.parameters, 1);
    for (const [i, { name }] of model.adapters!.list.entries()) {
      const draw = new Random(1, Purpose.init, i);
      model.adapters!.load(
        name,
        model.adapters!.read(name).map(() => 0.1 * draw.normal()),
      );
    }
    saveModel(adapter, model, source.tokenizer);
    model.dispose();
    device.close();
    const { code } = await rlv(["merge", "--model", adapter, "--out", out, "--dtype", "float32"]);
    expect(code).toBe(0);
    const score = async (...flags: string[]) => {
      const path = join(scratch, `score-${random.word()}.jsonl`);
      const ended = await rlv(["score", ...flags, "--in", texts, "--out", path]);
      expect(ended.code).toBe(0);
      const rows = readFileSync(path, "utf8").trimEnd().split("\n");
      return rows.map((row) => JSON.parse(row).reward as number);
    };
    const texts = join(scratch, "texts.jsonl");
    writeFileSync(texts, JSON.stringify({ prompt: "What is 2 + 3?", completion: " 5" }));
    const [merged, adapted] = [await score("--model", out), await score("--model", adapter)];
    expect(Math.abs(merged[0]!)).toBeGreaterThan(1e-3);
    expect(largest(merged, adapted)).toBeLessThan(1e-4);
  });

  test("generate and chat take it too", async () => {
    const out = join(scratch, "completions.jsonl");
    const made = await rlv([
      ...["generate", "--model", final("whole"), "--in", questions(), "--out", out, "--temperature", "0"],
      ...["--max_new_tokens", "8"],
    ]);
    expect(made.code).toBe(0);
    expect(JSON.parse(readFileSync(out, "utf8").split("\n")[0]!).completions[0].text.length).toBeGreaterThan(
      0,
    );
    const chat = await rlv([
      "chat",
      "builtin:arithmetic",
      "--adapter",
      final("whole"),
      "--max_new_tokens",
      "2",
    ]);
    expect(chat.code).toBe(0);
  });

  test("a folder whose base is not here, no folder, an adapter for another model", async () => {
    const copy = join(scratch, "elsewhere");
    cpSync(final("whole"), copy, { recursive: true });
    const path = join(copy, "adapter_config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    const scoring = (...model: string[]) => [
      "logprob",
      ...model,
      "--in",
      questions(),
      "--out",
      join(scratch, "o"),
    ];
    const base = ["--model", "builtin:arithmetic", "--adapter", copy];
    const edit = (keys: object) => writeFileSync(path, JSON.stringify({ ...config, ...keys }));

    edit({ base_model_name_or_path: "some/model" });
    await refused(scoring("--model", copy), /its base "some\/model" is no model folder here: .*--adapter/);
    edit({ base_model_name_or_path: null });
    await refused(scoring("--model", copy), /names no base model/);
    await refused(scoring("--model", copy, "--adapter", copy), /--model is an adapter too/);
    await refused(scoring(...base.slice(0, 3), join(scratch, "nowhere")), /no such folder for --adapter/);
    edit({ use_dora: true });
    await refused(scoring(...base), /use_dora true is not supported/);
    edit({ task_type: "SEQ_CLS" });
    await refused(scoring(...base), /adapter for another model: its task is SEQ_CLS/);
    edit({ target_modules: ["c_attn"] });
    await refused(scoring(...base), /no linear map c_attn: .*adapter_config\.json/);
    edit({ r: 8 });
    await refused(scoring(...base), /adapter for another model: .* is \[4,\d+\], expected \[8,\d+\]/);
    edit({});
    const file = join(copy, "adapter_model.safetensors");
    const tensors = (() => {
      using stored = openSafetensors(file);
      return [...stored.tensors].map(([name, { dtype, shape }]) => ({
        name,
        dtype,
        shape,
        data: stored.read(name),
      }));
    })();
    writeSafetensors(
      file,
      tensors.map((t) => ({
        ...t,
        name: t.name.replace("layers.0.mlp.up_proj.lora_B", "layers.0.mlp.up_proj.lora_C"),
      })),
    );
    await refused(
      scoring(...base),
      /missing .*up_proj\.lora_B\.weight.*unexpected .*up_proj\.lora_C\.weight/,
    );
    await refused(
      ["train", "--adapter", copy, "--output_dir", scratch, "--run_name", "bad"],
      /adapter for another model/,
    );
  });
});

test("flags that contradict each other or the checkpoint", async () => {
  const train = (...flags: string[]) => ["train", "--output_dir", scratch, "--run_name", "refused", ...flags];
  await refused(train("--lora_r", "8"), /lora_r is about adapters and needs lora true/);
  await refused(train("--base_quant_type", "int8"), /base_quant_type is about adapters/);
  await refused(train("--lora", "--lora_dropout", "1"), /lora_dropout/);
  await refused(train("--lora", "--lora_r", "0"), /lora_r/);
  await refused(train("--lora", "--lora_target_modules", "qproj"), /no linear map qproj/);
  await refused(train("--lora", "--reference_offload"), /reference_offload has nothing to give back/);
  await refused(train("--lora", "--gradient_dtype", "bfloat16"), /gradients of adapters are float32/);
  await refused(train("--lora", "--top_entropy_quantile", "0.2"), /top_entropy_quantile/);
  await refused(train("--model", final("whole")), /an adapter, not a model/);
  const resume = (...flags: string[]) => [
    "train",
    "--resume_from",
    join(scratch, "whole"),
    "--num_train_steps",
    "20",
    ...flags,
  ];
  await refused(resume("--lora_r", "8"), /other ranks, scales or modules/);
  const other = join(scratch, "other-model");
  const merged = await rlv(["merge", "--model", final("whole"), "--out", other]);
  expect(merged.code).toBe(0);
  await refused(resume("--model", other), /the starting model is not the one this run began with/);
});
