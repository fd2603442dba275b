/** Supervised fine-tuning on prompts and completions, from a model folder or from random weights. */
import { readFileSync } from "node:fs";
import { UsageError } from "../core/errors.ts";
import { readExamples, Shuffle } from "../data/prompts.ts";
import type { Device } from "../device/device.ts";
import { parseModelConfig } from "../io/hf-folder.ts";
import { learningRateFactor } from "../nn/schedule.ts";
import type { DataCursor } from "../run/checkpoint.ts";
import { runLoop, type Task } from "../run/loop.ts";
import { initialise, openDevice, openTokenizer, saveModel, weightsHash } from "../run/open-model.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import { SupervisedStep } from "../run/supervised-step.ts";
import { StepMemory } from "../tape/tape.ts";
import { resolveBuiltin } from "./builtin.ts";
import type { TrainSettings } from "./settings.ts";
import {
  folderSource,
  loopOptions,
  openTrained,
  planMemory,
  type Source,
  saveTrained,
  stepsOf,
} from "./setup.ts";

export interface SftSettings extends TrainSettings {
  readonly recipe: "sft";
  readonly dataset: string;
  readonly eval_file: string | null;
  readonly model: string | null;
  readonly init: string | null;
  readonly tokenizer: string | null;
  readonly output: string | null;
  readonly epochs: number | null;
  readonly num_train_steps: number | null;
  readonly batch_size: number;
  readonly grad_accum_steps: number;
  readonly max_length: number;
  readonly train_on_prompt: boolean;
}

export async function trainSft(
  settings: SftSettings,
  reporter: Reporter,
  control: RunControl,
): Promise<void> {
  const source = sourceOf(settings);
  const maxLength = Math.min(settings.max_length, source.config.maxPositionEmbeddings);
  const examples = readExamples(settings.dataset, source.tokenizer, maxLength);
  const held = settings.eval_file ? readExamples(settings.eval_file, source.tokenizer, maxLength) : [];
  const perStep = settings.batch_size * settings.grad_accum_steps;
  const options = { microBatchTokens: settings.micro_batch_tokens, trainOnPrompt: settings.train_on_prompt };
  const open = (device: Device) =>
    openTrained(device, source, settings, control, { maxPositions: maxLength, reference: false });

  const plan = await planMemory(
    open,
    async (trained, memory) => {
      const longest = [...examples].sort(
        (a, b) => b.prompt.length + b.completion.length - a.prompt.length - a.completion.length,
      );
      const batch = Array.from({ length: perStep }, (_, i) => longest[i % longest.length]!);
      await new SupervisedStep(memory, trained.model, trained.optimizer, options).update(batch, 1, 0);
      return { kv: 0 };
    },
    control.ranks,
  );

  const trained = open(openDevice(settings.device, settings.threads));
  const memory = new StepMemory(trained.device);
  try {
    const { model, tokenizer, state } = trained;
    const totalSteps =
      settings.num_train_steps ?? stepsOf((settings.epochs ?? 1) * examples.length, perStep, state);
    const step = new SupervisedStep(memory, model, trained.optimizer, options, control.ranks);
    const shuffle = new Shuffle(examples.length, settings.seed);
    const factor = learningRateFactor({
      schedule: settings.lr_schedule,
      totalSteps,
      warmup: settings.warmup_steps,
    });
    reporter.plan({
      bytes: plan,
      totalSteps,
      startStep: state.step,
      lines: [
        `model ${source.config.architecture}, ${model.parameters.count} parameters, ${settings.dtype}`,
        `device: ${trained.device.describe()}`,
        ...trained.lines,
        `data ${examples.length} training and ${held.length} held-out examples`,
        `loss = -mean log pi over ${settings.train_on_prompt ? "all" : "completion"} tokens of the step`,
      ],
    });
    // A resumed run goes on where it was, at whatever batch size it has now.
    const cursorAfter = (n: number): DataCursor => {
      const position = state.cursor.position + (n - state.step) * perStep;
      return { position, examples: position };
    };
    const task: Task = {
      model,
      step: (n) => {
        const items = shuffle.slice(cursorAfter(n - 1).position, perStep).map((i) => examples[i]!);
        return step.update(items, n, settings.learning_rate * factor(n - 1));
      },
      evaluate: async () => (held.length > 0 ? step.evaluate(held) : null),
      sample: () => null,
      get consistent() {
        return !step.updating;
      },
      save: (parent, name, n, unrecorded) =>
        saveTrained(trained, settings, control, parent, name, {
          step: n,
          cursor: cursorAfter(n),
          unrecorded,
        }),
    };
    await runLoop(task, loopOptions(settings, totalSteps, state), reporter, control);
    if (settings.output && control.ranks.root) saveModel(settings.output, model, tokenizer);
  } finally {
    memory.dispose();
    trained.dispose();
  }
}

function sourceOf(settings: SftSettings): Source {
  if (settings.model) return folderSource(resolveBuiltin(settings.model), settings.model);
  if (!settings.init || !settings.tokenizer)
    throw new UsageError("sft needs --model, or --init with --tokenizer");
  const { init } = settings;
  const config = parseModelConfig(JSON.parse(readFileSync(init, "utf8")), init);
  return {
    config,
    tokenizer: openTokenizer(settings.tokenizer, config),
    name: init,
    load: (model) => initialise(model, settings.seed),
    hash: weightsHash,
  };
}
