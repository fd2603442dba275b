/** Small folders with plain weights, and what models say of fixed sequences. */
import { expect } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { f32ToBf16, f32ToF16 } from "../../src/core/float-formats.ts";
import { Random } from "../../src/core/rng.ts";
import {
  checkWeights,
  expectedTensors,
  type ModelConfig,
  openWeights,
  parseModelConfig,
  readModelConfig,
  writeModelFolder,
} from "../../src/io/hf-folder.ts";
import { Transformer, type TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { packSequences } from "../../src/rollout/pack.ts";
import { forwardRewards, scoreGroups } from "../../src/rollout/score.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { openTestDevice } from "../test-device.ts";

const TEXT = join(import.meta.dir, "../goldens/text/wordpiece_simplestories/tokenizer");

export type StoredType = "float32" | "bfloat16" | "float16";

export function configOf(kind: "causal" | "reward", changes: Record<string, unknown> = {}): ModelConfig {
  return parseModelConfig(
    {
      architectures: [kind === "reward" ? "Qwen3ForSequenceClassification" : "Qwen3ForCausalLM"],
      model_type: "qwen3",
      vocab_size: 4096,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 16,
      tie_word_embeddings: true,
      max_position_embeddings: 512,
      ...(kind === "reward" ? { id2label: { "0": "LABEL_0" }, pad_token_id: 0 } : {}),
      ...changes,
    },
    "tiny",
  );
}

/** Random weights in one type, with a tokenizer. Returns `folder`. */
export function makeFolder(folder: string, config: ModelConfig, dtype: StoredType, seed = 3): string {
  const tensors = [...expectedTensors(config)].map(([tensor, shape], i) => {
    const random = new Random(seed, 4, i);
    const size = shape.reduce((a, b) => a * b, 1);
    const norm = tensor.endsWith("norm.weight");
    const values = Float32Array.from({ length: size }, () => (norm ? 1 : 0) + 0.1 * random.normal());
    const code = ({ float32: "F32", bfloat16: "BF16", float16: "F16" } as const)[dtype];
    const narrow = { F32: values, BF16: f32ToBf16(values), F16: f32ToF16(values) }[code];
    return { name: tensor, shape, dtype: code, data: () => new Uint8Array(narrow.buffer) };
  });
  const files = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    .map((file) => join(TEXT, file))
    .filter((file) => existsSync(file));
  writeModelFolder(folder, { ...config, dtype }, tensors, files);
  return folder;
}

export class Opened implements Disposable {
  readonly device = openTestDevice(2);
  readonly memory = new StepMemory(this.device);
  readonly #models: Transformer[] = [];
  open(folder: string, options: Partial<TransformerOptions> = {}): Transformer {
    const config = readModelConfig(folder);
    using weights = openWeights(folder);
    checkWeights(config, weights);
    const model = this.make(config, options);
    model.loadWeights(weights);
    return model;
  }
  /** Without values. */
  make(config: ModelConfig, options: Partial<TransformerOptions>): Transformer {
    const model = new Transformer(this.device, config, {
      ...{ dtype: Dtype.f32, trainable: false, maxPositions: 256 },
      ...options,
    });
    this.#models.push(model);
    return model;
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    for (const model of this.#models) model.dispose();
    expect(this.device.stats().liveBuffers).toBe(0);
    this.device.close();
  }
}

const ids = (n: number, seed: number, vocab = 4096) => {
  const random = new Random(seed, 5);
  return Int32Array.from({ length: n }, () => random.below(vocab));
};
export const sequences = [ids(9, 1), ids(40, 2), ids(65, 3)];

/** Log-probabilities of every token but the first three of each sequence, or rewards. */
export function outputs(memory: StepMemory, model: Transformer, from = 3): Float32Array[] {
  if (model.config.kind === "reward") {
    const g = new Graph(memory, false);
    const groups = sequences.map((prompt) => ({ prompt, completions: [new Int32Array(0)] }));
    const rewards = forwardRewards(g, model, packSequences(groups));
    memory.finish();
    const values = rewards.float32();
    const each = sequences.map((_, i) => values.slice(i, i + 1));
    g.release(rewards);
    return each;
  }
  const groups = sequences.map((all) => ({ prompt: all.slice(0, from), completions: [all.slice(from)] }));
  return scoreGroups(memory, model, groups, 1, 4096).logprobs.flat();
}
