/** The summary's table where some variants have modes and others do not. */
import { expect, test } from "bun:test";
import { type SweepGroup, spreadOf, sweepTable } from "../../src/report/sweep.ts";

function group(variant: string, metrics: Readonly<Record<string, readonly number[]>>): SweepGroup {
  const spreads = Object.entries(metrics).map(([name, values]) => [name, spreadOf(values)]);
  return { variant, values: {}, runs: ["a", "b"], planned: 2, metrics: Object.fromEntries(spreads) };
}

test("a run of one adapter has the line of `both`, beside those with modes", () => {
  const routed = group("routed", {
    "final/rewards/task": [0.9, 0.9],
    "final/both/rewards/task": [0.5, 0.7],
    "final/retain_only/rewards/task": [0.25, 0.25],
  });
  const plain = group("plain", { "final/rewards/task": [0.75, 0.75] });
  const summary = { name: "s", recipe: "stories", keys: ["seed"], runs: [], groups: [routed, plain] };
  expect(sweepTable(summary, (value) => value.toFixed(2))).toEqual([
    ["variant", "runs", "mode", "task"],
    ["routed", "2/2", "both", "0.60 ±0.14"],
    ["", "", "retain_only", "0.25 ±0.00"],
    ["plain", "2/2", "both", "0.75 ±0.00"],
  ]);
});
