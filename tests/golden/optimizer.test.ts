import { describe, expect, test } from "bun:test";
import { bf16ToF32, f32ToBf16 } from "../../src/core/float-formats.ts";
import { AdamW } from "../../src/nn/optimizer.ts";
import { Parameters } from "../../src/nn/parameters.ts";
import { learningRateFactor } from "../../src/nn/schedule.ts";
import { Dtype, type DtypeCode } from "../../src/ops/define.ts";
import { packWeight } from "../../src/ops/elementwise.ts";
import { StepMemory } from "../../src/tape/tape.ts";
import { loadTensors } from "../golden-tensors.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { openTestDevice } from "../test-device.ts";
import { largest, norm } from "./support.ts";

const cases = goldenCases("optim").filter((c) => c.kind === "adamw");

/** Writes a row-major gradient into the parameter's gradient storage. */
function setGradient(parameters: Parameters, name: string, values: Float64Array): void {
  const p = parameters.get(name);
  const { device } = parameters;
  const [n, k] = p.matrix ? [p.shape[0]!, p.shape[1]!] : [1, p.length];
  const to = p.gradient!;
  if (!p.matrix) {
    new Float32Array(to.buffer.view(to.offset, p.length * 4)).set(values);
    return;
  }
  if (p.tensor.dtype === Dtype.bf16) {
    // float32 elements in the bfloat16 layout
    const out = new Float32Array(to.buffer.view(to.offset, p.length * 4)).fill(0);
    const depth = Math.ceil(k / 2) * 2;
    for (let i = 0; i < n * k; i++) {
      const [row, col] = [Math.floor(i / k), i % k];
      out[(row >> 5) * 32 * depth + (col >> 1) * 64 + (row & 31) * 2 + (col & 1)] = values[i]!;
    }
    return;
  }
  const staging = device.buffer(n * k * 4, "gradient");
  new Float32Array(staging.view(0, n * k * 4)).set(values);
  const args = { w: to.view, lo: null, src: staging.range(), n, k, dt: Dtype.f32, sdt: Dtype.f32 };
  device.emit(packWeight, args);
  device.finish();
  staging.free();
}

/** Runs the golden's trajectory; values of every parameter after every step. */
function trajectory(golden: GoldenCase, dtype: DtypeCode, spoiled: number | null = null) {
  const want = loadTensors(golden.dir);
  const { hyper, weight_decay_by_parameter: decays, max_grad_norm, schedule, warmup, total } = golden.spec;
  const names = [...want.keys()].filter((k) => k.endsWith(".init")).map((k) => k.slice(0, -5));
  const steps = [...want.keys()].filter((k) => k.startsWith("g0.step")).length;
  const device = openTestDevice(2);
  const shapes = new Map(names.map((name) => [name, want.get(`${name}.init`)!.shape]));
  const parameters = new Parameters(
    device,
    shapes,
    { dtype, trainable: true, momentDtype: Dtype.f32 },
    "golden",
  );
  for (const name of names) parameters.load(name, Float32Array.from(want.get(`${name}.init`)!.data));
  const memory = new StepMemory(device);
  const optimizer = new AdamW(parameters, {
    beta1: hyper.betas[0],
    beta2: hyper.betas[1],
    eps: hyper.eps,
    weightDecay: hyper.weight_decay,
    maxGradNorm: max_grad_norm,
    seed: 0,
    decayOf: (name) => decays[Number(name.slice(1))],
  });
  const values: Record<string, Float32Array>[] = [];
  const norms: number[] = [];
  const factor = learningRateFactor({ schedule: schedule ?? "constant", totalSteps: total, warmup });
  for (let step = 0; step < steps; step++) {
    for (const name of names) setGradient(parameters, name, want.get(`g${name.slice(1)}.step${step}`)!.data);
    // The last element of the last parameter's gradient: the norm is one of all parameters.
    if (spoiled !== null)
      setGradient(
        parameters,
        names.at(-1)!,
        want
          .get(`g${names.length - 1}.step${step}`)!
          .data.map((x, i, all) => (i === all.length - 1 ? spoiled : x)),
      );
    const lr = hyper.lr * factor(step);
    expect(lr).toBeCloseTo(want.get("lr")!.data[step]!, 15);
    const { gradNorm, finite } = optimizer.step(memory, step + 1, lr);
    expect(finite).toBe(spoiled === null);
    norms.push(gradNorm);
    values.push(Object.fromEntries(names.map((name) => [name, parameters.read(name)])));
  }
  const moments = names.map(
    (name) => [parameters.readMoment(name, 0), parameters.readMoment(name, 1)] as const,
  );
  const rounded = names.map((name) => parameters.readRounded(name));
  memory.dispose();
  parameters.dispose();
  device.close();
  return { want, names, values, norms, moments, rounded };
}

const close = (
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  { relative, absolute }: { relative: number; absolute: number },
) => {
  for (let i = 0; i < want.length; i++) {
    expect(Math.abs(got[i]! - want[i]!)).toBeLessThanOrEqual(absolute + relative * Math.abs(want[i]!));
  }
};

test("there are trajectories to check", () => expect(cases.length).toBeGreaterThan(0));

test("a norm that is not finite changes nothing", () => {
  const golden = cases[0]!;
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    const { names, values, moments, want } = trajectory(golden, Dtype.f32, bad);
    for (const name of names) {
      expect(largest(values.at(-1)![name]!, Float32Array.from(want.get(`${name}.init`)!.data))).toBe(0);
    }
    for (const [m, v] of moments) expect(norm(m) + norm(v)).toBe(0);
  }
});

describe.each(cases.map((c) => [c.name, c] as const))("%s", (_name, golden) => {
  test("weights, moments and norms of every step", () => {
    const { want, names, values, norms, moments } = trajectory(golden, Dtype.f32);
    const { tolerance } = golden.spec;
    values.forEach((step, i) => {
      for (const name of names) close(step[name]!, want.get(`${name}.step${i}`)!.data, tolerance);
    });
    names.forEach((name, i) => {
      close(moments[i]![0], want.get(`${name}.exp_avg`)!.data, tolerance);
      // Sums of squares do not cancel, and lie near the absolute part of the golden's tolerance.
      const { relative } = tolerance;
      close(moments[i]![1], want.get(`${name}.exp_avg_sq`)!.data, { relative, absolute: 1e-12 });
    });
    close(norms, want.get("grad_norms")!.data, tolerance);
  });

  test("bfloat16 weights with their remainders are the float32 master, bit for bit", () => {
    const single = trajectory(golden, Dtype.f32);
    const split = trajectory(golden, Dtype.bf16);
    single.values.forEach((step, i) => {
      for (const name of single.names) expect(largest(split.values[i]![name]!, step[name]!)).toBe(0);
    });
    single.moments.forEach((both, i) => {
      for (const j of [0, 1] as const) expect(largest(split.moments[i]![j], both[j])).toBe(0);
    });
    // The kernels compute with the nearest bfloat16 of the master, at most half a unit of its last place away.
    const last = single.values.at(-1)!;
    single.names.forEach((name, i) => {
      if (single.want.get(`${name}.init`)!.shape.length !== 2) return;
      const rounded = split.rounded[i]!;
      close(rounded, last[name]!, { relative: 2 ** -8, absolute: 0 });
      expect(largest(rounded, bf16ToF32(f32ToBf16(rounded)))).toBe(0);
    });
  });
});
