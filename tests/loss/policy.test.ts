import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { UsageError } from "../../src/core/errors.ts";
import { REINFORCE_ADVANTAGE, TRL_ADVANTAGE, zeroAdvantageGroups } from "../../src/loss/advantage.ts";
import { globalNormaliser } from "../../src/loss/count.ts";
import { KL_ESTIMATORS, klSlope, klValue } from "../../src/loss/kl.ts";
import { describeLoss, LOSS_TYPES, type PolicyInput, policyOptions } from "../../src/loss/options.ts";
import { combineLosses, policyLoss, selectRows } from "../../src/loss/policy.ts";
import { completionMask, type PolicyRows } from "../../src/loss/rows.ts";
import { EVERY_LOSS, MAX_LENGTH, normaliserFor, randomBatch } from "./batches.ts";

const LENGTHS = [3, 7, 1, 5, 0, 6];
const label = (input: PolicyInput): string => JSON.stringify(input);
const norm2 = (values: Float64Array): number => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));

/** Every option that changes a gradient, on every loss that takes it. */
function variants(): PolicyInput[] {
  const out: PolicyInput[] = [];
  for (const loss of EVERY_LOSS) {
    out.push(loss, { ...loss, beta: 0.3 }, { ...loss, beta: 0.3, entropyCoef: 0.05 });
    if (loss.lossType === "reinforce_kl2") continue;
    for (const klEstimator of KL_ESTIMATORS) out.push({ ...loss, beta: 0.3, klEstimator });
    out.push({ ...loss, topEntropyQuantile: 0.4, entropyCoef: 0.05, beta: 0.1 });
    out.push({ ...loss, offPolicyMaskThreshold: 0.01, beta: 0.1 });
    if (loss.lossType === "vespo") continue;
    for (const klEstimator of KL_ESTIMATORS) {
      out.push({ ...loss, importanceSamplingLevel: "sequence", beta: 0.3, klEstimator });
      const compat = "trl";
      out.push({ ...loss, importanceSamplingLevel: "sequence", beta: 0.3, klEstimator, compat });
    }
  }
  return out;
}

/** Tokens and rows whose ratio lies within `gap` of a kink, where a finite difference is not the gradient. */
function nearKink(batch: PolicyRows, input: PolicyInput, gap: number): boolean {
  const low = input.epsilonLow ?? 0.2;
  const high = input.epsilonHigh ?? low;
  const kinks = [1 - low, 1 + high, ...(input.delta ? [input.delta] : [])];
  for (let i = 0; i < batch.rows; i++) {
    let sum = 0;
    let count = 0;
    for (let t = batch.offsets[i]!; t < batch.offsets[i + 1]!; t++) {
      if (!batch.mask[t]) continue;
      const d = batch.logprobs[t]! - (batch.oldLogprobs?.[t] ?? batch.logprobs[t]!);
      sum += d;
      count++;
      if (kinks.some((kink) => Math.abs(Math.exp(d) - kink) < gap)) return true;
    }
    if (count > 0 && kinks.some((kink) => Math.abs(Math.exp(sum / count) - kink) < gap)) return true;
  }
  return false;
}

/** d loss / d logprobs[t] by central differences. The random advantages and ratios are the cotangent. */
function finiteDifference(batch: PolicyRows, evaluate: (moved: PolicyRows) => number, t: number): number {
  const h = 1e-5;
  const at = (shift: number): number => {
    const logprobs = Float64Array.from(batch.logprobs);
    logprobs[t]! += shift;
    return evaluate({ ...batch, logprobs });
  };
  return (at(h) - at(-h)) / (2 * h);
}

