/** `rlv bench`: speed of whole jobs and of single operations, each beside what this machine could do at most. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BenchName, BenchOptions } from "../config/schema-inference.ts";
import { threadCount } from "../core/env.ts";
import { assert } from "../core/errors.ts";
import { Purpose } from "../core/rng.ts";
import type { Device } from "../device/device.ts";
import { writeModelFolder } from "../io/hf-folder.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { TRL_ADVANTAGE } from "../loss/advantage.ts";
import { policyOptions } from "../loss/options.ts";
import { AdamW } from "../nn/optimizer.ts";
import type { Quantization } from "../nn/quantized.ts";
import { Transformer } from "../nn/transformer.ts";
import { Dtype } from "../ops/define.ts";
import { catalogue } from "../ops/index.ts";
import { RolloutEngine } from "../rollout/engine.ts";
import { packGroups } from "../rollout/pack.ts";
import { forwardRow } from "../rollout/score.ts";
import { Graph, StepMemory } from "../tape/tape.ts";
import { configOf, promptIds, type Shape, sampling } from "./bench-shapes.ts";
import { Costs, type MachineLimit, sharedPairs } from "./limits.ts";
import { metalModel } from "./metal-model/model.ts";
import { dtypeCode, openDevice, openModel } from "./open-model.ts";
import { PolicyStep } from "./policy-step.ts";

type Common = Pick<
  BenchOptions<Exclude<BenchName, "metal-model">>,
  "device" | "threads" | "dtype" | "seed" | "steps"
>;

export type Result = Readonly<Record<string, unknown>> & { readonly name: BenchName };
export interface Context {
  readonly talk: (line: string) => void;
  /** argv that starts this program again. */
  readonly program: readonly string[];
}

const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const mid = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[mid]! : (sorted[mid - 1]! + sorted[mid]!) / 2;
};

/** Small pseudo-random weights: speed does not depend on values as long as everything stays finite. */
function fillWeights(model: Transformer): void {
  for (const p of model.parameters.list) {
    const size = p.shape.reduce((a, b) => a * b, 1);
    const values = new Float32Array(size);
    if (p.name.endsWith("norm.weight")) values.fill(1);
    else
      for (let i = 0, x = 12345; i < size; i++) {
        x = (Math.imul(x, 1664525) + 1013904223) | 0;
        values[i] = x * 2e-11;
      }
    model.parameters.load(p.name, values);
  }
}

/** A device with its limits, measured around the work in the same process; the better one counts. */
class Bench {
  readonly device: Device;
  #gflops = 0;
  #gbps = 0;
  #peak = 0;
  constructor(
    readonly name: BenchName,
    readonly options: Common,
    readonly talk: (line: string) => void,
  ) {
    this.device = openDevice(options.device, options.threads);
    this.#measureArithmetic();
  }

