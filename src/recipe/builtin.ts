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

const path = (file: unknown): string => file as string;

const FILES: Readonly<Record<string, string>> = {
  "model/config.json": path(config),
  "model/generation_config.json": path(generationConfig),
  "model/model.safetensors": path(weights),
  "model/tokenizer.json": path(tokenizer),
  "model/tokenizer_config.json": path(tokenizerConfig),
  "eval.jsonl": path(evalProblems),
  "train.jsonl": path(trainProblems),
};

const NAMES: Readonly<Record<string, string>> = {
  "builtin:arithmetic": "model",
  "builtin:arithmetic/train.jsonl": "train.jsonl",
  "builtin:arithmetic/eval.jsonl": "eval.jsonl",
};

/** A path on disk for a builtin name; any other path as it is. */
export function resolveBuiltin(name: string): string {
  if (!name.startsWith("builtin:")) return name;
  const inside = NAMES[name];
  if (inside === undefined) {
    throw new UsageError(`no such builtin ${name}`, undefined, `there are ${Object.keys(NAMES).join(", ")}`);
  }
  return join(folder(), inside);
}

function folder(): string {
  if (!STANDALONE) return join(import.meta.dir, "arithmetic");
  const contents = Object.entries(FILES).map(([name, file]) => ({ name, data: readFileSync(file) }));
  const hash = createHash("sha256");
  for (const { name, data } of contents) hash.update(name).update(data);
  const target = join(cacheDir(), "models", `arithmetic-${hash.digest("hex").slice(0, 16)}`);
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