describe("gradients", () => {
  for (const input of variants()) {
    // Their coefficient has no gradient; their own tests follow.
    if (input.lossType === "cispo" || input.lossType === "vespo") continue;
    test(`finite differences ${label(input)}`, () => {
      const options = policyOptions(input);
      let seed = 1;
      let batch = randomBatch({ seed, lengths: LENGTHS, masked: 0.2 });
      while (nearKink(batch, input, 1e-3))
        batch = randomBatch({ seed: ++seed, lengths: LENGTHS, masked: 0.2 });
      const norm = normaliserFor([batch], options);
      const { gradLogprobs, gradEntropy } = policyLoss(batch, options, norm);
      const value = (moved: PolicyRows): number => policyLoss(moved, options, norm).loss;
      let moved = 0;
      for (const [t, gradient] of gradLogprobs.entries()) {
        const want = finiteDifference(batch, value, t);
        expect(Math.abs(gradient - want)).toBeLessThan(1e-7 * (1 + Math.abs(want)));
        if (gradient !== 0) moved++;
      }
      expect(moved).toBeGreaterThan(0);
      expect(gradEntropy === null).toBe(options.entropyCoef === 0);
      for (const [t, gradient] of (gradEntropy ?? []).entries()) {
        const shift = (by: number): number => {
          const entropy = Float64Array.from(batch.entropy!);
          entropy[t]! += by;
          return value({ ...batch, entropy });
        };
        const want = (shift(1e-7) - shift(-1e-7)) / 2e-7;
        expect(Math.abs(gradient - want)).toBeLessThan(1e-6);
      }
    });
  }

  test("cispo and vespo: the gradient is the coefficient, not its derivative", () => {
    const batch = { ...randomBatch({ seed: 5, lengths: [4, 6] }), refLogprobs: null };
    const inputs: PolicyInput[] = [
      { lossType: "cispo", epsilonHigh: 1.1 },
      { lossType: "cispo", epsilonHigh: 1.1, importanceSamplingLevel: "sequence" },
      { lossType: "vespo" },
    ];
    for (const input of inputs) {
      const options = policyOptions(input);
      const { gradLogprobs, loss } = policyLoss(batch, options, globalNormaliser([batch], MAX_LENGTH));
      // Linear in log pi with frozen coefficients: sum grad * log pi is the loss itself.
      const dot = gradLogprobs.reduce((sum, g, t) => sum + g * batch.logprobs[t]!, 0);
      expect(Math.abs(dot - loss)).toBeLessThan(1e-12);
      for (let i = 0; i < batch.rows; i++) {
        const span = Array.from(
          { length: batch.offsets[i + 1]! - batch.offsets[i]! },
          (_, k) => batch.offsets[i]! + k,
        );
        const logRatio = (t: number): number => batch.logprobs[t]! - batch.oldLogprobs![t]!;
        const total = span.map(logRatio).reduce((sum, d) => sum + d, 0);
        const A = batch.advantages[i]!;
        for (const t of span) {
          const [k, lambda] = A >= 0 ? [2, 3] : [3, 2];
          const w = Math.exp(total);
          const coefficient =
            input.lossType === "vespo"
              ? Math.exp(lambda!) * w ** k! * Math.exp(-lambda! * w)
              : Math.min(Math.exp(input.importanceSamplingLevel ? total / span.length : logRatio(t)), 1.1);
          expect(Math.abs(gradLogprobs[t]! - (-A * coefficient) / 10)).toBeLessThan(1e-12);
        }
      }
    }
  });

  test("masked tokens are never read and get no gradient", () => {
    for (const input of variants()) {
      const options = policyOptions(input);
      const batch = randomBatch({ seed: 9, lengths: LENGTHS, masked: 0.4 });
      const spoiled: PolicyRows = { ...batch };
      for (const key of ["logprobs", "oldLogprobs", "refLogprobs", "entropy"] as const) {
        Object.assign(spoiled, { [key]: batch[key]!.map((v, t) => (batch.mask[t] ? v : Number.NaN)) });
      }
      const norm = normaliserFor([batch], options);
      const clean = policyLoss(batch, options, norm);
      const dirty = policyLoss(spoiled, options, norm);
      expect(dirty.loss).toBe(clean.loss);
      expect(dirty.gradLogprobs).toEqual(clean.gradLogprobs);
      for (const [t, on] of batch.mask.entries()) if (!on) expect(dirty.gradLogprobs[t]).toBe(0);
    }
  });
});

