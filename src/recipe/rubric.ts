/** The reward `rubric`: which model judges, in whose tokens, and what its scores become. */
import { assert, UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import type { Transformer } from "../nn/transformer.ts";
import type { RewardContext, RewardResult } from "../reward/registry.ts";
import { type Rubric, readRubric, rubricReward as rewardOf } from "../reward/rubric.ts";
import { Judge, type JudgeModel, type JudgeOptions, type Verdict } from "../run/judge.ts";
import { judgeFrame, promptText, responseText } from "../run/judge-prompt.ts";
import { dtypeCode, openModel, openTokenizer, readCausalConfig } from "../run/open-model.ts";
import { type QuantType, quantizationFlag, tokenizerDifference } from "../run/reward-model.ts";
import type { StepMemory } from "../tape/tape.ts";
import { resolveModel } from "./base.ts";
import { resolveBuiltin } from "./builtin.ts";
import type { OpenOnDevice, PolicyModels, RewardJob } from "./rewards.ts";

export interface RubricParameters {
  readonly path: string;
  /** `initial`, `self`, or a model's folder. */
  readonly judge: string;
  readonly quant_type: QuantType;
  readonly reading: "expected" | "text";
  readonly max_new_tokens: number;
}

/** Most packed tokens of a pass: keys and values of all of them are kept until it has answered. */
const PASS_TOKENS = 4096;
/** Tokens by which a prompt may be longer in the judge's words than in the policy's template. */
const SLACK = 16;

/** Where a judge's weights come from, and in which tokens it reads. */
function judgeSource(judge: string, { source }: RewardJob) {
  if (judge === "initial" || judge === "self")
    return { folder: null, adapter: null, config: source.config, tokenizer: source.tokenizer, stretch: 1 };
  const { model: folder, adapter } = resolveModel(judge, null);
  const config = readCausalConfig(folder);
  const tokenizer = openTokenizer(folder, config);
  // In other tokens the same text may take more of them.
  const stretch = tokenizerDifference(source.tokenizer, tokenizer) === null ? 1 : 2;
  return { folder, adapter, config, tokenizer, stretch };
}

/** Checks rubric and judge; opens them on a device. */
export function rubricReward(parameters: RubricParameters, job: RewardJob): OpenOnDevice {
  const { judge: named, quant_type, reading } = parameters;
  const rubric = readRubric(resolveBuiltin(parameters.path));
  const { folder, adapter, config, tokenizer, stretch } = judgeSource(named, job);
  if (folder === null && quant_type !== "none")
    throw new UsageError(
      `the judge ${named} has the policy's own weights and cannot be quantized`,
      "judge_quant_type",
      "drop it, or name a model folder as --judge",
    );
  const frame = judgeFrame(rubric, tokenizer);
  const options: JudgeOptions = {
    maxNewTokens: parameters.max_new_tokens,
    maxPromptTokens: stretch * job.maxPromptLength + frame.promptIds("").length + SLACK,
    maxResponseTokens: stretch * job.maxCompletionLength,
    budget: Math.min(job.microBatchTokens, PASS_TOKENS),
  };
  const positions = Judge.positions(frame, options);
  if (positions > config.maxPositionEmbeddings)
    throw new UsageError(
      `rubric, prompt and completion of up to ${positions} tokens exceed the judge's context of ${config.maxPositionEmbeddings}`,
      named,
      "lower --max_prompt_length or --max_completion_length, or shorten the rubric",
    );
  const open = (memory: StepMemory, trained: PolicyModels) => {
    const model =
      folder === null
        ? null
        : openModel(
            folder,
            memory.device,
            {
              ...{ dtype: dtypeCode(job.dtype), trainable: false, maxPositions: positions },
              quantization: quantizationFlag(quant_type),
            },
            "judge",
            adapter,
          );
    const judge = new Judge(memory, judgeModel(named, model, trained), rubric, frame, options);
    return {
      batch: async (rollouts: readonly Rollout[], { signal }: RewardContext) => {
        const asked = rollouts.map(({ prompt, text }) => ({
          prompt: promptText(prompt),
          response: responseText(text),
        }));
        const verdicts = await judge.judge(asked, signal);
        return verdicts.map((verdict) => result(rubric, named, verdict, reading));
      },
      bytes: judge.bytes + (model?.bytes.weights ?? 0),
      lines: [
        `judge ${named}${quant_type === "none" ? "" : ` in ${quant_type}`}: ${rubric.criteria.map(({ name, weight }) => `${name} x ${weight}`).join(", ")}; ` +
          `reward = weighted mean of the ${reading === "expected" ? "expected scores" : "scores it says"}, ${rubric.scale.min}..${rubric.scale.max} as 0..1`,
        ...(model?.quantizationNote ? [model.quantizationNote] : []),
      ],
      dispose: () => {
        judge.dispose();
        model?.dispose();
      },
    };
  };
  const needs = {
    reference: named === "initial",
    ...(folder === null ? { positions } : {}),
  };
  return Object.assign(open, { needs });
}

function judgeModel(name: string, own: Transformer | null, { model, reference }: PolicyModels): JudgeModel {
  if (own) return { name, frozen: true, shape: own, hold: (body) => body(own) };
  if (name === "self") return { name, frozen: false, shape: model, hold: (body) => body(model) };
  assert(reference, "the judge initial needs the policy of step 0");
  return { name, frozen: true, shape: reference.model, hold: (body) => reference.hold(body) };
}

/** A verdict as a reward: each criterion's share of it under rubric/NAME, all that the judge said in the details. */
function result(
  rubric: Rubric,
  model: string,
  { criteria, cut }: Verdict,
  reading: "expected" | "text",
): RewardResult {
  const scores = Object.fromEntries(
    Object.entries(criteria).map(([name, judgement]) => [name, judgement[reading]]),
  );
  const { reward, components } = rewardOf(rubric, scores);
  return {
    reward,
    components: Object.fromEntries(
      Object.entries(components).map(([name, share]) => [`rubric/${name}`, share]),
    ),
    details: { judge: { model, criteria, ...(cut ? { cut } : {}) } },
  };
}
