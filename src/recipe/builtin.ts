/**
 * The model and the problems that ship with rlv, under names like builtin:arithmetic. From a clone they are files
 * of this folder; a standalone binary carries them and unpacks them once into the cache folder.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheDir } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { STANDALONE } from "../core/version.ts";
import { writeFileAtomic } from "../io/atomic.ts";
import evalProblems from "./arithmetic/eval.jsonl" with { type: "file" };
import config from "./arithmetic/model/config.json" with { type: "file" };
import generationConfig from "./arithmetic/model/generation_config.json" with { type: "file" };
import weights from "./arithmetic/model/model.safetensors" with { type: "file" };
import tokenizer from "./arithmetic/model/tokenizer.json" with { type: "file" };
import tokenizerConfig from "./arithmetic/model/tokenizer_config.json" with { type: "file" };
import trainProblems from "./arithmetic/train.jsonl" with { type: "file" };
import evalPrompts from "./values/eval.jsonl" with { type: "file" };
import rubric from "./values/rubric.yaml" with { type: "file" };
import trainPrompts from "./values/train.jsonl" with { type: "file" };

const path = (file: unknown): string => file as string;

type Recipe = "arithmetic" | "values";

/** By recipe, where they lie below its folder. */
const FILES: Readonly<Record<Recipe, Readonly<Record<string, string>>>> = {
  arithmetic: {
    "model/config.json": path(config),
    "model/generation_config.json": path(generationConfig),
    "model/model.safetensors": path(weights),
    "model/tokenizer.json": path(tokenizer),
    "model/tokenizer_config.json": path(tokenizerConfig),
    "eval.jsonl": path(evalProblems),
    "train.jsonl": path(trainProblems),
  },
  values: {
    "eval.jsonl": path(evalPrompts),
    "rubric.yaml": path(rubric),
    "train.jsonl": path(trainPrompts),
  },
};

const NAMES: Readonly<Record<string, readonly [Recipe, string]>> = {
  "builtin:arithmetic": ["arithmetic", "model"],
  "builtin:arithmetic/train.jsonl": ["arithmetic", "train.jsonl"],
  "builtin:arithmetic/eval.jsonl": ["arithmetic", "eval.jsonl"],
  "builtin:values/train.jsonl": ["values", "train.jsonl"],
  "builtin:values/eval.jsonl": ["values", "eval.jsonl"],
  "builtin:values/rubric.yaml": ["values", "rubric.yaml"],
};

/** A path on disk for a builtin name; any other path as it is. */
export function resolveBuiltin(name: string): string {
  if (!name.startsWith("builtin:")) return name;
  const named = NAMES[name];
  if (named === undefined) {
    throw new UsageError(`no such builtin ${name}`, undefined, `there are ${Object.keys(NAMES).join(", ")}`);
  }
  return join(folder(named[0]), named[1]);
}

function folder(recipe: Recipe): string {
  if (!STANDALONE) return join(import.meta.dir, recipe);
  const contents = Object.entries(FILES[recipe]).map(([name, file]) => ({ name, data: readFileSync(file) }));
  const hash = createHash("sha256");
  for (const { name, data } of contents) hash.update(name).update(data);
  const target = join(cacheDir(), "models", `${recipe}-${hash.digest("hex").slice(0, 16)}`);
  if (existsSync(target)) return target;
  const temporary = `${target}.${process.pid}.tmp`;
  for (const { name, data } of contents) {
    mkdirSync(join(temporary, name, ".."), { recursive: true });
    writeFileAtomic(join(temporary, name), data);
  }
  try {
    renameSync(temporary, target);
  } catch (error) {
    // Another process was faster.
    rmSync(temporary, { recursive: true, force: true });
    if (!existsSync(target)) throw error;
  }
  return target;
}
