/** Runs the runs of a plan, some at once, each in an engine process of its own. A run that fails stops no other. */
import { mean, sum } from "../core/lists.ts";
import { END_SIGNALS, type EngineOutcome } from "../run/engine-process.ts";
import type { Progress } from "../run/progress.ts";
import { brief, type EngineMessage } from "../run/reporter.ts";
import type { Todo } from "./folder.ts";
import type { PlannedRun } from "./plan.ts";

export type PoolState =
  | "waiting"
  | "starting"
  | "running"
  | "evaluating"
  | "finished"
  | "interrupted"
  | "failed"
  | "diverged"
  /** Another process trains it. */
  | "elsewhere";

/** A run as the table shows it. */
export interface RunView {
  readonly run: PlannedRun;
  state: PoolState;
  step: number;
  /** 0: not known yet. */
  steps: number;
  reward: number | null;
  /** Where this process began it, for the time left: milliseconds and step. */
  began: { readonly time: number; readonly step: number } | null;
  /** Why it failed, or that its evaluation did. */
  error: string | null;
}

/** What the pool calls to do the work. */
export interface PoolWork {
  /** Trains a run, from its newest checkpoint if `resume`. */
  train(run: PlannedRun, resume: boolean, threads: number, progress: Progress): Promise<EngineOutcome>;
  /** Evaluates a finished run and keeps that in its folder. Returns why it failed, null if it did not. */
  evaluate(run: PlannedRun, threads: number, signal: AbortSignal): Promise<string | null>;
}

/** Who is shown what happens. */
export interface PoolScreen {
  /** A view has another state, or went on (`step`). */
  changed(view: RunView, step: boolean): void;
  line(text: string): void;
}

export interface PoolOptions {
  /** Runs at once. */
  readonly atOnce: number;
  /** Bytes that all runs together may take by their memory plans; null: `atOnce` is what the user wants. */
  readonly memory: number | null;
  readonly threads: number;
  readonly evaluate: boolean;
}

/** What a process takes beside its memory plan. */
const PROCESS_BYTES = 150e6;

export function viewsOf(todos: readonly (readonly [run: PlannedRun, todo: Todo])[]): RunView[] {
  const state: Readonly<Record<Todo, PoolState>> = {
    ...{ start: "waiting", resume: "waiting", evaluate: "waiting", nothing: "finished" },
    ...{ failed: "failed", live: "elsewhere" },
  };
  return todos.map(([run, todo]) => ({
    ...{ run, state: state[todo], step: 0, steps: stepsOf(run), reward: null, began: null },
    error: todo === "failed" ? "it failed before and was not tried again" : null,
  }));
}

/** Steps of a whole run as its settings say; 0: epochs decide. */
function stepsOf({ settings }: PlannedRun): number {
  const { num_train_steps, max_steps } = settings as unknown as Readonly<Record<string, unknown>>;
  const steps = num_train_steps ?? max_steps;
  return typeof steps === "number" ? steps : 0;
}