describe("micro-batches", () => {
  const shapes = fc.record({
    seed: fc.integer({ min: 1, max: 1_000_000 }),
    lengths: fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 2, maxLength: 9 }),
    masked: fc.constantFrom(0, 0.3, 0.9),
    size: fc.integer({ min: 1, max: 4 }),
  });

  for (const input of variants().filter((v) => v.compat !== "trl")) {
    test(`any split gives the same step: ${label(input)}`, () => {
      fc.assert(
        fc.property(shapes, ({ size, ...shape }) => {
          const options = policyOptions(input);
          const batch = randomBatch(shape);
          const norm = normaliserFor([batch], options);
          const whole = policyLoss(batch, options, norm);
          const parts: PolicyRows[] = [];
          for (let row = 0; row < batch.rows; row += size) {
            const rows = Array.from({ length: Math.min(size, batch.rows - row) }, (_, k) => row + k);
            parts.push(selectRows(batch, rows));
          }
          expect(normaliserFor(parts, options)).toEqual(norm);
          const results = parts.map((part) => policyLoss(part, options, norm));
          const step = combineLosses(results, options);
          expect(Math.abs(step.loss - whole.loss)).toBeLessThan(1e-11 * (1 + Math.abs(whole.loss)));
          // Token for token the very same bits.
          expect(Float64Array.from(results.flatMap((r) => [...r.gradLogprobs]))).toEqual(
            Float64Array.from(whole.gradLogprobs),
          );
          expect(Object.keys(step.metrics)).toEqual(Object.keys(whole.metrics));
          for (const [name, value] of Object.entries(whole.metrics)) {
            expect(Math.abs(step.metrics[name]! - value)).toBeLessThan(1e-11 * (1 + Math.abs(value)));
          }
        }),
        { numRuns: 25 },
      );
    });
  }

  test("TRL's local normaliser does depend on the split (so the test above can fail)", () => {
    const options = policyOptions({ lossType: "bnpo", compat: "trl" });
    const batch = { ...randomBatch({ seed: 3, lengths: [1, 9, 2, 8] }), refLogprobs: null };
    const parts = [selectRows(batch, [0, 2]), selectRows(batch, [1, 3])];
    const split = parts.reduce(
      (sum, p) => sum + policyLoss(p, options, normaliserFor(parts, options)).loss,
      0,
    );
    expect(
      Math.abs(split - policyLoss(batch, options, normaliserFor([batch], options)).loss),
    ).toBeGreaterThan(1e-3);
  });
});

describe("identities", () => {
  const LENGTH = MAX_LENGTH;
  const equal = randomBatch({ seed: 3, lengths: [LENGTH, LENGTH, LENGTH, LENGTH], onPolicy: true });
  const bare: PolicyRows = { ...equal, refLogprobs: null, entropy: null };
  const gradient = (input: PolicyInput, batch: PolicyRows = bare): Float64Array =>
    policyLoss(batch, policyOptions(input), globalNormaliser([batch], MAX_LENGTH)).gradLogprobs;

  test("on-policy with equal lengths the losses have one gradient; luspo's is longer by the length", () => {
    const want = gradient({ lossType: "grpo" });
    for (const input of EVERY_LOSS) {
      if (input.lossType === "reinforce_kl2" || input.lossType === "luspo") continue;
      const got = gradient(input.lossType === "cispo" ? { ...input, epsilonHigh: 5 } : input);
      for (const [t, g] of got.entries()) expect(Math.abs(g - want[t]!)).toBeLessThan(1e-15);
    }
    for (const input of [{ lossType: "luspo" }, { lossType: "reinforce_kl2" }] as PolicyInput[]) {
      expect(norm2(gradient(input)) / norm2(want)).toBeCloseTo(LENGTH, 10);
    }
    for (const importanceSamplingLevel of ["token", "sequence"] as const) {
      const got = gradient({ lossType: "grpo", importanceSamplingLevel });
      for (const [t, g] of got.entries()) expect(Math.abs(g - want[t]!)).toBeLessThan(1e-15);
    }
  });

  test("TRL's cispo default scales every on-policy gradient by epsilon_high = 0.2", () => {
    const options = policyOptions({ lossType: "cispo", compat: "trl" });
    const got = policyLoss(bare, options, normaliserFor([bare], options)).gradLogprobs;
    expect(norm2(got) / norm2(gradient({ lossType: "cispo", epsilonHigh: 5 }))).toBeCloseTo(0.2, 12);
  });

  test("k3_ratio has k2's gradient on-policy, and k3 has not", () => {
    const batch = { ...equal, advantages: new Float64Array(4) };
    const at = (klEstimator: (typeof KL_ESTIMATORS)[number]) =>
      gradient({ lossType: "grpo", beta: 0.1, klEstimator }, batch);
    const [k2, k3, ratio] = [at("k2"), at("k3"), at("k3_ratio")];
    for (const [t, g] of ratio.entries()) expect(Math.abs(g - k2[t]!)).toBeLessThan(1e-15);
    expect(norm2(k3.map((g, t) => g - k2[t]!))).toBeGreaterThan(1e-4);
  });

  test("zero advantages give a zero gradient at beta 0", () => {
    for (const input of variants()) {
      if (input.beta || input.entropyCoef || input.compat) continue;
      const batch = {
        ...randomBatch({ seed: 4, lengths: LENGTHS }),
        advantages: new Float64Array(LENGTHS.length),
      };
      const options = policyOptions(input);
      const result = policyLoss({ ...batch, refLogprobs: null }, options, normaliserFor([batch], options));
      expect(result.loss === 0).toBe(true);
      expect(result.gradLogprobs.every((g) => g === 0)).toBe(true);
    }
  });

  test("a reference equal to the policy has KL 0 and, but for k1, no KL gradient", () => {
    for (const input of variants()) {
      if (!input.beta || input.entropyCoef || input.klEstimator === "k1") continue;
      const batch = randomBatch({ seed: 6, lengths: LENGTHS });
      const options = policyOptions(input);
      const norm = normaliserFor([batch], options);
      const same = policyLoss({ ...batch, refLogprobs: batch.logprobs }, options, norm);
      const without = policyLoss({ ...batch, refLogprobs: null }, { ...options, beta: 0 }, norm);
      expect(same.metrics.kl_div).toBe(0);
      expect(Math.abs(same.loss - without.loss)).toBeLessThan(1e-15);
      expect(norm2(same.gradLogprobs.map((g, t) => g - without.gradLogprobs[t]!))).toBeLessThan(1e-15);
    }
  });

  test("estimators: k3 is never negative, and in expectation all are KL to second order", () => {
    for (const d of [-20, -1, -1e-9, 0, 1e-9, 0.5, 20]) expect(klValue("k3", d)).toBeGreaterThanOrEqual(0);
    const p = [0.5, 0.3, 0.2];
    const q = [0.45, 0.34, 0.21];
    const exact = p.reduce((sum, pi, i) => sum + pi * Math.log(pi / q[i]!), 0);
    const mean = (e: (typeof KL_ESTIMATORS)[number]) =>
      p.reduce((sum, pi, i) => sum + pi * klValue(e, Math.log(pi / q[i]!)), 0);
    expect(Math.abs(mean("k1") - exact)).toBeLessThan(1e-15);
    expect(Math.abs(mean("k3") - exact)).toBeLessThan(1e-15);
    expect(Math.abs(mean("k2") / exact - 1)).toBeLessThan(0.05);
    for (const e of ["k1", "k2", "k3"] as const) {
      const fd = (klValue(e, 0.3 + 1e-6) - klValue(e, 0.3 - 1e-6)) / 2e-6;
      expect(Math.abs(klSlope(e, 0.3) - fd)).toBeLessThan(1e-8);
    }
  });

  test("a runaway ratio with advantage 0 stays finite", () => {
    const batch = { ...bare, oldLogprobs: bare.logprobs.map(() => -2000), advantages: new Float64Array(4) };
    for (const input of EVERY_LOSS) expect(gradient(input, batch).every((g) => g === 0)).toBe(true);
  });
});

