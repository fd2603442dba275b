/** Models and requests that benchmarks are made of. */
import { type ModelConfig, parseModelConfig } from "../../io/hf-folder.ts";
import type { Sampling } from "../../rollout/engine.ts";

const SHAPES = {
  stories: {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: 4096,
    hidden_size: 128,
    intermediate_size: 341,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
  },
  "qwen3-0.6b": {
    architectures: ["Qwen3ForCausalLM"],
    model_type: "qwen3",
    vocab_size: 151936,
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: 128,
    max_position_embeddings: 40960,
    rms_norm_eps: 1e-6,
    rope_theta: 1e6,
    tie_word_embeddings: true,
  },
} as const satisfies Readonly<Record<string, Record<string, unknown>>>;
export type Shape = keyof typeof SHAPES;

export type Kind = ModelConfig["kind"];

/** A reward model has the body of Qwen3ForSequenceClassification; there is no such head on a Llama here. */
export function configOf(shape: Shape, kind: Kind = "causal"): ModelConfig {
  const config = parseModelConfig(SHAPES[shape], `shape ${shape}`);
  return kind === "causal" ? config : { ...config, architecture: "Qwen3ForSequenceClassification", kind };
}

export const promptIds = (index: number, length: number, vocab: number): Int32Array =>
  Int32Array.from({ length }, (_, i) => (index * 131 + i * 17 + 3) % vocab);

/** Plain sampling of exactly so many tokens. */
export const sampling = (maxNewTokens: number): Sampling => ({
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  maxNewTokens,
  eosIds: [],
});
