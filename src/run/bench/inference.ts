/** Decoding and prefill by themselves. */
import type { BenchOptions } from "../../config/schema-inference.ts";
import { Purpose } from "../../core/rng.ts";
import type { Quantization } from "../../nn/quantized.ts";
import { RolloutEngine } from "../../rollout/engine.ts";
import { StepMemory } from "../../tape/tape.ts";
import { Bench, type Context, median, type Result } from "./context.ts";
import { configOf, promptIds, type Shape, sampling } from "./shapes.ts";

const key = (seed: number) => ({ seed, purpose: Purpose.generate, step: 0 });

/** Codes, and of nf4 a scale for 64 of them. */
const QUANTIZATIONS = {
  none: null,
  int8: { type: "int8", head: true, weightBytes: 1 },
  int4: { type: "nf4", head: true, weightBytes: 0.5 + 4 / 64 },
} as const;

/** An engine for `batch` completions of one prompt of P tokens. */
function engineFor(
  bench: Bench,
  shape: Shape,
  P: number,
  tokens: number,
  batch: number,
  quantization: Quantization | null = null,
) {
  const model = bench.model(shape, P + tokens, { trainable: false, quantization });
  const engine = new RolloutEngine(new StepMemory(bench.device), model, {
    maxBatch: batch,
    maxLength: P + tokens,
    prefillTokens: P,
  });
  const request = { ids: promptIds(0, P, model.config.vocabSize), prompt: 0, completions: batch };
  const generate = () => engine.generate([request], sampling(tokens), key(bench.options.seed));
  return { engine, generate };
}

/** The first token of each sequence belongs to the prompt, `tokens` more are decoded. */
export async function decode(options: BenchOptions<"decode">, context: Context): Promise<Result> {
  using bench = new Bench("decode", options, context.talk);
  const { shape, batch, prompt: P, tokens, quant } = options;
  const quantization = QUANTIZATIONS[quant];
  const { engine, generate } = engineFor(bench, shape, P, tokens + 1, batch, quantization);
  const seconds: number[] = [];
  await bench.repeat((i) => {
    const before = engine.seconds.decode;
    generate();
    if (i > 0) seconds.push(engine.seconds.decode - before);
  });
  const costs = bench.costs(shape, "causal", quantization?.weightBytes);
  const work = Array.from({ length: tokens }, (_, i) =>
    costs.decode(batch, batch * (P + i + 1), P + batch * (i + 1)),
  );
  const tokens_per_s = (batch * tokens) / median(seconds);
  return bench.result(shape, { batch, prompt: P, tokens, quant, tokens_per_s }, [
    { name: "decode", seconds, work },
  ]);
}

export async function prefill(options: BenchOptions<"prefill">, context: Context): Promise<Result> {
  using bench = new Bench("prefill", options, context.talk);
  const { shape } = options;
  const tokens = Math.min(options.tokens, configOf(shape).maxPositionEmbeddings - 1);
  const { engine, generate } = engineFor(bench, shape, tokens, 1, 1);
  const seconds: number[] = [];
  await bench.repeat((i) => {
    const before = engine.seconds.prefill;
    generate();
    if (i > 0) seconds.push(engine.seconds.prefill - before);
  });
  const work = [bench.costs(shape).prefill({ tokens, pairs: (tokens * (tokens + 1)) / 2, scored: 1 })];
  return bench.result(shape, { tokens, tokens_per_s: tokens / median(seconds) }, [
    { name: "prefill", seconds, work },
  ]);
}
