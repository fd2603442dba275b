/** What the command quantize does: a quantized copy of a model, and how far it is from the model itself. */

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import type { DeviceName } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { mean } from "../core/lists.ts";
import type { Prompt } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import {
  EpochSampler,
  openPreferences,
  type PreferencePair,
  pairSampler,
  preferencePrompt,
  usableRow,
} from "../data/preferences.ts";
import { promptOf } from "../data/prompts.ts";
import { writeFileAtomic } from "../io/atomic.ts";
import {
  checkWeights,
  type ModelConfig,
  openWeights,
  readModelConfig,
  writeQuantizedFolder,
} from "../io/hf-folder.ts";
import { readDataset } from "../io/jsonl.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { type Quantization, quantizationOf, schemeOf } from "../nn/quantized.ts";
import { Transformer } from "../nn/transformer.ts";
import { RolloutEngine } from "../rollout/engine.ts";
import { StepMemory } from "../tape/tape.ts";
import { DivergenceMeans, divergences } from "./divergence.ts";
import { merge } from "./merge.ts";
import { dtypeCode, openDevice, openTokenizer } from "./open-model.ts";
import { pairRewards } from "./preference-step.ts";

export interface QuantizeSettings {
  /** A folder on this machine. */
  readonly model: string;
  /** Of an adapter that is merged into the model first. */
  readonly adapter: string | null;
  /** As the user named the model. */
  readonly name: string;
  readonly quant_type: "int8" | "int4";
  readonly output_dir: string | null;
  readonly skip_save: boolean;
  readonly dataset: string;
  readonly eval_batch_size: number;
  readonly eval_num_batches: number;
  readonly max_length: number;
  readonly num_prompts: number;
  readonly max_new_tokens: number;
  readonly temperature: number;
  readonly prompt_max_length: number;
  readonly seed: number;
  readonly device: DeviceName;
  readonly threads: number | null;
  readonly dtype: "float32" | "bfloat16";
}

/** Flags that mean something to one kind of model alone. */
const FLAGS_OF = {
  reward: ["eval_batch_size", "eval_num_batches", "max_length"],
  causal: ["num_prompts", "max_new_tokens", "temperature", "prompt_max_length"],
} as const;

/** Packed tokens of one pass. */
const PACKED_TOKENS = 2048;
/** Prompts decoded together. */
const BATCH = 32;
const RESULTS = "evaluation_results.json";

export type QuantizeResult = Readonly<Record<string, string | number | null>>;

/**
 * `given`: names of flags on the command line. Writes the quantized model and evaluation_results.json into one folder;
 * what is evaluated is what was written.
 */
