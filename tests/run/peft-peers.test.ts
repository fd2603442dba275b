/** Adapters between rlv and peft: runs where RLV_PYTHON names a Python with transformers and peft. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { Device } from "../../src/device/device.ts";
import { checkWeights, openWeights, parseModelConfig, readModelConfig } from "../../src/io/hf-folder.ts";
import type { LoraOptions } from "../../src/nn/adapters.ts";
import { Transformer } from "../../src/nn/transformer.ts";
import { Dtype, type DtypeCode } from "../../src/ops/define.ts";
import { packSequences } from "../../src/rollout/pack.ts";
import { forwardRewards, scoreGroups } from "../../src/rollout/score.ts";
import { merge } from "../../src/run/merge.ts";
import { initialise, loadAdapters, readAdapter, saveModel } from "../../src/run/open-model.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { largest, someTokenizer } from "../golden/support.ts";
import { promptOf, TINY } from "./tiny.ts";

const python = process.env.RLV_PYTHON;
const scratch = mkdtempSync(join(tmpdir(), "rlv-peft-peers-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const CONFIGS = {
  qwen3: TINY.qwen3,
  llama: TINY.llama,
  reward: {
    ...TINY.qwen3,
    architectures: ["Qwen3ForSequenceClassification"],
    num_labels: 1,
    pad_token_id: 0,
  },
} as const;
type Kind = keyof typeof CONFIGS;
const sequences = [3, 17, 40].map((n, i) => promptOf(n, 97, i));

/** The library's memory of a model on the CPU device. */
function withModel<T>(
  folder: string | Kind,
  lora: LoraOptions | null,
  dtype: DtypeCode,
  body: (model: Transformer, memory: StepMemory) => T,
): T {
  const device = Device.open("cpu", 1);
  const memory = new StepMemory(device);
  const config =
    folder in CONFIGS ? parseModelConfig(CONFIGS[folder as Kind], folder) : readModelConfig(folder);
  const model = new Transformer(device, config, { dtype, trainable: false, maxPositions: 64, lora });
  try {
    return body(model, memory);
  } finally {
    memory.dispose();
    model.dispose();
    device.close();
  }
}

function makeBase(kind: Kind): string {
  const folder = join(scratch, kind);
  withModel(kind, null, Dtype.f32, (model) => {
    initialise(model, 5, 0.12);
    saveModel(folder, model, someTokenizer());
  });
  return folder;
}

/** An adapter of random values, written by rlv. */
function writeAdapter(base: string, folder: string, lora: LoraOptions, dtype: DtypeCode): void {
  withModel(base, { ...lora, base }, dtype, (model) => {
    for (const [i, { name, shape }] of model.adapters!.list.entries()) {
      const random = new Random(3, Purpose.init, i);
      model.adapters!.load(
        name,
        Float32Array.from({ length: shape[0]! * shape[1]! }, () => 0.1 * random.normal()),
      );
    }
    saveModel(folder, model, someTokenizer());
  });
}

/** Log-probabilities of every token but the first, or the reward, in float32. */
function outputsOf(base: string, adapter: string | null): Float32Array[] {
  const lora = adapter === null ? null : readAdapter(adapter, readModelConfig(base));
  return withModel(base, lora, Dtype.f32, (model, memory) => {
    using weights = openWeights(base);
    checkWeights(model.config, weights);
    model.loadWeights(weights);
    if (adapter !== null) loadAdapters(model, adapter);
    if (model.config.kind === "causal") {
      const groups = sequences.map((ids) => ({ prompt: ids.slice(0, 1), completions: [ids.slice(1)] }));
      return scoreGroups(memory, model, groups, 1, 4096).logprobs.flat();
    }
    const g = new Graph(memory, false);
    const groups = sequences.map((ids) => ({ prompt: ids, completions: [new Int32Array(0)] }));
    const rewards = forwardRewards(g, model, packSequences(groups));
    memory.finish();
    const values = [...rewards.float32()].map((reward) => Float32Array.of(reward));
    g.release(rewards);
    return values;
  });
}

