/** Log-probabilities of many continuations: of one prompt, on one pass over it, and as lines of their own. */
import type { BenchOptions } from "../../config/schema-inference.ts";
import { RolloutEngine } from "../../rollout/engine.ts";
import { StepMemory } from "../../tape/tape.ts";
import {
  type ContinuationScore,
  encodePrefix,
  type Scorer,
  scoreBehind,
  scoreMany,
} from "../continuations.ts";
import { type Costs, groupRows, type Work } from "../limits.ts";
import { Bench, type Context, median, type Result, seconds } from "./context.ts";
import { promptIds } from "./shapes.ts";

/** As `rlv logprob` has it. */
const PACKED_TOKENS = 2048;

/** The forward pass over `prompts` prompts with G continuations each, whose last tokens predict nothing. */
function least(costs: Costs, prompts: number, P: number, G: number, C: number): Work {
  const { scored } = groupRows(prompts, P, G, C);
  return costs.forward({ ...groupRows(prompts, P, G, C - 1), scored });
}

/**
 * `shared`: one line with all continuations. `kept`: asked one after another of a prompt that is kept, its encoding
 * included. `separate`: a line each; equal prompts of different lines are not merged, lines share passes as they fit.
 */
export async function logprob(options: BenchOptions<"logprob">, context: Context): Promise<Result> {
  using bench = new Bench("logprob", options, context.talk);
  const { shape, prompt: P, continuations: G, continuation: C, separate_steps } = options;
  const model = bench.model(shape, P + C, { trainable: false });
  const memory = new StepMemory(bench.device);
  const scorer: Scorer = { memory, model, packedTokens: PACKED_TOKENS };
  const vocab = model.config.vocabSize;
  const prompt = promptIds(0, P, vocab);
  const completions = Array.from({ length: G }, (_, i) => promptIds(i + 1, C, vocab));
  let shared: readonly ContinuationScore[] = [];
  let kept: readonly ContinuationScore[] = [];
  const keptSeconds: number[] = [];
  const sharedSeconds: number[] = [];
  await bench.repeat(async (i) => {
    let begin = performance.now();
    [shared = []] = await scoreMany(scorer, [{ prompt, completions }], 1);
    if (i > 0) sharedSeconds.push(seconds(begin));
    begin = performance.now();
    const engine = new RolloutEngine(memory, model, {
      maxBatch: 1,
      maxLength: P,
      prefillTokens: PACKED_TOKENS,
    });
    const prefix = await encodePrefix(engine, prompt);
    kept = [];
    for (const one of completions) kept = [...kept, ...(await scoreBehind(scorer, prompt, prefix, [one], 1))];
    prefix?.release();
    engine.dispose();
    if (i > 0) keptSeconds.push(seconds(begin));
  });
  let separate: readonly ContinuationScore[] = [];
  const separateSeconds: number[] = [];
  for (let i = 0; i < separate_steps; i++) {
    const begin = performance.now();
    separate = (
      await scoreMany(
        scorer,
        completions.map((one) => ({ prompt, completions: [one] })),
        1,
      )
    ).flat();
    separateSeconds.push(seconds(begin));
    context.talk(`separate lines ${i + 1}/${separate_steps}`);
  }
  const costs = bench.costs(shape);
  const [shared_s, kept_s, separate_s] = [
    median(sharedSeconds),
    median(keptSeconds),
    median(separateSeconds),
  ];
  const one = costs.forward({ tokens: C, pairs: C * P + (C * (C + 1)) / 2, scored: C });
  const result = bench.result(
    shape,
    {
      ...{ prompt: P, continuations: G, continuation: C },
      ...{ shared_s, kept_s, separate_s },
      speedup: separate_s / shared_s,
      // Tokens that go through the layers; the head has the same rows in all.
      shared_tokens: P + G * (C - 1),
      kept_tokens: P - 1 + G * C,
      separate_tokens: G * (P + C - 1),
      head_rows: G * C,
      logp_diff_max: Math.max(difference(shared, separate), difference(shared, kept)),
    },
    [
      { name: "shared", seconds: sharedSeconds, work: [least(costs, 1, P, G, C)] },
      {
        name: "kept",
        seconds: keptSeconds,
        work: [
          costs.prefill({ tokens: P, pairs: (P * (P + 1)) / 2, scored: 0 }),
          ...completions.map(() => one),
        ],
      },
      { name: "separate", seconds: separateSeconds, work: [least(costs, G, P, 1, C)] },
    ],
  );
  memory.dispose();
  model.dispose();
  return result;
}

function difference(a: readonly ContinuationScore[], b: readonly ContinuationScore[]): number {
  let most = 0;
  for (const [i, { logprobs }] of a.entries())
    for (const [j, value] of logprobs.entries()) most = Math.max(most, Math.abs(value - b[i]!.logprobs[j]!));
  return most;
}