describe("skipped groups", () => {
  test("leaving out zero-advantage groups changes neither loss nor gradient", () => {
    for (const input of EVERY_LOSS) {
      const options = policyOptions(input);
      const batch = { ...randomBatch({ seed: 8, lengths: [3, 5, 2, 4, 6, 1] }), refLogprobs: null };
      batch.advantages.fill(0, 2, 4);
      const skip = zeroAdvantageGroups(batch.advantages as Float64Array, 2, options);
      expect([...skip]).toEqual([0, 1, 0]);
      const norm = globalNormaliser([batch], MAX_LENGTH);
      const rest = policyLoss(selectRows(batch, [0, 1, 4, 5]), options, norm);
      const whole = policyLoss(batch, options, norm);
      expect(Math.abs(rest.loss - whole.loss)).toBeLessThan(1e-15);
      const nonZero = [...whole.gradLogprobs.subarray(0, 8), ...whole.gradLogprobs.subarray(14)];
      expect([...rest.gradLogprobs]).toEqual(nonZero);
    }
  });

  test("nothing is skipped when KL, entropy or TRL's counting needs the rows", () => {
    const zeros = new Float64Array(4);
    const base = { beta: 0, entropyCoef: 0, compat: "none" } as const;
    expect([...zeroAdvantageGroups(zeros, 2, base)]).toEqual([1, 1]);
    for (const change of [{ beta: 0.1 }, { entropyCoef: 0.1 }, { compat: "trl" as const }]) {
      expect([...zeroAdvantageGroups(zeros, 2, { ...base, ...change })]).toEqual([0, 0]);
    }
  });
});

