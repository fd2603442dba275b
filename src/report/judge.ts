/**
 * What a judge's scores are worth: whether its two readings agree, how often it says no score, and what moves its scores
 * that should not (length, the order in which it was told the criteria).
 */
import { existsSync } from "node:fs";
import { UsageError } from "../core/errors.ts";
import { mean } from "../core/lists.ts";
import { columnsOf, readRollouts } from "../io/rollouts-reader.ts";

/** One criterion as rollouts keep it under details.judge. */
export interface JudgedCriterion {
  /** The score in what the judge said; null: none. */
  readonly text: number | null;
  readonly expected: number;
  /** Of the scale's values, lowest first. */
  readonly probabilities: readonly number[];
  /** Probability of all of them among all tokens. */
  readonly mass?: number;
}

export interface JudgeDetails {
  readonly model: string;
  readonly criteria: Readonly<Record<string, JudgedCriterion>>;
  /** Whether the judge read only the beginning of the response. */
  readonly cut?: boolean;
}

/** What a rollout's details say of a judge, or null. */
export function judgeDetails(details: Readonly<Record<string, unknown>> | undefined): JudgeDetails | null {
  const judge = details?.judge as JudgeDetails | undefined;
  return typeof judge?.criteria === "object" && judge.criteria !== null ? judge : null;
}

/**
 * Of judged rollouts, under `prefix`: judge_invalid_rate, the share of text answers without a score; judge_agreement, the
 * share of the others that say the expected score, rounded; judge_mass, the mean probability of the scale's tokens;
 * judge_cut_rate, the share of responses that were longer than what was read. Nothing without a judge.
 */
export function judgeMetrics(
  scored: readonly { readonly details?: Readonly<Record<string, unknown>> }[],
  prefix: string,
): Record<string, number> {
  const judged = scored.flatMap(({ details }) => judgeDetails(details) ?? []);
  if (judged.length === 0) return {};
  const criteria = judged.flatMap((judge) => Object.values(judge.criteria));
  const valid = criteria.filter(({ text }) => text !== null);
  return {
    [`${prefix}/judge_invalid_rate`]: 1 - valid.length / criteria.length,
    ...(valid.length > 0 ? { [`${prefix}/judge_agreement`]: mean(valid.map(agrees)) } : {}),
    [`${prefix}/judge_mass`]: mean(criteria.map(({ mass }) => mass ?? 1)),
    [`${prefix}/judge_cut_rate`]: mean(judged.map(({ cut }) => (cut ? 1 : 0))),
  };
}

const agrees = ({ text, expected }: JudgedCriterion): number => (text === Math.round(expected) ? 1 : 0);

/** Pearson's correlation; null where one of the two does not vary. */
export function correlation(x: readonly number[], y: readonly number[]): number | null {
  const [mx, my] = [mean(x), mean(y)];
  let [sxy, sxx, syy] = [0, 0, 0];
  for (const [i, value] of x.entries()) {
    const [dx, dy] = [value - mx, y[i]! - my];
    sxy += dx * dy;
    sxx += dx * dx;
    syy += dy * dy;
  }
  // What rounding leaves of a constant is no variation.
  const varies = (sum: number, m: number) => sum > 1e-20 * x.length * Math.max(1, m * m);
  return varies(sxx, mx) && varies(syy, my) ? sxy / Math.sqrt(sxx * syy) : null;
}

/** One judged response. */
export interface JudgedResponse {
  readonly response: string;
  readonly judge: JudgeDetails;
}

/** The same responses judged with the criteria listed in some order. */
export interface OrderedJudgements {
  readonly order: readonly string[];
  /** Expected scores of each response by criterion. */
  readonly expected: readonly Readonly<Record<string, number>>[];
}

export interface CriterionReport {
  readonly name: string;
  readonly responses: number;
  readonly invalid_rate: number;
  readonly mean_text: number | null;
  readonly mean_expected: number;
  readonly mean_mass: number;
  /** Of text answers with a score: those that say the expected score, rounded, and those at most one off it. */
  readonly exact_agreement: number | null;
  readonly agreement_within_one: number | null;
  /** Of the two readings over responses. */
  readonly correlation: number | null;
  /** Of the expected score with the number of characters: a judge that likes length is near 1. */
  readonly length_correlation: number | null;
}

export interface PositionReport {
  readonly responses: number;
  readonly orders: number;
  /** Mean expected score at each place of the list, less the criterion's mean over all places. */
  readonly shift_by_position: readonly number[];
  /** How far a criterion's score of one response lies apart between its places, on average and at most. */
  readonly mean_spread: number;
  readonly largest_spread: number;
  readonly spread_by_criterion: Readonly<Record<string, number>>;
}

export interface JudgeReport {
  readonly model: string;
  readonly responses: number;
  readonly criteria: readonly CriterionReport[];
  /** null: nothing was judged again. */
  readonly position: PositionReport | null;
}

export function judgeReport(
  judged: readonly JudgedResponse[],
  orders: readonly OrderedJudgements[] = [],
): JudgeReport {
  if (judged.length === 0) throw new UsageError("no rollout was judged", "judge report");
  const names = [...new Set(judged.flatMap(({ judge }) => Object.keys(judge.criteria)))];
  return {
    model: judged[0]!.judge.model,
    responses: judged.length,
    criteria: names.map((name) => criterionReport(name, judged)),
    position: orders.length > 1 ? positionReport(orders) : null,
  };
}

