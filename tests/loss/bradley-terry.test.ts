import { describe, expect, test } from "bun:test";
import { type BradleyTerryOptions, bradleyTerry, preferenceQuality } from "../../src/loss/bradley-terry.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { randomSource } from "./batches.ts";

const chosen = Float64Array.of(0.3, -1.2, 2.5, 0, 4);
const rejected = Float64Array.of(-0.4, 0.1, 2.5, 1.5, -3);
const margins = Float64Array.of(0, 0.5, 0.2, 1, -0.3);
const alone = (center: number): BradleyTerryOptions => ({ pairs: chosen.length, center });

describe.each([0, 0.01, 0.7])("Bradley-Terry loss, center %p", (center) => {
  test.each([null, margins])("gradients are those of the loss, margins %p", (margins) => {
    const at = (c: Float64Array, r: Float64Array) =>
      bradleyTerry({ chosen: c, rejected: r, margins }, alone(center));
    const { gradChosen, gradRejected } = at(chosen, rejected);
    const h = 1e-6;
    const moved = (values: Float64Array, i: number, by: number) =>
      values.map((v, j) => (j === i ? v + by : v));
    for (let i = 0; i < chosen.length; i++) {
      const byChosen = at(moved(chosen, i, h), rejected).loss - at(moved(chosen, i, -h), rejected).loss;
      const byRejected = at(chosen, moved(rejected, i, h)).loss - at(chosen, moved(rejected, i, -h)).loss;
      expect(gradChosen[i]!).toBeCloseTo(byChosen / (2 * h), 8);
      expect(gradRejected[i]!).toBeCloseTo(byRejected / (2 * h), 8);
    }
  });

  test("parts of a step add up to it", () => {
    const whole = bradleyTerry({ chosen, rejected, margins }, alone(center));
    const cut = (begin: number, end?: number) =>
      bradleyTerry(
        {
          chosen: chosen.slice(begin, end),
          rejected: rejected.slice(begin, end),
          margins: margins.slice(begin, end),
        },
        alone(center),
      );
    const [a, b] = [cut(0, 2), cut(2)];
    expect(a.loss + b.loss).toBeCloseTo(whole.loss, 14);
    expect([...a.gradChosen, ...b.gradChosen]).toEqual([...whole.gradChosen]);
    expect([...a.gradRejected, ...b.gradRejected]).toEqual([...whole.gradRejected]);
    for (const name of ["accuracy", "margin", "reward_chosen", "reward_rejected"] as const)
      expect(a.metrics[name] + b.metrics[name]).toBeCloseTo(whole.metrics[name], 14);
  });
});

test("metrics: ties are wrong", () => {
  const { metrics } = bradleyTerry({ chosen, rejected, margins: null }, alone(0));
  expect(metrics.accuracy).toBeCloseTo(2 / 5, 14);
  expect(metrics.margin).toBeCloseTo((0.7 - 1.3 + 0 - 1.5 + 7) / 5, 14);
  expect(metrics.reward_chosen).toBeCloseTo(5.6 / 5, 14);
  expect(metrics.reward_rejected).toBeCloseTo(0.7 / 5, 14);
});

test("differences of any size", () => {
  const huge = Float64Array.of(1e4, -1e4, 1e300, -1e300);
  const zero = new Float64Array(4);
  const result = bradleyTerry({ chosen: huge, rejected: zero, margins: null }, { pairs: 4, center: 0 });
  expect([...result.gradRejected]).toEqual([0, 1 / 4, 0, 1 / 4]);
  expect([...result.gradChosen]).toEqual([...result.gradRejected.map((g) => 0 - g)]);
  expect(result.loss).toBe((1e4 + 1e300) / 4);
});

const goldens = goldenCases("reward").filter((c) => c.kind === "bradley_terry");

test.each(goldens.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  const want = loadTensors(golden.dir);
  for (const prefix of ["", "extreme."]) {
    const of = (name: string) => want.get(`${prefix}${name}`)!;
    const rewards = of("rewards").data;
    const column = (which: number) => rewards.filter((_, i) => i % 2 === which);
    const pairs = rewards.length / 2;
    const result = bradleyTerry(
      { chosen: column(0), rejected: column(1), margins: null },
      { pairs, center: 0 },
    );
    const near = (got: number, expected: number) =>
      expect(Math.abs(got - expected)).toBeLessThanOrEqual(
        golden.spec.tolerance.relative * Math.max(1e-6, Math.abs(expected)),
      );
    near(result.loss, of("loss").data[0]!);
    for (let i = 0; i < pairs; i++) {
      near(result.gradChosen[i]!, of("grad").data[2 * i]!);
      near(result.gradRejected[i]!, of("grad").data[2 * i + 1]!);
    }
    if (prefix === "") near(result.metrics.accuracy, of("accuracy").data[0]!);
  }
});

describe("quality", () => {
  const p = (margin: number) => 1 / (1 + Math.exp(-margin));
  test("by hand: shares, Brier score, and the calibration of two bins", () => {
    // Confidences 0.55, 0.55 and 0.9: the first two in one bin, of which one is right.
    const logit = (q: number) => Math.log(q / (1 - q));
    const margins = [logit(0.53), -logit(0.53), logit(0.88)];
    const got = preferenceQuality(Float64Array.from(margins), new Float64Array(3));
    expect(got.accuracy).toBeCloseTo(2 / 3, 12);
    expect(got.margin).toBeCloseTo(logit(0.88) / 3, 12);
    expect(got.brier).toBeCloseTo((0.47 ** 2 + 0.53 ** 2 + 0.12 ** 2) / 3, 12);
    expect(got.calibration_error).toBeCloseTo((Math.abs(2 * 0.53 - 1) + Math.abs(0.88 - 1)) / 3, 12);
  });

  test("labels drawn with the model's own probabilities are calibrated, and overconfidence is not", () => {
    const random = randomSource(5);
    const margins = Float64Array.from({ length: 40_000 }, () => {
      const size = 4 * random();
      return random() < p(size) ? size : -size;
    });
    const zero = new Float64Array(margins.length);
    const quality = (scale: number) =>
      preferenceQuality(
        margins.map((m) => scale * m),
        zero,
      );
    expect(quality(1).calibration_error).toBeLessThan(0.01);
    expect(quality(4).calibration_error).toBeGreaterThan(0.05);
    expect(quality(1).brier).toBeLessThan(Math.min(quality(0.25).brier, quality(4).brier));
  });

  test("ties are wrong, and said with the confidence of a coin", () => {
    const zero = new Float64Array(4);
    expect(preferenceQuality(zero, zero)).toEqual({
      accuracy: 0,
      margin: 0,
      calibration_error: 0,
      brier: 0.25,
    });
    const far = preferenceQuality(Float64Array.of(1e300, -1e300), Float64Array.of(0, 0));
    expect([far.accuracy, far.calibration_error, far.brier]).toEqual([0.5, 0.5, 0.5]);
  });
});
