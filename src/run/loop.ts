/**
 * The only training loop: steps, evaluation, checkpoints, stopping, divergence. What a step is comes from the task.
 */
import { basename, join } from "node:path";
import { Diverged, Interrupted, RanksError } from "../core/errors.ts";
import type { Metrics } from "../core/records.ts";
import { cleanTemporary, pruneCheckpoints } from "../io/checkpoint-folder.ts";
import type { Transformer } from "../nn/transformer.ts";
import { DeviceMeter } from "./meter.ts";
import { COMPARE_EVERY } from "./ranks.ts";
import type { Reporter, RunControl } from "./reporter.ts";
import { Sinks } from "./sinks.ts";

export interface TaskSample {
  readonly prompt: string;
  readonly completion: string;
  readonly reward?: number;
}

/** One kind of training, as the loop sees it. */
export interface Task {
  readonly model: Transformer;
  /** Optimizer step `step` (1-based); returns its metrics under their TensorBoard names. */
  step(step: number, sinks: Sinks): Promise<Record<string, number>>;
  /** Metrics of an evaluation after `step` steps; null: nothing to evaluate on. */
  evaluate(step: number, sinks: Sinks): Promise<Record<string, number> | null>;
  /** A completion to show for the step just done. */
  sample(): TaskSample | null;
  /** Training examples seen after the step just done: a second axis of the metrics. Absent: there is none. */
  readonly examples?: number;
  /** Whether the state is that of the end of a step. */
  readonly consistent: boolean;
  /** Writes a checkpoint of the state after `step` steps and returns its path. */
  save(parent: string, name: string, step: number, unrecorded?: Metrics): string;
}

export interface LoopOptions {
  readonly totalSteps: number;
  readonly startStep: number;
  /** Metrics of `startStep` that are still to be written, after its evaluation if one is due. */
  readonly unrecorded?: Metrics;
  readonly evalEvery: number;
  readonly saveEvery: number;
  readonly keepCheckpoints: number;
  readonly logEvery: number;
  readonly saveRollouts: boolean;
  /** A folder beside the run's own for TensorBoard's files. */
  readonly logDir?: string;
}

const due = (step: number, every: number): boolean => every > 0 && step % every === 0;

export async function runLoop(
  task: Task,
  options: LoopOptions,
  reporter: Reporter,
  control: RunControl,
): Promise<void> {
  const { totalSteps, startStep } = options;
  const { ranks } = control;
  const parent = join(control.runDir, "checkpoints");
  if (ranks.root) cleanTemporary(parent);
  using sinks = new Sinks({
    runDir: control.runDir,
    // Under the name that the run's folder has, whether it was given or made of date and time.
    logDir: options.logDir === undefined ? null : join(options.logDir, basename(control.runDir)),
    step: startStep,
    unrecorded: options.unrecorded !== undefined,
    saveRollouts: options.saveRollouts,
    silent: !ranks.root,
  });
  const meter = new DeviceMeter(task.model.device, task.model.options.dtype);
  const last: Record<string, number> = {};
  let done = startStep;
  let saved = false;
  /** Those of the step just done, until they are written: its evaluation may be cut short, the disk may fail. */
  let unrecorded = options.unrecorded;
  const evaluationDue = (step: number) =>
    options.evalEvery > 0 && (step === totalSteps || due(step, options.evalEvery));

  const record = (step: number, metrics: Record<string, number>) => {
    Object.assign(last, metrics);
    sinks.write(step, metrics, task.examples ?? null);
    unrecorded = undefined;
  };
  /** Records what is known of `step` together with what its evaluation says, if one is due. */
  const conclude = async (step: number, known: Metrics) => {
    const metrics = evaluationDue(step) ? await task.evaluate(step, sinks) : null;
    if (metrics) reporter.evaluation({ step, metrics });
    record(step, { ...known, ...metrics });
  };
  const save = (name: string, reason: "schedule" | "final" | "interrupt" | "crash" | "diverged") => {
    if (!ranks.root) return join(parent, name);
    // After a failure the model is worth more than the rows that may have been the failure.
    if (reason !== "crash" && reason !== "diverged") sinks.flush();
    const path = task.save(parent, name, done, unrecorded);
    reporter.checkpoint({ step: done, path, reason });
    return path;
  };

  try {
    await ranks.mustAgree(task.model, startStep, true);
    // A run that goes on has recorded its last step already, unless that was cut short.
    if (unrecorded) await conclude(startStep, unrecorded);
    else if (startStep === 0 && options.evalEvery > 0) await conclude(0, {});
    for (let step = startStep + 1; step <= totalSteps; step++) {
      const stop = await ranks.stop(control.stopRequested());
      if (stop === "now")
        throw ranks.everywhere(new Interrupted("stopped at once", `step ${done}`, "nothing was saved"));
      if (stop === "finish") {
        const path = save(`step-${done}`, "interrupt");
        saved = true;
        throw ranks.everywhere(
          new Interrupted("interrupted", `step ${done}`, `continue with --resume_from ${path}`),
        );
      }
      const metrics = await meter.step(() => task.step(step, sinks));
      done = step;
      unrecorded = metrics;
      if (due(step, COMPARE_EVERY)) await ranks.mustAgree(task.model, step, false);
      const print = due(step, options.logEvery) || step === totalSteps;
      reporter.step({ step, metrics, print });
      const sample = print ? task.sample() : null;
      if (sample) {
        reporter.sample({ step, ...sample });
        sinks.text("sample_text", `${sample.prompt} -> ${sample.completion}`, step);
      }
      await conclude(step, metrics);
      if (step < totalSteps && due(step, options.saveEvery)) {
        save(`step-${step}`, "schedule");
        if (ranks.root) pruneCheckpoints(parent, options.keepCheckpoints);
      }
      await Bun.sleep(0);
    }
    const path = save("final", "final");
    reporter.done({ step: done, path, metrics: last });
  } catch (error) {
    // The last step was given up because the user waited: it ends as one that was asked to stop before it.
    const asked = control.stopRequested() === "finish" || ranks.count > 1;
    if (error instanceof Interrupted && asked && task.consistent && !saved) {
      const path = save(`step-${done}`, "interrupt");
      throw ranks.everywhere(
        new Interrupted(error.message, undefined, `continue with --resume_from ${path}`),
      );
    }
    keepState(error);
    throw error;
  }

  /** After a failure the state of the last whole step is worth keeping, unless the failure is in that state. */
  function keepState(error: unknown): void {
    // Ranks that hold different weights have no state worth keeping.
    if (error instanceof Interrupted || error instanceof RanksError) return;
    if (!task.consistent || done === startStep) return;
    const diverged = error instanceof Diverged;
    try {
      save(diverged ? `diverged-${done}` : `step-${done}`, diverged ? "diverged" : "crash");
    } catch (second) {
      reporter.note(`could not save after the failure: ${second instanceof Error ? second.message : second}`);
    }
  }
}
