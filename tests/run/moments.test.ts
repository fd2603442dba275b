/** AdamW with moments of 32, 16 and 8 bits: what is stored comes back, and what is learned is the same. */
import { describe, expect, test } from "bun:test";
import { Purpose, Random } from "../../src/core/rng.ts";
import { decodeMoments, encodeMoments, packedSquares, packRows, unpackRows } from "../../src/nn/moments.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { Parameters } from "../../src/nn/parameters.ts";
import { Dtype, MOMENT_BLOCK, type MomentCode, MomentDtype } from "../../src/ops/define.ts";
import { SupervisedStep } from "../../src/run/supervised-step.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { openTestDevice } from "../test-device.ts";
import { Tiny } from "./tiny.ts";

const OPTIONS = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 0, seed: 1 };
const DTYPES = [
  ["float32", Dtype.f32],
  ["bfloat16", Dtype.bf16],
  ["8 bits", MomentDtype.f8],
] as const;

test("8-bit moments: decoding and encoding gives the same codes and scales", () => {
  const rng = new Random(7, Purpose.data);
  const n = 5 * MOMENT_BLOCK + 77;
  for (const which of [0, 1] as const) {
    // Codes of m have no negative zero.
    const codes = Uint8Array.from({ length: n }, () => rng.below(256)).map((c) =>
      which === 0 && c === 128 ? 0 : c,
    );
    for (let i = 0; i < n; i += MOMENT_BLOCK) codes[i] = which === 0 ? 127 : 255;
    const scales = Float32Array.of(1, 0.3, 1.7e-5, 2 ** -90, 2 ** 126, 3e-20);
    const values = decodeMoments(codes, scales, which);
    const [again, rescaled] = [new Uint8Array(n), new Float32Array(scales.length)];
    encodeMoments(values, which, again, rescaled);
    expect(again).toEqual(codes);
    expect(rescaled).toEqual(scales);
  }
});

test("8-bit moments: any float32 value goes to its neighbour, v never to 0", () => {
  const values = Float32Array.of(8, -3.3, 0.0041, 1e-4, 7e-5, 0, 1e-30);
  const codes = new Uint8Array(values.length);
  const scales = new Float32Array(1);
  encodeMoments(values, 0, codes, scales);
  const m = decodeMoments(codes, scales, 0);
  for (let i = 0; i < 3; i++) expect(Math.abs(m[i]! / values[i]! - 1)).toBeLessThan(1 / 16);
  expect([m[3], m[4], m[5], m[6]]).toEqual([Math.fround(8 * 1.25 * 2 ** -16), 0, 0, 0]);
  encodeMoments(values.map(Math.abs), 1, codes, scales);
  expect(codes[0]).toBe(255);
  expect([codes[5], codes[6]]).toEqual([0, 1]);
});

test("row-major to the packed layout and back; squares of packed rows and columns", () => {
  for (const layout of [Dtype.f32, Dtype.bf16])
    for (const [n, k] of [
      [1, 1],
      [33, 7],
      [64, 32],
    ] as const) {
      const values = Float32Array.from({ length: n * k }, (_, i) => i + 1);
      const packed = packRows(values, n, k, layout);
      expect(unpackRows(packed, n, k, layout)).toEqual(values);
      expect(packed.filter((x) => x !== 0).length).toBe(n * k);
      const [rows, columns] = [new Float64Array(n), new Float64Array(k)];
      for (const [i, x] of values.entries()) {
        rows[Math.floor(i / k)]! += x * x;
        columns[i % k]! += x * x;
      }
      expect(packedSquares(packed, n, k, layout, "rows")).toEqual(rows);
      expect(packedSquares(packed, n, k, layout, "columns")).toEqual(columns);
    }
});

/** One matrix and one vector, minimised by AdamW on gradients that `gradient` writes. */
function optimise(
  momentDtype: MomentCode,
  dtype: typeof Dtype.f32 | typeof Dtype.bf16,
  steps: number,
  lr: (step: number) => number,
  gradient: (step: number, values: Float32Array) => Float32Array,
) {
  const device = openTestDevice(2);
  const shapes = new Map([
    ["w", [32, 64]],
    ["b", [37]],
  ]);
  const parameters = new Parameters(device, shapes, { dtype, trainable: true, momentDtype }, "quadratic");
  const memory = new StepMemory(device);
  const optimizer = new AdamW(parameters, OPTIONS);
  const w = parameters.get("w");
  const bytesOf = (name: "w") => {
    const p = parameters.get(name);
    device.finish();
    return [...p.moments!, ...(p.momentScales ?? [])].map((s) =>
      Buffer.from(s.buffer.view(s.offset, s.bytes)).toString("hex"),
    );
  };
  for (let step = 1; step <= steps; step++) {
    const g = packRows(gradient(step, parameters.read("w")), 32, 64, dtype);
    new Float32Array(w.gradient!.buffer.view(w.gradient!.offset, w.length * 4)).set(g);
    optimizer.step(memory, step, lr(step));
  }
  const before = bytesOf("w");
  const moments = ([0, 1] as const).map((which) => parameters.readMoment("w", which));
  for (const storage of [...w.moments!, ...(w.momentScales ?? [])])
    new Uint8Array(storage.buffer.view(storage.offset, storage.bytes)).fill(0x55);
  for (const which of [0, 1] as const) parameters.loadMoment("w", which, moments[which]!);
  const after = bytesOf("w");
  const result = { values: parameters.read("w"), before, after, bytes: parameters.bytes.optimizer };
  memory.dispose();
  parameters.dispose();
  device.close();
  return result;
}

const N = 32 * 64;

