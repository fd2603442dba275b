/** Reward models: where one starts from, how a frozen one is opened, and what it says of sequences and rollouts. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import { Purpose, Random } from "../core/rng.ts";
import { conversationText, endedText, type Turn } from "../data/conversation.ts";
import type { Device } from "../device/device.ts";
import {
  checkWeights,
  type ModelConfig,
  openWeights,
  readModelConfig,
  rewardConfigOf,
} from "../io/hf-folder.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { type Quantization, quantizationOf } from "../nn/quantized.ts";
import { type Decoder, Transformer } from "../nn/transformer.ts";
import type { DtypeCode } from "../ops/define.ts";
import type { BatchFunction } from "../reward/registry.ts";
import { type Group, microBatches, packSequences, selectGroups } from "../rollout/pack.ts";
import { forwardRewards } from "../rollout/score.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import { loadAdapters, openTokenizer, readAdapter } from "./open-model.ts";

/** Of the normal distribution that a new value head is drawn from. */
const HEAD_STD = 0.02;
const HEAD = "score.weight";

/** A reward model at step 0: the folder of one, or the body of a language model and a seeded value head. */
export function rewardSource(folder: string, seed: number) {
  const given = readModelConfig(folder);
  const tokenizer = openTokenizer(folder, given);
  const config = given.kind === "reward" ? given : rewardConfigOf(given, paddingOf(tokenizer));
  return {
    config,
    tokenizer,
    load: (model: Transformer) => {
      loadBody(folder, given, model);
      if (given.kind === "reward") return;
      const random = new Random(seed, Purpose.init);
      const values = Float32Array.from({ length: config.hiddenSize }, () => HEAD_STD * random.normal());
      model.parameters.load(HEAD, values);
    },
    hash: () => {
      using weights = openWeights(folder);
      const head = given.kind === "reward" ? "" : ` head ${seed}`;
      return createHash("sha256").update(`${weights.digest()}${head}`).digest("hex");
    },
  };
}

/** All that the folder of a reward model or of a language model has of a reward model. */
function loadBody(folder: string, given: ModelConfig, model: Transformer): void {
  using weights = openWeights(folder);
  checkWeights(given, weights);
  model.loadWeights(weights, new Set(given.kind === "reward" ? [] : [HEAD]));
}

/**
 * A token that no scored sequence ends with, EOS: transformers finds the end of a padded sequence as its last token
 * that is not padding.
 */
function paddingOf(tokenizer: Tokenizer): number {
  const ends = new Set(tokenizer.eosIds);
  for (const name of ["pad_token", "unk_token", "bos_token"]) {
    const id = tokenizer.tokenToId(tokenizer.specialTokens[name] ?? "");
    if (id !== undefined && !ends.has(id)) return id;
  }
  for (let id = 0; id < tokenizer.vocabSize; id++) if (!ends.has(id)) return id;
  throw new UsageError("every token ends a sequence", tokenizer.folder, "take another tokenizer");
}

/** How a frozen model is quantized as it is loaded; int4 is NF4. */
export type QuantType = "none" | "int8" | "int4";

export function quantizationFlag(type: QuantType): Quantization | null {
  return type === "none" ? null : quantizationOf(type);
}

/** A reward model for scoring, as its folders describe it. */
export interface RewardModel {
  readonly folder: string;
  /** Of an adapter, which brings the value head if the folder has none. */
  readonly adapter: string | null;
  readonly config: ModelConfig;
  /** Read when it is asked for: token ids need none. */
  readonly tokenizer: () => Tokenizer;
}

/** Reads and checks what the folders of a reward model say; the weights are left for `openReward`. */
export function readReward(folder: string, adapter: string | null): RewardModel {
  const given = readModelConfig(folder);
  const config = given.kind === "reward" ? given : rewardConfigOf(given, given.padTokenId);
  const head = adapter === null ? false : readAdapter(adapter, config).modulesToSave.includes("score");
  if (given.kind !== "reward" && !head)
    throw new UsageError(
      `${given.architecture} is not a reward model: it has no value head`,
      adapter ?? folder,
      "train one with rlv train hh-rm",
    );
  const own = adapter !== null && existsSync(join(adapter, "tokenizer.json"));
  return { folder, adapter, config, tokenizer: () => openTokenizer(own ? adapter : folder, given) };
}

/** Its weights as they are, or quantized as they are loaded. */
export function openReward(
  { folder, adapter, config }: RewardModel,
  device: Device,
  options: {
    readonly dtype: DtypeCode;
    readonly maxPositions: number;
    readonly quantization: Quantization | null;
  },
): Transformer {
  const lora = adapter === null ? null : readAdapter(adapter, config);
  const model = new Transformer(device, config, { ...options, lora, trainable: false }, "reward model");
  if (!device.hasMemory) return model;
  loadBody(folder, readModelConfig(folder), model);
  if (adapter !== null) loadAdapters(model, adapter);
  return model;
}

