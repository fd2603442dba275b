/** What every recipe opens: device, policy, tokenizer, reference and optimizer, fresh or from a checkpoint. */
import { UsageError } from "../core/errors.ts";
import { sum } from "../core/lists.ts";
import { Device } from "../device/device.ts";
import { checkWeights, type ModelConfig, openWeights } from "../io/hf-folder.ts";
import { isAdapterFolder } from "../io/peft-folder.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import { type DualLoraOptions, initialiseAdapters } from "../nn/adapters.ts";
import { AdamW } from "../nn/optimizer.ts";
import type { Quantization } from "../nn/quantized.ts";
import { Transformer } from "../nn/transformer.ts";
import { loadOptimizer, readTrainState, saveCheckpoint, type TrainState } from "../run/checkpoint.ts";
import type { LoopOptions } from "../run/loop.ts";
import { dtypeCode, loadAdapters, momentCode, openTokenizer, readCausalConfig } from "../run/open-model.ts";
import { ALONE, type Ranks } from "../run/ranks.ts";
import { Reference } from "../run/reference.ts";
import { bytesText, type RunControl } from "../run/reporter.ts";
import { StepMemory } from "../tape/tape.ts";
import { baseName } from "./base.ts";
import { describeDual, dualRun } from "./dual.ts";
import { baseQuantization, describeLora, loraRun } from "./lora.ts";
import type { ScheduleSettings, TrainSettings } from "./settings.ts";

export interface Trained {
  readonly device: Device;
  readonly model: Transformer;
  readonly reference: Reference | null;
  readonly tokenizer: Tokenizer;
  readonly optimizer: AdamW;
  readonly state: TrainState;
  /** What the run header says of adapters. */
  readonly lines: readonly string[];
  dispose(): void;
}

/** Where the policy at step 0 comes from. */
export interface Source {
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
  /** What adapters of it call it: a folder or a name. */
  readonly name: string;
  /** Fills a model with the weights of step 0; adapters are left alone. */
  load(model: Transformer): void;
  /** sha256 of these weights, the same whatever device, type and layout they are loaded to. */
  hash(model: Transformer): string;
}

/** A model folder, which the flags call `given`. */
export function folderSource(folder: string, given = folder): Source {
  if (isAdapterFolder(folder))
    throw new UsageError("an adapter, not a model", folder, `give --model BASE --adapter ${folder}`);
  const config = readCausalConfig(folder);
  return {
    config,
    tokenizer: openTokenizer(folder, config),
    name: baseName(given),
    load: (model) => {
      using weights = openWeights(folder);
      checkWeights(config, weights);
      model.loadWeights(weights);
    },
    hash: () => {
      using weights = openWeights(folder);
      return weights.digest();
    },
  };
}

export interface SetupOptions {
  /** Tokens of the longest sequence. */
  readonly maxPositions: number;
  /** Whether the policy of step 0 is kept beside the trained one. */
  readonly reference: boolean;
  /** How that one is quantized; its weights are the policy's otherwise. */
  readonly referenceQuantization?: Quantization | null;
  /** Retain and forget adapters are trained, whatever the flags of other adapters say. */
  readonly dual?: DualLoraOptions | null;
}

export function openTrained(
  device: Device,
  source: Source,
  settings: TrainSettings,
  control: RunControl,
  options: SetupOptions,
): Trained {
  const { config, tokenizer } = source;
  const { maxPositions } = options;
  if (maxPositions > config.maxPositionEmbeddings) {
    throw new UsageError(
      `prompt and completion of ${maxPositions} tokens exceed the model's context of ${config.maxPositionEmbeddings}`,
      settings.recipe,
      "lower --max_prompt_length or --max_completion_length",
    );
  }
  const dtype = dtypeCode(settings.dtype);
  const lora = options.dual
    ? dualRun(options.dual, config, source.name, control.resumeFrom)
    : loraRun(settings, config, source.name, control.resumeFrom);
  const describe = options.dual ? describeDual : describeLora;
  const model = new Transformer(
    device,
    config,
    {
      dtype,
      trainable: true,
      momentDtype: momentCode(settings.optimizer_dtype),
      gradientDtype: dtypeCode(settings.gradient_dtype),
      maxPositions,
      checkpointing: settings.gradient_checkpointing,
      lora: lora?.options ?? null,
      quantization: baseQuantization(settings),
    },
    "policy",
  );
  // With adapters the model without them is the reference.
  const { referenceQuantization = null } = options;
  const frozen =
    options.reference && (!lora || referenceQuantization)
      ? new Transformer(
          device,
          config,
          { dtype, trainable: false, maxPositions, quantization: referenceQuantization },
          "reference",
        )
      : null;
  let state: TrainState = {
    step: 0,
    recipe: settings.recipe,
    initial_sha256: "",
    cursor: { position: 0, examples: 0 },
    generation: null,
  };
  if (device.hasMemory) {
    source.load(model);
    const initial = source.hash(model);
    frozen?.copyFrom(model);
    if (model.adapters && lora?.folder) loadAdapters(model, lora.folder);
    else if (model.adapters) initialiseAdapters(model.adapters, model.parameters, settings.seed);
    state = { ...state, initial_sha256: initial };
    if (control.resumeFrom !== null) {
      state = readTrainState(control.resumeFrom);
      if (state.recipe !== settings.recipe) {
        throw new UsageError(
          `checkpoint of recipe ${state.recipe}`,
          control.resumeFrom,
          `resume it as ${state.recipe}`,
        );
      }
      if (state.initial_sha256 !== initial) {
        throw new UsageError(
          "the starting model is not the one this run began with",
          control.resumeFrom,
          lora
            ? "restore the model folder that the adapters are for"
            : "restore the model folder: it is the reference of the KL term",
        );
      }
      if (!lora) {
        using weights = openWeights(control.resumeFrom);
        checkWeights(config, weights);
        model.loadWeights(weights);
      }
      loadOptimizer(control.resumeFrom, model);
    }
  }
  const reference = ((): Reference | null => {
    if (!options.reference) return null;
    if (!frozen) return Reference.kept(model.base, settings.adapter === null);
    const isStart = referenceQuantization === null && settings.adapter === null;
    return settings.reference_offload
      ? Reference.offloaded(frozen, source.load, isStart)
      : Reference.kept(frozen, isStart);
  })();
  const optimizer = new AdamW(model.trained, {
    beta1: settings.adam_beta1,
    beta2: settings.adam_beta2,
    eps: settings.adam_epsilon,
    weightDecay: settings.weight_decay,
    maxGradNorm: settings.max_grad_norm,
    seed: settings.seed,
    dropsGradients: settings.reference_offload ?? false,
    decayOf: (name) => (model.trained.get(name).matrix ? settings.weight_decay : 0),
  });
  return {
    device,
    model,
    reference,
    tokenizer,
    optimizer,
    state,
    lines: [
      ...(lora ? [describe(lora, config, model.trained.count)] : []),
      ...(model.quantizationNote ? [model.quantizationNote] : []),
    ],
    dispose: () => {
      model.dispose();
      frozen?.dispose();
      device.close();
    },
  };
}