export async function quantize(
  settings: QuantizeSettings,
  given: ReadonlySet<string>,
  talk: (line: string) => void,
): Promise<QuantizeResult> {
  const begin = performance.now();
  if (settings.adapter === null) return run(settings, given, begin, talk);
  const folder = mkdtempSync(join(tmpdir(), "rlv-merged-"));
  try {
    merge({ model: settings.model, adapter: settings.adapter, out: folder, dtype: null }, talk);
    return await run({ ...settings, model: folder }, given, begin, talk);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function run(
  settings: QuantizeSettings,
  given: ReadonlySet<string>,
  begin: number,
  talk: (line: string) => void,
): Promise<QuantizeResult> {
  const config = readModelConfig(settings.model);
  if (config.quantization)
    throw new UsageError(
      `the model is quantized already, to ${config.quantization.bits} bits`,
      settings.name,
      "give the plain model",
    );
  const other = config.kind === "reward" ? "causal" : "reward";
  const foreign = FLAGS_OF[other].find((flag) => given.has(flag));
  if (foreign !== undefined)
    throw new UsageError(
      `--${foreign} is for ${other === "reward" ? "reward models" : "policies"}`,
      `${settings.name} (${config.architecture})`,
      "leave it out",
    );
  const out = outputOf(settings, config);
  if (resolve(out) === resolve(settings.model))
    throw new UsageError("--output_dir is the model itself", out, "choose another folder");
  {
    using weights = openWeights(settings.model);
    checkWeights(config, weights);
  }
  const tokenizer = openTokenizer(settings.model, config);
  // Data that cannot be read is known before anything is written.
  const evaluate =
    config.kind === "reward"
      ? await rewardEvaluation(settings, config, tokenizer)
      : await policyEvaluation(settings, config, tokenizer);
  if (!settings.skip_save) {
    save(out, settings, config, tokenizer);
    talk(`saved: ${out}`);
  }
  const device = openDevice(settings.device, settings.threads);
  const memory = new StepMemory(device);
  const open = (folder: string, quantization: Quantization | null) => {
    const options = { dtype: dtypeCode(settings.dtype), trainable: false, maxPositions: evaluate.positions };
    const described = readModelConfig(folder);
    using weights = openWeights(folder);
    const model = new Transformer(device, described, { ...options, quantization });
    model.loadWeights(weights);
    return model;
  };
  const models: Transformer[] = [];
  try {
    const quantization = quantizationOf(settings.quant_type);
    models.push(open(settings.model, null));
    models.push(settings.skip_save ? open(settings.model, quantization) : open(out, null));
    const [plain, quantized] = models as [Transformer, Transformer];
    if (quantized.quantizationNote) talk(quantized.quantizationNote);
    const figures = await evaluate.run(memory, plain, quantized, talk);
    const result: QuantizeResult = {
      kind: config.kind === "reward" ? "reward_model" : "policy",
      model: settings.name,
      quant_type: settings.quant_type,
      dataset: settings.dataset,
      device: device.name,
      dtype: settings.dtype,
      seed: settings.seed,
      ...figures,
      bytes_original: plain.bytes.weights,
      bytes_quantized: quantized.bytes.weights,
      seconds: (performance.now() - begin) / 1000,
      output: settings.skip_save ? null : out,
    };
    if (!settings.skip_save) writeFileAtomic(join(out, RESULTS), `${JSON.stringify(result, null, 2)}\n`);
    return result;
  } finally {
    memory.dispose();
    for (const model of models) model.dispose();
    device.close();
  }
}

/**
 * Of a reward model CHECKPOINT/quantized_TYPE; of a policy a folder beside the checkpoint, or in ./quantized_models for
 * a model that is no folder of the user's.
 */
function outputOf({ name, quant_type, output_dir }: QuantizeSettings, { kind }: ModelConfig): string {
  if (output_dir !== null) return output_dir;
  const suffix = `quantized_${quant_type}`;
  if (!existsSync(name))
    return join("quantized_models", `${basename(name.replace(/^builtin:/, ""))}_${suffix}`);
  if (kind === "reward") return join(name, suffix);
  const folder = resolve(name);
  return join(dirname(folder), `${basename(folder)}_${suffix}`);
}

function save(out: string, settings: QuantizeSettings, config: ModelConfig, tokenizer: Tokenizer): void {
  using weights = openWeights(settings.model);
  const files = tokenizer.files.map((file) => join(tokenizer.folder, file));
  const generation = join(settings.model, "generation_config.json");
  if (existsSync(generation) && !files.includes(generation)) files.push(generation);
  writeQuantizedFolder(out, config, weights, schemeOf(quantizationOf(settings.quant_type)), files);
}

interface Evaluation {
  /** Of the longest sequence. */
  readonly positions: number;
  run(
    memory: StepMemory,
    plain: Transformer,
    quantized: Transformer,
    talk: (line: string) => void,
  ): Promise<Readonly<Record<string, number>>>;
}

/** Test pairs drawn with replacement: the same for both models. */
async function rewardEvaluation(
  settings: QuantizeSettings,
  config: ModelConfig,
  tokenizer: Tokenizer,
): Promise<Evaluation> {
  const most = Math.min(settings.max_length, config.maxPositionEmbeddings);
  const source = await openPreferences(settings.dataset, "test");
  const sampler = pairSampler(source, tokenizer, most, settings.seed);
  const batches = Array.from({ length: settings.eval_num_batches }, (_, i) =>
    sampler.withReplacement(i, settings.eval_batch_size),
  );
  const longest = ({ chosen, rejected }: PreferencePair) => Math.max(chosen.length, rejected.length);
  return {
    positions: batches.flat().reduce((a, pair) => Math.max(a, longest(pair)), 1),
    async run(memory, plain, quantized, talk) {
      talk(`${batches.length} batches of ${settings.eval_batch_size} test pairs`);
      const rewards: { plain: [number, number]; quantized: [number, number] }[] = [];
      for (const batch of batches) {
        const [a, b] = [plain, quantized].map((model) => pairRewards(memory, model, batch, true)) as [
          [number, number][],
          [number, number][],
        ];
        rewards.push(...a.map((pair, i) => ({ plain: pair, quantized: b[i]! })));
        await Bun.sleep(0);
      }
      return rewardFigures(rewards);
    },
  };
}

/** A pair is right if the chosen answer has the larger reward; models agree if both or neither say so. */
export function rewardFigures(
  rewards: readonly { readonly plain: [number, number]; readonly quantized: [number, number] }[],
): Record<string, number> {
  if (!rewards.every(({ plain, quantized }) => [...plain, ...quantized].every(Number.isFinite)))
    throw new UsageError("rewards that are not finite", "models", "check the weights");
  const right = ([chosen, rejected]: [number, number]) => (chosen > rejected ? 1 : 0);
  const differences = rewards.flatMap(({ plain, quantized }) => [
    quantized[0] - plain[0],
    quantized[1] - plain[1],
  ]);
  const [before, after] = [
    mean(rewards.map(({ plain }) => right(plain))),
    mean(rewards.map(({ quantized }) => right(quantized))),
  ];
  return {
    pairs: rewards.length,
    accuracy_original: before,
    accuracy_quantized: after,
    accuracy_change: after - before,
    agreement: mean(rewards.map(({ plain, quantized }) => (right(plain) === right(quantized) ? 1 : 0))),
    reward_difference: mean(differences),
    reward_difference_abs: mean(differences.map(Math.abs)),
  };
}

/** Prompts of the test split without replacement, or the lines of a file of prompts. */
async function promptsOf(
  settings: QuantizeSettings,
  tokenizer: Tokenizer,
  most: number,
): Promise<readonly Pick<Prompt, "ids">[]> {
  const { dataset, num_prompts, seed } = settings;
  if (/\.jsonl$/.test(dataset) && existsSync(dataset)) {
    const lines = readDataset(dataset);
    if (!lines.some(({ row }) => "chosen" in row)) {
      const sampler = new EpochSampler(lines.length, seed, (i) => {
        const { row, line } = lines[i]!;
        const prompt = promptOf(row, tokenizer, `${dataset}:${line}`);
        return prompt.ids.length > most ? "too_long" : prompt;
      });
      return sampler.draw(0, Math.min(num_prompts, lines.length)).items;
    }
  }
  const source = await openPreferences(dataset, "test");
  const sampler = new EpochSampler<Prompt>(source.length, seed, (index) => {
    const row = usableRow(source, index);
    return row === null ? "unusable" : (preferencePrompt(row, tokenizer, most) ?? "too_long");
  });
  return sampler.draw(0, Math.min(num_prompts, source.length)).items;
}

/** Tokens that the plain model draws, scored by both. */
async function policyEvaluation(
  settings: QuantizeSettings,
  config: ModelConfig,
  tokenizer: Tokenizer,
): Promise<Evaluation> {
  const { max_new_tokens: maxNewTokens, temperature } = settings;
  const room = config.maxPositionEmbeddings - maxNewTokens;
  if (room < 1)
    throw new UsageError(
      `${maxNewTokens} new tokens fill the context of ${config.maxPositionEmbeddings}`,
      settings.name,
      "lower --max_new_tokens",
    );
  const prompts = await promptsOf(settings, tokenizer, Math.min(settings.prompt_max_length, room));
  const longest = prompts.reduce((a, { ids }) => Math.max(a, ids.length), 0);
  const positions = longest + maxNewTokens;
  return {
    positions,
    async run(memory, plain, quantized, talk) {
      talk(`${prompts.length} prompts`);
      const engine = new RolloutEngine(memory, plain, {
        maxBatch: BATCH,
        maxLength: positions,
        prefillTokens: Math.max(PACKED_TOKENS, longest),
      });
      const completions = await engine.generateAsync(
        prompts.map(({ ids }, prompt) => ({ ids, prompt, completions: 1 })),
        { temperature, topK: 0, topP: 1, minP: 0, maxNewTokens, eosIds: tokenizer.eosIds },
        { seed: settings.seed, purpose: Purpose.generate, step: 0 },
      );
      engine.dispose();
      const groups = prompts.map(({ ids }, i) => ({
        prompt: ids,
        completions: completions[i]!.map((c) => c.ids),
      }));
      const means = new DivergenceMeans();
      for (const rows of divergences(memory, [plain, quantized], groups, temperature, PACKED_TOKENS)) {
        means.add(rows);
        await Bun.sleep(0);
      }
      return { prompts: prompts.length, ...means.figures() };
    },
  };
}
