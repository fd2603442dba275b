import { expect, test } from "bun:test";
import { bytes, count, duration, figure, percent, signed } from "../../src/web/page/format.ts";
import { groupsOf } from "../../src/web/page/groups.ts";
import { around, examplesOf, smoothed } from "../../src/web/page/series.ts";

test("smoothing is the weighted mean of all values so far, with weights s^k", () => {
  const values = [3, -1, 4, 1, 5, 9, 2, 6];
  const weight = 0.7;
  const expected = values.map((_, last) => {
    const weights = values.slice(0, last + 1).map((_, i) => weight ** (last - i));
    const total = weights.reduce((a, b) => a + b, 0);
    return weights.reduce((sum, w, i) => sum + w * values[i]!, 0) / total;
  });
  for (const [i, value] of smoothed(values, weight).entries()) expect(value).toBeCloseTo(expected[i]!, 12);
  // What was not measured stays so, and does not count.
  const holes = smoothed([3, null, -1], weight);
  expect(holes[1]).toBeNull();
  expect(holes[2]).toBeCloseTo(expected[1]!, 12);
});

test("an evaluation lies at the examples of the step before it", () => {
  const examples = [null, 16, null, 32];
  expect(examplesOf({ step: [0, 1, 1, 2], time: [], examples, value: [], thinned: false })).toEqual([
    0, 16, 16, 32,
  ]);
});

const NAMES = [
  "train/reward_mean",
  "train/reward_std",
  "eval/reward",
  "train/rewards/format",
  "train/rewards/rubric/scrutiny",
  "train/loss",
  "train/kl_div",
  "eval/kl_div",
  "train/kl_k1",
  "train/kl_k3",
  "train/entropy",
  "train/completion_length_avg",
  "train/step_time",
  "device/peak_bytes",
];
const charts = (names: readonly string[], search = "", apart = false) =>
  Object.fromEntries(
    groupsOf(names, search, apart).map(({ id, charts }) => [id, charts.map((each) => each.metrics)]),
  );

test("metrics that belong together share a chart; every metric is in one", () => {
  const found = charts(NAMES);
  expect(found.reward).toEqual([
    ["train/reward_mean", "eval/reward"],
    ["train/rewards/format", "train/rewards/rubric/scrutiny"],
  ]);
  expect(found.loss).toEqual([
    ["train/kl_div", "eval/kl_div"],
    ["train/kl_k1", "train/kl_k3"],
    ["train/loss"],
  ]);
  expect(found.diversity).toEqual([["train/entropy"]]);
  expect(found.length).toEqual([["train/completion_length_avg"]]);
  expect(found.device).toEqual([["train/step_time"], ["device/peak_bytes"]]);
  const all = Object.values(found).flat(2);
  // The standard deviation is the band around the mean.
  expect(all.toSorted()).toEqual(NAMES.filter((name) => name !== "train/reward_std").toSorted());
});

test("the modes of a figure share a chart of one run, and have one each of several", () => {
  const names = ["retain_only", "both", "forget_only"].flatMap((mode) => [
    `eval/${mode}/hack_rate`,
    `eval/${mode}/rewards/asked_ending`,
  ]);
  const hacks = ["both", "forget_only", "retain_only"].map((mode) => `eval/${mode}/hack_rate`);
  const asked = hacks.map((name) => name.replace("hack_rate", "rewards/asked_ending"));
  expect(charts(names)).toEqual({ reward: [hacks, asked] });
  expect(groupsOf(names)[0]!.charts.map(({ title }) => title)).toEqual([
    "Hack rate by mode",
    "Asked ending by mode",
  ]);
  expect(groupsOf([hacks[2]!], "", true)[0]!.charts[0]!.title).toBe("Hack rate, retain only");
  expect(Object.values(charts(names, "", true)).flat().length).toBe(6);
});

test("a band lies as far above as below, and nowhere where nothing was measured", () => {
  expect(around([1, null, 3], [0.5, 1, 0.25])).toEqual({ low: [0.5, null, 2.75], high: [1.5, null, 3.25] });
});

test("of several runs a chart has one metric of training at most; a search leaves what it names", () => {
  for (const metrics of Object.values(charts(NAMES, "", true)).flat())
    expect(metrics.filter((name) => !name.startsWith("eval/")).length).toBeLessThanOrEqual(1);
  expect(charts(NAMES, "KL div")).toEqual({ loss: [["train/kl_div", "eval/kl_div"]] });
});

test("figures as they are written", () => {
  expect(
    [0, 1, 0.123456, -2.5, 12345.6, 1.5e-7, 2e9, Number.NaN, null].map((value) => figure(value)),
  ).toEqual([...["0", "1", "0.1235", "−2.5", "12 346", "1.5e−7", "2e9", "NaN", "–"]]);
  expect([signed(0.5), signed(-0.5), signed(0)]).toEqual(["+0.5", "−0.5", "0"]);
  expect([percent(0.123), percent(0.60653, 2), count(1234567), bytes(2.5e6)]).toEqual([
    ...["12 %", "60.65 %", "1 234 567", "2.5 MB"],
  ]);
  expect([2.34, 42, 600, 4000, 8e5].map(duration)).toEqual([
    "2.3 s",
    "42 s",
    "10 min",
    "1 h 07 min",
    "9 days",
  ]);
});