/** Rewards of sequences by group: each prompt is encoded once for what continues it. */
export async function scoreSequences(
  memory: StepMemory,
  model: Decoder,
  groups: readonly Group[],
  budget: number,
): Promise<number[][]> {
  const rewards: number[][] = groups.map(() => []);
  for (const parts of microBatches(groups, budget)) {
    const g = new Graph(memory, false);
    const scored = forwardRewards(g, model, packSequences(selectGroups(groups, parts)));
    memory.finish();
    const values = scored.float32().slice();
    g.release(scored);
    let i = 0;
    for (const { group, completions } of parts)
      for (const c of completions) rewards[group]![c] = values[i++]!;
    // Signals and messages are served between batches.
    await Bun.sleep(0);
  }
  return rewards;
}

/** Why one tokenizer's ids mean something else to another, or null if they do not. */
export function tokenizerDifference(a: Tokenizer, b: Tokenizer): string | null {
  if (a.vocabSize !== b.vocabSize) return `vocabularies of ${a.vocabSize} and ${b.vocabSize} tokens`;
  for (let id = 0; id < a.vocabSize; id++) {
    const [x, y] = [a.idToToken(id), b.idToToken(id)];
    if (x !== y) return `token ${id} is ${JSON.stringify(x ?? null)} and ${JSON.stringify(y ?? null)}`;
  }
  if (a.chatTemplates.get("default") !== b.chatTemplates.get("default")) return "other chat templates";
  return null;
}

export interface RewardOptions {
  readonly policy: Tokenizer;
  readonly reward: Tokenizer;
  /** Give the reward model text in its own tokens and template. */
  readonly retokenize: boolean;
  /** Taken from the reward of a completion that did not end by itself. */
  readonly eosPenalty: number;
  /** Most packed tokens of one pass. */
  readonly budget: number;
}

/**
 * Rewards of rollouts: the score at the EOS behind a completion, where the reward model was trained to give it, also
 * where the completion was cut off; less the penalty there.
 */
export function rolloutRewards(memory: StepMemory, model: Decoder, options: RewardOptions): BatchFunction {
  return async (rollouts) => {
    const sequences = rollouts.map((rollout) => sequenceOf(rollout, options));
    const { maxPositions } = model.options;
    const starts = [...rollouts.keys()].filter(
      (i) => i === 0 || rollouts[i]!.prompt !== rollouts[i - 1]!.prompt,
    );
    const groups = starts.map((start, i) => ({
      prompt: sequences[start]!.prompt,
      completions: sequences.slice(start, starts[i + 1]).map(({ completion }) => completion),
    }));
    for (const [i, { prompt, completion }] of sequences.entries())
      if (prompt.length + completion.length > maxPositions)
        throw new UsageError(
          `prompt and completion of ${prompt.length + completion.length} tokens exceed the reward model's ${maxPositions}`,
          `prompt ${rollouts[i]!.prompt.index}`,
          "lower --max_prompt_length or --max_new_tokens",
        );
    const rewards = (await scoreSequences(memory, model, groups, options.budget)).flat();
    return rollouts.map((rollout, i) => {
      const penalty = rollout.finish === "eos" ? 0 : options.eosPenalty;
      const components = { reward_model: rewards[i]!, eos_penalty: -penalty };
      return { reward: rewards[i]! - penalty, components };
    });
  };
}

/** What the reward model is given: prompt and ended answer, as in the pairs it was trained on. */
function sequenceOf(
  { prompt, ids, text }: Rollout,
  { policy, reward, retokenize }: RewardOptions,
): { prompt: Int32Array; completion: Int32Array } {
  if (!retokenize) {
    const ends = new Set(policy.eosIds);
    const ended = ids.length > 0 && ends.has(ids[ids.length - 1]!);
    const end = reward.eosIds[0];
    const answer = ended ? ids.subarray(0, -1) : ids;
    return { prompt: prompt.ids, completion: end === undefined ? ids : Int32Array.from([...answer, end]) };
  }
  const turns = prompt.fields.messages as readonly Turn[] | undefined;
  const before = turns ? conversationText(turns, reward, true) : prompt.text;
  const whole = turns
    ? conversationText([...turns, { role: "assistant", content: text.trim() }], reward, false)
    : endedText(prompt.text + text, reward);
  const common = whole.startsWith(before) ? before : "";
  if (common === "")
    throw new UsageError(
      "the reward model's chat template does not extend its own prompt",
      reward.folder,
      "take a reward model with another template",
    );
  return { prompt: reward.encode(common), completion: reward.encode(whole.slice(common.length)) };
}
