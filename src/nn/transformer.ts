/**
 * The decoder of Qwen3, Qwen2 and Llama: one forward pass over packed rows for prefill, decoding, scoring and
 * training. Parameters carry their Hugging Face names.
 */
import { closeSync, openSync } from "node:fs";
import { UsageError } from "../core/errors.ts";
import type { Device } from "../device/device.ts";
import { expectedTensors, type ModelConfig, type Weights } from "../io/hf-folder.ts";
import { Dtype, type DtypeCode, type MomentCode } from "../ops/define.ts";
import type { Graph } from "../tape/tape.ts";
import { Storage, Tensor } from "../tape/tensor.ts";
import * as F from "./functional.ts";
import { Parameters, type StoredValues } from "./parameters.ts";
import { ropeTable } from "./rope.ts";

/** Attention over rows whose keys lie in the batch (and in cached prefixes), optionally written to a cache. */
export interface PackedInput {
  readonly ids: Tensor;
  readonly positions: Tensor;
  readonly segments: F.PackedSegments;
  readonly write: { readonly cache: KvCache; readonly slots: Tensor } | null;
}

/** One token per sequence, keys in the cache. */
export interface DecodeInput {
  readonly ids: Tensor;
  readonly positions: Tensor;
  readonly rows: F.DecodeRows;
  readonly cache: KvCache;
  readonly slots: Tensor;
}

export interface KvCache {
  readonly layers: readonly F.KvLayer[];
}

export interface TransformerOptions {
  readonly dtype: DtypeCode;
  readonly trainable: boolean;
  readonly momentDtype?: MomentCode;
  /** Positions for which RoPE is tabulated: the longest sequence of the run. */
  readonly maxPositions: number;
  /** Keep block inputs alone and run blocks again in the gradient pass. */
  readonly checkpointing?: boolean;
}

interface Layer {
  readonly inputNorm: Tensor;
  readonly q: F.Linear;
  readonly k: F.Linear;
  readonly v: F.Linear;
  readonly o: F.Linear;
  readonly qNorm: Tensor | null;
  readonly kNorm: Tensor | null;
  readonly postNorm: Tensor;
  readonly gate: F.Linear;
  readonly up: F.Linear;
  readonly down: F.Linear;
}

export class Transformer {
  readonly parameters: Parameters;
  readonly head: Tensor;
  readonly #embedding: Tensor;
  readonly #finalNorm: Tensor;
  readonly #layers: readonly Layer[];
  readonly #rope: F.RopeTable;
  readonly #ropeBuffer;
  readonly shape: F.HeadShape;
  readonly checkpointing: boolean;

