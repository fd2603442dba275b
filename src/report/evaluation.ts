/** What `rlv eval` says of a checkpoint: of fresh completions, and of what its run wrote. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { evenly, mean } from "../core/lists.ts";
import type { Scored } from "../core/records.ts";
import { type Diversity, diversity } from "./diversity.ts";
import {
  type JudgedResponse,
  type JudgedRollout,
  type JudgeReport,
  judgeDetails,
  judgeReportText,
  readJudged,
} from "./judge.ts";
import { allRows, seriesOf, sparkline } from "./metrics.ts";
import type { ModeFigures } from "./modes.ts";
import type { RunState } from "./runs.ts";
import { modeTable } from "./table.ts";

export interface Evaluation {
  /** The run's name, or the folder of a checkpoint without one. */
  readonly name: string;
  readonly run: string | null;
  readonly recipe: string | null;
  readonly state: RunState | null;
  /** null: none was opened. */
  readonly checkpoint: string | null;
  readonly step: number | null;
  /** null where none were made; `note` says why. */
  readonly fresh: FreshReport | null;
  /** Of retain and forget adapters together and each by itself; null: there are none, or nothing was sampled. */
  readonly modes: ModeFigures | null;
  readonly note: string | null;
  readonly history: History | null;
  /** Last value recorded in training, nats a token; null: not recorded. */
  readonly kl: number | null;
  /** Of the fresh completions, or of the run's last ones. */
  readonly judge: JudgeReport | null;
}

export interface FreshReport {
  readonly prompts: number;
  readonly completions: number;
  /** Of all that got one; null: none did. */
  readonly reward: {
    readonly mean: number;
    readonly std: number;
    readonly min: number;
    readonly max: number;
  } | null;
  readonly components: Readonly<Record<string, number>>;
  /** Share that each prompt's best completion adds: mean over prompts of the greatest reward. */
  readonly best_of_n: number | null;
  readonly mean_tokens: number;
  /** Share that ended by itself. */
  readonly eos_share: number;
  /** Of those that a detector of reward hacks saw; null: none did. */
  readonly flagged_share: number | null;
  readonly diversity: Diversity;
  readonly samples: readonly {
    readonly prompt: string;
    readonly completion: string;
    readonly reward: number | null;
  }[];
}

/** A metric along the run, at most so many points. */
export interface History {
  readonly metric: string;
  readonly steps: readonly number[];
  readonly values: readonly number[];
  readonly first: number;
  readonly last: number;
  readonly best: number;
}

const HISTORY_POINTS = 200;
/** Judged responses of a run that are looked at, the newest. */
const STORED = 512;
const REWARDS = ["eval/reward", "train/reward_mean", "eval/accuracy", "train/accuracy"] as const;

/** `samples`: how many to show, evenly from all. */
export function freshReport(scored: readonly Scored[], samples: number): FreshReport {
  const rewarded = scored.filter(({ reward }) => !Number.isNaN(reward));
  const rewards = rewarded.map(({ reward }) => reward);
  const best = new Map<number, number>();
  for (const { prompt, reward } of rewarded)
    best.set(prompt.index, Math.max(reward, best.get(prompt.index) ?? Number.NEGATIVE_INFINITY));
  const seen = scored.filter(({ flagged }) => flagged !== undefined);
  const share = (part: number, all: number) => (all === 0 ? 0 : part / all);
  return {
    prompts: new Set(scored.map(({ prompt }) => prompt.index)).size,
    completions: scored.length,
    reward: rewards.length === 0 ? null : spreadOf(rewards),
    components: componentMeans(rewarded),
    best_of_n: best.size === 0 ? null : mean([...best.values()]),
    mean_tokens: share(
      scored.reduce((sum, { ids }) => sum + ids.length, 0),
      scored.length,
    ),
    eos_share: share(scored.filter(({ finish }) => finish === "eos").length, scored.length),
    flagged_share: seen.length === 0 ? null : seen.filter(({ flagged }) => flagged).length / seen.length,
    diversity: diversity(scored.map(({ text, prompt }) => ({ text, prompt: prompt.index }))),
    samples: evenly(scored, samples).map(({ prompt, text, reward }) => ({
      prompt: prompt.text,
      completion: text,
      reward: Number.isNaN(reward) ? null : reward,
    })),
  };
}

function spreadOf(values: readonly number[]) {
  const middle = mean(values);
  return {
    mean: middle,
    std: Math.sqrt(mean(values.map((value) => (value - middle) ** 2))),
    min: values.reduce((a, b) => Math.min(a, b)),
    max: values.reduce((a, b) => Math.max(a, b)),
  };
}

/** Of each component over the completions that have it. */
function componentMeans(scored: readonly Scored[]): Record<string, number> {
  const values = new Map<string, number[]>();
  for (const { components } of scored)
    for (const [name, value] of Object.entries(components))
      values.set(name, [...(values.get(name) ?? []), value]);
  return Object.fromEntries([...values].map(([name, list]) => [name, mean(list)]));
}

