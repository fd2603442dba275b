import { resolveOptions } from "../config/resolve.ts";
import { type ChatOptions, chatSchema } from "../config/schema-inference.ts";
import type { AdapterScales } from "../core/chat.ts";
import type { ChatEngineOptions } from "../core/chat-process.ts";
import { UsageError } from "../core/errors.ts";
import { findModel, requireFolder } from "./files.ts";

/** A model to chat with. */
export interface Wanted {
  readonly label: string;
  readonly model: string;
  readonly adapter: string | null;
  readonly scales: AdapterScales | null;
}

const list = (names: string) => names.split(",").map((name) => name.trim());

/** The folders of the models that --model and --adapter name, those on the hub by way of the cache. */
export async function wantedModels({
  model,
  adapter,
  adapter_scales,
}: Pick<ChatOptions, "model" | "adapter" | "adapter_scales">): Promise<Wanted[]> {
  const { resolveModel } = await import("../recipe/base.ts");
  const { scalesOf } = await import("../run/open-model.ts");
  const pair = scalesOf(adapter_scales);
  const scales = pair && { retain: pair[0], forget: pair[1] };
  const names = list(model);
  const adapters = adapter === null ? [null] : list(adapter);
  if (names.length > 1 && adapter !== null)
    throw new UsageError(
      "several models and an adapter",
      `--adapter ${adapter}`,
      "name adapter folders among the models: each brings the model that its adapter_config.json names",
    );
  const wanted: Wanted[] = [];
  for (const name of names) {
    const folder = await findModel(name, "model");
    for (const each of adapters) {
      if (each !== null) requireFolder(each, "adapter");
      wanted.push({ label: each ?? name, ...resolveModel(folder, each), scales });
    }
  }
  const twice = wanted.find(({ label }, i) => wanted.findIndex((w) => w.label === label) < i);
  if (twice) throw new UsageError("the same model is named twice", twice.label, "keep one of them");
  return wanted;
}

/** How replies are drawn, as flags say. */
export function settingsOf(options: ChatOptions) {
  const { temperature, top_p, top_k, min_p, max_new_tokens, seed, system } = options;
  const thinking = { auto: null, on: true, off: false }[options.thinking];
  return { temperature, top_p, top_k, min_p, max_new_tokens, seed, system, thinking };
}

/** How replies are drawn where nobody says anything. */
export const chatDefaults = () => settingsOf(resolveOptions<ChatOptions>(chatSchema, new Map(), "chat"));

/** How the chat process computes, as flags say. */
export const engineOf = ({ device, threads, dtype, max_length }: ChatEngineOptions): ChatEngineOptions => ({
  ...{ device, threads, dtype, max_length },
});
