/** Fresh completions of a run's checkpoint, rewarded as the run rewards them: what `rlv eval` looks at. */
import type { Prompt, Rollout, Scored } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import { Transformer } from "../nn/transformer.ts";
import { RolloutEngine } from "../rollout/engine.ts";
import { dtypeCode, openDevice, openModel } from "../run/open-model.ts";
import { Reference } from "../run/reference.ts";
import { StepMemory } from "../tape/tape.ts";
import { resolveModel } from "./base.ts";
import { type GrpoJob, openRewards } from "./grpo.ts";

export interface EvaluationOptions {
  /** Completions of each prompt, and how many of the evaluation prompts; null: all. */
  readonly n: number;
  readonly prompts: number | null;
  /** null: as the run samples. */
  readonly temperature: number | null;
  readonly maxNewTokens: number | null;
  readonly seed: number;
}

const BATCH = 32;
const PACKED_TOKENS = 2048;

/** `folder`: a checkpoint of the job's run. `step`: what rewards are told. */
export async function evaluateCheckpoint(
  job: GrpoJob,
  folder: string,
  step: number,
  options: EvaluationOptions,
): Promise<Scored[]> {
  const { settings } = job;
  const bound = job.rewards.flatMap(({ bound }) => bound ?? []);
  const device = openDevice(settings.device, settings.threads);
  const memory = new StepMemory(device);
  const owned: Transformer[] = [];
  try {
    for (const reward of bound) await reward.start?.();
    const maxNewTokens = options.maxNewTokens ?? settings.max_completion_length;
    const needs = job.rewards.map(({ open }) => open?.needs ?? {});
    const needed = needs.map(({ positions = 0 }) => positions);
    const own = settings.max_prompt_length + Math.max(maxNewTokens, settings.max_completion_length);
    const shape = {
      dtype: dtypeCode(settings.dtype),
      trainable: false,
      maxPositions: Math.min(Math.max(own, ...needed), job.source.config.maxPositionEmbeddings),
    };
    const { model: base, adapter } = resolveModel(folder, null);
    const model = openModel(base, device, shape, "policy", adapter);
    owned.push(model);
    let reference: Reference | null = null;
    if (needs.some((need) => need.reference)) {
      const start = new Transformer(device, job.source.config, shape, "reference");
      owned.push(start);
      job.source.load(start);
      reference = Reference.kept(start);
    }
    const prompts = job.prompts.held.slice(0, options.prompts ?? undefined);
    const rollouts = sample(job, memory, model, prompts, maxNewTokens, options);
    const opened = openRewards(job.rewards, memory, { model, reference });
    try {
      return await opened.rewards.score(rollouts, { step });
    } finally {
      opened.close();
    }
  } finally {
    for (const reward of bound) reward.dispose?.();
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
  const engine = new RolloutEngine(memory, model, {
    maxBatch: Math.min(BATCH, Math.max(1, prompts.length * n)),
    maxLength: longest + maxNewTokens,
    prefillTokens: Math.max(PACKED_TOKENS, longest),
  });
  try {
    const drawn = engine.generate(
      prompts.map(({ ids, index }) => ({ ids, prompt: index, completions: n })),
      {
        temperature: temperature ?? settings.temperature,
        topK: settings.top_k,
        topP: settings.top_p,
        minP: settings.min_p,
        maxNewTokens,
        eosIds: source.tokenizer.eosIds,
      },
      { seed, purpose: Purpose.generate, step: 0 },
    );
    return prompts.flatMap((prompt, i) =>
      drawn[i]!.map((each, completion) => {
        const text = source.tokenizer.decode(each.ids, { skipSpecialTokens: true });
        return { prompt, completion, text, ...each };
      }),
    );
  } finally {
    engine.dispose();
  }
}
