/**
 * The decoder of Qwen3, Qwen2 and Llama: one forward pass over packed rows for prefill, decoding, scoring and
 * training. Parameters carry their Hugging Face names.
 */
import { closeSync, openSync } from "node:fs";
import { UsageError } from "../core/errors.ts";
import type { Buffer, Device } from "../device/device.ts";
import { expectedTensors, type ModelConfig, type Weights } from "../io/hf-folder.ts";
import { Dtype, type DtypeCode, type MomentCode } from "../ops/define.ts";
import type { Graph } from "../tape/tape.ts";
import { Storage, Tensor } from "../tape/tensor.ts";
import {
  type AdaptedMap,
  type AdapterOptions,
  adaptedMaps,
  adapterNames,
  adapterShapes,
  isDual,
  savedName,
} from "./adapters.ts";
import * as F from "./functional.ts";
import { Parameters } from "./parameters.ts";
import {
  type Quantization,
  QuantizedWeight,
  type QuantPlan,
  quantizationNote,
  quantPlans,
} from "./quantized.ts";
import { ropeTable } from "./rope.ts";
import type { StoredValues } from "./stored.ts";

/** Attention over rows whose keys lie in the batch and in cached prefixes. */
export interface PackedInput {
  readonly ids: Tensor;
  readonly positions: Tensor;
  readonly segments: F.PackedSegments;
  /** The cache that prefixes are read from, and where in it keys are written; null slots: nowhere. */
  readonly cached: { readonly cache: KvCache; readonly slots: Tensor | null } | null;
  /** Masks of a training pass; without it nothing is dropped. */
  readonly dropout?: F.DropoutKey | null;
  /** For every row the adapters whose weights learn nothing from it. */
  readonly routes?: Tensor | null;
}

/** Packed rows whose keys are written. */
export interface FillInput extends PackedInput {
  readonly cached: { readonly cache: KvCache; readonly slots: Tensor };
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
  /** Of the linear maps of a trained bfloat16 model; what embedding and head add up stays float32. */
  readonly gradientDtype?: DtypeCode;
  /** Positions for which RoPE is tabulated: the longest sequence of the run. */
  readonly maxPositions: number;
  /** Keep block inputs alone and run blocks again in the gradient pass. */
  readonly checkpointing?: boolean;
  /** Low-rank adapters: they are trained in the place of the model's own parameters. */
  readonly lora?: AdapterOptions | null;
  /** Frozen weights are quantized when they are loaded. */
  readonly quantization?: Quantization | null;
  /** An open model of the same config and dtype, whose own weights this one reads too; it outlives this one. */
  readonly weightsOf?: Transformer | null;
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

/** What a forward pass reads. */
interface Network {
  readonly embedding: Tensor | QuantizedWeight;
  /** [V, C] of a language model, [1, C] of a reward model. */
  readonly head: Tensor | QuantizedWeight;
  readonly finalNorm: Tensor;
  readonly layers: readonly Layer[];
  readonly rope: F.RopeTable;
}

/** The forward pass of a model over weights that lie elsewhere: with its adapters or without. */
export class Decoder {
  readonly shape: F.HeadShape;
  /** Numbers of the model without adapters. */
  readonly size: number;
  constructor(
    readonly device: Device,
    readonly config: ModelConfig,
    readonly options: TransformerOptions,
    protected readonly network: Network,
  ) {
    this.shape = { heads: config.numHeads, kvHeads: config.numKvHeads, headDim: config.headDim };
    this.size = [...expectedTensors(config).values()].reduce(
      (sum, s) => sum + s.reduce((a, b) => a * b, 1),
      0,
    );
  }

  /** Hidden states [T, C] after the final norm. */
  forward(g: Graph, input: PackedInput): Tensor {
    const { layers } = this.network;
    const { h, delta } = this.#run(g, input, layers);
    const final = F.rmsNorm(g, h, delta, this.network.finalNorm, this.config.rmsNormEps);
    g.release(h, delta, ...(final.h === h ? [] : [final.h]));
    return final.y;
  }

  /** The same for the sake of the cache alone: the last layer ends at its keys and values. */
  fill(g: Graph, input: FillInput): void {
    const { layers } = this.network;
    const { rmsNormEps: eps } = this.config;
    const { positions, cached } = input;
    const { h, delta } = this.#run(g, input, layers.slice(0, -1));
    const last = layers.at(-1)!;
    const first = F.rmsNorm(g, h, delta, last.inputNorm, eps);
    const k = F.linear(g, first.y, last.k);
    const v = F.linear(g, first.y, last.v);
    const kr = F.qkNormRope(g, k, last.kNorm, positions, this.network.rope, this.shape.kvHeads, eps);
    F.appendKv(g, cached.cache.layers[layers.length - 1]!, kr, v, cached.slots, this.shape);
    g.release(h, delta, ...(first.h === h ? [] : [first.h]), first.y, k, v, kr);
  }

