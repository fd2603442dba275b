import { expect, test } from "bun:test";
import {
  correlation,
  judgeDetails,
  judgeMetrics,
  judgeReport,
  judgeReportText,
  positionReport,
} from "../../src/report/judge.ts";

const judged = (text: number | null, expected: number, response = "abc") => ({
  response,
  judge: {
    model: "m",
    criteria: { depth: { text, expected, probabilities: [0.2, 0.2, 0.2, 0.2, 0.2], mass: 0.5 } },
  },
});

test("metrics of a step: invalid share, agreement, mass, cut share", () => {
  const scored = [
    { details: { judge: judged(4, 4.2).judge } },
    { details: { judge: judged(null, 3).judge } },
    { details: { judge: { ...judged(2, 3.4).judge, cut: true } } },
    { details: { other: 1 } },
    {},
  ];
  expect(judgeMetrics(scored, "train")).toEqual({
    "train/judge_invalid_rate": 1 - 2 / 3,
    "train/judge_agreement": 0.5,
    "train/judge_mass": 0.5,
    "train/judge_cut_rate": 1 / 3,
  });
  expect(judgeMetrics([{}, { details: {} }], "train")).toEqual({});
  expect(judgeMetrics([{ details: { judge: judged(null, 3).judge } }], "eval")).toEqual({
    "eval/judge_invalid_rate": 1,
    "eval/judge_mass": 0.5,
    "eval/judge_cut_rate": 0,
  });
  expect(judgeDetails({ judge: "x" })).toBe(null);
});

test("Pearson's correlation", () => {
  expect(correlation([1, 2, 3], [2, 4, 6])).toBeCloseTo(1, 14);
  expect(correlation([1, 2, 3], [3, 2, 1])).toBeCloseTo(-1, 14);
  // numpy.corrcoef([1, 2, 3, 4], [1, 3, 2, 5])
  expect(correlation([1, 2, 3, 4], [1, 3, 2, 5])).toBeCloseTo(0.8315218406202999, 14);
  expect(correlation([1, 1, 1], [1, 2, 3])).toBe(null);
  expect(correlation([0.1, 0.1, 0.1], [1, 2, 3])).toBe(null);
});

test("readings against each other and against length", () => {
  const report = judgeReport([
    judged(1, 1.2, "a"),
    judged(3, 2.6, "aaaa"),
    judged(5, 4.4, "aaaaaaa"),
    judged(null, 5, "aaaaaaaa"),
  ]);
  const [depth] = report.criteria;
  expect(report.responses).toBe(4);
  expect(depth!.invalid_rate).toBe(0.25);
  expect(depth!.exact_agreement).toBeCloseTo(2 / 3, 14);
  expect(depth!.agreement_within_one).toBe(1);
  expect(depth!.correlation!).toBeGreaterThan(0.99);
  expect(depth!.length_correlation!).toBeGreaterThan(0.95);
  expect(depth!.mean_expected).toBeCloseTo(3.3, 14);
  expect(report.position).toBe(null);
  expect(judgeReportText(report).join("\n")).toContain("invalid 25.0 %");
  expect(() => judgeReport([])).toThrow("no rollout was judged");
});

test("a judge that favours what it is told first is found out", () => {
  const names = ["a", "b", "c"];
  const rotations = names.map((_, turn) => names.map((_, i) => names[(i + turn) % 3]!));
  // A score of its own for each criterion and response, and half a point more at the first place.
  const orders = (bonus: number) =>
    rotations.map((order) => ({
      order,
      expected: [0, 1].map((response) =>
        Object.fromEntries(
          order.map((name, place) => [name, 2 + names.indexOf(name) + response + (place === 0 ? bonus : 0)]),
        ),
      ),
    }));
  const fair = positionReport(orders(0));
  expect([fair.mean_spread, fair.largest_spread, ...fair.shift_by_position]).toEqual([0, 0, 0, 0, 0]);
  const biased = positionReport(orders(0.5));
  expect(biased.largest_spread).toBeCloseTo(0.5, 14);
  expect(biased.shift_by_position[0]).toBeCloseTo(1 / 3, 14);
  expect(biased.shift_by_position[1]).toBeCloseTo(-1 / 6, 14);
  expect(biased).toMatchObject({ responses: 2, orders: 3 });
  expect(judgeReport([judged(1, 1)], orders(0.5)).position).toEqual(biased);
  expect(() => positionReport([orders(0)[0]!, { order: ["a"], expected: [] }])).toThrow("not about the same");
});