function criterionReport(name: string, judged: readonly JudgedResponse[]): CriterionReport {
  const rows = judged.flatMap(({ response, judge }) => {
    const criterion = judge.criteria[name];
    return criterion ? [{ length: [...response].length, ...criterion }] : [];
  });
  const valid = rows.flatMap((row) => (row.text === null ? [] : [{ ...row, text: row.text }]));
  const expected = rows.map((row) => row.expected);
  const orNull = (values: readonly number[]) => (values.length === 0 ? null : mean(values));
  return {
    name,
    responses: rows.length,
    invalid_rate: 1 - valid.length / rows.length,
    mean_text: orNull(valid.map(({ text }) => text)),
    mean_expected: mean(expected),
    mean_mass: mean(rows.map(({ mass }) => mass ?? 1)),
    exact_agreement: orNull(valid.map(agrees)),
    agreement_within_one: orNull(
      valid.map((row) => (Math.abs(row.text - Math.round(row.expected)) <= 1 ? 1 : 0)),
    ),
    correlation:
      valid.length === 0
        ? null
        : correlation(
            valid.map(({ text }) => text),
            valid.map((row) => row.expected),
          ),
    length_correlation: correlation(
      expected,
      rows.map(({ length }) => length),
    ),
  };
}

/** Every criterion should stand at every place once: rotations of one order. */
export function positionReport(orders: readonly OrderedJudgements[]): PositionReport {
  const [first] = orders;
  if (!first) throw new UsageError("nothing was judged in another order", "judge report");
  const names = [...first.order].sort();
  const responses = first.expected.length;
  for (const { order, expected } of orders)
    if (expected.length !== responses || [...order].sort().join() !== names.join())
      throw new UsageError("orders are not about the same responses and criteria", "judge report");
  const shifts: number[][] = names.map(() => []);
  const spreads: Record<string, number> = {};
  let largest = 0;
  for (const name of names) {
    const apart: number[] = [];
    for (let i = 0; i < responses; i++) {
      const scores = orders.map(({ expected }) => expected[i]![name]!);
      const middle = mean(scores);
      for (const [o, { order }] of orders.entries()) shifts[order.indexOf(name)]!.push(scores[o]! - middle);
      apart.push(Math.max(...scores) - Math.min(...scores));
    }
    spreads[name] = mean(apart);
    largest = Math.max(largest, ...apart);
  }
  return {
    responses,
    orders: orders.length,
    shift_by_position: shifts.map((values) => (values.length === 0 ? 0 : mean(values))),
    mean_spread: mean(Object.values(spreads)),
    largest_spread: largest,
    spread_by_criterion: spreads,
  };
}

/** A judged completion of a run. */
export interface JudgedRollout extends JudgedResponse {
  readonly step: number;
  /** Position of its prompt in the file of its table. */
  readonly promptIndex: number;
  readonly advantage: number | null;
}

/** The last `most` judged completions of a run, oldest first; throws UsageError where no rollouts were kept. */
export function readJudged(
  database: string,
  table: "rollouts" | "eval_rollouts",
  most: number,
): JudgedRollout[] {
  if (!existsSync(database))
    throw new UsageError("the run has no rollouts", database, "train with --save_rollouts true");
  const advantage = table === "rollouts" ? "advantage" : "NULL AS advantage";
  const rows = readRollouts(database, (db) => {
    // Rollouts of an older run lack the column or the table.
    if (!columnsOf(db, table).has("details")) return [];
    return db
      .query(
        `SELECT step, prompt_index, completion, details, ${advantage} FROM ${table} ` +
          "WHERE details IS NOT NULL ORDER BY step DESC, prompt_index DESC, rollout_index DESC LIMIT ?",
      )
      .all(most) as {
      step: number;
      prompt_index: number;
      completion: string;
      details: string;
      advantage: number | null;
    }[];
  });
  return rows.reverse().flatMap(({ step, prompt_index, completion, details, advantage }) => {
    const judge = judgeDetails(JSON.parse(details));
    return judge === null
      ? []
      : [{ step, promptIndex: prompt_index, response: completion, judge, advantage }];
  });
}

/** The report in lines for a terminal. */
export function judgeReportText({ model, responses, criteria, position }: JudgeReport): string[] {
  const figure = (value: number | null) => (value === null ? "-" : value.toFixed(3));
  const percent = (value: number | null) => (value === null ? "-" : `${(100 * value).toFixed(1)} %`);
  return [
    `judge ${model}, ${responses} responses`,
    ...criteria.map(
      (c) =>
        `  ${c.name}: expected ${figure(c.mean_expected)}, said ${figure(c.mean_text)}, invalid ${percent(c.invalid_rate)}, ` +
        `the readings agree on ${percent(c.exact_agreement)} (correlation ${figure(c.correlation)}), ` +
        `correlation with length ${figure(c.length_correlation)}, mass ${figure(c.mean_mass)}`,
    ),
    ...(position
      ? [
          `  order of the criteria (${position.orders} orders, ${position.responses} responses): shift by place ` +
            `${position.shift_by_position.map(figure).join(", ")}; spread ${figure(position.mean_spread)}, at most ${figure(position.largest_spread)}`,
        ]
      : []),
  ];
}