  /**
   * Hidden states [B, C] of one new token per sequence; appends it to the cache. Six operations a layer, for a GPU
   * pays for each; they give the bits of those that `forward` runs.
   */
  decode(g: Graph, input: DecodeInput): Tensor {
    const { ids, positions, rows, cache, slots } = input;
    const eps = this.config.rmsNormEps;
    let h = F.embed(g, ids, this.network.embedding, this.options.dtype);
    this.network.layers.forEach((layer, i) => {
      const qkv = F.normQkv(g, h, layer.inputNorm, layer.q, layer.k, layer.v, eps);
      const { qNorm, kNorm } = layer;
      const kv = cache.layers[i]!;
      const q = F.ropeAppend(g, qkv, qNorm, kNorm, positions, this.network.rope, kv, slots, this.shape, eps);
      g.release(qkv.q, qkv.k, qkv.v);
      const o = F.decodeAttention(g, q, kv, rows, this.shape);
      g.release(q);
      const mixed = F.linearResidual(g, h, o, layer.o);
      g.release(h, o);
      const act = F.normSwiglu(g, mixed, layer.postNorm, layer.gate, layer.up, eps);
      h = F.linearResidual(g, mixed, act, layer.down);
      g.release(mixed, act);
    });
    const final = F.rmsNorm(g, h, null, this.network.finalNorm, eps);
    g.release(h);
    return final.y;
  }

  #rotate(g: Graph, layer: Layer, q: Tensor, k: Tensor, positions: Tensor): { qr: Tensor; kr: Tensor } {
    const eps = this.config.rmsNormEps;
    const qr = F.qkNormRope(g, q, layer.qNorm, positions, this.network.rope, this.shape.heads, eps);
    const kr = F.qkNormRope(g, k, layer.kNorm, positions, this.network.rope, this.shape.kvHeads, eps);
    return { qr, kr };
  }

  /** Layers one after another: the residual stream, and what the last of them adds to it. */
  #run(g: Graph, input: PackedInput, layers: readonly Layer[]): { h: Tensor; delta: Tensor | null } {
    const { ids, positions, segments, cached, dropout = null, routes = null } = input;
    const reads = [positions, segments.segments, ...(routes ? [routes] : [])];
    const pass: F.AdapterPass = { dropout, routes };
    const attend = (g: Graph, layer: Layer, i: number, q: Tensor, k: Tensor, v: Tensor): Tensor => {
      const { qr, kr } = this.#rotate(g, layer, q, k, positions);
      const cache = cached?.cache.layers[i] ?? null;
      if (cached?.slots && cache) F.appendKv(g, cache, kr, v, cached.slots, this.shape);
      const o = F.attention(g, qr, kr, v, segments, this.shape, cache);
      g.release(qr, kr);
      return o;
    };
    const eps = this.config.rmsNormEps;
    if (this.options.maxPositions < 1) throw new UsageError("model opened without positions");
    const linear = (g: Graph, x: Tensor, map: F.Linear) => F.linear(g, x, map, x.dtype, pass);
    let h = F.embed(g, ids, this.network.embedding, this.options.dtype);
    let delta: Tensor | null = null;
    layers.forEach((layer, i) => {
      const block = (g: Graph, inputs: readonly Tensor[]): readonly Tensor[] => {
        const first = F.rmsNorm(g, inputs[0]!, inputs[1] ?? null, layer.inputNorm, eps);
        const q = linear(g, first.y, layer.q);
        const k = linear(g, first.y, layer.k);
        const v = linear(g, first.y, layer.v);
        g.release(first.y);
        const o = attend(g, layer, i, q, k, v);
        g.release(q, k, v);
        const mixed = linear(g, o, layer.o);
        g.release(o);
        const second = F.rmsNorm(g, first.h, mixed, layer.postNorm, eps);
        g.release(mixed);
        if (first.h !== inputs[0]) g.release(first.h);
        const gate = linear(g, second.y, layer.gate);
        const up = linear(g, second.y, layer.up);
        g.release(second.y);
        const act = F.swiglu(g, gate, up);
        g.release(gate, up);
        const out = linear(g, act, layer.down);
        g.release(act);
        return [second.h, out];
      };
      const inputs: Tensor[] = delta ? [h, delta] : [h];
      const [nextH, nextDelta] = this.options.checkpointing
        ? g.checkpoint(inputs, reads, block)
        : block(g, inputs);
      g.release(...inputs);
      h = nextH!;
      delta = nextDelta!;
    });
    return { h, delta };
  }

  get #packedHead(): Tensor {
    const { head } = this.network;
    if (!(head instanceof QuantizedWeight)) return head;
    throw new UsageError(
      "log-probabilities need a head that is not quantized",
      head.label,
      "open the model with quantization.head false",
    );
  }

  /** Log-probabilities and entropies of targets at the rows `index` of hidden states. */
  score(
    g: Graph,
    hidden: Tensor,
    index: Tensor,
    targets: Tensor,
    temperature: number,
    sampled: F.SampledScores | null = null,
  ): F.Scores {
    const rows = F.gather(g, hidden, index);
    const head = this.#packedHead;
    const result = sampled
      ? F.assumedLogprobs(g, rows, head, targets, temperature, sampled)
      : { ...F.logprobs(g, rows, head, targets, temperature), again: null };
    g.release(rows);
    return result;
  }

  /** Rewards [R, 1] in float32 of the sequences that end at the rows `last` of hidden states. */
  rewards(g: Graph, hidden: Tensor, last: Tensor): Tensor {
    const rows = F.gather(g, hidden, last);
    const rewards = this.logits(g, rows);
    g.release(rows);
    return rewards;
  }

  /** Products with the head in float32: logits [B, V]. */
  logits(g: Graph, hidden: Tensor): Tensor {
    return F.linear(g, hidden, { w: this.network.head, bias: null, adapters: [] }, Dtype.f32);
  }
}

