/** A folder like a clone of a newcomer's, with small stand-ins for the models and files that the documents name. */
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { RUBRIC } from "../../scripts/judge-language.ts";
import { DEFAULTS, makePreferences } from "../../scripts/make-preferences.ts";
import { smallQwen3 } from "../../scripts/small-qwen3.ts";
import { writeSmallTokenizer } from "../../scripts/small-tokenizer.ts";
import { readModelConfig } from "../../src/io/hf-folder.ts";
import { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { initialise, saveModel } from "../../src/run/open-model.ts";
import "../../src/ops/index.ts";
import type { HubRepo } from "../io/hub-server.ts";
import { openTestDevice } from "../test-device.ts";

export const root = resolve(import.meta.dir, "../..");
const CONTEXT = 4096;
const CHATML =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/** A random model of the architecture that is asked for, in a few kilobytes. */
function smallModel(folder: string): void {
  const tokenizer = writeSmallTokenizer(folder, ["▁"], CONTEXT, { chat_template: CHATML });
  const size = {
    vocab: 32 * Math.ceil(tokenizer.vocabSize / 32),
    eos: tokenizer.eosIds[0]!,
    hidden: 32,
    ffn: 64,
    layers: 2,
    headDim: 16,
  };
  const config = { ...smallQwen3(size), max_position_embeddings: CONTEXT };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  const device = openTestDevice(1);
  const options = { dtype: Dtype.f32, trainable: false, maxPositions: 16 } as const;
  const model = new Transformer(device, readModelConfig(folder), options);
  initialise(model, 5);
  saveModel(folder, model, tokenizer);
  model.dispose();
  device.close();
}

const jsonl = (rows: readonly object[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
const sums = (from: number, count: number) =>
  Array.from({ length: count }, (_, i) => ({
    prompt: `What is ${from + i} + 1? Answer with an integer.`,
    answer: String(from + i + 1),
  }));

/** Programs that put the flags of a block in the place of those that the documents say. */
function wrapper(
  path: string,
  program: string,
  cases: readonly (readonly [pattern: string, flags: string])[],
) {
  const lines = cases.flatMap(([pattern, flags]) => [
    `${pattern})`,
    "n=$#",
    "while [ $n -gt 0 ]; do",
    "  word=$1; shift; n=$((n - 1))",
    '  case "$word" in',
    `    ${[...flags.matchAll(/--\w+/g)].join("|")}) shift; n=$((n - 1)) ;;`,
    '    *) set -- "$@" "$word" ;;',
    "  esac",
    "done",
    `set -- "$@" ${flags} ;;`,
  ]);
  const choose = lines.length === 0 ? [] : ['case "$1" in', ...lines, "esac"];
  writeFileSync(path, `${["#!/bin/sh", ...choose, `exec '${program}' "$@"`].join("\n")}\n`);
  chmodSync(path, 0o755);
}

/** `append`: by the name of a command of rlv, or of a script. */
export function writePrograms(folder: string, append: ReadonlyMap<string, string>): void {
  const scripts = [...append].filter(([name]) => name.endsWith(".ts"));
  const commands = [...append].filter(([name]) => !name.endsWith(".ts"));
  mkdirSync(join(folder, "node_modules/.bin"), { recursive: true });
  wrapper(join(folder, "rlv"), join(root, "rlv"), commands);
  wrapper(
    join(folder, "node_modules/.bin/bun"),
    join(root, "node_modules/.bin/bun"),
    scripts.map(([name, flags]) => [`*${name}`, flags] as const),
  );
}

export function makeWorld(folder: string): void {
  for (const name of ["scripts", "src", "examples", "bench", "tests", "package.json", "metal"])
    symlinkSync(join(root, name), join(folder, name));
  smallModel(join(folder, "Qwen3-0.6B"));
  cpSync(join(folder, "Qwen3-0.6B"), join(folder, "Qwen3-4B"), { recursive: true });
  makePreferences(join(folder, "hh-rlhf"), { ...DEFAULTS, train: 60, test: 30, sft: 10 });
  const files: Readonly<Record<string, string>> = {
    "mine.jsonl": jsonl(sums(1, 24)),
    "held-out.jsonl": jsonl(sums(30, 8)),
    "prompts.jsonl": jsonl(sums(1, 8).map(({ prompt }) => ({ prompt }))),
    "chats.jsonl": jsonl(
      sums(1, 16).map(({ prompt, answer }) => ({
        messages: [
          { role: "user", content: prompt },
          { role: "assistant", content: answer },
        ],
      })),
    ),
    "mine.yaml": RUBRIC,
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
}

/** A folder as a repository of the hub. */
export function repositoryOf(folder: string): HubRepo {
  const files = new Map(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]));
  return { commits: [{ sha: "d".repeat(40), files }], lfs: (path) => path.endsWith(".safetensors") };
}
