/** The fused language-model head against torch: log-probabilities, entropy and gradients, on cpu and ref. */
import { afterAll, expect, test } from "bun:test";
import { Device } from "../../src/device/device.ts";
import { Dtype, type OpDef } from "../../src/ops/define.ts";
import { logprobFwd } from "../../src/ops/head.ts";
import "../../src/ops/index.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { openTestDevice } from "../test-device.ts";
import { distance } from "./compare.ts";
import { type Case, gradients, referenceGradients, run } from "./run.ts";
import { type Data, f32, packed, packedIndex, u32, valuesOf } from "./tensors.ts";

const cpu = openTestDevice(2);
const ref = Device.open("ref");
afterAll(() => {
  cpu.close();
  ref.close();
});

const cases = goldenCases("ops").filter((each) => each.kind === "lm_head_logprob");

test("there are cases", () => expect(cases.length).toBeGreaterThan(0));

for (const golden of cases) {
  const tensors = loadTensors(golden.dir);
  const of = (name: string) => tensors.get(name)!.data;
  const [rows, cols] = tensors.get("hidden")!.shape as [number, number];
  const vocab = tensors.get("weight")!.shape[0]!;
  const c: Case = {
    op: logprobFwd as unknown as OpDef,
    name: golden.name,
    params: { rows, cols, vocab, inv_temp: 1 / golden.spec.temperature, dt: Dtype.f32 },
    tensors: {
      x: f32(of("hidden")),
      w: packed(of("weight"), vocab, cols, Dtype.f32),
      targets: u32(of("targets")),
    },
  };
  const close = (got: Float64Array, name: string) => {
    const error = distance(got, of(name));
    if (!(error <= golden.spec.tolerance.relative)) throw new Error(`${name}: relative error ${error}`);
  };
  const weightRow = (dw: Float64Array, row: number) =>
    Array.from({ length: cols }, (_, col) => dw[packedIndex(row, col, cols, Dtype.f32)]!);

  for (const device of [cpu, ref]) {
    test(`${golden.name} on ${device.name}`, () => {
      const { logprob, entropy } = run(device, c);
      close(valuesOf(logprob!), "logprobs");
      close(valuesOf(entropy!), "entropy");
      const cotangents: Record<string, Data> = { logprob: f32(of("coef")) };
      // One complex step for each of the 12,360 weights would take seconds.
      const wanted = device === cpu ? ["x", "w"] : ["x"];
      const { x, w } =
        device === cpu
          ? gradients(cpu, c, { cotangents, wanted }).gradients
          : referenceGradients(ref, c, cotangents, wanted);
      close(valuesOf(x!), "grad_hidden");
      if (!w) return;
      const dw = valuesOf(w);
      const first = tensors.get("grad_weight")!.shape[0]!;
      close(
        Float64Array.from(Array.from({ length: first }, (_, row) => weightRow(dw, row)).flat()),
        "grad_weight",
      );
      close(
        Float64Array.from([...of("targets")].flatMap((row) => weightRow(dw, row))),
        "grad_weight_targets",
      );
      close(Float64Array.of(Math.hypot(...dw)), "grad_weight_norm");
    });
  }
}
