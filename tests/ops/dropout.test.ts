/** What masks of dropout are: their share, and that the key alone decides them, whatever the threads. */
import { afterAll, expect, test } from "bun:test";
import { philox } from "../../src/core/rng.ts";
import { Dtype, type OpDef } from "../../src/ops/define.ts";
import { dropout } from "../../src/ops/dropout.ts";
import "../../src/ops/index.ts";
import { openTestDevice } from "../test-device.ts";
import { caseOf } from "./row.ts";
import { run } from "./run.ts";
import { floats, valuesOf } from "./tensors.ts";

const devices = [1, 2, 3].map((threads) => openTestDevice(threads));
afterAll(() => {
  for (const device of devices) device.close();
});

const KEY = { seed: 7, purpose: 7, site: 1, step: 2, part: 3 };

/** The mask as 0 and 1 of n elements. */
function maskOf(n: number, p: number, dt: number, key: Partial<typeof KEY> = {}, device = devices[0]!) {
  const c = caseOf(dropout as unknown as OpDef, {
    name: "mask",
    params: { ...{ n, dt, threshold: Math.round(p * 2 ** 32), scale: 1 }, ...KEY, ...key },
    given: () => ({ x: floats(dt === Dtype.bf16 ? "bf16" : "f32", new Float32Array(n).fill(1)) }),
  });
  return valuesOf(run(device, c).y!);
}

test.each([0.05, 0.5, 0.9])("drops a share of %p", (p) => {
  const n = 40_000;
  const dropped = maskOf(n, p, Dtype.f32).filter((x) => x === 0).length;
  // Five standard deviations of a binomial count.
  expect(Math.abs(dropped - p * n)).toBeLessThan(5 * Math.sqrt(n * p * (1 - p)));
});

test("the key alone decides: any dtype, any number of threads, a longer tensor begins the same", () => {
  const want = [...maskOf(700, 0.3, Dtype.f32)];
  for (const device of devices)
    for (const dt of [Dtype.f32, Dtype.bf16]) expect([...maskOf(700, 0.3, dt, {}, device)]).toEqual(want);
  expect([...maskOf(1500, 0.3, Dtype.f32).subarray(0, 700)]).toEqual(want);
  for (const name of Object.keys(KEY))
    expect([...maskOf(700, 0.3, Dtype.f32, { [name]: 9 })]).not.toEqual(want);
  for (const i of [0, 63, 64, 255, 256, 699]) {
    const counter = Math.floor(i / 256) * 64 + (i % 64);
    const words = philox(KEY.seed, KEY.purpose, counter, KEY.site, KEY.step, KEY.part);
    expect(want[i]).toBe(words[Math.floor((i % 256) / 64)]! < Math.round(0.3 * 2 ** 32) ? 0 : 1);
  }
});