  constructor(
    readonly device: Device,
    readonly config: ModelConfig,
    readonly options: TransformerOptions,
    label = "model",
  ) {
    const { dtype, trainable, momentDtype = Dtype.f32 } = options;
    this.parameters = new Parameters(
      device,
      expectedTensors(config),
      { dtype, trainable, momentDtype },
      label,
    );
    const p = this.parameters;
    this.#embedding = p.tensor("model.embed_tokens.weight");
    this.head = config.tieWordEmbeddings ? this.#embedding : p.tensor("lm_head.weight");
    this.#finalNorm = p.tensor("model.norm.weight");
    this.#layers = Array.from({ length: config.numLayers }, (_, i) => {
      const at = (name: string) => p.tensor(`model.layers.${i}.${name}.weight`);
      const maybe = (name: string) => p.maybe(`model.layers.${i}.${name}`);
      const linear = (name: string) => ({ w: at(name), bias: maybe(`${name}.bias`) });
      return {
        inputNorm: at("input_layernorm"),
        q: linear("self_attn.q_proj"),
        k: linear("self_attn.k_proj"),
        v: linear("self_attn.v_proj"),
        o: linear("self_attn.o_proj"),
        qNorm: maybe("self_attn.q_norm.weight"),
        kNorm: maybe("self_attn.k_norm.weight"),
        postNorm: at("post_attention_layernorm"),
        gate: linear("mlp.gate_proj"),
        up: linear("mlp.up_proj"),
        down: linear("mlp.down_proj"),
      };
    });
    this.shape = { heads: config.numHeads, kvHeads: config.numKvHeads, headDim: config.headDim };
    this.checkpointing = options.checkpointing ?? false;
    const values = device.hasMemory ? ropeTable(config, options.maxPositions) : null;
    const bytes = options.maxPositions * config.headDim * 4;
    this.#ropeBuffer = device.buffer(bytes, `${label} rope`);
    if (values) new Float32Array(this.#ropeBuffer.view(0, bytes)).set(values);
    this.#rope = {
      table: new Tensor(
        [options.maxPositions, config.headDim],
        Dtype.f32,
        Storage.inBuffer(this.#ropeBuffer, 0, bytes),
        "rope",
      ),
      maxPositions: options.maxPositions,
    };
  }

  /** Reads every parameter from a model folder whose names and shapes have been checked. */
  loadWeights(weights: Weights): void {
    const files = new Map<string, number>();
    const direct: { name: string; stored: StoredValues }[] = [];
    try {
      for (const { name } of this.parameters.list) {
        const { path, begin, bytes, dtype } = weights.source(name);
        const code = { F32: Dtype.f32, BF16: Dtype.bf16 }[dtype as string];
        if (code === undefined) {
          this.parameters.load(name, weights.readFloat32(name));
          continue;
        }
        if (!files.has(path)) files.set(path, openSync(path, "r"));
        direct.push({ name, stored: { fd: files.get(path)!, begin, bytes, dtype: code } });
      }
      this.parameters.loadStored(direct);
    } finally {
      for (const fd of files.values()) closeSync(fd);
    }
  }

  /** Copies the values of another model of the same shape. */
  copyFrom(other: Transformer): void {
    for (const p of this.parameters.list) this.parameters.load(p.name, other.parameters.read(p.name));
  }

  /** Hidden states [T, C] after the final norm. */
  forward(g: Graph, input: PackedInput): Tensor {
    const { ids, positions, segments, write } = input;
    return this.#run(g, ids, [positions, segments.segments], (g, layer, i, q, k, v) => {
      const { qr, kr } = this.#rotate(g, layer, q, k, positions);
      const cache = write?.cache.layers[i] ?? null;
      if (write && cache) F.appendKv(g, cache, kr, v, write.slots, this.shape);
      const o = F.attention(g, qr, kr, v, segments, this.shape, cache);
      g.release(qr, kr);
      return o;
    });
  }

  /**
   * Hidden states [B, C] of one new token per sequence; appends it to the cache. Six operations a layer, for a GPU
   * pays for each; they give the bits of those that `forward` runs.
   */
  decode(g: Graph, input: DecodeInput): Tensor {
    const { ids, positions, rows, cache, slots } = input;
    const eps = this.config.rmsNormEps;
    let h = F.embed(g, ids, this.#embedding, this.options.dtype);
    this.#layers.forEach((layer, i) => {
      const qkv = F.normQkv(g, h, layer.inputNorm, layer.q, layer.k, layer.v, eps);
      const { qNorm, kNorm } = layer;
      const kv = cache.layers[i]!;
      const q = F.ropeAppend(g, qkv, qNorm, kNorm, positions, this.#rope, kv, slots, this.shape, eps);
      g.release(qkv.q, qkv.k, qkv.v);
      const o = F.decodeAttention(g, q, kv, rows, this.shape);
      g.release(q);
      const mixed = F.linearResidual(g, h, o, layer.o);
      g.release(h, o);
      const act = F.normSwiglu(g, mixed, layer.postNorm, layer.gate, layer.up, eps);
      h = F.linearResidual(g, mixed, act, layer.down);
      g.release(mixed, act);
    });
    const final = F.rmsNorm(g, h, null, this.#finalNorm, eps);
    g.release(h);
    return final.y;
  }

  #rotate(g: Graph, layer: Layer, q: Tensor, k: Tensor, positions: Tensor): { qr: Tensor; kr: Tensor } {
    const eps = this.config.rmsNormEps;
    const qr = F.qkNormRope(g, q, layer.qNorm, positions, this.#rope, this.shape.heads, eps);
    const kr = F.qkNormRope(g, k, layer.kNorm, positions, this.#rope, this.shape.kvHeads, eps);
    return { qr, kr };
  }

  #run(
    g: Graph,
    ids: Tensor,
    reads: readonly Tensor[],
    attend: (g: Graph, layer: Layer, index: number, q: Tensor, k: Tensor, v: Tensor) => Tensor,
  ): Tensor {
    const eps = this.config.rmsNormEps;
    if (this.options.maxPositions < 1) throw new UsageError("model opened without positions");
    let h = F.embed(g, ids, this.#embedding, this.options.dtype);
    let delta: Tensor | null = null;
    this.#layers.forEach((layer, i) => {
      const block = (g: Graph, inputs: readonly Tensor[]): readonly Tensor[] => {
        const first = F.rmsNorm(g, inputs[0]!, inputs[1] ?? null, layer.inputNorm, eps);
        const q = F.linear(g, first.y, layer.q);
        const k = F.linear(g, first.y, layer.k);
        const v = F.linear(g, first.y, layer.v);
        g.release(first.y);
        const o = attend(g, layer, i, q, k, v);
        g.release(q, k, v);
        const mixed = F.linear(g, o, layer.o);
        g.release(o);
        const second = F.rmsNorm(g, first.h, mixed, layer.postNorm, eps);
        g.release(mixed);
        if (first.h !== inputs[0]) g.release(first.h);
        const gate = F.linear(g, second.y, layer.gate);
        const up = F.linear(g, second.y, layer.up);
        g.release(second.y);
        const act = F.swiglu(g, gate, up);
        g.release(gate, up);
        const out = F.linear(g, act, layer.down);
        g.release(act);
        return [second.h, out];
      };
      const inputs: Tensor[] = delta ? [h, delta] : [h];
      const [nextH, nextDelta] = this.checkpointing ? g.checkpoint(inputs, reads, block) : block(g, inputs);
      g.release(...inputs);
      h = nextH!;
      delta = nextDelta!;
    });
    const final = F.rmsNorm(g, h, delta, this.#finalNorm, eps);
    g.release(h, delta, ...(final.h === h ? [] : [final.h]));
    return final.y;
  }

  /** Log-probabilities and entropies of targets at the rows `index` of hidden states. */
  score(
    g: Graph,
    hidden: Tensor,
    index: Tensor,
    targets: Tensor,
    temperature: number,
  ): { logprob: Tensor; entropy: Tensor } {
    const rows = F.gather(g, hidden, index);
    const result = F.logprobs(g, rows, this.head, targets, temperature);
    g.release(rows);
    return result;
  }

  /** The same where the sampler has recorded them: only the gradient pass goes through the head. */
  assumeScores(
    g: Graph,
    hidden: Tensor,
    index: Tensor,
    targets: Tensor,
    temperature: number,
    sampled: F.SampledScores,
  ): { logprob: Tensor; entropy: Tensor; again: Tensor } {
    const rows = F.gather(g, hidden, index);
    const result = F.assumedLogprobs(g, rows, this.head, targets, temperature, sampled);
    g.release(rows);
    return result;
  }

  /** Logits [B, V] in float32. */
  logits(g: Graph, hidden: Tensor): Tensor {
    return F.linear(g, hidden, { w: this.head, bias: null }, Dtype.f32);
  }

  dispose(): void {
    this.parameters.dispose();
    this.#ropeBuffer.free();
  }
}
