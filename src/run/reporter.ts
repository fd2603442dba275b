/**
 * What a training run says while it runs. The engine process sends these messages to its parent; both turn them
 * into lines by the same function, so the terminal and train.log agree.
 */
import { sum } from "../core/lists.ts";
import { modeTable } from "../report/table.ts";
import type { Ranks } from "./ranks.ts";

/** What the memory plan foresees, in bytes. */
export interface PlanMessage {
  readonly type: "plan";
  /** weights, gradients, optimizer, activations, kv, scratch … */
  readonly bytes: Readonly<Record<string, number>>;
  /** Optimizer steps of the whole run, and how many of them a resumed run has done. */
  readonly totalSteps: number;
  readonly startStep: number;
  /** Further lines of the run header: model, dataset, device, the exact formula in use. */
  readonly lines: readonly string[];
}

/** An optimizer step is done. */
export interface StepMessage {
  readonly type: "step";
  readonly step: number;
  readonly metrics: Readonly<Record<string, number>>;
  /** Whether log_every wants this step printed where there is no progress bar. */
  readonly print: boolean;
}

export interface EvalMessage {
  readonly type: "eval";
  /** 0 = before the first step. */
  readonly step: number;
  readonly metrics: Readonly<Record<string, number>>;
}

export interface SampleMessage {
  readonly type: "sample";
  readonly step: number;
  readonly prompt: string;
  readonly completion: string;
  readonly reward?: number;
}

export interface CheckpointMessage {
  readonly type: "checkpoint";
  readonly step: number;
  readonly path: string;
  readonly reason: "schedule" | "final" | "interrupt" | "crash" | "diverged";
}

export interface NoteMessage {
  readonly type: "note";
  readonly text: string;
}

export interface DoneMessage {
  readonly type: "done";
  readonly step: number;
  /** checkpoints/final. */
  readonly path: string;
  /** The last value of each metric, for `--json`. */
  readonly metrics: Readonly<Record<string, number>>;
}

/** The run failed; sent by the engine's main, never by the training loop (which throws). */
export interface ErrorMessage {
  readonly type: "error";
  readonly message: string;
  readonly exitCode: number;
  readonly stack?: string | undefined;
}

export type EngineMessage =
  | PlanMessage
  | StepMessage
  | EvalMessage
  | SampleMessage
  | CheckpointMessage
  | NoteMessage
  | DoneMessage
  | ErrorMessage;

type Body<M extends EngineMessage> = Omit<M, "type">;

/** The training loop's only way to speak. */
export interface Reporter {
  plan(message: Body<PlanMessage>): void;
  step(message: Body<StepMessage>): void;
  evaluation(message: Body<EvalMessage>): void;
  sample(message: Body<SampleMessage>): void;
  checkpoint(message: Body<CheckpointMessage>): void;
  note(text: string): void;
  done(message: Body<DoneMessage>): void;
}

/** What a training loop is told besides its config. */
export interface RunControl {
  /** Asked for between steps: finish = save and throw Interrupted; now = throw Interrupted without saving. */
  stopRequested(): "none" | "finish" | "now";
  /** Aborted a while after a stop was asked for: what may wait long, for rewards, ends then. */
  readonly signal: AbortSignal;
  /** RUN: exists and is writable. */
  readonly runDir: string;
  /** Checkpoint folder to continue from. */
  readonly resumeFrom: string | null;
  /** Text of train_config.json for the checkpoints. */
  readonly checkpointConfig: string;
  /** Processes that train together. */
  readonly ranks: Ranks;
}

/** Sends every message to one function. */
export function reporterTo(send: (message: EngineMessage) => void): Reporter {
  return {
    plan: (message) => send({ type: "plan", ...message }),
    step: (message) => send({ type: "step", ...message }),
    evaluation: (message) => send({ type: "eval", ...message }),
    sample: (message) => send({ type: "sample", ...message }),
    checkpoint: (message) => send({ type: "checkpoint", ...message }),
    note: (text) => send({ type: "note", text }),
    done: (message) => send({ type: "done", ...message }),
  };
}

/** The metrics worth a place in a line, with their short names. */
const SHOWN: readonly (readonly [metric: string, short: string])[] = [
  ["train/reward_mean", "reward"],
  ["train/loss", "loss"],
  ["train/kl_div", "kl"],
  ["train/entropy", "entropy"],
  ["train/completion_length_avg", "length"],
  ["train/grad_norm", "grad_norm"],
  ["train/lr", "lr"],
  ["train/tokens_per_second", "tok/s"],
  ["train/step_time", "s/step"],
];

/** Four significant digits; exponents only where they are shorter. */
export function brief(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

export function bytesText(bytes: number): string {
  if (bytes < 1e3) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(1)} MB`;
  return `${(bytes / 1e9).toFixed(2)} GB`;
}

function metricsText(metrics: Readonly<Record<string, number>>, strip: string): string {
  return Object.entries(metrics)
    .map(([name, value]) => `${name.startsWith(strip) ? name.slice(strip.length) : name} ${brief(value)}`)
    .join("  ");
}

/** Control characters of a model's text would move the cursor or colour the terminal: shown as escapes. */
export function visible(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is being replaced
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, (char) =>
    char === "\n" ? "\\n" : `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
}

/** The lines of a message as train.log and a plain terminal show them. */
export function linesOf(message: EngineMessage, totalSteps: number): string[] {
  switch (message.type) {
    case "plan": {
      const parts = Object.entries(message.bytes).map(([name, bytes]) => `${name} ${bytesText(bytes)}`);
      const memory = `memory plan: ${bytesText(sum(Object.values(message.bytes)))} (${parts.join(", ")})`;
      return [...message.lines, memory];
    }
    case "step": {
      const shown = SHOWN.filter(([metric]) => message.metrics[metric] !== undefined).map(
        ([metric, short]) => `${short} ${brief(message.metrics[metric]!)}`,
      );
      return [`step ${message.step}/${totalSteps}  ${shown.join("  ")}`];
    }
    case "eval":
      return evaluationLines(message);
    case "sample": {
      const reward = message.reward === undefined ? "" : `  (reward ${brief(message.reward)})`;
      return [
        `[Sample @ ${message.step}] ${visible(message.prompt)} -> ${visible(message.completion)}${reward}`,
      ];
    }
    case "checkpoint":
      return [`checkpoint at ${message.step}${reasonText(message.reason)}: ${message.path}`];
    case "note":
      return [message.text];
    case "done":
      return [`done after ${message.step} steps: ${message.path}`];
    case "error":
      return [`rlv: error: ${message.message}`, ...(message.stack === undefined ? [] : [message.stack])];
  }
}

/** Figures of an evaluation in a line; those of modes (eval/MODE/FIGURE) as a table behind it, a mode a line. */
function evaluationLines({ step, metrics }: EvalMessage): string[] {
  const modes: Record<string, Record<string, number>> = {};
  const others: Record<string, number> = {};
  for (const [name, value] of Object.entries(metrics)) {
    const found = /^eval\/(both|retain_only|forget_only)\/(.+)$/.exec(name);
    if (!found) others[name] = value;
    else modes[found[1]!] = { ...modes[found[1]!], [found[2]!]: value };
  }
  const line = `eval at ${step}  ${metricsText(others, "eval/")}`;
  if (Object.keys(modes).length === 0) return [line];
  return [line, ...modeTable(modes, brief).map((row) => `  ${row}`)];
}

function reasonText(reason: CheckpointMessage["reason"]): string {
  return reason === "schedule" || reason === "final" ? "" : ` (${reason})`;
}