/** Curvatures over some decades and noise as large as the first gradients: the same for every run. */
function quadratic(decades: number) {
  const rng = new Random(3, Purpose.data);
  const curvature = Float64Array.from({ length: N }, () => 10 ** (-decades * rng.uniform()));
  const start = Float64Array.from({ length: N }, () => rng.normal());
  const noise = (step: number) => {
    const each = new Random(1000 + step, Purpose.data);
    return Float64Array.from({ length: N }, () => each.normal());
  };
  // Relative to start: the parameter begins at 0 and should end at -start.
  const gradient = (x: ArrayLike<number>, step: number) => {
    const drawn = noise(step);
    return Float64Array.from({ length: N }, (_, i) => curvature[i]! * (x[i]! + start[i]! + drawn[i]!));
  };
  const loss = (x: ArrayLike<number>) => {
    let sum = 0;
    for (let i = 0; i < N; i++) sum += (x[i]! + start[i]!) ** 2;
    return sum / N;
  };
  return { gradient, loss };
}

const STEPS = 400;
const rate = (step: number) => 0.02 * (1 - (step - 1) / STEPS);

describe.each([4, 6])("AdamW on a quadratic with noise, curvatures over %d decades", (decades) => {
  const { gradient, loss } = quadratic(decades);
  /** The trajectory in float64. */
  const exact = new Float64Array(N);
  const [m, v] = [new Float64Array(N), new Float64Array(N)];
  for (let step = 1; step <= STEPS; step++) {
    const g = gradient(exact, step);
    for (let i = 0; i < N; i++) {
      m[i] = 0.9 * m[i]! + 0.1 * g[i]!;
      v[i] = 0.999 * v[i]! + 0.001 * g[i]! ** 2;
      const root = Math.sqrt(v[i]! / (1 - 0.999 ** step));
      exact[i] = exact[i]! - (rate(step) * (m[i]! / (1 - 0.9 ** step))) / (root + 1e-8);
    }
  }
  const atStart = loss(new Float32Array(N));

  // Root mean square distance to the trajectory in float64, relative to its length. Gradients further than 10^4.8
  // below the largest of their block are beneath the smallest code of v, and take smaller steps.
  const bounds = { float32: 1e-5, bfloat16: 0.005, "8 bits": decades === 4 ? 0.03 : 0.3 } as const;
  test.each(DTYPES)("%s", (name, dtype) => {
    const run = optimise(dtype, Dtype.f32, STEPS, rate, (step, x) => Float32Array.from(gradient(x, step)));
    let difference = 0;
    let length = 0;
    for (let i = 0; i < N; i++) {
      difference += (run.values[i]! - exact[i]!) ** 2;
      length += exact[i]! ** 2;
    }
    expect(Math.sqrt(difference / length)).toBeLessThan(bounds[name]);
    expect(loss(exact)).toBeLessThan(0.01 * atStart);
    expect(loss(run.values)).toBeLessThan(0.1 * atStart);
  });
});

describe("moments go to a checkpoint and come back with the same bytes", () => {
  const { gradient } = quadratic(6);
  for (const [weights, dtype] of [
    ["float32", Dtype.f32],
    ["bfloat16", Dtype.bf16],
  ] as const)
    test.each(DTYPES)(`${weights} weights, moments %s`, (_, momentDtype) => {
      const run = optimise(momentDtype, dtype, 5, rate, (step, x) => Float32Array.from(gradient(x, step)));
      expect(run.after).toEqual(run.before);
    });
});

test("8-bit moments take a quarter of float32's memory, and a scale for every 256", () => {
  // The vector keeps float32; storage is in units of 64 bytes.
  const bytes = (dtype: MomentCode) =>
    optimise(dtype, Dtype.f32, 0, rate, () => new Float32Array(N)).bytes - 2 * 192;
  expect(bytes(Dtype.f32)).toBe(8 * N);
  expect(bytes(MomentDtype.f8)).toBe(2 * N + 2 * Math.max(64, (N * 4) / MOMENT_BLOCK));
});

/** 200 supervised steps; the mean loss of the last 20. */
async function trained(momentDtype: MomentCode): Promise<{ first: number; last: number }> {
  using tiny = new Tiny("llama", { trainable: true, momentDtype });
  const optimizer = new AdamW(tiny.model.parameters, { ...OPTIONS, maxGradNorm: 1 });
  const step = new SupervisedStep(tiny.memory, tiny.model, optimizer, {
    microBatchTokens: 256,
    trainOnPrompt: false,
  });
  const rng = new Random(11, Purpose.data);
  let first = 0;
  let last = 0;
  for (let i = 1; i <= 200; i++) {
    // What follows a is a + 1, a + 2, ...; every eighth token is noise, so that no loss is 0.
    const examples = Array.from({ length: 4 }, () => {
      const a = rng.below(40);
      const ids = Int32Array.from({ length: 12 }, (_, j) => (rng.below(8) === 0 ? rng.below(97) : a + j));
      return { prompt: ids.slice(0, 2), completion: ids.slice(2) };
    });
    const metrics = await step.update(examples, i, 5e-3 * (1 - (i - 1) / 200));
    if (i <= 20) first += metrics["train/loss"]! / 20;
    if (i > 180) last += metrics["train/loss"]! / 20;
  }
  return { first, last };
}

test("200 steps of supervised training end at the same loss with every type of moments", async () => {
  const exact = await trained(Dtype.f32);
  expect(exact.last).toBeLessThan(0.6 * exact.first);
  for (const [dtype, bound] of [
    [Dtype.bf16, 0.03],
    [MomentDtype.f8, 0.05],
  ] as const) {
    const { last } = await trained(dtype);
    expect(Math.abs(last / exact.last - 1)).toBeLessThan(bound);
  }
}, 120_000);
