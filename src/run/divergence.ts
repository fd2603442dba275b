/**
 * How far a second model's next-token distributions are from a first one's, at given tokens. Logits of both lie in
 * memory for a few rows at a time; sums run in float64 on the host.
 */
import { UsageError } from "../core/errors.ts";
import * as F from "../nn/functional.ts";
import type { Decoder } from "../nn/transformer.ts";
import { type Group, microBatches, packGroups, selectGroups } from "../rollout/pack.ts";
import { uploadRow } from "../rollout/score.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import type { Tensor } from "../tape/tensor.ts";

/** Float32 logits of each model in memory at once: 64 MiB. */
const LOGITS = 16 << 20;

/** What two rows of logits say of each other, p the first, q the second. */
export interface RowDivergence {
  /** KL(p ‖ q) in nats, a sum over the vocabulary. */
  readonly kl: number;
  /** log p(token) − log q(token): its mean over tokens drawn from p estimates the KL. */
  readonly sampled: number;
  /** Whether the same token is the likeliest (the first of equals). */
  readonly agree: boolean;
  /** −log p(token) and −log q(token) at temperature 1. */
  readonly nll: readonly [p: number, q: number];
}

/** ln Σ exp(z/t), the largest entry and its place. */
function logSumExp(z: Float32Array, t: number): { lse: number; top: number } {
  let top = 0;
  for (let i = 1; i < z.length; i++) if (z[i]! > z[top]!) top = i;
  let sum = 0;
  for (let i = 0; i < z.length; i++) sum += Math.exp((z[i]! - z[top]!) / t);
  return { lse: z[top]! / t + Math.log(sum), top };
}

/** `temperature` divides the logits of both, as the sampler does; it is above 0. */
export function rowDivergence(
  p: Float32Array,
  q: Float32Array,
  token: number,
  temperature: number,
): RowDivergence {
  const [a, b] = [logSumExp(p, temperature), logSumExp(q, temperature)];
  let kl = 0;
  for (let i = 0; i < p.length; i++) {
    const logp = p[i]! / temperature - a.lse;
    kl += Math.exp(logp) * (logp - (q[i]! / temperature - b.lse));
  }
  const at = (z: Float32Array, lse: number, t: number) => z[token]! / t - lse;
  const plain = (z: Float32Array, lse: number) => -at(z, temperature === 1 ? lse : logSumExp(z, 1).lse, 1);
  return {
    kl,
    sampled: at(p, a.lse, temperature) - at(q, b.lse, temperature),
    agree: a.top === b.top,
    nll: [plain(p, a.lse), plain(q, b.lse)],
  };
}

/** Rows in the order of groups and completions, a batch at a time. */
export function* divergences(
  memory: StepMemory,
  models: readonly [p: Decoder, q: Decoder],
  groups: readonly Group[],
  temperature: number,
  budget: number,
): Generator<RowDivergence[]> {
  const vocab = models[0].config.vocabSize;
  const most = Math.max(1, Math.floor(LOGITS / vocab));
  for (const parts of microBatches(groups, budget)) {
    const row = packGroups(selectGroups(groups, parts));
    const g = new Graph(memory, false);
    const input = uploadRow(g, row);
    const hidden = models.map((model) => model.forward(g, input)) as [Tensor, Tensor];
    const found: RowDivergence[] = [];
    for (let first = 0; first < row.targets.length; first += most) {
      const index = g.upload(row.index.slice(first, first + most), "rows");
      const rows = hidden.map((h) => F.gather(g, h, index)) as [Tensor, Tensor];
      const logits = models.map((model, i) => model.logits(g, rows[i]!)) as [Tensor, Tensor];
      memory.finish();
      const [p, q] = logits.map((l) => l.float32()) as [Float32Array, Float32Array];
      for (let i = 0; i * vocab < p.length; i++) {
        const part = (z: Float32Array) => z.subarray(i * vocab, (i + 1) * vocab);
        found.push(rowDivergence(part(p), part(q), row.targets[first + i]!, temperature));
      }
      g.release(index, ...rows, ...logits);
    }
    g.release(...hidden);
    input.release();
    if (found.some(({ kl }) => !Number.isFinite(kl)))
      throw new UsageError("logits that are not finite", "models", "check the weights");
    yield found;
  }
}

/** Means over tokens. */
export class DivergenceMeans {
  #tokens = 0;
  #kl = 0;
  #largest = 0;
  #sampled = 0;
  #squares = 0;
  #agree = 0;
  #nll: [number, number] = [0, 0];

  add(rows: readonly RowDivergence[]): void {
    for (const { kl, sampled, agree, nll } of rows) {
      this.#tokens += 1;
      this.#kl += kl;
      this.#largest = Math.max(this.#largest, kl);
      this.#sampled += sampled;
      this.#squares += sampled * sampled;
      this.#agree += agree ? 1 : 0;
      this.#nll = [this.#nll[0] + nll[0], this.#nll[1] + nll[1]];
    }
  }

  /** kl_sampled_error: the standard error of kl_sampled. */
  figures(): Record<string, number> {
    const n = this.#tokens;
    const sampled = this.#sampled / n;
    return {
      tokens: n,
      kl_divergence: this.#kl / n,
      kl_divergence_max: this.#largest,
      kl_sampled: sampled,
      kl_sampled_error: Math.sqrt(Math.max(0, this.#squares / n - sampled * sampled) / n),
      top1_agreement: this.#agree / n,
      perplexity_original: Math.exp(this.#nll[0] / n),
      perplexity_quantized: Math.exp(this.#nll[1] / n),
    };
  }
}
