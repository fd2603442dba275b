/** Wiring shared by all GRPO recipes: settings to options, memory plan, policy step, task and loop. */
import { UsageError } from "../core/errors.ts";
import type { Prompt } from "../core/records.ts";
import { type ItemSource, shuffled } from "../data/prompts.ts";
import type { Device } from "../device/device.ts";
import { REINFORCE_ADVANTAGE, TRL_ADVANTAGE } from "../loss/advantage.ts";
import { describeLoss, policyOptions } from "../loss/options.ts";
import type { DualLoraOptions } from "../nn/adapters.ts";
import type { Quantization } from "../nn/quantized.ts";
import { learningRateFactor } from "../nn/schedule.ts";
import type { Labels } from "../reward/labels.ts";
import { Rewards } from "../reward/scoring.ts";
import type { Sampling } from "../rollout/engine.ts";
import type { TrainState } from "../run/checkpoint.ts";
import { runLoop } from "../run/loop.ts";
import { openDevice } from "../run/open-model.ts";
import { type PolicyCompany, PolicyStep, type PolicyStepOptions, type Score } from "../run/policy-step.ts";
import { PolicyTask } from "../run/policy-task.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import type { Routing, RoutingAdvantages } from "../run/routing.ts";
import { StepMemory } from "../tape/tape.ts";
import type { DeviceReward, PolicyModels, RewardJob, RewardNeeds, RunReward } from "./rewards.ts";
import type { GrpoSettings } from "./settings.ts";
import { loopOptions, openTrained, planMemory, type Source, type Trained } from "./setup.ts";

export interface JobPrompts {
  readonly training: ItemSource<Prompt>;
  /** Those of evaluations. */
  readonly held: readonly Prompt[];
  /** Tokens of the longest one: what memory is planned for. */
  readonly longest: number;
  readonly description: string;
}

/** Prompts of a training and an evaluation file. */
export function filePrompts(
  files: Pick<GrpoSettings, "seed" | "eval_num_prompts"> & {
    readonly train_file: string;
    readonly eval_file: string;
  },
  read: (file: string) => readonly Prompt[],
): JobPrompts {
  const prompts = read(files.train_file);
  const held = read(files.eval_file).slice(0, files.eval_num_prompts);
  return {
    training: shuffled(prompts, files.seed),
    held,
    longest: prompts.reduce((most, { ids }) => Math.max(most, ids.length), 0),
    description: `${prompts.length} training and ${held.length} evaluation prompts`,
  };
}

export interface GrpoJob {
  readonly settings: GrpoSettings;
  /** Weight of the KL term, under whatever name the recipe has for it. */
  readonly beta: number;
  readonly gamma: number;
  readonly source: Source;
  readonly sourceName: string;
  readonly referenceQuantization?: Quantization | null;
  /** Sequences decoded at once. */
  readonly decodedTogether: number;
  readonly prompts: JobPrompts;
  readonly rewards: readonly RunReward[];
  readonly totalSteps: (state: TrainState) => number;
  /** Retain and forget adapters in the place of what the flags of other adapters say. */
  readonly dual?: DualLoraOptions | null;
  /** Evaluations of every mode, and what becomes of flagged completions. */
  readonly routed?: Routed;
}

export interface Routed {
  readonly routing: Routing;
  readonly advantages: RoutingAdvantages;
  /** null: no completion has a label. */
  readonly labels: Labels | null;
  /** What evaluations report in the place of the components of the reward; none: these. */
  readonly evalRewards: readonly RunReward[];
  /** Of the run header. */
  readonly lines: readonly string[];
}

export async function runGrpo(job: GrpoJob, reporter: Reporter, control: RunControl): Promise<void> {
  await withStartedRewards(job, (started) => train(job, started, reporter, control));
}

/** The rewards of training, and those of evaluations alone. */
const allRewards = ({ rewards, routed }: GrpoJob): RunReward[] => [
  ...rewards,
  ...(routed?.evalRewards ?? []),
];

/** Starts modules and programs, so that they say what they have against their parameters before models are opened. */
export async function withStartedRewards<T>(
  job: GrpoJob,
  body: (started: readonly string[]) => Promise<T>,
): Promise<T> {
  const bound = allRewards(job).flatMap(({ bound }) => bound ?? []);
  try {
    const started: string[] = [];
    for (const reward of bound) started.push(...((await reward.start?.()) ?? []));
    return await body(started);
  } finally {
    for (const reward of bound) reward.dispose?.();
  }
}

/** What all rewards together want of the run's models, which have `own` positions by themselves. */
export function needsOf(job: GrpoJob, own: number): Required<RewardNeeds> {
  const needs = allRewards(job).flatMap(({ open }) => open?.needs ?? []);
  return {
    reference: needs.some(({ reference }) => reference),
    positions: Math.max(own, ...needs.map(({ positions }) => positions ?? 0)),
  };
}