type ScaledAdapter = { -readonly [K in keyof F.Adapter]: F.Adapter[K] };

/** A model: its parameters, and those of its adapters if it has any. */
export class Transformer extends Decoder {
  readonly parameters: Parameters;
  readonly adapters: Parameters | null;
  /** The same weights without the adapters: the reference of a run that trains them. */
  readonly base: Decoder;
  /** What a user should know about how quantized weights are held. */
  readonly quantizationNote: string | null;
  readonly #ropeBuffer: Buffer;
  /** Adapters as they are trained, and as the forward pass reads them. */
  readonly #adapted: readonly { readonly map: AdaptedMap; readonly adapter: ScaledAdapter }[];

  constructor(device: Device, config: ModelConfig, options: TransformerOptions, label = "model") {
    const { dtype, trainable, lora = null } = options;
    const { momentDtype = Dtype.f32, gradientDtype = Dtype.f32, quantization } = options;
    const shapes = expectedTensors(config);
    if (config.quantization && trainable && lora === null)
      throw new UsageError(
        "quantized weights cannot be trained",
        label,
        "train low-rank adapters on them (--lora true), or take the plain model",
      );
    const planOf = quantPlans(config, quantization ?? null, label);
    const plans = new Map<string, QuantPlan>();
    for (const [name, shape] of shapes) {
      const plan = shape.length === 2 ? planOf(name, shape) : null;
      if (plan) plans.set(name, plan);
    }
    const shared = options.weightsOf?.parameters;
    const own = () =>
      new Parameters(
        device,
        shapes,
        {
          dtype,
          trainable: trainable && lora === null,
          momentDtype,
          gradientDtype,
          roundsGradient: (name) => name.endsWith("_proj.weight"),
          quantize: (name) => plans.get(name) ?? null,
        },
        label,
      );
    const parameters = shared ?? own();
    const adapters = lora
      ? new Parameters(
          device,
          adapterShapes(shapes, lora),
          { dtype, trainable, momentDtype },
          `${label} adapters`,
        )
      : null;
    const positions = options.maxPositions;
    const bytes = positions * config.headDim * 4;
    const ropeBuffer = device.buffer(bytes, `${label} rope`);
    if (device.hasMemory) new Float32Array(ropeBuffer.view(0, bytes)).set(ropeTable(config, positions));
    const storage = Storage.inBuffer(ropeBuffer, 0, bytes);
    const table = new Tensor([positions, config.headDim], Dtype.f32, storage, "rope");
    const embedding = parameters.weight("model.embed_tokens.weight");
    const network = {
      embedding,
      head: headOf(config, parameters, embedding),
      finalNorm: parameters.tensor("model.norm.weight"),
      rope: { table, maxPositions: positions },
    };
    const adapted =
      adapters && lora
        ? adaptedMaps(shapes, lora).map((map, site) => {
            const { split, scale, scale2 } = map;
            const names = adapterNames(map.module);
            const [a, b] = [adapters.tensor(names.a), adapters.tensor(names.b)];
            return { map, adapter: { a, b, split, scale, scale2, dropout: lora.dropout ?? 0, site } };
          })
        : [];
    const maps = new Map<string, F.Adapter>(adapted.map(({ map, adapter }) => [map.module, adapter]));
    const withAdapters = (module: string): readonly F.Adapter[] => {
      const adapter = maps.get(module);
      return adapter ? [adapter] : [];
    };
    const head = adapters?.maybe(savedName("score.weight")) ?? network.head;
    super(device, config, options, { ...network, head, layers: layersOf(config, parameters, withAdapters) });
    this.base = adapters
      ? new Decoder(device, config, options, { ...network, layers: layersOf(config, parameters, () => []) })
      : this;
    this.parameters = parameters;
    this.adapters = adapters;
    this.quantizationNote = quantizationNote(config, plans);
    this.#ropeBuffer = ropeBuffer;
    this.#adapted = adapted;
  }

