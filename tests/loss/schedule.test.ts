import { describe, expect, test } from "bun:test";
import { UsageError } from "../../src/core/errors.ts";
import { learningRateFactor, type ScheduleName, warmupSteps } from "../../src/nn/schedule.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";

const cases = goldenCases("optim").filter((c) => c.kind === "lr_schedule");

/** transformers' name to ours. */
const OURS: Readonly<Record<string, ScheduleName>> = {
  constant: "constant",
  constant_with_warmup: "constant",
  linear: "linear",
  cosine: "cosine",
  cosine_with_min_lr: "cosine",
  inverse_sqrt: "inverse_sqrt",
};

describe("goldens of schedules", () => {
  test("there is a case", () => expect(cases.length).toBeGreaterThan(0));
  for (const golden of cases) {
    for (const [name, want] of loadTensors(golden.dir)) {
      test(`${golden.name} ${name}`, () => {
        const [kind, warmup] = name.split(".warmup") as [string, string];
        expect(kind in OURS ? kind : `${kind} is not covered`).toBe(kind);
        const factor = learningRateFactor({
          schedule: OURS[kind]!,
          totalSteps: golden.spec.total,
          warmup: Number(warmup),
          minLrRatio: golden.spec.options[kind]?.min_lr_rate,
        });
        for (const [step, value] of want.data.entries()) {
          expect(Math.abs(factor(step) - value)).toBeLessThanOrEqual(golden.spec.tolerance.absolute);
        }
      });
    }
  }
});

describe("schedules", () => {
  test("warm-up is a count, or a share rounded up", () => {
    expect(warmupSteps(0, 50)).toBe(0);
    expect(warmupSteps(7, 50)).toBe(7);
    expect(warmupSteps(0.03, 50)).toBe(2);
    expect(warmupSteps(0.5, 3)).toBe(2);
    expect(() => warmupSteps(-1, 50)).toThrow(UsageError);
    expect(() => warmupSteps(1.5, 50)).toThrow(UsageError);
    expect(() => warmupSteps(Number.NaN, 50)).toThrow(UsageError);
  });

  test("starts at 0 with warm-up, at 1 without, and ends at the floor", () => {
    for (const schedule of ["linear", "cosine"] as const) {
      const factor = learningRateFactor({ schedule, totalSteps: 40, warmup: 0.1, minLrRatio: 0.25 });
      expect(factor(0)).toBe(0);
      expect(factor(2)).toBe(0.5);
      expect(factor(4)).toBe(1);
      expect(factor(40)).toBeCloseTo(0.25, 12);
      for (let step = 4; step < 40; step++) expect(factor(step + 1)).toBeLessThan(factor(step));
      expect(learningRateFactor({ schedule, totalSteps: 40 })(0)).toBe(1);
    }
  });

  test("a run all of warm-up, and bad values", () => {
    expect(learningRateFactor({ schedule: "linear", totalSteps: 4, warmup: 8 })(3)).toBe(3 / 8);
    const bad = { schedule: "linear", totalSteps: 4 } as const;
    expect(() => learningRateFactor({ ...bad, schedule: "cubic" as ScheduleName })).toThrow("cubic");
    expect(() => learningRateFactor({ ...bad, minLrRatio: 2 })).toThrow("min_lr_ratio");
    expect(() => learningRateFactor({ ...bad, totalSteps: 1.5 })).toThrow(UsageError);
  });
});
