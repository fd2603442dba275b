/** config.json of the Qwen3 models made here, with tied embeddings and a context of 128 tokens. */
export function smallQwen3(size: {
  readonly vocab: number;
  readonly eos: number;
  readonly hidden: number;
  readonly ffn: number;
  readonly layers: number;
  readonly headDim: number;
}): object {
  return {
    architectures: ["Qwen3ForCausalLM"],
    model_type: "qwen3",
    vocab_size: size.vocab,
    hidden_size: size.hidden,
    intermediate_size: size.ffn,
    num_hidden_layers: size.layers,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: size.headDim,
    hidden_act: "silu",
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    max_position_embeddings: 128,
    tie_word_embeddings: true,
    attention_bias: false,
    bos_token_id: null,
    eos_token_id: size.eos,
    pad_token_id: size.eos,
    torch_dtype: "float32",
  };
}
