/**
 * What a checkpoint holds beside the model folder: optimizer.safetensors (float32 moments, and masters where the
 * weights are bfloat16) and train_state.json. Nothing in it depends on time or place, so equal runs give equal bytes.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { UsageError } from "../core/errors.ts";
import type { Finish, Metrics, Prompt, Scored } from "../core/records.ts";
import { TRAIN_STATE, verifyCheckpoint, writeCheckpoint } from "../io/checkpoint-folder.ts";
import { jsonLine, jsonNumber } from "../io/jsonl.ts";
import { openSafetensors, type TensorSource, writeSafetensors } from "../io/safetensors.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Transformer } from "../nn/transformer.ts";
import { Dtype } from "../ops/define.ts";
import { saveModel } from "./open-model.ts";
import type { Generation, GenerationPlan } from "./policy-batches.ts";

const OPTIMIZER = "optimizer.safetensors";

export interface TrainState {
  /** Optimizer steps done. */
  readonly step: number;
  readonly recipe: string;
  /** sha256 of the policy at step 0: the reference, and proof that a resumed run starts from the same model. */
  readonly initial_sha256: string;
  /** Where the passes over the data go on, at whatever batch size. */
  readonly cursor: DataCursor;
  /** A generated batch from which steps are still to be made. */
  readonly generation: SavedGeneration | null;
  /** Metrics of `step` that are not yet in metrics.jsonl: its evaluation was cut short, or the file could not be written. */
  readonly unrecorded?: Metrics;
}

export interface DataCursor {
  /** Of the shuffled passes over all rows, those passed over included. */
  readonly position: number;
  /** Examples (pairs, prompts) trained on. */
  readonly examples: number;
}

interface SavedGeneration {
  readonly step: number;
  /** How its steps divide it: a resumed run may have other settings for the generations to come. */
  readonly plan: GenerationPlan;
  /** Where its prompts were drawn. */
  readonly position: number;
  readonly rollouts: readonly {
    readonly prompt: number;
    readonly completion: number;
    readonly ids: readonly number[];
    /** Bits of the float32 values: exact, and safe from JSON. */
    readonly logprob_bits: readonly number[];
    readonly text: string;
    readonly finish: Finish;
    readonly reward: number | null;
    readonly components: Readonly<Record<string, number>>;
    readonly flagged?: boolean;
    readonly details?: Readonly<Record<string, unknown>>;
  }[];
}

export function saveGeneration(generation: Generation, position: number): SavedGeneration {
  return {
    step: generation.step,
    plan: generation.plan,
    position,
    rollouts: generation.scored.map((s) => ({
      prompt: s.prompt.index,
      completion: s.completion,
      ids: [...s.ids],
      logprob_bits: [...new Uint32Array(s.logprobs.slice().buffer)],
      text: s.text,
      finish: s.finish,
      reward: Number.isNaN(s.reward) ? null : s.reward,
      components: s.components,
      ...(s.flagged === undefined ? {} : { flagged: s.flagged }),
      ...(s.details === undefined ? {} : { details: s.details }),
    })),
  };
}

/** `prompts`: those drawn at its position. */
export function loadGeneration(saved: SavedGeneration, prompts: readonly Prompt[]): Scored[] {
  const byIndex = new Map(prompts.map((prompt) => [prompt.index, prompt]));
  const promptAt = (index: number): Prompt => {
    const prompt = byIndex.get(index);
    if (prompt) return prompt;
    throw new UsageError(
      `prompt ${index} of the unfinished generation is not drawn again`,
      "dataset",
      "resume with the dataset and the settings of the checkpoint",
    );
  };
  return saved.rollouts.map((r) => ({
    prompt: promptAt(r.prompt),
    completion: r.completion,
    ids: Int32Array.from(r.ids),
    logprobs: new Float32Array(Uint32Array.from(r.logprob_bits).buffer),
    lse: null,
    entropies: null,
    text: r.text,
    finish: r.finish,
    reward: r.reward ?? Number.NaN,
    components: r.components,
    ...(r.flagged === undefined ? {} : { flagged: r.flagged }),
    ...(r.details === undefined ? {} : { details: r.details }),
  }));
}

/** Writes checkpoint `parent/name`, complete and verified or not at all. */
export function saveCheckpoint(
  parent: string,
  name: string,
  model: Transformer,
  tokenizer: Tokenizer,
  state: TrainState,
  config: string,
): string {
  return writeCheckpoint(parent, name, (dir) => {
    saveModel(dir, model, tokenizer);
    writeOptimizer(join(dir, OPTIMIZER), model);
    writeFileSync(join(dir, TRAIN_STATE), `${jsonLine(state)}\n`);
    writeFileSync(join(dir, "train_config.json"), config);
  });
}

/** A bfloat16 model folder rounds every parameter, vectors included: their float32 masters are kept beside it. */
function folderRounds(model: Transformer): boolean {
  return model.options.dtype === Dtype.bf16;
}

function writeOptimizer(path: string, model: Transformer): void {
  const parameters = model.trained;
  const rounded = folderRounds(model);
  const tensors: TensorSource[] = [];
  const tensor = (name: string, shape: readonly number[], read: () => Float32Array) => {
    tensors.push({ name, dtype: "F32", shape, data: () => new Uint8Array(read().buffer) });
  };
  for (const p of parameters.list) {
    tensor(`${p.name}.exp_avg`, p.shape, () => parameters.readMoment(p.name, 0));
    tensor(`${p.name}.exp_avg_sq`, p.shape, () => parameters.readMoment(p.name, 1));
    if (rounded) tensor(`${p.name}.master`, p.shape, () => parameters.read(p.name));
  }
  mkdirSync(join(path, ".."), { recursive: true });
  writeSafetensors(path, tensors);
}

export function readTrainState(dir: string): TrainState {
  const problems = verifyCheckpoint(dir);
  if (problems.length > 0) {
    throw new UsageError(
      `the checkpoint is not whole: ${problems.join("; ")}`,
      dir,
      "resume from another one",
    );
  }
  const state = JSON.parse(readFileSync(join(dir, TRAIN_STATE), "utf8")) as TrainState;
  if (state.cursor === undefined)
    throw new UsageError(
      "train_state.json does not say where the data goes on: it is of an older rlv",
      dir,
      "resume it with that version",
    );
  if (state.unrecorded === undefined) return state;
  const numbers = Object.entries(state.unrecorded).map(([name, value]) => [
    name,
    jsonNumber(value) ?? Number.NaN,
  ]);
  return { ...state, unrecorded: Object.fromEntries(numbers) };
}

/** Puts moments and exact masters back; the model's own weights have been loaded from the same folder. */
export function loadOptimizer(dir: string, model: Transformer): void {
  using file = openSafetensors(join(dir, OPTIMIZER));
  const parameters = model.trained;
  const rounded = folderRounds(model);
  const read = (name: string, shape: readonly number[]): Float32Array => {
    const stored = file.tensors.get(name);
    if (!stored || String(stored.shape) !== String(shape)) {
      throw new UsageError(
        `${name} [${shape}] is missing or has another shape`,
        file.path,
        "resume from another one",
      );
    }
    return file.readFloat32(name);
  };
  for (const p of parameters.list) {
    parameters.loadMoment(p.name, 0, read(`${p.name}.exp_avg`, p.shape));
    parameters.loadMoment(p.name, 1, read(`${p.name}.exp_avg_sq`, p.shape));
    if (rounded) parameters.load(p.name, read(`${p.name}.master`, p.shape));
  }
}