/** What the loop needs of the settings of any recipe. */
export function loopOptions(
  settings: ScheduleSettings,
  totalSteps: number,
  { step, unrecorded }: Pick<TrainState, "step" | "unrecorded">,
  saveRollouts = false,
): LoopOptions {
  return {
    totalSteps,
    startStep: step,
    unrecorded,
    evalEvery: settings.eval_every,
    saveEvery: settings.save_every,
    keepCheckpoints: settings.keep_checkpoints,
    logEvery: settings.log_every,
    saveRollouts,
    ...(settings.log_dir === undefined ? {} : { logDir: settings.log_dir }),
  };
}

/** Writes checkpoint `parent/name` of a run that keeps nothing between its steps but the place in its data. */
export function saveTrained(
  { model, tokenizer, state }: Trained,
  { recipe }: TrainSettings,
  { checkpointConfig }: RunControl,
  parent: string,
  name: string,
  { step, cursor, unrecorded }: Pick<TrainState, "step" | "cursor" | "unrecorded">,
): string {
  const { initial_sha256 } = state;
  const next = { step, recipe, initial_sha256, cursor, generation: null, unrecorded };
  return saveCheckpoint(parent, name, model, tokenizer, next, checkpointConfig);
}

/** Optimizer steps of a whole run on `examples` of them, `perStep` a step from where `state` has come to. */
export function stepsOf(
  examples: number,
  perStep: number,
  { step, cursor }: Pick<TrainState, "step" | "cursor">,
): number {
  return step + Math.max(0, Math.ceil((examples - cursor.examples) / perStep));
}

/** Bytes by purpose, found by running one step of the largest shape on the device that computes nothing. */
export async function planMemory(
  open: (device: Device) => Trained,
  step: (trained: Trained, memory: StepMemory) => Promise<Readonly<Record<string, number>>>,
  { inCharge: processes }: Ranks = ALONE,
): Promise<Record<string, number>> {
  const trained = open(Device.open("null"));
  const memory = new StepMemory(trained.device);
  try {
    const further = await step(trained, memory);
    const policy = trained.model.bytes;
    const reference = trained.reference?.bytes ?? 0;
    const bytes = {
      weights: policy.weights + reference,
      gradients: policy.gradients,
      optimizer: policy.optimizer,
      ...further,
      activations: memory.peak,
    };
    refuseTooLarge(bytes, processes);
    return bytes;
  } finally {
    memory.dispose();
    trained.dispose();
  }
}

/**
 * A run that cannot fit is refused before it starts, not killed by the system in the middle. `processes` of it share the
 * machine.
 */
function refuseTooLarge(bytes: Readonly<Record<string, number>>, processes: number): void {
  const total = processes * sum(Object.values(bytes));
  const available = process.availableMemory();
  if (total <= available) return;
  const parts = Object.entries(bytes).map(([name, n]) => `${name} ${bytesText(n)}`);
  throw new UsageError(
    `the run needs ${bytesText(total)} (${processes > 1 ? `${processes} times ` : ""}${parts.join(", ")}), ${bytesText(available)} are available`,
    "memory plan",
    "lower --batch_size or --micro_batch_tokens, set --gradient_checkpointing true, --dtype bfloat16, --optimizer_dtype 8bit, --gradient_dtype bfloat16 or --reference_offload true",
  );
}
