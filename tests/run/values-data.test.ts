/** The prompts and defaults that the recipe values ships with. */
import { expect, test } from "bun:test";
import { resolve } from "node:path";
import { baseOf, resolveTrain } from "../../src/config/resolve.ts";
import type { ValuesConfig } from "../../src/config/schema-values.ts";
import { type ChatStyle, promptOf } from "../../src/data/prompts.ts";
import { readDataset } from "../../src/io/jsonl.ts";
import { resolveBuiltin } from "../../src/recipe/builtin.ts";
import { TinyJudge } from "./judge-fixture.ts";

const KINDS = ["genuine", "nonsense", "false_premise", "unanswerable", "legitimate_claim"];
const read = (name: string) =>
  readDataset(resolveBuiltin(`builtin:values/${name}.jsonl`), ["prompt", "kind"]).map(({ row }) => row) as {
    prompt: string;
    kind: string;
  }[];

test("at least 300 prompts of five kinds, none twice, and a held-out part of them", () => {
  const [train, held] = [read("train"), read("eval")];
  expect(train.length + held.length).toBeGreaterThanOrEqual(300);
  expect(held.length).toBe(60);
  for (const part of [train, held])
    for (const kind of KINDS)
      expect(part.filter((row) => row.kind === kind).length).toBe(part.length / KINDS.length);
  const prompts = [...train, ...held].map(({ prompt }) => prompt.toLowerCase().replace(/\W+/g, " "));
  expect(new Set(prompts).size).toBe(prompts.length);
});

test("they are no template: few begin alike, and no two share most of their words", () => {
  const prompts = [...read("train"), ...read("eval")].map(({ prompt }) => prompt);
  const openings = new Map<string, number>();
  for (const prompt of prompts) {
    const opening = prompt.split(" ").slice(0, 3).join(" ");
    openings.set(opening, (openings.get(opening) ?? 0) + 1);
  }
  expect(Math.max(...openings.values())).toBeLessThan(prompts.length / 20);
  const sets = prompts.map((prompt) => new Set(prompt.toLowerCase().match(/[a-z]+/g) ?? []));
  for (const [i, a] of sets.entries())
    for (const b of sets.slice(i + 1)) {
      const shared = [...a].filter((word) => b.has(word)).length;
      if (shared / (a.size + b.size - shared) > 0.6) throw new Error(`${[...a]} and ${[...b]}`);
    }
});

test("the recipe's defaults are those of its config.yaml", () => {
  const base = baseOf({ target: "values", configFile: undefined, checkpoint: undefined });
  const config = resolveTrain(base, new Map()) as ValuesConfig;
  expect(config).toMatchObject({
    ...{ recipe: "values", model: "Qwen/Qwen3-0.6B", lora: false, judge: "initial" },
    ...{ judge_reading: "expected", scale_rewards: "group", enable_thinking: false },
  });
  expect(config.kl_coef).toBeGreaterThan(0);
  // Where the recipe says nothing of its own, its folder is the one that builtin names mean.
  expect(resolveBuiltin(config.rubric)).toBe(resolve(import.meta.dir, "../../src/recipe/values/rubric.yaml"));
});

test("a prompt is what a user says, by the chat template: with a system prompt and thoughts if asked", () => {
  using world = new TinyJudge();
  const { tokenizer } = world;
  const asked = (row: object, style: ChatStyle | null) => promptOf(row, tokenizer, "row", style).text;
  const plain = { system: null, thinking: false };
  expect(asked({ prompt: "Why?" }, null)).toBe("Why?");
  expect(asked({ prompt: "Why?" }, plain)).toBe("<|end|>user\nWhy?<|end|>assistant\n<think></think>");
  expect(asked({ prompt: "Why?" }, { system: "Be brief.", thinking: true })).toBe(
    "<|end|>system\nBe brief.<|end|><|end|>user\nWhy?<|end|>assistant\n",
  );
  const messages = [
    { role: "system", content: "Own." },
    { role: "user", content: "Why?" },
  ];
  expect(asked({ messages }, { system: "Be brief.", thinking: true })).toBe(
    "<|end|>system\nOwn.<|end|><|end|>user\nWhy?<|end|>assistant\n",
  );
  expect(asked({ prompt_ids: [...tokenizer.encode("Why?")] }, plain)).toBe("Why?");
  expect(() => asked({ prompt: 3 }, plain)).toThrow("prompt must be a string, messages a list: row");
});
