import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { UsageError } from "../../src/core/errors.ts";
import type { Scored } from "../../src/core/records.ts";
import {
  componentTable,
  groupAdvantages,
  REINFORCE_ADVANTAGE,
  TRL_ADVANTAGE,
} from "../../src/loss/advantage.ts";

const sum = (values: Iterable<number>): number => [...values].reduce((a, b) => a + b, 0);

describe("advantages", () => {
  test("ddof 0 of mlx, ddof 1 of torch: 15 % apart in a group of four", () => {
    const rewards = [1, 0, 0, 1];
    const torch = groupAdvantages(rewards, 4, { ...TRL_ADVANTAGE, eps: 0 }).advantages;
    const mlx = groupAdvantages(rewards, 4, { ...TRL_ADVANTAGE, eps: 0, ddof: 0 }).advantages;
    expect([...mlx]).toEqual([1, -1, -1, 1]);
    expect(mlx[0]! / torch[0]!).toBeCloseTo(Math.sqrt(4 / 3), 12);
  });

  test("group means are removed, the batch has unit variance (reinforce_kl2)", () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: -5, max: 5, noNaN: true }), { minLength: 8, maxLength: 8 }),
        (rewards) => {
          const { advantages } = groupAdvantages(rewards, 4, REINFORCE_ADVANTAGE);
          const variance = sum(advantages.map((a) => a * a)) / 7;
          // Where eps dominates there is nothing to normalise.
          fc.pre(Math.max(...rewards.slice(0, 4)) - Math.min(...rewards.slice(0, 4)) > 1e-3);
          expect(Math.abs(sum(advantages.subarray(0, 4)))).toBeLessThan(1e-9);
          expect(Math.abs(sum(advantages.subarray(4)))).toBeLessThan(1e-9);
          expect(variance).toBeCloseTo(1, 3);
        },
      ),
    );
  });

  test("flat groups get exactly 0 in every mode, whatever their value rounds to", () => {
    for (const scale of ["group", "batch", "none", "centered_batch"] as const) {
      for (const aggregation of ["sum_then_normalize", "normalize_then_sum"] as const) {
        const rewards = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.7, 0.2, 0.3, 0.1, 0.9, 0.4];
        const result = groupAdvantages(rewards, 6, { ...TRL_ADVANTAGE, scale, aggregation });
        expect([...result.advantages.subarray(0, 6)]).toEqual([0, 0, 0, 0, 0, 0]);
        expect(result.advantages.subarray(6).every((a) => a !== 0)).toBe(true);
        if (scale === "group" && aggregation === "sum_then_normalize") expect(result.fracZeroStd).toBe(0.5);
      }
    }
  });

  test("unscorable rows are left out; a row with one score keeps it", () => {
    const rewards = [1, null, 3, null, null, 5, null, null];
    const { advantages, rewards: totals } = groupAdvantages(rewards, 2, {
      ...TRL_ADVANTAGE,
      weights: [1, 2],
    });
    expect([...totals]).toEqual([1, 3, 10, Number.NaN]);
    expect(advantages[0]!).toBeCloseTo(-1 / (Math.SQRT2 + 1e-4), 12);
    expect([...advantages.subarray(2)]).toEqual([0, 0]);
    const none = groupAdvantages([null, null, null, null], 2, TRL_ADVANTAGE);
    expect([...none.advantages]).toEqual([0, 0, 0, 0]);
    expect(none.rewardMean).toBeNaN();
  });

  test("component tables keep the order of the names, missing ones are null", () => {
    const scored = [{ components: { b: 2, a: 1 } }, { components: { a: 0 } }] as unknown as Scored[];
    expect(componentTable(scored, ["a", "b"])).toEqual([1, 2, 0, null]);
  });

  test("groups of one have no advantage; rows must fill groups", () => {
    for (const scale of ["group", "none"] as const) {
      expect([...groupAdvantages([3, 4], 1, { ...TRL_ADVANTAGE, scale }).advantages]).toEqual([0, 0]);
    }
    expect(() => groupAdvantages([1, 2, 3], 2, TRL_ADVANTAGE)).toThrow(UsageError);
    expect(() => groupAdvantages([1, 2], 0, TRL_ADVANTAGE)).toThrow(UsageError);
  });

  test("shifting rewards changes nothing, scaling them little (group scale)", () => {
    const rewards = [0.3, 1.2, -0.4, 2, 0, 1, 1, 0];
    const base = groupAdvantages(rewards, 4, TRL_ADVANTAGE).advantages;
    const moved = groupAdvantages(
      rewards.map((r) => 10 * r + 7),
      4,
      TRL_ADVANTAGE,
    ).advantages;
    for (const [i, a] of base.entries()) expect(Math.abs(a - moved[i]!)).toBeLessThan(3e-4);
  });
});
