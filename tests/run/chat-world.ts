import { cpSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { ReplyOptions } from "../../src/core/chat.ts";
import type { ChatModelSpec } from "../../src/core/chat-process.ts";
import { parseModelConfig } from "../../src/io/hf-folder.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { type AdapterOptions, initialiseAdapters } from "../../src/nn/adapters.ts";
import { Transformer } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { initialise, saveModel } from "../../src/run/open-model.ts";
import "../../src/ops/index.ts";
import { openTestDevice } from "../test-device.ts";

const TOKENIZER = join(import.meta.dir, "../goldens/text/bytelevel_bpe_qwen/tokenizer");

/** ChatML that drops the thoughts of earlier replies and may be told to think or not. */
export const TEMPLATE = `{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + (m.content.split('</think>')[-1] | trim if m.role == 'assistant' else m.content) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined -%}{{ '<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}`;

const CONFIG = {
  architectures: ["Qwen3ForCausalLM"],
  ...{ model_type: "qwen3", vocab_size: 1509, hidden_size: 48, intermediate_size: 72 },
  ...{ num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16 },
  ...{ tie_word_embeddings: true, max_position_embeddings: 512, eos_token_id: 1502 },
};

/** A random model with a tokenizer and a chat template in `folder`; another seed, another model. */
export function writeChatModel(
  folder: string,
  seed = 5,
  config: Readonly<Record<string, unknown>> = {},
): string {
  const device = openTestDevice(1);
  const tokenizer = join(folder, "..", `tokenizer-${seed}-${Date.now()}`);
  cpSync(TOKENIZER, tokenizer, { recursive: true });
  writeFileSync(join(tokenizer, "chat_template.jinja"), TEMPLATE);
  const model = new Transformer(device, parseModelConfig({ ...CONFIG, ...config }, folder), {
    ...{ dtype: Dtype.f32, trainable: false, maxPositions: 8 },
  });
  initialise(model, seed, 0.12);
  saveModel(folder, model, Tokenizer.load(tokenizer));
  model.dispose();
  device.close();
  return folder;
}

/** A PEFT folder of that model whose adapter changes what it says. */
export function writeChatAdapter(folder: string, base: string, seed: number): string {
  return writeAdapters(folder, base, seed, { r: 4, alpha: 8, targets: ["q_proj", "down_proj"], base });
}

/** A folder of retain and forget adapters of that model, each of which changes what it says. */
export function writeChatDual(folder: string, base: string, seed: number): string {
  const side = { r: 4, alpha: 8, targets: ["q_proj", "down_proj"] };
  return writeAdapters(folder, base, seed, { retain: side, forget: side, base });
}

function writeAdapters(folder: string, base: string, seed: number, lora: AdapterOptions): string {
  const device = openTestDevice(1);
  const model = new Transformer(device, parseModelConfig(CONFIG, folder), {
    ...{ dtype: Dtype.f32, trainable: false, maxPositions: 8, lora },
  });
  const adapters = model.adapters!;
  initialiseAdapters(adapters, model.parameters, seed);
  for (const { name, shape } of adapters.list)
    if (name.includes("lora_B"))
      adapters.load(
        name,
        Float32Array.from({ length: shape[0]! * shape[1]! }, (_, i) => Math.sin(i * seed)),
      );
  saveModel(folder, model, Tokenizer.load(base));
  model.dispose();
  device.close();
  return folder;
}

export const specOf = (id: string, model: string, adapter: string | null = null): ChatModelSpec => ({
  ...{ id, label: id, model, adapter },
});

export const replyOptions = (extra: Partial<ReplyOptions> = {}): ReplyOptions => ({
  ...{ temperature: 1, top_p: 1, top_k: 0, min_p: 0, max_new_tokens: 16, seed: 7 },
  ...{ thinking: null, alternatives: 0, draw: 0, scales: null },
  ...extra,
});
