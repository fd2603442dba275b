/** What the rewards of a run's training rollouts were made of, step by step. Nothing here writes. */
import type { Database } from "bun:sqlite";
import { columnsOf } from "../io/rollouts-reader.ts";
import type { JudgePoint, RewardPoint, RewardReport } from "./reward-report.ts";
import { someSteps } from "./steps.ts";

export const REWARD_BINS = 20;
/** Of a step; its first ones stand for the others. */
const ROWS_OF_A_STEP = 1024;

/** Of a run without rollouts. */
const rewardsOfNone: RewardReport = {
  points: [],
  components: [],
  judge: [],
  range: null,
  bins: REWARD_BINS,
};

interface Row {
  readonly reward: number;
  readonly components: string | null;
  readonly details: string | null;
}

/** Sums of one step. */
interface Sums {
  readonly step: number;
  readonly rewards: number[];
  readonly components: Map<string, { sum: number; count: number }>;
  readonly judge: Map<string, JudgeSums>;
}

interface JudgeSums {
  count: number;
  expected: number;
  written: number;
  text: number;
  readonly probabilities: number[];
}

/** `db`: rollouts.sqlite of a run. */
export function rewardReport(db: Database, most: number): RewardReport {
  const columns = columnsOf(db, "rollouts");
  if (!columns.has("reward")) return rewardsOfNone;
  const of = (name: string) => (columns.has(name) ? name : `NULL AS ${name}`);
  const rows = db.query(
    `SELECT reward, ${of("components")}, ${of("details")} FROM rollouts WHERE step = ? LIMIT ${ROWS_OF_A_STEP}`,
  );
  const steps = someSteps(db, "rollouts", most).map((step) => sumsOf(step, rows.all(step) as Row[]));
  const components = namesOf(steps.map((each) => each.components));
  const judge = namesOf(steps.map((each) => each.judge));
  let [min, max] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const { rewards } of steps)
    for (const reward of rewards) [min, max] = [Math.min(min, reward), Math.max(max, reward)];
  const points = steps.map((sums): RewardPoint => {
    const mean = (name: string) => {
      const part = sums.components.get(name);
      return part === undefined ? null : part.sum / part.count;
    };
    return {
      step: sums.step,
      rollouts: sums.rewards.length,
      histogram: histogram(sums.rewards, min, max),
      components: components.map(mean),
      judge: judge.map((name) => judgePoint(sums.judge.get(name))),
    };
  });
  return { points, components, judge, range: min <= max ? { min, max } : null, bins: REWARD_BINS };
}

function namesOf(maps: readonly ReadonlyMap<string, unknown>[]): string[] {
  return [...new Set(maps.flatMap((map) => [...map.keys()]))];
}

function sumsOf(step: number, rows: readonly Row[]): Sums {
  const sums: Sums = { step, rewards: [], components: new Map(), judge: new Map() };
  for (const { reward, components, details } of rows) {
    sums.rewards.push(reward);
    for (const [name, value] of Object.entries(objectOf(components))) {
      if (typeof value !== "number") continue;
      const part = sums.components.get(name) ?? { sum: 0, count: 0 };
      part.sum += value;
      part.count += 1;
      sums.components.set(name, part);
    }
    const judge = objectOf(details).judge as { criteria?: unknown } | undefined;
    for (const [name, said] of Object.entries(plain(judge?.criteria)))
      addJudge(sums.judge, name, plain(said));
  }
  return sums;
}

function addJudge(into: Map<string, JudgeSums>, name: string, said: Record<string, unknown>): void {
  const { text, expected, probabilities } = said;
  if (typeof expected !== "number" || !Array.isArray(probabilities)) return;
  const sums = into.get(name) ?? {
    ...{ count: 0, expected: 0, written: 0, text: 0 },
    probabilities: probabilities.map(() => 0),
  };
  into.set(name, sums);
  sums.count += 1;
  sums.expected += expected;
  if (typeof text === "number") {
    sums.written += 1;
    sums.text += text;
  }
  for (const [index, value] of probabilities.entries())
    if (typeof value === "number") sums.probabilities[index] = (sums.probabilities[index] ?? 0) + value;
}

function judgePoint(sums: JudgeSums | undefined): JudgePoint | null {
  if (sums === undefined) return null;
  return {
    expected: sums.expected / sums.count,
    text: sums.written === 0 ? null : sums.text / sums.written,
    invalid: 1 - sums.written / sums.count,
    probabilities: sums.probabilities.map((sum) => sum / sums.count),
  };
}

function histogram(rewards: readonly number[], min: number, max: number): number[] {
  const counts = new Array<number>(REWARD_BINS).fill(0);
  for (const reward of rewards) {
    const share = max > min ? (reward - min) / (max - min) : 0;
    const bin = Math.min(REWARD_BINS - 1, Math.floor(share * REWARD_BINS));
    counts[bin] = counts[bin]! + 1;
  }
  return counts.map((count) => count / Math.max(1, rewards.length));
}

const plain = (value: unknown): Record<string, unknown> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};

/** {} for text that is no JSON object: one bad row does not hide the others. */
function objectOf(text: string | null): Record<string, unknown> {
  if (text === null) return {};
  try {
    return plain(JSON.parse(text));
  } catch {
    return {};
  }
}
