/** Files that readers of src/io and src/report get, changed by chance; run by fuzz.ts. */
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import fc from "fast-check";
import { newestCheckpoint, verifyCheckpoint, writeCheckpoint } from "../../src/io/checkpoint-folder.ts";
import { isDualFolder, readDualConfig } from "../../src/io/dual-folder.ts";
import { checkWeights, openWeights, readModelConfig } from "../../src/io/hf-folder.ts";
import { readDataset, truncateAfterStep } from "../../src/io/jsonl.ts";
import { openAdapterWeights, readAdapterConfig } from "../../src/io/peft-folder.ts";
import { RolloutsDb } from "../../src/io/rollouts-db.ts";
import { readRollouts } from "../../src/io/rollouts-reader.ts";
import { openRowFile } from "../../src/io/row-file.ts";
import { openSafetensors, writeSafetensors } from "../../src/io/safetensors.ts";
import { parseStrictJson } from "../../src/io/strict-json.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { diversitySteps } from "../../src/report/diversity-steps.ts";
import { readJudged } from "../../src/report/judge.ts";
import { allRows, firstRow, lastRows, sampleOf } from "../../src/report/metrics.ts";
import { rewardReport } from "../../src/report/rewards.ts";
import { readRun } from "../../src/report/runs.ts";
import { makeRun, steps } from "../report/fixture.ts";
import { runCases } from "./fuzz-child.ts";

const goldens = resolve(import.meta.dir, "../goldens");

interface Reader {
  /** Makes the valid folder. */
  make(dir: string): void;
  read(dir: string): unknown;
  /** Files to change; all. */
  only?: RegExp;
}

const copy = (from: string) => (dir: string) => cpSync(join(goldens, from), dir, { recursive: true });
const floats = new Uint8Array(new Float32Array([1, -2, 3.5, 0, 5, 6]).buffer);

function readTokenizer(dir: string): void {
  const tokenizer = Tokenizer.load(dir);
  const ids = tokenizer.encode("Hello, wörld! 12 <s>\n\t aé", { addSpecialTokens: true });
  tokenizer.decode(ids);
}

const PARQUET = ["none", "gzip", "messages", "delta-1", "delta-2", "dictionary-1", "dictionary-2"].map(
  (name) => `${name}.parquet`,
);