describe("entropy bonus", () => {
  test("is the mean entropy of the tokens kept, over the step; in TRL over the micro-batch / accumulation", () => {
    const base = randomBatch({ seed: 7, lengths: [5, 5] });
    const entropy = Float64Array.of(1, 9, 2, 8, 3, 7, 4, 6, 5, 10);
    const batch: PolicyRows = { ...base, entropy, advantages: new Float64Array(2), refLogprobs: null };
    const parts = [selectRows(batch, [0]), selectRows(batch, [1])];
    for (const [compat, want] of [
      ["none", -(10 + 9 + 8) / 3],
      ["trl", -((9 + 8) / 2 + (7 + 10) / 2) / 2],
    ] as const) {
      // The top 30 %: of the step 8, 9, 10; of each micro-batch its top two.
      const options = policyOptions({ lossType: "grpo", entropyCoef: 1, topEntropyQuantile: 0.3, compat });
      const norm = normaliserFor(parts, options);
      const total = parts.reduce((sum, part) => sum + policyLoss(part, options, norm).loss, 0);
      expect(total).toBeCloseTo(want, 12);
    }
  });
});

describe("options", () => {
  test("cispo needs an explicit cap of at least 1, except in compat trl", () => {
    for (const epsilonHigh of [undefined, null, 0.2, 0.99]) {
      expect(() => policyOptions({ lossType: "cispo", epsilonHigh })).toThrow(UsageError);
      expect(() => policyOptions({ lossType: "cispo", epsilonHigh, compat: "trl" })).not.toThrow();
    }
    expect(policyOptions({ lossType: "cispo", epsilonHigh: 1 }).epsilonHigh).toBe(1);
  });

  test("values that cannot mean what they say", () => {
    const bad: PolicyInput[] = [
      { lossType: "ppo" as "grpo" },
      { lossType: "grpo", beta: -1 },
      { lossType: "grpo", beta: Number.NaN },
      { lossType: "grpo", epsilonLow: 1.5 },
      { lossType: "grpo", delta: 1 },
      { lossType: "grpo", topEntropyQuantile: 0 },
      { lossType: "grpo", klEstimator: "k4" as "k3" },
      { lossType: "sapo", sapoTemperatureNeg: 0 },
      { lossType: "reinforce_kl2", klEstimator: "k3" },
      { lossType: "reinforce_kl2", importanceSamplingLevel: "sequence" },
      { lossType: "vespo", importanceSamplingLevel: "sequence" },
    ];
    for (const input of bad) expect(() => policyOptions(input)).toThrow(UsageError);
  });

  test("the top-entropy mask needs the step's threshold", () => {
    const batch = randomBatch({ seed: 1, lengths: [3] });
    const options = policyOptions({ lossType: "grpo", topEntropyQuantile: 0.2 });
    expect(() => policyLoss(batch, options, globalNormaliser([batch], 8))).toThrow("top_entropy_quantile");
  });

  test("the header states the formula, and no two configurations read alike", () => {
    const seen = new Set<string>();
    const all = variants().filter((v) => !v.entropyCoef);
    for (const input of all) {
      seen.add(describeLoss(policyOptions(input), { advantage: TRL_ADVANTAGE, temperature: 1 }));
    }
    const distinct = new Set(all.map((input) => JSON.stringify(policyOptions(input))));
    expect(seen.size).toBe(distinct.size);
    for (const lossType of LOSS_TYPES) {
      const text = describeLoss(policyOptions({ lossType, beta: 0.02, epsilonHigh: 5 }), {
        advantage: lossType === "reinforce_kl2" ? REINFORCE_ADVANTAGE : TRL_ADVANTAGE,
        temperature: 0.8,
        groupSize: 8,
      });
      for (const part of [lossType, "0.02", "ddof 1", "temperature 0.8", "group of 8"])
        expect(text).toContain(part);
    }
  });
});

describe("masks", () => {
  test("tool tokens and truncated rows", () => {
    const rows = { rows: 3, offsets: Int32Array.of(0, 3, 5, 6) };
    expect([...completionMask(rows)]).toEqual([1, 1, 1, 1, 1, 1]);
    const toolMask = Uint8Array.of(1, 0, 1, 1, 1, 1);
    expect([...completionMask(rows, { toolMask, truncated: Uint8Array.of(0, 1, 0) })]).toEqual([
      1, 0, 1, 0, 0, 1,
    ]);
  });

  test("fully masked rows leave row means unless TRL's conventions are asked for", () => {
    const batch = { ...randomBatch({ seed: 2, lengths: [4, 4] }), refLogprobs: null };
    batch.mask.fill(0, 4);
    const ours = policyOptions({ lossType: "grpo" });
    const trl = policyOptions({ lossType: "grpo", compat: "trl" });
    const a = policyLoss(batch, ours, normaliserFor([batch], ours)).loss;
    const b = policyLoss(batch, trl, normaliserFor([batch], trl)).loss;
    expect(Math.abs(a - 2 * b)).toBeLessThan(1e-15);
  });
});