/** `started`: what rewards say of themselves in the run header. */
async function train(
  job: GrpoJob,
  started: readonly string[],
  reporter: Reporter,
  control: RunControl,
): Promise<void> {
  const { settings, prompts } = job;
  const options = stepOptions(job);
  const { tokenizer, config } = job.source;
  const promptsPerBatch = settings.batch_size * settings.grad_accum_steps;
  const needs = needsOf(job, settings.max_prompt_length + settings.max_completion_length);
  const open = (device: Device) =>
    openTrained(device, job.source, settings, control, {
      maxPositions: needs.positions,
      reference: job.beta !== 0 || needs.reference,
      referenceQuantization: job.referenceQuantization ?? null,
      dual: job.dual ?? null,
    });

  const plan = await planMemory(
    open,
    async (trained, memory) => {
      const batch = Array.from({ length: promptsPerBatch }, (_, index) => longPrompt(prompts.longest, index));
      const mixed = job.routed?.routing !== "screening";
      const alternate: Score = async (rollouts) =>
        rollouts.map((r, i) => ({ ...r, reward: i % 2, components: {}, flagged: mixed && i % 4 < 2 }));
      const rewards = openRewards(job, memory, trained);
      const step = policyStep(job, options, trained, memory, alternate);
      await step.generate(1, batch);
      await step.update(1, 0);
      const kv = step.engine.store.bytes;
      step.dispose();
      rewards.close();
      return { kv, ...(rewards.bytes > 0 ? { reward: rewards.bytes } : {}) };
    },
    control.ranks,
  );

  const trained = open(openDevice(settings.device, settings.threads));
  const memory = new StepMemory(trained.device);
  let opened: OpenedRewards | null = null;
  try {
    opened = openRewards(job, memory, trained);
    const { rewards, evalRewards } = opened;
    const own: Score = (rollouts, step) => rewards.score(rollouts, { step, signal: control.signal });
    const { routed } = job;
    const labels = routed?.labels;
    const step = policyStep(job, options, trained, memory, own, {
      ranks: control.ranks,
      // A placebo deals the labels of a whole step.
      ...(labels ? { label: (scored, at) => labels.label(scored, at) } : {}),
    });
    const { state } = trained;
    const totalSteps = job.totalSteps(state);
    const factor = learningRateFactor({
      schedule: settings.lr_schedule,
      totalSteps,
      warmup: settings.warmup_steps,
    });
    const { training, held, description } = prompts;
    const task = new PolicyTask(
      step,
      trained.model,
      tokenizer,
      training,
      held,
      {
        recipe: settings.recipe,
        promptsPerBatch,
        learningRate: (done) => settings.learning_rate * factor(done),
        initialHash: state.initial_sha256,
        checkpointConfig: control.checkpointConfig,
        ...(routed ? { modeScore: modeScore(own, evalRewards, routed, control.signal) } : {}),
      },
      state,
    );
    reporter.plan({
      bytes: plan,
      totalSteps,
      startStep: state.step,
      lines: [
        `model ${job.sourceName}: ${config.architecture}, ${trained.model.parameters.count} parameters, ${settings.dtype}`,
        `device: ${trained.device.describe()}`,
        ...trained.lines,
        `data ${description}`,
        ...(routed?.lines ?? []),
        ...opened.lines,
        ...started,
        describeLoss(options.loss, {
          advantage: options.advantage,
          temperature: settings.temperature,
          groupSize: settings.group_size,
          maxCompletionLength: settings.max_completion_length,
        }),
        ...(job.gamma === 1 ? [] : [`advantages discounted by ${job.gamma} a token`]),
      ],
    });
    await runLoop(task, loopOptions(settings, totalSteps, state, settings.save_rollouts), reporter, control);
    step.dispose();
  } finally {
    opened?.close();
    memory.dispose();
    trained.dispose();
  }
}

export interface OpenedRewards {
  readonly rewards: Rewards;
  /** Of evaluations alone; null: these have the run's. */
  readonly evalRewards: Rewards | null;
  /** Of weights that they keep there. */
  readonly bytes: number;
  readonly lines: readonly string[];
  /** Of the first of the run's rewards that is a judge; null without one. */
  readonly judgeInOrders: NonNullable<DeviceReward["judgeInOrders"]> | null;
  /** Closes what was opened on the device. */
  close(): void;
}

/** How evaluations score: without noise in the labels and without what labels take from a reward. */
export function modeScore(
  own: Score,
  components: Rewards | null,
  { labels }: Routed,
  signal: AbortSignal,
): Score {
  return async (rollouts, step) => {
    const scored = await own(rollouts, step);
    const parts = components ? await components.score(rollouts, { step, signal }) : scored;
    return scored.map((each, i) => ({
      ...each,
      components: parts[i]!.components,
      ...(labels ? { flagged: labels.isHack(each) } : {}),
    }));
  };
}

