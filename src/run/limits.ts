/**
 * What a model's work costs at least, from its shape: FLOPs of products and attention, bytes of weights and cache.
 * Symbols: L layers, C hidden, H heads, K kv heads, D head dim, F ffn, V vocabulary. Recomputation is overhead, not
 * work. Bytes are those that must come from memory if nothing but activations stays in a cache.
 */
import type { ModelConfig } from "../io/hf-folder.ts";

export interface MachineLimit {
  /** Peak of multiply-adds in the benchmark's dtype, GFLOP/s: the best measurement and the median. */
  readonly gemm_gflops: number;
  readonly gemm_gflops_median: number;
  /** Streaming read, GB/s. */
  readonly read_gbps: number;
  readonly read_gbps_median: number;
}

/** Something that is done in one go: its arithmetic and its memory traffic overlap. */
export interface Work {
  readonly flops: number;
  readonly bytes: number;
}

/** Seconds that works take at least, one after the other. */
export function leastSeconds(works: readonly Work[], limit: MachineLimit): number {
  return works.reduce(
    (sum, { flops, bytes }) =>
      sum + Math.max(flops / (limit.gemm_gflops * 1e9), bytes / (limit.read_gbps * 1e9)),
    0,
  );
}

/** Packed rows of a forward pass. */
export interface Rows {
  readonly tokens: number;
  /** Query-key pairs. */
  readonly pairs: number;
  /** Rows that go through the head. */
  readonly scored: number;
}

/** `prompts` prompts of P tokens, each with G completions of C tokens that share them; every completion token scored. */
export function groupRows(prompts: number, P: number, G: number, C: number): Rows {
  return {
    tokens: prompts * (P + G * C),
    pairs: (prompts * P * (P + 1)) / 2 + prompts * G * (C * P + (C * (C + 1)) / 2),
    scored: prompts * G * C,
  };
}

/** Master weight, two moments: read and written; the gradient: read. All of four bytes. */
const ADAMW_BYTES = 28;

export class Costs {
  /** Weights of all layers, and of the head: V·C, or C of a reward model. */
  readonly trunk: number;
  readonly head: number;
  /** Attention FLOPs of one query-key pair through all layers. */
  readonly pair: number;
  /** Cached bytes of one token. */
  readonly kvBytes: number;

  constructor(
    config: ModelConfig,
    readonly elementBytes: number,
    /** Of an element of a weight, where it differs. */
    readonly weightBytes = elementBytes,
  ) {
    const {
      hiddenSize: C,
      intermediateSize: F,
      numHeads: H,
      numKvHeads: K,
      headDim: D,
      numLayers: L,
    } = config;
    this.trunk = L * (C * H * D + 2 * C * K * D + H * D * C + 3 * C * F);
    this.head = config.kind === "reward" ? C : config.vocabSize * C;
    this.pair = 4 * L * H * D;
    this.kvBytes = 2 * L * K * D * elementBytes;
  }

  get #weightBytes(): number {
    return (this.trunk + this.head) * this.weightBytes;
  }

  #flops({ tokens, pairs, scored }: Rows): number {
    return 2 * this.trunk * tokens + 2 * this.head * scored + this.pair * pairs;
  }

  forward(rows: Rows): Work {
    return { flops: this.#flops(rows), bytes: this.#weightBytes };
  }

  /** A forward pass that leaves keys and values of every token in the cache. */
  prefill(rows: Rows): Work {
    return { flops: this.#flops(rows), bytes: this.#weightBytes + this.kvBytes * rows.tokens };
  }

  /** Gradients of rows whose forward pass has been run: by inputs and by weights, these in float32. */
  backward(rows: Rows): Work {
    return { flops: 2 * this.#flops(rows), bytes: this.#weightBytes + 4 * (this.trunk + this.head) };
  }

  /** The same where `adapters` numbers beside the trunk are trained and the model's own weights are not. */
  adapting(rows: Rows, adapters: number): Work {
    const { tokens, scored } = rows;
    const own = 2 * this.#flops(rows) - 2 * (this.trunk * tokens + this.head * scored);
    return { flops: own + 6 * adapters * tokens, bytes: this.#weightBytes };
  }

  /** One token of each of `batch` sequences: `pairs` query-key pairs, `cached` distinct cached tokens. */
  decode(batch: number, pairs: number, cached: number): Work {
    return {
      flops: 2 * (this.trunk + this.head) * batch + this.pair * pairs,
      bytes: this.#weightBytes + this.kvBytes * (cached + batch),
    };
  }

  /** AdamW on `count` parameters. */
  optimizer(count: number): Work {
    return { flops: 0, bytes: ADAMW_BYTES * count };
  }
}