  #measureArithmetic(): void {
    const what = this.options.dtype === "bfloat16" ? "bf16" : "f32";
    this.#gflops = Math.max(this.#gflops, this.device.measure(what, 0.3));
  }

  /** After the work. The read test needs far more memory than any cache, so the peak is taken before it. */
  measure(): void {
    if (this.#peak === 0) this.#peak = this.device.stats().residentPeak;
    this.#measureArithmetic();
    for (let i = 0; i < 2; i++) this.#gbps = Math.max(this.#gbps, this.device.measure("read", 0.3));
  }

  get limit(): MachineLimit {
    return { gemm_gflops: this.#gflops, read_gbps: this.#gbps };
  }

  model(
    shape: Shape,
    maxPositions: number,
    trainable: boolean,
    checkpointing = false,
    quantization?: Quantization,
  ): Transformer {
    this.talk(`making random weights of shape ${shape}`);
    const dtype = dtypeCode(this.options.dtype);
    const model = new Transformer(
      this.device,
      configOf(shape),
      { dtype, trainable, maxPositions, checkpointing, quantization },
      shape,
    );
    fillWeights(model);
    return model;
  }

  costs(shape: Shape, weightBytes?: number): Costs {
    return new Costs(configOf(shape), this.options.dtype === "bfloat16" ? 2 : 4, weightBytes);
  }

  /** Seconds of each repetition after one warm-up. */
  async repeat(body: (i: number) => Promise<void> | void): Promise<number[]> {
    const seconds: number[] = [];
    for (let i = 0; i <= this.options.steps; i++) {
      const begin = performance.now();
      await body(i);
      if (i > 0) seconds.push((performance.now() - begin) / 1000);
      this.talk(`${this.name} ${i === 0 ? "warm-up" : `${i}/${this.options.steps}`}`);
    }
    this.measure();
    return seconds;
  }

  result(shape: string, figures: Record<string, unknown>, limitSeconds: number, seconds: number): Result {
    return {
      name: this.name,
      shape,
      device: this.device.name,
      threads: threadCount(this.options.threads),
      dtype: this.options.dtype,
      ...figures,
      peak_bytes: this.#peak,
      limit: this.limit,
      fraction_of_limit: limitSeconds / seconds,
    };
  }
}

async function grpo(options: BenchOptions<"grpo">, context: Context): Promise<Result> {
  const bench = new Bench("grpo", options, context.talk);
  const { prompt: P, completion: C, group: G, completions, beta, shape } = options;
  assert(completions % G === 0, "completions must be a multiple of group");
  const prompts = completions / G;
  const model = bench.model(shape, P + C, true, options.checkpointing);
  let reference: Transformer | null = null;
  if (beta > 0) {
    reference = new Transformer(
      bench.device,
      model.config,
      { ...model.options, trainable: false },
      "reference",
    );
    reference.copyFrom(model);
  }
  const memory = new StepMemory(bench.device);
  const optimizer = new AdamW(model.parameters, {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weightDecay: 0,
    maxGradNorm: 1,
    seed: options.seed,
  });
  const step = new PolicyStep(
    memory,
    model,
    reference,
    { decode: () => "" } as unknown as Tokenizer,
    optimizer,
    async (rollouts) => rollouts.map((r, i) => ({ ...r, reward: i % 2, components: {} })),
    {
      seed: options.seed,
      groupSize: G,
      numIterations: 1,
      stepsPerGeneration: 1,
      gradAccumSteps: 1,
      sampling: sampling(C),
      loss: policyOptions({ lossType: "grpo", beta }),
      advantage: TRL_ADVANTAGE,
      gamma: 1,
      maskTruncated: false,
      microBatchTokens: Math.max(2048, P + C),
      sharePrefix: options.share_prefix,
      exactSampler: true,
    },
    { maxBatch: Math.min(completions, 64), maxLength: P + C, prefillTokens: Math.max(P, 512) },
  );
  const data = Array.from({ length: prompts }, (_, index) => ({
    index,
    text: "",
    ids: promptIds(index, P, model.config.vocabSize),
    fields: {},
  }));
  const phases: Record<string, number>[] = [];
  let difference = 0;
  const seconds = await bench.repeat(async (i) => {
    await step.generate(i + 1, data);
    const metrics = await step.update(i + 1, 1e-6);
    difference = Math.max(difference, metrics["train/sampler_logp_diff_max"]!);
    if (i > 0) phases.push(metrics);
  });
  const phase = (name: string) => median(phases.map((m) => m[`train/${name}_time`]!));

  const costs = bench.costs(shape);
  const shared = options.share_prefix;
  const tokens = (shared ? prompts * P : completions * P) + completions * C;
  const pairs = shared ? sharedPairs(prompts, P, G, C) : sharedPairs(completions, P, 1, C);
  const flops =
    costs.training(tokens, pairs, completions * C) +
    (beta > 0 ? costs.forward(tokens, pairs, completions * C) : 0);
  let limit = flops / (bench.limit.gemm_gflops * 1e9);
  limit += costs.forward(prompts * P, (prompts * P * P) / 2, prompts) / (bench.limit.gemm_gflops * 1e9);
  for (let t = 1; t < C; t++) {
    limit += costs.decodeSeconds(
      completions,
      completions * (P + t),
      prompts * P + completions * t,
      bench.limit,
    );
  }
  limit += (28 * model.parameters.count) / (bench.limit.read_gbps * 1e9);
  const step_s = median(seconds);
  return bench.result(
    shape,
    {
      prompt: P,
      completion: C,
      group: G,
      completions,
      beta,
      share_prefix: shared,
      step_s,
      steps: seconds,
      rollout_s: phase("rollout"),
      reward_s: phase("reward"),
      reference_s: phase("reference"),
      train_s: phase("train"),
      sampler_logp_diff_max: difference,
    },
    limit,
    step_s,
  );
}

/** Codes, and of nf4 a scale for 64 of them. */
const QUANTIZATIONS = {
  none: null,
  int8: { type: "int8", head: true, weightBytes: 1 },
  int4: { type: "nf4", head: true, weightBytes: 0.5 + 4 / 64 },
} as const;

/** Decoding alone: the same request for one token and for one more than `tokens`; the difference is the decode. */
async function decode(options: BenchOptions<"decode">, context: Context): Promise<Result> {
  const bench = new Bench("decode", options, context.talk);
  const { shape, batch, prompt: P, tokens, quant } = options;
  const quantization = QUANTIZATIONS[quant];
  const model = bench.model(shape, P + tokens + 1, false, false, quantization ?? undefined);
  const memory = new StepMemory(bench.device);
  const engine = new RolloutEngine(memory, model, {
    maxBatch: batch,
    maxLength: P + tokens + 1,
    prefillTokens: P,
  });
  const request = { ids: promptIds(0, P, model.config.vocabSize), prompt: 0, completions: batch };
  const key = { seed: options.seed, purpose: Purpose.generate, step: 0 };
  const timed = (n: number) => {
    const begin = performance.now();
    engine.generate([request], sampling(n), key);
    return (performance.now() - begin) / 1000;
  };
  const steps: number[] = [];
  await bench.repeat((i) => {
    const first = timed(1);
    const all = timed(tokens + 1);
    if (i > 0) steps.push(all - first);
  });
  const seconds = median(steps);
  const costs = bench.costs(shape, quantization?.weightBytes);
  let limit = 0;
  for (let t = 1; t <= tokens; t++)
    limit += costs.decodeSeconds(batch, batch * (P + t), P + batch * t, bench.limit);
  const tokens_per_s = (batch * tokens) / seconds;
  return bench.result(shape, { batch, prompt: P, tokens, quant, tokens_per_s }, limit, seconds);
}

async function prefill(options: BenchOptions<"prefill">, context: Context): Promise<Result> {
  const bench = new Bench("prefill", options, context.talk);
  const { shape, tokens } = options;
  const length = Math.min(tokens, configOf(shape).maxPositionEmbeddings - 1);
  const model = bench.model(shape, length + 1, false);
  const memory = new StepMemory(bench.device);
  const engine = new RolloutEngine(memory, model, {
    maxBatch: 1,
    maxLength: length + 1,
    prefillTokens: length,
  });
  const request = { ids: promptIds(0, length, model.config.vocabSize), prompt: 0, completions: 1 };
  const key = { seed: options.seed, purpose: Purpose.generate, step: 0 };
  const seconds = median(
    await bench.repeat(() => {
      engine.generate([request], sampling(1), key);
    }),
  );
  const flops = bench.costs(shape).forward(length, (length * (length + 1)) / 2, 1);
  const limit = flops / (bench.limit.gemm_gflops * 1e9);
  return bench.result(shape, { tokens: length, tokens_per_s: length / seconds }, limit, seconds);
}

async function train(options: BenchOptions<"train">, context: Context): Promise<Result> {
  const bench = new Bench("train", options, context.talk);
  const { shape, batch, seq } = options;
  const model = bench.model(shape, seq, true, options.checkpointing);
  const memory = new StepMemory(bench.device);
  const groups = Array.from({ length: batch }, (_, i) => {
    const ids = promptIds(i, seq, model.config.vocabSize);
    return { prompt: ids.slice(0, 1), completions: [ids.slice(1)] };
  });
  const row = packGroups(groups);
  const forward: number[] = [];
  const seconds = await bench.repeat((i) => {
    const begin = performance.now();
    const plain = new Graph(memory, false);
    const scored = forwardRow(plain, model, row, 1);
    memory.finish();
    plain.release(scored.logprob, scored.entropy);
    if (i > 0) forward.push((performance.now() - begin) / 1000);
    model.parameters.zeroGradients();
    const g = new Graph(memory, true);
    const { logprob, entropy } = forwardRow(g, model, row, 1);
    g.backward([[logprob, g.upload(new Float32Array(logprob.size).fill(-1 / logprob.size), "seed")]]);
    g.release(logprob, entropy);
    memory.finish();
  });
  const both = median(seconds.map((s, i) => s - forward[i]!));
  const tokens = batch * seq;
  const pairs = (batch * seq * (seq + 1)) / 2;
  const limit = bench.costs(shape).training(tokens, pairs, tokens) / (bench.limit.gemm_gflops * 1e9);
  return bench.result(
    shape,
    { batch, seq, forward_tokens_per_s: tokens / median(forward), tokens_per_s: tokens / both },
    limit,
    both,
  );
}

/** Every operation of a training step and of decoding at the model's own shapes, timed on the device one by one. */
async function ops(options: BenchOptions<"ops">, context: Context): Promise<Result> {
  const bench = new Bench("ops", options, context.talk);
  const { shape } = options;
  const [batch, seq] = shape === "stories" ? [16, 128] : [4, 128];
  const model = bench.model(shape, seq + 64, true);
  const memory = new StepMemory(bench.device);
  const engine = new RolloutEngine(memory, model, { maxBatch: 16, maxLength: seq + 64, prefillTokens: seq });
  const groups = [
    {
      prompt: promptIds(0, 32, model.config.vocabSize),
      completions: Array.from({ length: batch }, (_, i) => promptIds(i + 1, seq, model.config.vocabSize)),
    },
  ];
  const row = packGroups(groups);
  const phases: Record<string, () => void> = {
    [`train ${row.ids.length} tokens`]: () => {
      const g = new Graph(memory, true);
      const { logprob, entropy } = forwardRow(g, model, row, 1);
      g.backward([[logprob, g.upload(new Float32Array(logprob.size).fill(-1e-3), "seed")]]);
      g.release(logprob, entropy);
      memory.finish();
    },
    "decode 16 rows": () => {
      const request = { ids: promptIds(0, seq, model.config.vocabSize), prompt: 0, completions: 16 };
      engine.generate([request], sampling(9), { seed: 1, purpose: Purpose.generate, step: 0 });
    },
  };
  const rows: Record<string, unknown>[] = [];
  let best = 0;
  let total = 0;
  for (const [name, run] of Object.entries(phases)) {
    run();
    bench.device.profile(true, catalogue.length);
    for (let i = 0; i < options.steps; i++) run();
    const profile = bench.device.profile(false, catalogue.length);
    bench.measure();
    const { gemm_gflops, read_gbps } = bench.limit;
    catalogue.forEach(({ op }, i) => {
      const [calls, ns, flops, bytes] = profile.subarray(4 * (i + 1), 4 * (i + 2)) as unknown as number[];
      if (!calls) return;
      const atLeast = Math.max(flops! / gemm_gflops, bytes! / read_gbps);
      best += atLeast;
      total += ns!;
      rows.push({
        op: op.name,
        shape: name,
        calls: calls / options.steps,
        ms: ns! / 1e6 / options.steps,
        gflops: flops! / ns!,
        gbps: bytes! / ns!,
        // Small operands stay in cache: more than the memory's limit is possible.
        fraction_of_limit: atLeast / ns!,
      });
    });
  }
  rows.sort((a, b) => (b.ms as number) - (a.ms as number));
  return bench.result(shape, { ops: rows }, best, total);
}

/** Start of the program, and loading a model folder of the shape up to usable weights. */
async function startup(options: BenchOptions<"startup">, context: Context): Promise<Result> {
  const bench = new Bench("startup", options, context.talk);
  const { shape } = options;
  const versions: number[] = [];
  for (let i = 0; i <= options.steps; i++) {
    const begin = performance.now();
    const child = Bun.spawnSync([...context.program, "version"]);
    assert(child.exitCode === 0, "version failed");
    if (i > 0) versions.push(performance.now() - begin);
  }
  const folder = mkdtempSync(join(tmpdir(), "rlv-bench-"));
  try {
    const model = bench.model(shape, 8, false);
    const bf16 = options.dtype === "bfloat16";
    writeModelFolder(
      folder,
      { ...model.config, dtype: options.dtype },
      model.parameters.list.map((p) => ({
        name: p.name,
        shape: p.shape,
        dtype: bf16 ? "BF16" : "F32",
        data: () => new Uint8Array(p.shape.reduce((a, b) => a * b, 1) * (bf16 ? 2 : 4)),
      })),
      [],
    );
    writeFileSync(join(folder, "generation_config.json"), "{}");
    model.dispose();
    const loads = await bench.repeat(() => {
      const code = bf16 ? Dtype.bf16 : Dtype.f32;
      openModel(folder, bench.device, { dtype: code, trainable: false, maxPositions: 8 }).dispose();
    });
    const config = configOf(shape);
    const bytes =
      bench.costs(shape).elementBytes * (bench.costs(shape).trunk + config.vocabSize * config.hiddenSize);
    const load = median(loads);
    return bench.result(
      shape,
      { version_ms: median(versions), load_ms: load * 1000 },
      bytes / (bench.limit.read_gbps * 1e9),
      load,
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export async function runBench<Name extends BenchName>(
  name: Name,
  options: BenchOptions<Name>,
  context: Context,
): Promise<Result> {
  const benches: {
    readonly [N in BenchName]: (options: BenchOptions<N>, context: Context) => Promise<Result>;
  } = {
    grpo,
    decode,
    prefill,
    train,
    ops,
    startup,
    "metal-model": async (options, context) => ({
      name: "metal-model",
      ...metalModel(options, context.talk),
    }),
  };
  return (benches[name] as (options: BenchOptions<Name>, context: Context) => Promise<Result>)(
    options,
    context,
  );
}
