/** Wiring shared by all GRPO recipes: settings to options, memory plan, policy step, task and loop. */
import type { Prompt } from "../core/records.ts";
import type { Device } from "../device/device.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { REINFORCE_ADVANTAGE, TRL_ADVANTAGE } from "../loss/advantage.ts";
import { describeLoss, policyOptions } from "../loss/options.ts";
import { learningRateFactor } from "../nn/schedule.ts";
import { KvStore } from "../rollout/kv.ts";
import { loadGeneration } from "../run/checkpoint.ts";
import { runLoop } from "../run/loop.ts";
import { openDevice } from "../run/open-model.ts";
import { PolicyStep, type PolicyStepOptions, type Score } from "../run/policy-step.ts";
import { PolicyTask } from "../run/policy-task.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import { StepMemory } from "../tape/tape.ts";
import type { GrpoSettings } from "./settings.ts";
import { openTrained, planMemory, type Source, type Trained } from "./setup.ts";

export interface GrpoJob {
  readonly settings: GrpoSettings;
  /** Weight of the KL term, under whatever name the recipe has for it. */
  readonly beta: number;
  readonly gamma: number;
  readonly source: Source;
  readonly sourceName: string;
  readonly prompts: (tokenizer: Tokenizer) => readonly Prompt[];
  readonly held: (tokenizer: Tokenizer) => readonly Prompt[];
  readonly score: Score;
}

export async function runGrpo(job: GrpoJob, reporter: Reporter, control: RunControl): Promise<void> {
  const { settings } = job;
  const options = stepOptions(job);
  const { tokenizer, config } = job.source;
  const prompts = job.prompts(tokenizer);
  const held = job.held(tokenizer).slice(0, settings.eval_num_prompts);
  const promptsPerBatch = settings.batch_size * settings.grad_accum_steps;
  const open = (device: Device) =>
    openTrained(device, job.source, settings, control, {
      maxPositions: settings.max_prompt_length + settings.max_completion_length,
      reference: job.beta !== 0,
    });

  const plan = await planMemory(open, async (trained, memory) => {
    const longest = [...prompts].sort((a, b) => b.ids.length - a.ids.length);
    const batch = Array.from({ length: promptsPerBatch }, (_, i) => longest[i % longest.length]!);
    const alternate: Score = async (rollouts) =>
      rollouts.map((r, i) => ({ ...r, reward: i % 2, components: {} }));
    const step = policyStep(job, options, trained, memory, alternate);
    await step.generate(1, batch);
    await step.update(1, 0);
    const kv =
      step.engine.store.pages *
      config.numLayers *
      KvStore.pageBytes(trained.model.shape, trained.model.options.dtype);
    step.dispose();
    return { kv };
  });

  const trained = open(openDevice(settings.device, settings.threads));
  const memory = new StepMemory(trained.device);
  try {
    const step = policyStep(job, options, trained, memory, job.score);
    const { state } = trained;
    if (state.generation) step.restore(state.generation.step, loadGeneration(state.generation, prompts));
    reporter.plan({
      bytes: plan,
      totalBytes: Object.values(plan).reduce((a, b) => a + b, 0),
      totalSteps: settings.num_train_steps,
      startStep: state.step,
      lines: [
        `model ${job.sourceName}: ${config.architecture}, ${trained.model.parameters.count} parameters, ${settings.dtype}`,
        `device: ${trained.device.describe()}`,
        ...trained.lines,
        `data ${prompts.length} training and ${held.length} evaluation prompts`,
        describeLoss(options.loss, {
          advantage: options.advantage,
          temperature: settings.temperature,
          groupSize: settings.group_size,
          maxCompletionLength: settings.max_completion_length,
        }),
        ...(job.gamma === 1 ? [] : [`advantages discounted by ${job.gamma} a token`]),
      ],
    });
    const factor = learningRateFactor({
      schedule: settings.lr_schedule,
      totalSteps: settings.num_train_steps,
      warmup: settings.warmup_steps,
    });
    const task = new PolicyTask(step, trained.model, tokenizer, prompts, held, {
      recipe: settings.recipe,
      seed: settings.seed,
      promptsPerBatch,
      learningRate: (done) => settings.learning_rate * factor(done),
      initialHash: state.initial_sha256,
      checkpointConfig: control.checkpointConfig,
    });
    await runLoop(
      task,
      {
        totalSteps: settings.num_train_steps,
        startStep: state.step,
        evalEvery: settings.eval_every,
        saveEvery: settings.save_every,
        keepCheckpoints: settings.keep_checkpoints,
        logEvery: settings.log_every,
        saveRollouts: settings.save_rollouts,
      },
      reporter,
      control,
    );
    step.dispose();
  } finally {
    memory.dispose();
    trained.dispose();
  }
}

function policyStep(
  job: GrpoJob,
  options: PolicyStepOptions,
  trained: Trained,
  memory: StepMemory,
  score: Score,
) {
  const { settings } = job;
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
      maxBatch: Math.min(256, Math.max(settings.batch_size * settings.group_size, 32)),
      maxLength,
      prefillTokens: Math.max(settings.max_prompt_length, Math.min(settings.micro_batch_tokens, 2048)),
    },
  );
}

function stepOptions({ settings, beta, gamma, source }: GrpoJob): PolicyStepOptions {
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
    sampling: {
      temperature: settings.temperature,
      topK: settings.top_k,
      topP: settings.top_p,
      minP: settings.min_p,
      maxNewTokens: settings.max_completion_length,
      eosIds: source.tokenizer.eosIds,
    },
    loss,
    advantage: { ...preset, scale: settings.scale_rewards },
    gamma,
    maskTruncated: settings.mask_truncated_completions,
    microBatchTokens: settings.micro_batch_tokens,
    sharePrefix: true,
    exactSampler: true,
  };
}
