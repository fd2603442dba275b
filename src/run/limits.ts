/**
 * What a model's work costs at least, from its shape: matrix FLOPs, attention FLOPs, bytes of weights and cache.
 * Symbols: L layers, C hidden, H heads, K kv heads, D head dim, F ffn, V vocabulary.
 */
import type { ModelConfig } from "../io/hf-folder.ts";

export interface MachineLimit {
  /** Peak of multiply-adds in the benchmark's dtype, GFLOP/s. */
  readonly gemm_gflops: number;
  /** Streaming read, GB/s. */
  readonly read_gbps: number;
}

export class Costs {
  /** Weights of all layers, and of the head. */
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
    this.head = config.vocabSize * C;
    this.pair = 4 * L * H * D;
    this.kvBytes = 2 * L * K * D * elementBytes;
  }

  /** Forward of `tokens` through the trunk with `pairs` query-key pairs and `scored` rows through the head. */
  forward(tokens: number, pairs: number, scored: number): number {
    return 2 * this.trunk * tokens + 2 * this.head * scored + this.pair * pairs;
  }

  /** Forward and backward; recomputation is overhead, not work. */
  training(tokens: number, pairs: number, scored: number): number {
    return 3 * this.forward(tokens, pairs, scored);
  }

  /** Seconds of one decode step of `batch` rows that read `cached` distinct cached tokens. */
  decodeSeconds(batch: number, pairs: number, cached: number, limit: MachineLimit): number {
    const bytes = (this.trunk + this.head) * this.weightBytes + this.kvBytes * cached;
    const flops = 2 * (this.trunk + this.head) * batch + this.pair * pairs;
    return Math.max(bytes / (limit.read_gbps * 1e9), flops / (limit.gemm_gflops * 1e9));
  }
}

/** Pairs of `prompts` prompts of P tokens with G completions of C tokens each that share them. */
export function sharedPairs(prompts: number, P: number, G: number, C: number): number {
  return (prompts * P * (P + 1)) / 2 + prompts * G * (C * P + (C * (C + 1)) / 2);
}