const READERS: Readonly<Record<string, Reader>> = {
  safetensors: {
    make: (dir) =>
      writeSafetensors(join(dir, "a.safetensors"), [
        { name: "weight", dtype: "F32", shape: [2, 3], data: floats },
        { name: "half", dtype: "BF16", shape: [12], data: floats },
        { name: "none", dtype: "F16", shape: [0, 7], data: new Uint8Array(0) },
      ]),
    read: (dir) => {
      using file = openSafetensors(join(dir, "a.safetensors"));
      for (const name of file.tensors.keys()) [file.read(name), file.readFloat32(name)];
    },
  },
  "strict JSON": {
    make: (dir) => writeFileSync(join(dir, "a.json"), '{"a":[1,2.5e3,"\\u00e9\\n",{"b":null}],"c":true}'),
    read: (dir) => parseStrictJson(readFileSync(join(dir, "a.json"), "utf8"), "a.json"),
  },
  "tokenizer, byte-level": { make: copy("text/bytelevel_bpe_qwen/tokenizer"), read: readTokenizer },
  "tokenizer, unigram": { make: copy("text/unigram_byte_fallback/tokenizer"), read: readTokenizer },
  "tokenizer, WordPiece": { make: copy("text/wordpiece_simplestories/tokenizer"), read: readTokenizer },
  "tokenizer, SentencePiece": { make: copy("text/sentencepiece_bpe_llama/tokenizer"), read: readTokenizer },
  "model folder": {
    make: copy("models/llama3_rope_scaling/model"),
    read: (dir) => {
      const config = readModelConfig(dir);
      using weights = openWeights(dir);
      checkWeights(config, weights);
    },
  },
  "sharded model folder": {
    make: copy("models/qwen3_untied_sharded/model"),
    only: /json$/,
    read: (dir) => {
      const config = readModelConfig(dir);
      using weights = openWeights(dir);
      checkWeights(config, weights);
    },
  },
  adapters: {
    make: (dir) => {
      const adapter = readdirSync(join(goldens, "peft/causal_rank_patterns"), { recursive: true })
        .map(String)
        .find((path) => path.endsWith("adapter_config.json"))!;
      cpSync(join(goldens, "peft/causal_rank_patterns", dirname(adapter)), dir, { recursive: true });
    },
    read: (dir) => {
      readAdapterConfig(dir);
      using file = openSafetensors(join(dir, "adapter_model.safetensors"));
      openAdapterWeights(dir, new Map([...file.tensors].map(([name, { shape }]) => [name, shape]))).close();
    },
  },
  "retain and forget adapters": {
    make: (dir) => {
      writeSafetensors(join(dir, "adapter_model.safetensors"), [
        { name: "base_model.model.q_proj.retain.lora_A.weight", dtype: "F32", shape: [2, 3], data: floats },
      ]);
      const side = { r: 2, lora_alpha: 4, target_modules: ["q_proj"], rank_pattern: {}, alpha_pattern: {} };
      const config = {
        peft_type: "DUAL_LORA",
        task_type: "CAUSAL_LM",
        lora_dropout: 0,
        retain: side,
        forget: side,
      };
      writeFileSync(join(dir, "adapter_config.json"), JSON.stringify(config));
    },
    read: (dir) => [isDualFolder(dir), readDualConfig(dir)],
  },
  "JSON lines": {
    make: (dir) => writeFileSync(join(dir, "a.jsonl"), '{"a":1,"step":1}\n\n{"a":"é","step":9}\n{"a":[]}'),
    read: (dir) => {
      truncateAfterStep(join(dir, "a.jsonl"), 5);
      readDataset(join(dir, "a.jsonl"), ["a"]);
    },
  },
  "gzipped rows": {
    make: (dir) =>
      writeFileSync(join(dir, "a.jsonl.gz"), Bun.gzipSync(Buffer.from('{"a":1}\n{"a":"é"}\n{"a":[]}'))),
    read: async (dir) => {
      const file = await openRowFile(join(dir, "a.jsonl.gz"), ["a"]);
      for (let i = 0; i < file.length; i++) file.row(i);
    },
  },
  parquet: {
    make: (dir) => {
      for (const name of PARQUET) cpSync(join(import.meta.dir, `../io/parquet/${name}`), join(dir, name));
    },
    read: async (dir) => {
      const errors = new Set<unknown>();
      for (const name of PARQUET) {
        const columns = ["text", "prompt", "messages", "chosen", "flag", "number", "big", "score"];
        try {
          const file = await openRowFile(join(dir, name), columns);
          for (let i = 0; i < Math.min(file.length, 1000); i++) file.row(i);
        } catch (error) {
          errors.add(error);
        }
      }
      for (const error of errors) throw error;
    },
  },
  checkpoint: {
    make: (dir) => {
      for (const name of ["step-1", "final"])
        writeCheckpoint(dir, name, (at) => {
          writeFileSync(join(at, "part"), "bytes");
          writeFileSync(join(at, "train_state.json"), '{"step":1}');
        });
    },
    read: (dir) => {
      verifyCheckpoint(join(dir, "final"));
      newestCheckpoint(dir);
    },
  },
  "run folder": {
    make: (dir) => {
      makeRun(dir, "run", { rows: steps(6), checkpoints: ["step-3"], outcome: 0 });
    },
    read: (dir) => {
      const run = join(dir, "run");
      readRun(run);
      [...allRows(run)];
      [lastRows(run, 100), firstRow(run), sampleOf(run, "train/loss", 4, 64)];
    },
  },
  "rollouts.sqlite": {
    make: (dir) => {
      using db = new RolloutsDb(join(dir, "rollouts.sqlite"));
      for (let step = 1; step <= 6; step++)
        db.add({
          ...{ step, epoch: 0, prompt_index: step, rollout_index: 0, reward: 1 / step, advantage: 0 },
          ...{ prompt: "a prompt", completion: "words ".repeat(40) },
        });
    },
    read: (dir) => {
      const path = join(dir, "rollouts.sqlite");
      readRollouts(path, (db) => [rewardReport(db, 100), diversitySteps(db, "rollouts", 100)]);
      readJudged(path, "rollouts", 10);
    },
  },
};

const odd = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    false,
    "",
    "a",
    [],
    {},
    -1,
    0,
    1,
    0.5,
    1e308,
    2 ** 31,
    2 ** 32,
    2 ** 53,
    -0.0,
  ),
  fc.constantFrom<unknown>("@NaN", "@1e999", "__proto__", "a".repeat(5000), [[[[[]]]]], { a: { a: {} } }),
  fc.nat(),
  fc.string({ maxLength: 6 }),
  fc.constant("@deep"),
);
const change = fc.record({
  file: fc.nat(),
  structural: fc.boolean(),
  op: fc.constantFrom("flip", "cut", "insert", "double", "end", "huge", "same", "swap"),
  at: fc.nat(),
  to: fc.nat(),
  size: fc.oneof(fc.nat({ max: 8 }), fc.nat({ max: 400 })),
  bytes: fc.uint8Array({ maxLength: 8 }),
  odd,
});
type Change = typeof change extends fc.Arbitrary<infer T> ? T : never;

