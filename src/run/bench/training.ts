/** Training passes by themselves: of a language model, and a whole step of a reward model. */
import type { BenchOptions } from "../../config/schema-inference.ts";
import { UsageError } from "../../core/errors.ts";
import { AdamW } from "../../nn/optimizer.ts";
import { packGroups } from "../../rollout/pack.ts";
import { forwardRow } from "../../rollout/score.ts";
import { Graph, StepMemory } from "../../tape/tape.ts";
import { PreferenceStep } from "../preference-step.ts";
import { Bench, type Context, median, type Result, seconds } from "./context.ts";
import { TRAIN_OPTIONS } from "./grpo.ts";
import { promptIds } from "./shapes.ts";

export async function train(options: BenchOptions<"train">, context: Context): Promise<Result> {
  using bench = new Bench("train", options, context.talk);
  const { shape, batch, seq, checkpointing } = options;
  const model = bench.model(shape, seq, { trainable: true, checkpointing });
  const memory = new StepMemory(bench.device);
  const row = packGroups(
    Array.from({ length: batch }, (_, i) => {
      const ids = promptIds(i, seq, model.config.vocabSize);
      return { prompt: ids.slice(0, 1), completions: [ids.slice(1)] };
    }),
  );
  const forward: number[] = [];
  const backward: number[] = [];
  await bench.repeat((i) => {
    model.parameters.zeroGradients();
    memory.finish();
    const begin = performance.now();
    const g = new Graph(memory, true);
    const { logprob, entropy } = forwardRow(g, model, row, 1);
    memory.finish();
    const middle = performance.now();
    g.backward([[logprob, g.upload(new Float32Array(logprob.size).fill(-1 / logprob.size), "seed")]]);
    g.release(logprob, entropy);
    memory.finish();
    if (i === 0) return;
    backward.push(seconds(middle));
    forward.push((middle - begin) / 1000);
  });
  const rows = { tokens: row.ids.length, pairs: row.pairs, scored: row.targets.length };
  const costs = bench.costs(shape);
  const tokens = batch * seq;
  return bench.result(
    shape,
    {
      ...{ batch, seq, checkpointing },
      forward_tokens_per_s: tokens / median(forward),
      tokens_per_s: tokens / median(forward.map((s, i) => s + backward[i]!)),
    },
    [
      { name: "forward", seconds: forward, work: [costs.forward(rows)] },
      { name: "backward", seconds: backward, work: [costs.backward(rows)] },
    ],
  );
}

/** One optimizer step of a reward model on pairs. */
export async function rm(options: BenchOptions<"rm">, context: Context): Promise<Result> {
  const { shape, pairs, seq, prompt, checkpointing } = options;
  if (prompt > seq)
    throw new UsageError(`--prompt ${prompt} --seq ${seq}`, "bench rm", "give a shorter prompt");
  using bench = new Bench("rm", options, context.talk);
  const model = bench.model(shape, seq, { trainable: true, checkpointing, kind: "reward" });
  const memory = new StepMemory(bench.device);
  const optimizer = new AdamW(model.parameters, { ...TRAIN_OPTIONS, seed: options.seed });
  const step = new PreferenceStep(memory, model, optimizer, {
    microBatchTokens: options.micro_batch_tokens,
    center: 0,
    sharePrefix: true,
  });
  const vocab = model.config.vocabSize;
  const data = Array.from({ length: pairs }, (_, i) => {
    const chosen = promptIds(2 * i, seq, vocab);
    const rejected = promptIds(2 * i + 1, seq, vocab);
    rejected.set(chosen.subarray(0, prompt));
    return { chosen, rejected };
  });
  const training: number[] = [];
  const update: number[] = [];
  const steps = await bench.repeat(async (i) => {
    const metrics = await step.update(data, i + 1, 1e-6);
    if (i === 0) return;
    update.push(metrics["train/optimizer_time"]!);
    training.push(metrics["train/step_time"]! - metrics["train/optimizer_time"]!);
  });
  const rest = seq - prompt;
  const rows = {
    tokens: pairs * (prompt + 2 * rest),
    pairs: pairs * ((prompt * (prompt + 1)) / 2 + 2 * (rest * prompt + (rest * (rest + 1)) / 2)),
    scored: 2 * pairs,
  };
  const costs = bench.costs(shape, "reward");
  return bench.result(
    shape,
    { pairs, seq, prompt, checkpointing, step_s: median(steps), steps, tokens: rows.tokens },
    [
      { name: "training", seconds: training, work: [costs.forward(rows), costs.backward(rows)] },
      { name: "optimizer", seconds: update, work: [costs.optimizer(model.parameters.count)] },
    ],
    median(steps),
  );
}
