/** Names of runs that carry every setting that matters, so that two runs of one name are one experiment. */
import { createHash } from "node:crypto";
import { basename } from "node:path";
import type { RewardSetting } from "../recipe/settings.ts";
import { fieldsOf } from "./fields.ts";
import type { ResolvedConfig } from "./recipes.ts";
import { type StoriesConfig, storiesSchema } from "./schema-stories.ts";

/** Keys that change nothing of what a run learns, and those that the name says in words of its own. */
const LEFT_OUT = new Set<keyof StoriesConfig>([
  ...(["output_dir", "run_name", "device", "threads", "log_every", "save_rollouts"] as const),
  ...(["save_steps", "keep_checkpoints", "micro_batch_tokens", "gradient_checkpointing"] as const),
  ...(["reward", "lora_config", "retain_rank", "forget_rank", "lora_rank", "lr", "beta", "seed"] as const),
  ...(["routing", "placebo", "detector", "max_steps", "max_completion_length"] as const),
  ...(["eval_rewards", "eval_routing_steps", "eval_num_prompts"] as const),
]);
/** Of those, what a name does not say at all. */
const UNSAID = new Set<string>([
  ...(["output_dir", "run_name", "device", "threads", "log_every", "save_rollouts", "save_steps"] as const),
  ...(["keep_checkpoints", "micro_batch_tokens", "gradient_checkpointing", "eval_rewards"] as const),
  ...(["eval_routing_steps", "eval_num_prompts"] as const),
]);
/** What a folder's name may have. */
const LONGEST = 180;

/**
 * The name of a run in a sweep: its variant, else what a story run calls itself, else the recipe; then the keys of the
 * grid that this does not say.
 */
export function sweptRunName(
  config: ResolvedConfig,
  variant: string | null,
  keys: readonly string[],
): string {
  const said = variant === null && config.recipe === "stories";
  const values = config as unknown as Readonly<Record<string, unknown>>;
  const first = variant ?? (config.recipe === "stories" ? storyRunName(config) : config.recipe);
  const further = keys.filter((key) => !said || UNSAID.has(key));
  const parts = [first, ...further.map((key) => `${key}${valueText(values[key])}`)];
  const name = parts.join("_").replace(/[^\w.+-]+/g, "-");
  return name.length <= LONGEST ? name : `${name.slice(0, LONGEST - 7)}_${hash(name)}`;
}

/** happy_binary_lora_r8_lr1e-5_beta0.02_s42; what differs from its default follows before the seed. */
export function storyRunName(config: StoriesConfig): string {
  const defaults = new Map(fieldsOf(storiesSchema).map(({ name, fallback }) => [name, fallback]));
  const short = (word: string, key: keyof StoriesConfig) =>
    config[key] === defaults.get(key) ? [] : [`${word}${config[key]}`];
  const further = fieldsOf(storiesSchema).flatMap(({ name, fallback }) => {
    const key = name as keyof StoriesConfig;
    const value = config[key];
    if (LEFT_OUT.has(key) || JSON.stringify(value) === JSON.stringify(fallback)) return [];
    return [`${name}${valueText(value)}`];
  });
  const parts = [
    rewardsText(config.reward),
    adapterText(config),
    ...(config.routing === "none" ? [] : [config.routing]),
    ...(config.placebo ? ["placebo"] : []),
    ...(config.detector === null ? [] : [`${config.detector.name}${paramsText(config.detector.params)}`]),
    `lr${numberText(config.lr)}`,
    `beta${numberText(config.beta)}`,
    ...short("steps", "max_steps"),
    ...short("len", "max_completion_length"),
    ...further,
    `s${config.seed}`,
  ];
  const name = parts.join("_").replace(/[^\w.+-]+/g, "-");
  if (name.length <= LONGEST) return name;
  const seed = `_${hash(name)}_s${config.seed}`;
  return `${name.slice(0, LONGEST - seed.length)}${seed}`;
}

function adapterText({ lora_config, retain_rank, forget_rank, lora_rank }: StoriesConfig): string {
  if (lora_rank !== null) return `lora_r${lora_rank}`;
  const ranks = [retain_rank, forget_rank].map((rank) => (rank === null ? lora_config?.slice(1) : rank));
  if (ranks[0] === undefined) return "full";
  return String(ranks[0]) === String(ranks[1]) ? `dual_r${ranks[0]}` : `dual_r${ranks[0]}+${ranks[1]}`;
}

const rewardsText = (rewards: readonly RewardSetting[]): string =>
  rewards
    .map(({ name, as, weight, params, sha256 }) => {
      const told = {
        ...params,
        ...(sha256 === undefined ? {} : { sha256 }),
        ...(name === as ? {} : { name }),
      };
      return `${as}${weight === 1 ? "" : `x${numberText(weight)}`}${paramsText(told)}`;
    })
    .join("+");

const paramsText = (params: Readonly<Record<string, unknown>>): string =>
  Object.keys(params).length === 0 ? "" : `-${hash(JSON.stringify(params))}`;

/** Six digits that tell texts apart. */
export const hash = (text: string): string => createHash("sha256").update(text).digest("hex").slice(0, 6);

/** 1e-5 and 0.02: the shortest text that reads back as the number. */
function numberText(value: number): string {
  return value !== 0 && value < 1e-3 ? value.toExponential() : String(value);
}

function valueText(value: unknown): string {
  if (typeof value === "number") return numberText(value);
  if (Array.isArray(value)) return `-${rewardsText(value as readonly RewardSetting[])}`;
  if (typeof value === "object" && value !== null) return `-${hash(JSON.stringify(value))}`;
  return `-${typeof value === "string" && value.includes("/") ? basename(value) : String(value)}`;
}