/** What a judge said of fresh completions; empty without one. */
export function judgedOf(scored: readonly Scored[]): JudgedResponse[] {
  return scored.flatMap(({ text, details }) => {
    const judge = judgeDetails(details);
    return judge === null ? [] : [{ response: text, judge }];
  });
}

/** What it said of the last that the run stored; empty where none were kept. */
export function storedJudged(runDir: string): JudgedRollout[] {
  const database = join(runDir, "rollouts.sqlite");
  return existsSync(database) ? readJudged(database, "rollouts", STORED) : [];
}

/** The run's reward along its steps, and the last KL divergence that it recorded. */
export function historyOf(runDir: string): { history: History | null; kl: number | null } {
  const rows = [...allRows(runDir)];
  const kl = rows.findLast((row) => row["train/kl_div"] !== undefined)?.["train/kl_div"] ?? null;
  for (const metric of REWARDS) {
    const { steps, values } = seriesOf(rows, metric);
    if (values.length === 0) continue;
    const count = Math.min(HISTORY_POINTS, values.length);
    const at = Array.from({ length: count }, (_, i) =>
      count === 1 ? 0 : Math.round((i * (values.length - 1)) / (count - 1)),
    );
    return {
      kl,
      history: {
        metric,
        steps: at.map((i) => steps[i]!),
        values: at.map((i) => values[i]!),
        first: values[0]!,
        last: values.at(-1)!,
        best: values.filter(Number.isFinite).reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY),
      },
    };
  }
  return { history: null, kl };
}

const figure = (value: number | null | undefined) =>
  value == null ? "-" : String(Number(value.toPrecision(4)));
const percent = (value: number) => `${(100 * value).toFixed(1)} %`;

/** One evaluation in lines; `shown` makes a model's text harmless to a terminal. */
export function evaluationLines(evaluation: Evaluation, shown: (text: string) => string): string[] {
  const { name, recipe, state, checkpoint, step, fresh, modes, note, history, kl, judge } = evaluation;
  const lines = [
    `${shown(name)}${recipe === null ? "" : `  ${recipe}`}${state === null ? "" : `  ${state}`}`,
  ];
  if (checkpoint !== null)
    lines.push(`  checkpoint ${shown(checkpoint)}${step === null ? "" : `, step ${step}`}`);
  if (note !== null) lines.push(`  ${note}`);
  if (history !== null)
    lines.push(
      `  ${history.metric} ${sparkline(history.values, 40)} ${figure(history.first)} → ${figure(history.last)}, best ${figure(history.best)}`,
    );
  if (kl !== null) lines.push(`  KL divergence ${figure(kl)}`);
  if (fresh !== null) {
    const { reward, diversity: d } = fresh;
    lines.push(
      `  ${fresh.completions} fresh completions of ${fresh.prompts} prompts: ${fresh.mean_tokens.toFixed(1)} tokens, ` +
        `${percent(fresh.eos_share)} end by themselves`,
    );
    if (reward !== null)
      lines.push(
        `  reward ${figure(reward.mean)} ± ${figure(reward.std)} (${figure(reward.min)} … ${figure(reward.max)}), best of a prompt ${figure(fresh.best_of_n)}`,
      );
    const parts = Object.entries(fresh.components);
    if (parts.length > 1)
      lines.push(`  components ${parts.map(([part, value]) => `${part} ${figure(value)}`).join("  ")}`);
    if (fresh.flagged_share !== null) lines.push(`  flagged ${percent(fresh.flagged_share)}`);
    lines.push(
      `  diversity: unique ${percent(d.unique_share)}, Jaccard ${figure(d.jaccard)}` +
        `${d.jaccard_within === null ? "" : ` (within a prompt ${figure(d.jaccard_within)})`}, shared 4-grams ${percent(d.self_overlap)}, ` +
        `template ${percent(d.template_share)}, compression ${figure(d.compression)}`,
      d.degenerate ? `  DEGENERATE: ${d.reasons.join("; ")}` : "  not degenerate",
    );
    if (d.template !== null) lines.push(`  commonest skeleton: ${shown(d.template)}`);
  }
  if (modes !== null) lines.push(...modeTable(modes, figure).map((row) => `  ${row}`));
  if (judge !== null) lines.push(...judgeReportText(judge).map((line) => `  ${shown(line)}`));
  for (const sample of fresh?.samples ?? [])
    lines.push(`  [${figure(sample.reward)}] ${shown(sample.prompt)} -> ${shown(sample.completion)}`);
  return lines;
}

/** Several evaluations side by side. */
export function comparisonRows(evaluations: readonly Evaluation[]): string[][] {
  return [
    ["name", "step", "reward", "best of n", "unique", "Jaccard", "template", "KL", "tokens", "degenerate"],
    ...evaluations.map(({ name, step, fresh, kl }) => [
      name,
      figure(step),
      figure(fresh?.reward?.mean),
      figure(fresh?.best_of_n),
      fresh ? percent(fresh.diversity.unique_share) : "-",
      figure(fresh?.diversity.jaccard),
      fresh ? percent(fresh.diversity.template_share) : "-",
      figure(kl),
      figure(fresh?.mean_tokens),
      fresh ? (fresh.diversity.degenerate ? "yes" : "no") : "-",
    ]),
  ];
}