/** Works through what is to do. Returns whether it was asked to stop. */
export async function runPool(
  todos: readonly (readonly [run: PlannedRun, todo: Todo])[],
  views: readonly RunView[],
  work: PoolWork,
  screen: PoolScreen,
  options: PoolOptions,
): Promise<boolean> {
  const pending = todos.flatMap(([run, todo], i) =>
    todo === "start" || todo === "resume" || todo === "evaluate" ? [{ run, todo, view: views[i]! }] : [],
  );
  const stopping = new AbortController();
  const onStop = () => stopping.abort();
  const signals = ["SIGINT", ...END_SIGNALS] as const;
  // Every engine's parent listens too: it asks its engine to save.
  const listeners = process.getMaxListeners();
  process.setMaxListeners(0);
  for (const signal of signals) process.on(signal, onStop);
  let { atOnce } = options;
  // Until a memory plan is known, one run alone.
  const { memory } = options;
  const known = Promise.withResolvers<void>();
  if (memory === null || atOnce === 1) known.resolve();
  const onPlan = (bytes: number) => {
    if (memory !== null) atOnce = Math.min(atOnce, Math.max(1, Math.floor(memory / (bytes + PROCESS_BYTES))));
    known.resolve();
  };
  const one = async (): Promise<void> => {
    const next = pending.shift();
    if (next === undefined || stopping.signal.aborted) return;
    const { run, view } = next;
    if (next.todo !== "evaluate") {
      view.state = "starting";
      screen.changed(view, false);
      const progress = watch(view, screen, onPlan);
      await trainOne(() => work.train(run, next.todo === "resume", options.threads, progress), view);
      known.resolve();
    } else view.state = "finished";
    if (view.state === "finished" && options.evaluate && !stopping.signal.aborted) {
      view.state = "evaluating";
      screen.changed(view, false);
      const failure = await work.evaluate(run, options.threads, stopping.signal);
      view.state = stopping.signal.aborted && failure !== null ? "interrupted" : "finished";
      if (failure !== null) view.error = `its evaluation failed: ${failure}`;
    }
    screen.changed(view, false);
  };
  const worker = async (index: number): Promise<void> => {
    // A worker beyond what memory allows goes home.
    while (pending.length > 0 && index < atOnce && !stopping.signal.aborted) await one();
  };
  try {
    const first = worker(0);
    await Promise.race([known.promise, first]);
    const others = Array.from({ length: Math.max(0, atOnce - 1) }, (_, i) => worker(i + 1));
    await Promise.all([first, ...others]);
  } finally {
    for (const signal of signals) process.off(signal, onStop);
    process.setMaxListeners(listeners);
  }
  return stopping.signal.aborted;
}

async function trainOne(train: () => Promise<EngineOutcome>, view: RunView): Promise<void> {
  let outcome: EngineOutcome;
  try {
    outcome = await train();
  } catch (error) {
    view.state = "failed";
    view.error = (error as Error).message;
    return;
  }
  const states: Readonly<Record<number, PoolState>> = { 0: "finished", 3: "diverged", 130: "interrupted" };
  view.state = states[outcome.exitCode] ?? "failed";
  view.error = view.state === "finished" || view.state === "interrupted" ? null : (outcome.failure ?? null);
}

/** Turns what an engine says into the run's view. */
function watch(view: RunView, screen: PoolScreen, onPlan: (bytes: number) => void): Progress {
  return {
    show(message: EngineMessage) {
      if (message.type === "plan") {
        view.state = "running";
        view.step = message.startStep;
        view.steps = message.totalSteps;
        view.began = { time: performance.now(), step: message.startStep };
        onPlan(sum(Object.values(message.bytes)));
        screen.changed(view, false);
      } else if (message.type === "step") {
        view.step = message.step;
        view.reward = message.metrics["train/reward_mean"] ?? view.reward;
        screen.changed(view, true);
      }
    },
    line: (text) => screen.line(text),
    close() {},
  };
}

/** Seconds that a run still takes at its speed; null: not known yet. */
export function secondsLeft(view: RunView, now: number): number | null {
  if (view.began === null || view.step <= view.began.step) return null;
  const each = (now - view.began.time) / 1000 / (view.step - view.began.step);
  return each * Math.max(0, view.steps - view.step);
}

/** Seconds that all still take: what is left of each at the mean speed, divided by how many go at once. */
export function sweepSecondsLeft(views: readonly RunView[], atOnce: number, now: number): number | null {
  const going = views.filter(({ began, step }) => began !== null && step > began.step);
  if (going.length === 0) return null;
  const speeds = going.map(({ began, step }) => (now - began!.time) / 1000 / Math.max(1, step - began!.step));
  const ended: readonly PoolState[] = ["finished", "failed", "diverged", "interrupted", "elsewhere"];
  const left = views
    .filter(({ state }) => !ended.includes(state))
    .reduce((sum, { steps, step }) => sum + Math.max(0, steps - step), 0);
  return (left * mean(speeds)) / Math.max(1, atOnce);
}

/** `12/20 reward 0.93`. */
export function stepText({ step, steps, reward }: RunView): string {
  return `${steps === 0 ? step : `${step}/${steps}`}${reward === null ? "" : ` reward ${brief(reward)}`}`;
}
