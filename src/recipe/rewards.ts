/**
 * From the rewards that a config names to what scores a run's rollouts.
 *
 * Most rewards need nothing of the run (`RewardDefinition.bind`). One that computes with a model has a row in SOURCES in
 * place of `bind`: a function of its parameters and the job, which checks both before any weights are read and returns
 * another that opens the reward on a device. That one is called twice: on the device that computes nothing, where
 * `bytes` enters the memory plan, and on the run's.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import type { OrderedJudgements } from "../report/judge.ts";
import { REWARDS } from "../reward/all.ts";
import { isModule, moduleReward } from "../reward/module-reward.ts";
import type { BatchFunction, BoundReward } from "../reward/registry.ts";
import { dtypeCode } from "../run/open-model.ts";
import {
  openReward,
  type QuantType,
  quantizationFlag,
  readReward,
  rolloutRewards,
  tokenizerDifference,
} from "../run/reward-model.ts";
import type { StepMemory } from "../tape/tape.ts";
import { resolveModel } from "./base.ts";
import { rubricReward } from "./rubric.ts";
import type { RewardSetting } from "./settings.ts";
import type { Source, Trained } from "./setup.ts";

/** What a reward that computes with a model is told of its run. */
export interface RewardJob {
  /** The policy at step 0. */
  readonly source: Source;
  readonly dtype: "float32" | "bfloat16";
  readonly maxPromptLength: number;
  readonly maxCompletionLength: number;
  readonly microBatchTokens: number;
}

/** What a judge reads of a rollout. */
export type Judgeable = Pick<Rollout, "prompt" | "text">;

/** Opened on a device. */
export interface DeviceReward {
  readonly batch: BatchFunction;
  /** Of a judge: what it says with the criteria listed in every rotation of their order. */
  readonly judgeInOrders?: (responses: readonly Judgeable[]) => Promise<OrderedJudgements[]>;
  /** Of weights that it keeps there. */
  readonly bytes: number;
  /** Of the run header. */
  readonly lines: readonly string[];
  dispose(): void;
}

/** What a reward wants of the models that its run opens anyway. */
export interface RewardNeeds {
  /** The policy of step 0, whether or not a KL term needs it. */
  readonly reference?: boolean;
  /** Positions of the policy and its reference. */
  readonly positions?: number;
}

/** The policy as it is now, and that of step 0. */
export type PolicyModels = Pick<Trained, "model" | "reference">;

export type OpenOnDevice = ((memory: StepMemory, policy: PolicyModels) => DeviceReward) & {
  readonly needs?: RewardNeeds;
};

/** `parameters` are checked by the definition's schema. */
export type RewardSource = (parameters: never, job: RewardJob) => OpenOnDevice;

const SOURCES: Readonly<Record<string, RewardSource>> = { reward_model: rewardModel, rubric: rubricReward };

/** A reward of a run before the device is open: bound, or to be opened there. */
export interface RunReward {
  /** Of metrics and components. */
  readonly name: string;
  readonly weight: number;
  readonly bound: BoundReward | null;
  readonly open: OpenOnDevice | null;
  /** Of one that is opened: seconds of a batch, null = any. */
  readonly timeout: number | null;
  /** Fields that every row of the dataset must have. */
  readonly fields: readonly string[];
}

/** Checks the rewards of a config and binds them. `resumeFrom`: the checkpoint that the run goes on from. */
export function runRewards(
  settings: readonly RewardSetting[],
  job: RewardJob,
  resumeFrom: string | null,
): RunReward[] {
  return settings.map(({ name, as, weight, params, sha256 = "" }) => {
    const common = { name: as, weight, open: null, timeout: null, fields: [] };
    if (isModule(name)) {
      const bound = moduleReward(
        { name: as, path: name, sha256, before: hashBefore(resumeFrom, name) },
        params,
      );
      return { ...common, bound };
    }
    const definition = REWARDS.get(name);
    const { own, timeout = null } = REWARDS.check(name, params);
    const fields = definition.fields?.(own) ?? [];
    if (definition.bind) return { ...common, bound: REWARDS.bind(name, params), fields };
    const source = SOURCES[name];
    if (!source) throw new UsageError(`reward ${name} is not for this job`, "reward");
    return { ...common, bound: null, open: source(own as never, job), timeout, fields };
  });
}

/** sha256 of a module when the checkpoint was written; null if it was not part of the run. */
function hashBefore(checkpoint: string | null, path: string): string | null {
  if (checkpoint === null) return null;
  const { reward = [], eval_rewards = [] } = JSON.parse(
    readFileSync(join(checkpoint, "train_config.json"), "utf8"),
  ) as { readonly reward?: readonly RewardSetting[]; readonly eval_rewards?: readonly RewardSetting[] };
  return [...reward, ...eval_rewards].find(({ name }) => name === path)?.sha256 ?? null;
}

interface RewardModelParameters {
  readonly path: string;
  readonly quant_type: QuantType;
  readonly eos_penalty: number;
  readonly retokenize: boolean;
}

/** Checks that policy and reward model fit. */
function rewardModel(parameters: RewardModelParameters, job: RewardJob): OpenOnDevice {
  const { path, quant_type, eos_penalty, retokenize } = parameters;
  const policy = job.source.tokenizer;
  const named = resolveModel(path, null);
  const judge = readReward(named.model, named.adapter);
  const { config } = judge;
  const reward = judge.tokenizer();
  const difference = tokenizerDifference(policy, reward);
  if (difference !== null && !retokenize)
    throw new UsageError(
      `policy and reward model have different tokenizers (${difference})`,
      path,
      "take a reward model of the policy's family, or give it text in its own tokens by --rm_retokenize true (parameter retokenize)",
    );
  // One more token than the policy's sequences: EOS behind a completion that was cut off.
  const longest = job.maxPromptLength + job.maxCompletionLength + 1;
  const context = config.maxPositionEmbeddings;
  if (longest > context && !retokenize)
    throw new UsageError(
      `prompt and completion of ${longest} tokens exceed the reward model's context of ${context}`,
      path,
      "lower --max_prompt_length or --max_new_tokens",
    );
  return (memory) => {
    const model = openReward(judge, memory.device, {
      dtype: dtypeCode(job.dtype),
      maxPositions: retokenize ? context : longest,
      quantization: quantizationFlag(quant_type),
    });
    return {
      batch: rolloutRewards(memory, model, {
        policy,
        reward,
        retokenize,
        eosPenalty: eos_penalty,
        budget: job.microBatchTokens,
      }),
      bytes: model.bytes.weights,
      lines: [
        `reward model ${path}: ${config.architecture}, weights ${quant_type === "none" ? job.dtype : quant_type}${retokenize ? ", retokenized" : ""}; reward = score at the end, less ${eos_penalty} without EOS`,
      ],
      dispose: () => model.dispose(),
    };
  };
}
