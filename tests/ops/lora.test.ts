/** A row of lora_fwd alone is the row in a batch, and in place it is what it is beside: bit for bit, on any shape. */
import { afterAll, expect, test } from "bun:test";
import fc from "fast-check";
import { Dtype, type OpDef } from "../../src/ops/define.ts";
import "../../src/ops/index.ts";
import { loraFwd } from "../../src/ops/lora.ts";
import { openTestDevice } from "../test-device.ts";
import { caseOf } from "./row.ts";
import { argumentsOf, type Case, run, withMemory } from "./run.ts";
import type { Data } from "./tensors.ts";

const devices = [1, 3].map((threads) => openTestDevice(threads));
afterAll(() => {
  for (const device of devices) device.close();
});

const op = loraFwd as unknown as OpDef;
const hex = (data: Data) => Buffer.from(data.bytes).toString("hex");
const rowAt = (data: Data, row: number, rows: number): Data => {
  const width = data.bytes.length / rows;
  return { ...data, bytes: data.bytes.slice(row * width, (row + 1) * width) };
};

const cases = fc
  .record({
    m: fc.integer({ min: 1, max: 80 }),
    n: fc.integer({ min: 1, max: 80 }),
    k: fc.oneof(fc.integer({ min: 1, max: 80 }), fc.constantFrom(512, 543)),
    r: fc.oneof(fc.constantFrom(8, 16), fc.integer({ min: 1, max: 40 })),
    dt: fc.constantFrom<number>(Dtype.f32, Dtype.bf16),
    seed: fc.nat(),
  })
  .map(({ seed, ...params }) =>
    caseOf(op, {
      name: `${seed}`,
      params: { ...params, split: seed % (params.r + 1), scale: 0.5, scale2: 2 },
    }),
  );

test("a row alone is the row in a batch", () => {
  fc.assert(
    fc.property(cases, fc.nat(), (c, at) => {
      const m = c.params.m!;
      const row = at % m;
      const whole = run(devices[0]!, c);
      const [x, base] = [c.tensors.x!, c.tensors.base!];
      const alone: Case = {
        ...c,
        params: { ...c.params, m: 1 },
        tensors: { ...c.tensors, x: rowAt(x, row, m), base: rowAt(base, row, m) },
      };
      for (const device of devices) {
        const { y, u } = run(device, alone);
        expect(hex(y!)).toBe(hex(rowAt(whole.y!, row, m)));
        expect(hex(u!)).toBe(hex(rowAt(whole.u!, row, m)));
      }
    }),
    { numRuns: 40 },
  );
});

test("in place of its base", () => {
  fc.assert(
    fc.property(cases, (c) => {
      const { y } = run(devices[0]!, c);
      for (const device of devices)
        withMemory(device, (memory) => {
          const placed = memory.placeAll(c);
          const args = argumentsOf(c, placed);
          device.emit(op, { ...args, y: args.base! } as never);
          device.finish();
          memory.check([]);
          expect(hex(placed.base!.data)).toBe(hex(y!));
        });
    }),
    { numRuns: 20 },
  );
});