/** Opens what of a job's rewards needs a device. */
export function openRewards(job: GrpoJob, memory: StepMemory, trained: PolicyModels): OpenedRewards {
  const onDevice: DeviceReward[] = [];
  const close = () => {
    for (const reward of onDevice) reward.dispose();
  };
  const opened = (list: readonly RunReward[]) =>
    new Rewards(
      list.map(({ name, weight, bound, open, timeout }) => {
        if (bound) return { name, weight, reward: bound };
        const reward = open!(memory, trained);
        onDevice.push(reward);
        return { name, weight, reward: { batch: reward.batch, timeout } };
      }),
    );
  try {
    const rewards = opened(job.rewards);
    const judge = onDevice.find((reward) => reward.judgeInOrders);
    const ofEvaluations = job.routed?.evalRewards ?? [];
    return {
      rewards,
      evalRewards: ofEvaluations.length === 0 ? null : opened(ofEvaluations),
      bytes: onDevice.reduce((sum, { bytes }) => sum + bytes, 0),
      lines: onDevice.flatMap(({ lines }) => lines),
      judgeInOrders: judge?.judgeInOrders ?? null,
      close,
    };
  } catch (error) {
    close();
    throw error;
  }
}

/** What rewards are told of a run. */
export function rewardJob(settings: GrpoSettings, source: Source): RewardJob {
  return {
    source,
    dtype: settings.dtype,
    maxPromptLength: settings.max_prompt_length,
    maxCompletionLength: settings.max_completion_length,
    microBatchTokens: settings.micro_batch_tokens,
  };
}

/** A prompt whose tokens do not matter. */
function longPrompt(length: number, index: number): Prompt {
  return { index, text: "", ids: new Int32Array(length), fields: {} };
}

function policyStep(
  job: GrpoJob,
  options: PolicyStepOptions,
  trained: Trained,
  memory: StepMemory,
  score: Score,
  company: PolicyCompany = {},
) {
  const { settings } = job;
  if (trained.model.dropout > 0 && settings.top_entropy_quantile < 1)
    throw new UsageError(
      "the entropies of a step are counted without dropout",
      "top_entropy_quantile",
      "set --lora_dropout 0",
    );
  const maxLength = settings.max_prompt_length + settings.max_completion_length;
  return new PolicyStep(
    memory,
    trained.model,
    trained.reference,
    trained.tokenizer,
    trained.optimizer,
    score,
    options,
    {
      maxBatch: job.decodedTogether,
      maxLength,
      prefillTokens: Math.max(settings.max_prompt_length, Math.min(settings.micro_batch_tokens, 2048)),
    },
    company,
  );
}

/** How completions of a run are drawn. */
export function samplingOf(settings: GrpoSettings, { tokenizer }: Source): Sampling {
  return {
    temperature: settings.temperature,
    topK: settings.top_k,
    topP: settings.top_p,
    minP: settings.min_p,
    maxNewTokens: settings.max_completion_length,
    eosIds: tokenizer.eosIds,
  };
}

function stepOptions({ settings, beta, gamma, source, routed }: GrpoJob): PolicyStepOptions {
  const loss = policyOptions({
    lossType: settings.loss_type,
    beta,
    ...(settings.kl_estimator === null ? {} : { klEstimator: settings.kl_estimator }),
    importanceSamplingLevel: settings.importance_sampling_level,
    epsilonLow: settings.epsilon,
    epsilonHigh: settings.epsilon_high,
    delta: settings.delta,
    aggregation: settings.aggregation,
    sapoTemperaturePos: settings.sapo_temperature_pos,
    sapoTemperatureNeg: settings.sapo_temperature_neg,
    vespo: {
      kPos: settings.vespo_k_pos,
      lambdaPos: settings.vespo_lambda_pos,
      kNeg: settings.vespo_k_neg,
      lambdaNeg: settings.vespo_lambda_neg,
    },
    entropyCoef: settings.entropy_coef,
    topEntropyQuantile: settings.top_entropy_quantile,
    offPolicyMaskThreshold: settings.off_policy_mask_threshold,
    compat: settings.compat,
  });
  const preset = settings.loss_type === "reinforce_kl2" ? REINFORCE_ADVANTAGE : TRL_ADVANTAGE;
  return {
    seed: settings.seed,
    groupSize: settings.group_size,
    numIterations: settings.num_iterations,
    stepsPerGeneration: settings.steps_per_generation,
    gradAccumSteps: settings.grad_accum_steps,
    sampling: samplingOf(settings, source),
    loss,
    advantage: { ...preset, scale: settings.scale_rewards },
    gamma,
    maskTruncated: settings.mask_truncated_completions,
    microBatchTokens: settings.micro_batch_tokens,
    sharePrefix: true,
    exactSampler: true,
    routing: routed?.routing ?? "none",
    routingAdvantages: routed?.advantages ?? "all",
  };
}
