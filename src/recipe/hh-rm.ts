/** A reward model from preference pairs. */
import { openPreferences, type PreferencePair, pairSampler } from "../data/preferences.ts";
import type { Device } from "../device/device.ts";
import { learningRateFactor } from "../nn/schedule.ts";
import type { DataCursor } from "../run/checkpoint.ts";
import { runLoop, type Task } from "../run/loop.ts";
import { openDevice } from "../run/open-model.ts";
import { PreferenceStep } from "../run/preference-step.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import { rewardSource } from "../run/reward-model.ts";
import { StepMemory } from "../tape/tape.ts";
import { baseName } from "./base.ts";
import { resolveBuiltin } from "./builtin.ts";
import { type HhSettings, trainSettings } from "./settings.ts";
import { loopOptions, openTrained, planMemory, saveTrained, stepsOf } from "./setup.ts";

export interface HhRmSettings extends HhSettings {
  readonly recipe: "hh-rm";
  readonly grad_accum: number;
  readonly max_length: number;
  readonly center_rewards_coefficient: number;
  readonly eval_num_batches: number;
}

export async function trainHhRm(given: HhRmSettings, reporter: Reporter, control: RunControl): Promise<void> {
  const settings = trainSettings(given);
  const source = {
    ...rewardSource(resolveBuiltin(settings.model), settings.seed),
    name: baseName(settings.model),
  };
  const { tokenizer, config } = source;
  const maxLength = Math.min(settings.max_length, config.maxPositionEmbeddings);
  const train = await openPreferences(settings.dataset, "train");
  const test = settings.eval_steps > 0 ? await openPreferences(settings.dataset, "test") : null;
  const pairs = pairSampler(train, tokenizer, maxLength, settings.seed);
  const held = test && pairSampler(test, tokenizer, maxLength, settings.seed);
  const perStep = settings.batch_size * settings.grad_accum;
  const options = {
    microBatchTokens: settings.micro_batch_tokens,
    center: settings.center_rewards_coefficient,
    sharePrefix: true,
  };
  const open = (device: Device) =>
    openTrained(device, source, settings, control, { maxPositions: maxLength, reference: false });

  const plan = await planMemory(
    open,
    async (trained, memory) => {
      const step = new PreferenceStep(memory, trained.model, trained.optimizer, options);
      await step.update(
        longPairs(maxLength, Math.min(perStep, 1 + settings.micro_batch_tokens / maxLength)),
        1,
        0,
      );
      return {};
    },
    control.ranks,
  );

  const trained = open(openDevice(settings.device, settings.threads));
  const memory = new StepMemory(trained.device);
  try {
    const { model, state } = trained;
    const totalSteps = settings.num_train_steps ?? stepsOf(settings.epochs * train.length, perStep, state);
    const step = new PreferenceStep(memory, model, trained.optimizer, options, control.ranks);
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
        `model ${settings.model}: ${config.architecture}, ${model.trained.count} trained parameters, ${settings.dtype}`,
        `device: ${trained.device.describe()}`,
        ...trained.lines,
        `data ${settings.dataset}: ${train.length} training and ${test?.length ?? 0} test pairs, ${perStep} a step; longer ones than ${maxLength} tokens are skipped`,
        `loss = -mean log sigmoid(r_chosen - r_rejected - margin)${
          options.center > 0 ? ` + ${options.center} mean (r_chosen + r_rejected)^2` : ""
        }`,
      ],
    });
    let cursor: DataCursor = state.cursor;
    const task: Task = {
      model,
      step: async (n) => {
        const { items, position } = pairs.draw(cursor.position, perStep);
        const metrics = await step.update(items, n, settings.lr * factor(n - 1));
        cursor = { position, examples: cursor.examples + items.length };
        return metrics;
      },
      evaluate: async (n) => {
        if (held === null) return null;
        return step.evaluate(held.withReplacement(n, settings.eval_num_batches * settings.batch_size), n);
      },
      sample: () => null,
      get examples() {
        return cursor.examples;
      },
      get consistent() {
        return !step.updating;
      },
      save: (parent, name, n, unrecorded) =>
        saveTrained(trained, settings, control, parent, name, { step: n, cursor, unrecorded }),
    };
    await runLoop(task, loopOptions(settings, totalSteps, state), reporter, control);
  } finally {
    memory.dispose();
    trained.dispose();
  }
}

/** Pairs of the largest size whose tokens do not matter. */
function longPairs(length: number, count: number): PreferencePair[] {
  return Array.from({ length: Math.max(1, Math.floor(count)) }, () => ({
    chosen: new Int32Array(length),
    rejected: new Int32Array(length).fill(1),
  }));
}
