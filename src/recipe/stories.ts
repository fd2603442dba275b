/** GRPO on story openings: rewards, detectors of reward hacks, gradient routing and what it is compared with. */
import { UsageError } from "../core/errors.ts";
import { storyPrompts } from "../data/stories.ts";
import { expectedTensors } from "../io/hf-folder.ts";
import { adaptedMaps, type DualLoraOptions } from "../nn/adapters.ts";
import { bindDetector } from "../reward/detectors.ts";
import { Labels } from "../reward/labels.ts";
import { type GrpoJob, rewardJob } from "./grpo.ts";
import { targetsOf } from "./lora.ts";
import { runRewards } from "./rewards.ts";
import type { DetectorSetting, GrpoSettings, LORA_CONFIGS, RewardSetting } from "./settings.ts";
import { folderSource, type Source } from "./setup.ts";

type Own =
  | "learning_rate"
  | "eval_every"
  | "save_every"
  | "group_size"
  | "steps_per_generation"
  | "grad_accum_steps"
  | "gradient_dtype"
  | "compat"
  | "lora"
  | "adapter"
  | "lora_r"
  | "base_quant_type"
  | "reference_offload";

export interface StoriesSettings extends Omit<GrpoSettings, Own> {
  readonly recipe: "stories";
  readonly model: string;
  readonly dataset: string;
  readonly story_column: string;
  readonly opening_words: number | null;
  readonly num_prompts: number | null;
  readonly reward: readonly RewardSetting[];
  readonly eval_rewards: readonly RewardSetting[];
  readonly detector: DetectorSetting | null;
  readonly detector_recall: number;
  readonly detector_fpr: number;
  readonly routing: "none" | "classic" | "exclusive" | "screening" | "penalty";
  readonly routing_advantages: "all" | "unflagged";
  readonly placebo: boolean;
  readonly rh_penalty: number;
  readonly lora_config: (typeof LORA_CONFIGS)[number] | null;
  readonly retain_rank: number | null;
  readonly forget_rank: number | null;
  readonly lora_rank: number | null;
  readonly beta: number;
  readonly max_steps: number;
  /** Completions. */
  readonly batch_size: number;
  readonly num_generations: number;
  readonly lr: number;
  readonly eval_routing_steps: number;
  readonly save_steps: number;
}

/** `resumeFrom`: the checkpoint that the run goes on from. */
export async function storiesJob(given: StoriesSettings, resumeFrom: string | null): Promise<GrpoJob> {
  const settings = grpoSettings(given);
  const source = folderSource(given.model, given.model);
  if (source.tokenizer.eosIds.length === 0)
    throw new UsageError(
      "the tokenizer has no end-of-text token",
      given.model,
      "a story would never end: take a model whose config names eos_token_id",
    );
  const job = rewardJob(settings, source);
  const rewards = runRewards(given.reward, job, resumeFrom);
  const evalRewards = runRewards(given.eval_rewards, job, resumeFrom);
  // What is wrong with adapters is said before any data is read.
  const dual = dualOptions(given, source);
  if (given.lora_rank !== null)
    adaptedMaps(expectedTensors(source.config), {
      r: given.lora_rank,
      alpha: given.lora_alpha,
      targets: targetsOf(given.lora_target_modules),
    });
  const prompts = await storyPrompts(given.dataset, source.tokenizer, given.seed, {
    column: given.story_column,
    words: given.opening_words,
    maxLength: given.max_prompt_length,
    fields: [...rewards, ...evalRewards].flatMap(({ fields }) => fields),
    most: given.num_prompts,
    held: given.eval_num_prompts,
    draws: Math.ceil(given.max_steps / given.num_iterations) * settings.batch_size,
  });
  const { routing } = given;
  return {
    settings,
    beta: given.beta,
    gamma: 1,
    source,
    sourceName: given.model,
    decodedTogether: Math.min(256, Math.max(given.batch_size, 32)),
    prompts,
    rewards,
    totalSteps: () => given.max_steps,
    dual,
    routed: {
      routing: routing === "penalty" ? "none" : routing,
      advantages: given.routing_advantages,
      labels: labelsOf(given),
      evalRewards,
      lines: [describeRouting(given)],
    },
  };
}

/** The same settings under the names that GRPO has for them. */
function grpoSettings(given: StoriesSettings): StoriesSettings & GrpoSettings {
  return {
    ...given,
    learning_rate: given.lr,
    eval_every: given.eval_routing_steps,
    save_every: given.save_steps,
    batch_size: given.batch_size / given.num_generations,
    group_size: given.num_generations,
    steps_per_generation: 1,
    grad_accum_steps: 1,
    gradient_dtype: "float32",
    compat: "none",
    lora: given.lora_rank !== null,
    adapter: null,
    lora_r: given.lora_rank ?? 1,
    base_quant_type: "none",
  };
}

function dualOptions(given: StoriesSettings, { config }: Source): DualLoraOptions | null {
  const preset = given.lora_config === null ? null : Number(given.lora_config.slice(1));
  const [retain, forget] = [given.retain_rank ?? preset, given.forget_rank ?? preset];
  if (retain === null || forget === null) return null;
  const side = (r: number) => ({
    r,
    alpha: given.lora_alpha,
    targets: targetsOf(given.lora_target_modules),
    rslora: given.use_rslora,
  });
  const options = { retain: side(retain), forget: side(forget), dropout: given.lora_dropout };
  adaptedMaps(expectedTensors(config), options);
  return options;
}

function labelsOf(given: StoriesSettings): Labels | null {
  const { detector } = given;
  if (detector === null) return null;
  return new Labels(bindDetector(detector.name, detector.params), {
    seed: given.seed,
    recall: given.detector_recall,
    falsePositiveRate: given.detector_fpr,
    placebo: given.placebo,
    penalty: given.routing === "penalty" ? given.rh_penalty : null,
  });
}

const CONSEQUENCES: Readonly<Record<StoriesSettings["routing"], string>> = {
  none: "they are counted, nothing else",
  classic: "they teach the forget adapter alone, all others both",
  exclusive: "they teach the forget adapter alone, all others the retain adapter alone",
  screening: "they are left out of groups and loss",
  penalty: "their reward is less by",
};

/** A line of the run header. */
function describeRouting(given: StoriesSettings): string {
  const { detector, routing } = given;
  if (detector === null) return "no detector: no completion has a label";
  const params = Object.keys(detector.params).length === 0 ? "" : ` ${JSON.stringify(detector.params)}`;
  const noise = `recall ${given.detector_recall}, false-positive rate ${given.detector_fpr}`;
  const placebo = given.placebo ? ", dealt out at random (placebo)" : "";
  const by = routing === "penalty" ? ` ${given.rh_penalty}` : "";
  const within =
    given.routing_advantages === "unflagged" ? "; advantages of the others are among themselves" : "";
  return `flagged by ${detector.name}${params}, ${noise}${placebo}: ${CONSEQUENCES[routing]}${by}${within}`;
}