const some = { r: 8, alpha: 12, targets: ["q_proj", "v_proj", "down_proj"] };
const OURS: readonly [string, Kind, LoraOptions, DtypeCode][] = [
  ["some maps", "qwen3", some, Dtype.f32],
  ["some maps, bfloat16", "qwen3", some, Dtype.bf16],
  ["all-linear and rslora", "llama", { r: 4, alpha: 8, targets: "all-linear", rslora: true }, Dtype.f32],
  [
    "patterns",
    "qwen3",
    {
      ...{
        r: 6,
        alpha: 6,
        targets: { pattern: ".*layers\\.1\\..*_proj|.*\\.0\\.mlp\\.up_proj" },
        dropout: 0.1,
      },
      ...{ rankPattern: { "mlp.*": 2, q_proj: 3 }, alphaPattern: { "layers.1.self_attn.q_proj": 9 } },
    },
    Dtype.f32,
  ],
  ["a value head", "reward", { ...some, modulesToSave: ["score"] }, Dtype.f32],
];

const theirs = (task: string, more: Record<string, unknown>) => ({
  task_type: task,
  r: 4,
  lora_alpha: 8,
  ...more,
});
const THEIRS: readonly [string, Kind, Record<string, unknown>][] = [
  ["all-linear and rslora", "qwen3", theirs("CAUSAL_LM", { target_modules: "all-linear", use_rslora: true })],
  [
    "patterns",
    "llama",
    theirs("CAUSAL_LM", {
      target_modules: "model\\.layers\\.[01]\\.(self_attn\\.[qv]|mlp\\.gate)_proj",
      rank_pattern: { "self_attn.*": 2, gate_proj: 6 },
      alpha_pattern: { "^model.layers.0.mlp.gate_proj": 3, q_proj: 5 },
    }),
  ],
  ["a value head", "reward", theirs("SEQ_CLS", { target_modules: ["k_proj", "o_proj"] })],
  ["all-linear and a value head", "reward", theirs("SEQ_CLS", { target_modules: "all-linear" })],
];

interface Result {
  readonly outputs: number[][];
  readonly problems: string[];
}

/** One process for everything: imports take longer than the work. */
function prepare() {
  const bases = Object.fromEntries((Object.keys(CONFIGS) as Kind[]).map((kind) => [kind, makeBase(kind)]));
  const ours = OURS.map(([name, kind, lora, dtype], i) => {
    const [base, adapter] = [bases[kind]!, join(scratch, `ours-${i}`)];
    writeAdapter(base, adapter, lora, dtype);
    return { name: `${name}, by rlv`, base, adapter, config: undefined };
  });
  const written = THEIRS.map(([name, kind, config], i) => {
    return { name: `${name}, by peft`, base: bases[kind]!, adapter: join(scratch, `theirs-${i}`), config };
  });
  const plain = ours.map(({ name, base, adapter }, i) => {
    const out = join(scratch, `merged-${i}`);
    merge({ model: base, adapter, out, dtype: null }, () => {});
    return { name: `${name}, merged`, base: out, adapter: undefined, config: undefined };
  });
  const cases = [...ours, ...written, ...plain];
  const [asked, told] = [join(scratch, "jobs.json"), join(scratch, "results.json")];
  const ids = sequences.map((list) => [...list]);
  writeFileSync(asked, JSON.stringify(cases.map((c) => ({ ...c, sequences: ids }))));
  const script = join(import.meta.dir, "../python/check_peft.py");
  const env = { ...process.env, HF_HUB_OFFLINE: "1", OMP_NUM_THREADS: "1", OMP_WAIT_POLICY: "passive" };
  const { exitCode, stderr } = Bun.spawnSync([python!, script, asked, told], { env });
  if (exitCode !== 0) throw new Error(stderr.toString().split("\n").slice(-12).join("\n"));
  const results: Result[] = JSON.parse(readFileSync(told, "utf8"));
  return cases.map((c, i) => ({ ...c, result: results[i]! }));
}

if (!python) test.skip("adapters between rlv and peft: RLV_PYTHON names no Python", () => {});
else {
  describe.each(prepare().map((c) => [c.name, c] as const))("%s", (_name, c) => {
    test("the same outputs here and there", () => {
      const got = outputsOf(c.base, c.adapter ?? null);
      expect(c.result.problems).toEqual([]);
      expect(got.length).toBe(c.result.outputs.length);
      for (const [i, values] of got.entries())
        expect(largest(values, c.result.outputs[i]!)).toBeLessThan(1e-4);
      // An adapter that did nothing would agree too.
      if (c.adapter === undefined) return;
      const without = outputsOf(c.base, null);
      expect(Math.max(...got.map((values, i) => largest(values, without[i]!)))).toBeGreaterThan(0.01);
    });
  });
}
