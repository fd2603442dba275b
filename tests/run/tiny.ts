import type { Device } from "../../src/device/device.ts";
import { parseModelConfig } from "../../src/io/hf-folder.ts";
import { Transformer, type TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { initialise } from "../../src/run/open-model.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { openTestDevice } from "../test-device.ts";

/** config.json of small models with everything that differs between families. */
export const TINY = {
  qwen3: {
    architectures: ["Qwen3ForCausalLM"],
    model_type: "qwen3",
    vocab_size: 613,
    hidden_size: 48,
    intermediate_size: 72,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 16,
    tie_word_embeddings: true,
    max_position_embeddings: 512,
  },
  llama: {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: 97,
    hidden_size: 32,
    intermediate_size: 41,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 1,
    tie_word_embeddings: false,
    max_position_embeddings: 512,
  },
  qwen2: {
    architectures: ["Qwen2ForCausalLM"],
    model_type: "qwen2",
    vocab_size: 130,
    hidden_size: 24,
    intermediate_size: 40,
    num_hidden_layers: 2,
    num_attention_heads: 3,
    num_key_value_heads: 3,
    tie_word_embeddings: true,
    max_position_embeddings: 512,
  },
} as const;
export type Family = keyof typeof TINY;

/** A random model on the CPU device, closed at the end of the block. */
export class Tiny implements Disposable {
  readonly device: Device;
  readonly memory: StepMemory;
  readonly model: Transformer;
  constructor(family: Family, options: Partial<TransformerOptions> = {}, threads = 2) {
    this.device = openTestDevice(threads);
    this.memory = new StepMemory(this.device);
    this.model = new Transformer(this.device, parseModelConfig(TINY[family], family), {
      dtype: Dtype.f32,
      trainable: false,
      maxPositions: 512,
      ...options,
    });
    // Wide enough that distributions are neither flat nor certain.
    initialise(this.model, 5, 0.12);
  }
  [Symbol.dispose](): void {
    this.memory.dispose();
    this.model.dispose();
    this.device.close();
  }
}

export function promptOf(length: number, vocab: number, seed = 1): Int32Array {
  return Int32Array.from({ length }, (_, i) => (i * 31 + seed * 17 + ((i * i) % 7)) % vocab);
}
