/**
 * The judge of a run, examined: how its two readings of the run's responses agree and what moves them. A sample is judged
 * again with the criteria listed in every rotation of their order, each of which should give the same scores.
 */
import { join } from "node:path";
import type { DeviceName } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { readPrompts } from "../data/prompts.ts";
import { type JudgeReport, judgeReport, type OrderedJudgements, readJudged } from "../report/judge.ts";
import { readRubric, reordered } from "../reward/rubric.ts";
import { Judge, type JudgeOptions } from "../run/judge.ts";
import { judgeFrame, promptText, responseText } from "../run/judge-prompt.ts";
import { dtypeCode, openDevice, openModel, openTokenizer, readCausalConfig } from "../run/open-model.ts";
import { quantizationFlag } from "../run/reward-model.ts";
import { StepMemory } from "../tape/tape.ts";
import { resolveModel } from "./base.ts";
import { resolveBuiltin } from "./builtin.ts";
import type { RewardSetting } from "./settings.ts";

export interface JudgeReportSettings {
  /** A run folder whose rollouts a rubric has judged. */
  readonly run: string;
  /** Its resolved config: train_config.json. */
  readonly config: JudgedRunConfig;
  readonly table: "rollouts" | "eval_rollouts";
  /** The newest so many responses are reported on. */
  readonly most: number;
  /** So many of them, evenly spread, are judged again in other orders; 0 = none, and no model is opened. */
  readonly again: number;
  readonly device: DeviceName;
  readonly threads: number | null;
}

/** What the report reads of a run's config. */
export interface JudgedRunConfig {
  readonly recipe: string;
  readonly model: string;
  readonly adapter: string | null;
  readonly train_file: string;
  readonly eval_file: string;
  readonly rubric: string;
  readonly judge: string;
  readonly judge_quant_type: "none" | "int8" | "int4";
  readonly judge_max_new_tokens: number;
  readonly dtype: "float32" | "bfloat16";
  readonly max_prompt_length: number;
  readonly max_completion_length: number;
  readonly system: string | null;
  readonly enable_thinking: boolean;
  readonly reward: readonly RewardSetting[];
}

/** Names on the hub in `config` have become folders already. */
export async function reportJudge(settings: JudgeReportSettings): Promise<JudgeReport> {
  const { run, config, table, most, again } = settings;
  if (config.recipe !== "values")
    throw new UsageError(
      `a run of recipe ${config.recipe} has no judge's config`,
      run,
      "name a run of rlv train values",
    );
  const judged = readJudged(join(run, "rollouts.sqlite"), table, most);
  if (judged.length === 0)
    throw new UsageError("no rollout of the run was judged", run, "name a run whose reward is a rubric");
  if (again === 0) return judgeReport(judged);
  const sample = judged.filter(
    (_, i) => Math.floor((i * again) / judged.length) !== Math.floor(((i - 1) * again) / judged.length),
  );
  return judgeReport(judged, await judgeInOrders(settings, sample));
}

/** The sample under every rotation of the rubric's criteria, by the judge that the run had; self is the run's last policy. */
async function judgeInOrders(
  { run, config, table, device: deviceName, threads }: JudgeReportSettings,
  sample: readonly { readonly promptIndex: number; readonly response: string }[],
): Promise<OrderedJudgements[]> {
  const own = config.reward.find(({ name }) => name === "rubric")?.params ?? {};
  const judge = String(own.judge ?? config.judge);
  const named =
    judge === "self"
      ? join(run, "checkpoints/final")
      : judge === "initial"
        ? resolveBuiltin(config.model)
        : judge;
  const { model: folder, adapter } = resolveModel(named, null);
  const modelConfig = readCausalConfig(folder);
  const tokenizer = openTokenizer(folder, modelConfig);
  const style = { system: config.system, thinking: config.enable_thinking };
  const policy = resolveModel(resolveBuiltin(config.model), null).model;
  const prompts = readPrompts(
    resolveBuiltin(table === "rollouts" ? config.train_file : config.eval_file),
    openTokenizer(policy, readCausalConfig(policy)),
    config.max_prompt_length,
    [],
    style,
  );
  const asked = sample.map(({ promptIndex, response }) => {
    const prompt = prompts[promptIndex];
    if (!prompt)
      throw new UsageError(
        `there is no prompt ${promptIndex} any more`,
        config.train_file,
        "restore the run's prompts",
      );
    return { prompt: promptText(prompt), response: responseText(response) };
  });
  const rubric = readRubric(resolveBuiltin(String(own.path ?? config.rubric)));
  const orders = rubric.criteria.map((_, turn) =>
    reordered(
      rubric,
      rubric.criteria.map((_, i) => (i + turn) % rubric.criteria.length),
    ),
  );
  const frames = orders.map((order) => judgeFrame(order, tokenizer));
  const lengths = (texts: readonly string[], ids: (text: string) => Int32Array) =>
    texts.reduce((longest, text) => Math.max(longest, ids(text).length), 1);
  const options: JudgeOptions = {
    maxNewTokens: 1,
    maxPromptTokens: lengths(
      asked.map(({ prompt }) => prompt),
      frames[0]!.promptIds,
    ),
    // As far as the run's judge read.
    maxResponseTokens: config.max_completion_length,
    budget: 4096,
  };
  const device = openDevice(deviceName, threads);
  const memory = new StepMemory(device);
  const model = openModel(
    folder,
    device,
    {
      ...{ dtype: dtypeCode(config.dtype), trainable: false },
      maxPositions: Math.max(...frames.map((frame) => Judge.positions(frame, options))),
      quantization: quantizationFlag(config.judge_quant_type),
    },
    "judge",
    adapter,
  );
  try {
    const results: OrderedJudgements[] = [];
    for (const [i, order] of orders.entries()) {
      const asking = new Judge(
        memory,
        { name: judge, frozen: true, shape: model, hold: (body) => body(model) },
        order,
        frames[i]!,
        options,
      );
      try {
        const verdicts = await asking.judge(asked);
        results.push({
          order: order.criteria.map(({ name }) => name),
          expected: verdicts.map(({ criteria }) =>
            Object.fromEntries(Object.entries(criteria).map(([name, { expected }]) => [name, expected])),
          ),
        });
      } finally {
        asking.dispose();
      }
    }
    return results;
  } finally {
    memory.dispose();
    model.dispose();
    device.close();
  }
}