  /** The linear maps with adapters, their ranks and their scales in training. */
  get adaptedMaps(): readonly AdaptedMap[] {
    return this.#adapted.map(({ map }) => map);
  }

  /** Whether every adapter is a retain and a forget adapter. */
  get dual(): boolean {
    const { lora } = this.options;
    return lora ? isDual(lora) : false;
  }

  /**
   * Weighs retain and forget adapters in all that is computed from now on: (1, 1) as in training, (1, 0) without what
   * went to the forget adapter, (0, 0) the base.
   */
  setScales(retain: number, forget: number): void {
    if (!this.dual)
      throw new UsageError("no retain and forget adapters to weigh", "model", "open one with dual adapters");
    if (!Number.isFinite(retain) || !Number.isFinite(forget))
      throw new UsageError(`bad scales ${retain}, ${forget}`, "model", "two numbers");
    for (const { map, adapter } of this.#adapted) {
      adapter.scale = map.scale * retain;
      adapter.scale2 = map.scale2 * forget;
    }
  }

  /** What an optimizer changes: the adapters if there are any, with their copy of a value head. */
  get trained(): Parameters {
    return this.adapters ?? this.parameters;
  }

  /** Probability with which a training pass drops inputs of adapters: it computes something else than the sampler then. */
  get dropout(): number {
    return this.options.lora?.dropout ?? 0;
  }

  get bytes(): Parameters["bytes"] {
    const a = this.options.weightsOf ? undefined : this.parameters.bytes;
    const b = this.adapters?.bytes;
    return {
      weights: (a?.weights ?? 0) + (b?.weights ?? 0),
      gradients: (a?.gradients ?? 0) + (b?.gradients ?? 0),
      optimizer: (a?.optimizer ?? 0) + (b?.optimizer ?? 0),
    };
  }

  /** Reads every parameter but the `absent` ones from a model folder whose names and shapes have been checked. */
  loadWeights(weights: Weights, absent: ReadonlySet<string> = new Set()): void {
    const files = new Map<string, number>();
    const direct = new Map<string, StoredValues>();
    try {
      for (const { name } of this.parameters.list) {
        if (absent.has(name)) continue;
        const format = this.config.quantization?.stored.get(name);
        if (format) {
          this.parameters.loadCodes(name, weights, format);
          continue;
        }
        const { path, begin, bytes, dtype } = weights.source(name);
        const code = { F32: Dtype.f32, BF16: Dtype.bf16 }[dtype as string];
        if (code === undefined || !this.parameters.takesStored(name)) {
          this.parameters.load(name, weights.readFloat32(name));
          continue;
        }
        if (!files.has(path)) files.set(path, openSync(path, "r"));
        direct.set(name, { fd: files.get(path)!, path, begin, bytes, dtype: code });
      }
      this.parameters.loadStored(direct);
    } finally {
      for (const fd of files.values()) closeSync(fd);
    }
  }

  /** Copies the values of another model of the same shape and dtype; adapters where both have them. */
  copyFrom(other: Transformer): void {
    this.parameters.copyFrom(other.parameters);
    if (other.adapters) this.adapters?.copyFrom(other.adapters);
  }

  dispose(): void {
    if (!this.options.weightsOf) this.parameters.dispose();
    this.adapters?.dispose();
    this.#ropeBuffer.free();
  }
}

function headOf(
  config: ModelConfig,
  p: Parameters,
  embedding: Tensor | QuantizedWeight,
): Tensor | QuantizedWeight {
  if (config.kind === "reward") return p.tensor("score.weight");
  return config.tieWordEmbeddings ? embedding : p.weight("lm_head.weight");
}

function layersOf(
  config: ModelConfig,
  p: Parameters,
  adaptersOf: (module: string) => readonly F.Adapter[],
): readonly Layer[] {
  return Array.from({ length: config.numLayers }, (_, i) => {
    const stem = `model.layers.${i}`;
    const at = (name: string) => p.tensor(`${stem}.${name}.weight`);
    const maybe = (name: string) => p.maybe(`${stem}.${name}`);
    const linear = (name: string) => ({
      w: p.weight(`${stem}.${name}.weight`),
      bias: maybe(`${name}.bias`),
      adapters: adaptersOf(`${stem}.${name}`),
    });
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
}
