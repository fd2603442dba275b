import { afterAll, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { rlv } from "../run/program.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-cli-quantize-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const GOLDENS = join(import.meta.dir, "../goldens/quant");
const data = ["--dataset", "builtin:arithmetic/eval.jsonl", "--max_new_tokens", "16", "--device", "cpu"];
const line = (text: string) => text.trimEnd().split("\n").at(-1)!;

test("quantizes the model that ships; generate opens the folder", async () => {
  const model = join(scratch, "shipped");
  cpSync(join(import.meta.dir, "../../src/recipe/arithmetic/model"), model, { recursive: true });
  const made = await rlv(["quantize", "--checkpoint", model, "--quant_type", "int4", ...data, "--json"]);
  expect(made.code).toBe(0);
  const result = JSON.parse(made.out);
  // Beside the checkpoint.
  expect(result).toMatchObject({ kind: "policy", quant_type: "int4", output: `${model}_quantized_int4` });
  expect(result.kl_divergence).toBeLessThanOrEqual(0.1);
  const saved = JSON.parse(readFileSync(join(result.output, "evaluation_results.json"), "utf8"));
  expect(saved).toEqual(result);

  const [prompts, out] = [join(scratch, "prompts.jsonl"), join(scratch, "out.jsonl")];
  writeFileSync(prompts, '{"prompt": "What is 2 + 3? Answer with an integer."}\n');
  const options = ["--in", prompts, "--out", out, "--temperature", "0", "--max_new_tokens", "16"];
  const generated = await rlv(["generate", "--model", result.output, ...options, "--device", "cpu"]);
  expect(generated.code).toBe(0);
  expect(JSON.parse(readFileSync(out, "utf8")).completions[0].text).toContain("5");

  const again = await rlv(["quantize", "--model", result.output, ...data]);
  expect(again.code).toBe(2);
  expect(line(again.err)).toContain("the model is quantized already, to 4 bits");
  const trained = await rlv(["train", "arithmetic", "--model", result.output, "--num_train_steps", "1"]);
  expect(trained.code).toBe(2);
  expect(line(trained.err)).toContain("quantized weights cannot be trained");
});

test("skip_save writes nothing", async () => {
  const model = join(scratch, "unsaved");
  cpSync(join(import.meta.dir, "../../src/recipe/arithmetic/model"), model, { recursive: true });
  const made = await rlv([
    "quantize",
    "--model",
    model,
    "--num_prompts",
    "3",
    ...data,
    "--skip_save",
    "--json",
  ]);
  expect(JSON.parse(made.out)).toMatchObject({ prompts: 3, output: null, quant_type: "int8" });
  expect(existsSync(`${model}_quantized_int8`)).toBe(false);
});

const empty = join(scratch, "empty");
mkdirSync(empty);
const badly = join(scratch, "bad.jsonl");
writeFileSync(badly, '{"chosen": "a", "rejected": 3}\n'.repeat(40));
const refusals: readonly (readonly [string, readonly string[], string])[] = [
  ["no config", ["--model", empty], "no such file"],
  ["no such model", ["--model", join(scratch, "nowhere")], "no such folder for --model"],
  ["no model", [], "model"],
  ["an unknown type", ["--model", "builtin:arithmetic", "--quant_type", "fp4"], "expects one of int8, int4"],
  ["no temperature", ["--model", "builtin:arithmetic", "--temperature", "0"], "a number above 0"],
  ["no prompts", ["--model", "builtin:arithmetic", "--num_prompts", "0"], "at least 1"],
  ["a reward model's flag", ["--model", "builtin:arithmetic", "--max_length", "9"], "is for reward models"],
  [
    "a quantized model",
    ["--model", join(GOLDENS, "qwen3_int8_folder/model")],
    "quantized already, to 8 bits",
  ],
  ["broken data", ["--model", "builtin:arithmetic", "--dataset", badly], `${badly}:`],
];
test.each(refusals)("%s: one line, exit code 2", async (_name, flags, message) => {
  const dataset = flags.includes("--dataset") ? ["--device", "cpu", "--max_new_tokens", "16"] : data;
  const { code, out, err } = await rlv(["quantize", ...flags, ...dataset]);
  expect(code).toBe(2);
  expect(out).toBe("");
  const errors = err
    .trimEnd()
    .split("\n")
    .filter((text) => text.startsWith("rlv: error:"));
  expect(errors.length).toBe(1);
  expect(errors[0]).toContain(message);
});
