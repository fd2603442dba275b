/** A run's checkpoint as `rlv eval` looks at it: fresh completions, rewarded as the run rewards them, and its judge. */
import { UsageError } from "../core/errors.ts";
import { evenly } from "../core/lists.ts";
import type { Prompt, Rollout, Scored } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import { Transformer } from "../nn/transformer.ts";
import { type JudgedRollout, judgeDetails, type OrderedJudgements } from "../report/judge.ts";
import type { ModeFigures } from "../report/modes.ts";
import { asRollouts, RolloutEngine } from "../rollout/engine.ts";
import { MODES, modeFigures } from "../run/mode-evaluation.ts";
import { dtypeCode, openDevice, openModel } from "../run/open-model.ts";
import type { Score } from "../run/policy-step.ts";
import { Reference } from "../run/reference.ts";
import { StepMemory } from "../tape/tape.ts";
import { resolveModel } from "./base.ts";
import {
  type GrpoJob,
  modeScore,
  needsOf,
  type OpenedRewards,
  openRewards,
  samplingOf,
  withStartedRewards,
} from "./grpo.ts";
import type { Judgeable } from "./rewards.ts";

export interface EvaluationOptions {
  /** Completions of each prompt, and how many of the evaluation prompts; null: all. */
  readonly n: number;
  readonly prompts: number | null;
  /** null: as the run samples. */
  readonly temperature: number | null;
  readonly maxNewTokens: number | null;
  readonly seed: number;
  /** Responses, evenly spread, that a judge judges again in other orders of its criteria. */
  readonly judgeAgain: number;
  /** Retain and forget adapters also each by itself. */
  readonly modes: boolean;
}

export interface CheckpointEvaluation {
  readonly scored: readonly Scored[];
  /** What a judge says of some of them in other orders of its criteria; empty without one. */
  readonly orders: readonly OrderedJudgements[];
  /** Figures by mode; null where the checkpoint has no such adapters, or they are not wanted. */
  readonly modes: ModeFigures | null;
}

const BATCH = 32;
const PACKED_TOKENS = 2048;

/** `folder`: a checkpoint of the job's run. `step`: what rewards are told. */
export async function evaluateCheckpoint(
  job: GrpoJob,
  folder: string,
  step: number,
  options: EvaluationOptions,
): Promise<CheckpointEvaluation> {
  const maxNewTokens = options.maxNewTokens ?? job.settings.max_completion_length;
  return withCheckpoint(job, folder, maxNewTokens, async ({ memory, model, opened }) => {
    const { routed } = job;
    const prompts = job.prompts.held.slice(0, options.prompts ?? undefined);
    const own: Score = (rollouts) => opened.rewards.score(rollouts, { step });
    const signal = new AbortController().signal;
    const score = routed ? modeScore(own, opened.evalRewards, routed, signal) : own;
    const fresh = () => score(sample(job, memory, model, prompts, maxNewTokens, options), step);
    const scored = await fresh();
    const judged = scored.filter(({ details }) => judgeDetails(details) !== null);
    const orders = await judgeAgain(opened, judged, options.judgeAgain);
    if (!model.dual || !options.modes) return { scored, orders, modes: null };
    const modes: Record<string, Record<string, number>> = { both: modeFigures(scored) };
    for (const mode of ["retain_only", "forget_only"] as const) {
      model.setScales(...MODES[mode]);
      modes[mode] = modeFigures(await fresh());
    }
    return { scored, orders, modes };
  });
}

/** What the run's judge says of responses that the run's training stored, in other orders of its criteria. */
export async function judgeStored(
  job: GrpoJob,
  folder: string,
  stored: readonly JudgedRollout[],
  again: number,
): Promise<OrderedJudgements[]> {
  const some = evenly(stored, again);
  const wanted = new Set(some.map(({ promptIndex }) => promptIndex));
  const prompts = new Map<number, Prompt>();
  // Prompts may be made as they are drawn, so the pass ends with the last one that is wanted.
  for (let position = 0; prompts.size < wanted.size; ) {
    const { item, epoch, next } = job.prompts.training.at(position);
    if (epoch > 0) break;
    if (wanted.has(item.index)) prompts.set(item.index, item);
    position = next;
  }
  const responses = some.map(({ promptIndex, response }) => {
    const prompt = prompts.get(promptIndex);
    if (prompt === undefined)
      throw new UsageError(`there is no prompt ${promptIndex} any more`, folder, "restore the run's prompts");
    return { prompt, text: response };
  });
  return withCheckpoint(job, folder, 0, ({ opened }) => judgeAgain(opened, responses, again));
}

async function judgeAgain(
  { judgeInOrders }: OpenedRewards,
  responses: readonly Judgeable[],
  again: number,
): Promise<OrderedJudgements[]> {
  const some = evenly(responses, again);
  return judgeInOrders === null || some.length === 0 ? [] : judgeInOrders(some);
}

interface OpenedCheckpoint {
  readonly memory: StepMemory;
  readonly model: Transformer;
  readonly opened: OpenedRewards;
}

/** Opens the checkpoint as the policy, and the run's rewards on it: the judge `self` is the checkpoint. */
async function withCheckpoint<T>(
  job: GrpoJob,
  folder: string,
  maxNewTokens: number,
  body: (opened: OpenedCheckpoint) => Promise<T>,
): Promise<T> {
  const { settings, source } = job;
  const device = openDevice(settings.device, settings.threads);
  const memory = new StepMemory(device);
  const owned: Transformer[] = [];
  try {
    return await withStartedRewards(job, async () => {
      const longest = Math.max(maxNewTokens, settings.max_completion_length);
      const needs = needsOf(job, settings.max_prompt_length + longest);
      const shape = {
        dtype: dtypeCode(settings.dtype),
        trainable: false,
        maxPositions: Math.min(needs.positions, source.config.maxPositionEmbeddings),
      };
      const { model: base, adapter } = resolveModel(folder, null);
      const model = openModel(base, device, shape, "policy", adapter);
      owned.push(model);
      let reference: Reference | null = null;
      if (needs.reference) {
        const start = new Transformer(device, source.config, shape, "reference");
        owned.push(start);
        source.load(start);
        reference = Reference.kept(start);
      }
      const opened = openRewards(job, memory, { model, reference });
      try {
        return await body({ memory, model, opened });
      } finally {
        opened.close();
      }
    });
  } finally {
    memory.dispose();
    for (const model of owned) model.dispose();
    device.close();
  }
}

function sample(
  { settings, source }: GrpoJob,
  memory: StepMemory,
  model: Transformer,
  prompts: readonly Prompt[],
  maxNewTokens: number,
  { n, temperature, seed }: EvaluationOptions,
): Rollout[] {
  const longest = prompts.reduce((most, { ids }) => Math.max(most, ids.length), 1);
  const sampling = samplingOf(settings, source);
  const engine = new RolloutEngine(memory, model, {
    maxBatch: Math.min(BATCH, Math.max(1, prompts.length * n)),
    maxLength: longest + maxNewTokens,
    prefillTokens: Math.max(PACKED_TOKENS, longest),
  });
  try {
    const drawn = engine.generate(
      prompts.map(({ ids, index }) => ({ ids, prompt: index, completions: n })),
      { ...sampling, temperature: temperature ?? sampling.temperature, maxNewTokens },
      { seed, purpose: Purpose.generate, step: 0 },
    );
    return asRollouts(prompts, drawn, source.tokenizer);
  } finally {
    engine.dispose();
  }
}