/** Changes one place of parsed JSON. */
function changeJson(root: unknown, { op, at, to, odd: given, size }: Change): unknown {
  const odd = structuredClone(given);
  const holders: { in: Record<string, unknown>; key: string }[] = [];
  const box = { root };
  const walk = (holder: Record<string, unknown>) => {
    for (const key of Object.keys(holder).slice(0, 400)) {
      holders.push({ in: holder, key });
      const value = holder[key];
      if (typeof value === "object" && value !== null) walk(value as Record<string, unknown>);
    }
  };
  walk(box as Record<string, unknown>);
  // Structure lies near the root; most nodes of a vocabulary are words.
  const pick = (n: number) => holders[n % 3 === 0 ? n % holders.length : n % Math.min(holders.length, 60)]!;
  const { in: holder, key } = pick(at);
  const other = pick(to);
  switch (op) {
    case "cut":
      if (Array.isArray(holder)) holder.splice(Number(key), 1);
      else delete holder[key];
      break;
    case "insert":
      if (Array.isArray(holder)) holder.push(odd);
      else holder[String(odd)] = odd;
      break;
    case "double":
      if (Array.isArray(holder)) holder.push(structuredClone(holder[key]));
      else holder[`${key}2`] = structuredClone(holder[key]);
      break;
    case "same":
      holder[key] = structuredClone(other.in[other.key]);
      break;
    case "swap": {
      const kept = structuredClone(holder[key]);
      holder[key] = structuredClone(other.in[other.key]);
      other.in[other.key] = kept;
      break;
    }
    case "huge":
      holder[key] =
        typeof holder[key] === "number" ? (holder[key] as number) * 2 ** (size % 60) : [holder[key]];
      break;
    default:
      holder[key] = odd;
  }
  return box.root;
}

const jsonText = (value: unknown) =>
  JSON.stringify(value)
    ?.replaceAll('"@NaN"', "NaN")
    .replaceAll('"@1e999"', "1e999")
    .replaceAll('"@deep"', `${"[".repeat(20_000)}${"]".repeat(20_000)}`) ?? "";

function changeBytes(data: Buffer, { op, at, to, size, bytes }: Change): Buffer {
  const n = data.length;
  if (n === 0) return Buffer.from(bytes);
  // Headers lie at either end.
  const from = [at % n, at % Math.min(n, 64), n - 1 - (at % Math.min(n, 200))][to % 3]!;
  const until = Math.min(n, from + size);
  switch (op) {
    case "cut":
      return Buffer.concat([data.subarray(0, from), data.subarray(until)]);
    case "insert":
      return Buffer.concat([data.subarray(0, from), bytes, data.subarray(from)]);
    case "double":
      return Buffer.concat([data.subarray(0, until), data.subarray(from)]);
    case "end":
      return data.subarray(0, from);
    case "huge": {
      const filled = Buffer.from(data);
      return filled.fill(to % 2 ? 0xff : 0x7f, from, Math.min(n, from + (size % 9)));
    }
    case "same": {
      const copied = Buffer.from(data);
      copied.copyWithin(from, to % n, Math.min(n, (to % n) + size));
      return copied;
    }
    default: {
      const changed = Buffer.from(data);
      for (const [i, byte] of bytes.entries()) if (from + i < n) changed[from + i]! ^= byte;
      return changed;
    }
  }
}

function changed(path: string, data: Buffer, change: Change): Buffer {
  if (!change.structural) return changeBytes(data, change);
  try {
    if (path.endsWith(".json")) return Buffer.from(jsonText(changeJson(JSON.parse(String(data)), change)));
    if (path.endsWith(".jsonl")) {
      const lines = String(data).split("\n");
      const at = change.to % lines.length;
      lines[at] = jsonText(changeJson(JSON.parse(lines[at]!), change));
      return Buffer.from(lines.join("\n"));
    }
    if (path.endsWith(".safetensors")) {
      const end = 8 + Number(data.readBigUInt64LE(0));
      const text = Buffer.from(jsonText(changeJson(JSON.parse(String(data.subarray(8, end))), change)));
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(text.length));
      return Buffer.concat([length, text, data.subarray(end)]);
    }
  } catch {
    // No longer what its name says.
  }
  return changeBytes(data, change);
}

function filesOf(dir: string): string[] {
  return readdirSync(dir, { recursive: true })
    .map((name) => join(dir, String(name)))
    .filter((path) => statSync(path).isFile());
}

export const SUBJECTS = Object.keys(READERS);

if (import.meta.main) {
  const [, subject, cases, seed] = process.argv.slice(1);
  const { make, read, only } = READERS[subject!]!;
  const root = mkdtempSync(join(tmpdir(), "rlv-readers-"));
  const dir = join(root, "case");
  mkdirSync(dir);
  make(dir);
  const whole = new Map(filesOf(dir).map((path) => [path, readFileSync(path)]));
  const names = [...whole.keys()].filter((path) => only?.test(relative(dir, path)) ?? true).sort();
  await read(dir);
  await runCases(
    fc.array(change, { minLength: 1, maxLength: 5 }),
    Number(cases),
    Number(seed),
    async (changes) => {
      const now = new Map<string, Buffer>();
      for (const each of changes) {
        const path = names[each.file % names.length]!;
        now.set(path, changed(path, now.get(path) ?? whole.get(path)!, each));
      }
      for (const [path, data] of now) writeFileSync(path, data);
      try {
        await read(dir);
      } finally {
        for (const path of filesOf(dir)) if (!whole.has(path)) rmSync(path);
        for (const path of now.keys()) writeFileSync(path, whole.get(path)!);
      }
    },
  );
}
