/**
 * Every operation of the catalogue, in every mode:
 *
 *   value      the device against the float64 reference
 *   grad       the gradient rule and its backward kernels against the complex step, with random cotangents, on
 *              top of what the destinations hold already
 *   mutant     a broken record turns the row red, forward and backward
 *   cpu        another device than the cpu against the cpu, values and gradients
 *   threads    one, two and three threads agree bit for bit, and two runs of another device
 *   null       the counting device accepts and counts
 *   contract   a tensor that is too short or missing is refused by name
 *   refuse     bad data (ids, indices, pages) is an error of the stream, after which the device works again
 *   guard      every run lies between sentinels and leaves its inputs alone (run.ts); damage is noticed
 *
 * A test is named by its mode, case and variant: `bun test tests/ops -t "grad attn_fwd"`. RLV_TABLE_REPORT=1 prints
 * how much of its tolerance each row uses.
 */
import { deserialize, serialize } from "bun:jsc";
import { afterAll, expect, test } from "bun:test";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { DeviceError } from "../../src/core/errors.ts";
import { bytesNeeded, Device } from "../../src/device/device.ts";
import { evaluate, type View } from "../../src/ops/define.ts";
import { fill } from "../../src/ops/elementwise.ts";
import { catalogue } from "../../src/ops/index.ts";
import { openTestDevice, testDeviceName } from "../test-device.ts";
import { coarsest, distance, roundoff, sameBits, sameValues } from "./compare.ts";
import type { GradCase, Row } from "./row.ts";
import {
  argumentsOf,
  type Case,
  gradients,
  type Mutation,
  referenceGradients,
  run,
  withMemory,
} from "./run.ts";
import { rows } from "./table.ts";
import { type Data, elementBytes, elementOf, f32, floats, normals, random, valuesOf } from "./tensors.ts";

/** Roundings that a tolerance may allow at most: beyond it a row would prove little. */
const LARGEST_SLACK = 32;

// A device without threads of its own is opened twice: what it computes again has the same bits.
const tested = (testDeviceName === "cpu" ? [1, 2, 3] : [1, 2]).map((threads) => openTestDevice(threads));
/** What another device is compared with. */
const cpu = testDeviceName === "cpu" ? null : Device.open("cpu", 1);
const ref = Device.open("ref");
const none = Device.open("null");
const devices = [...tested, ref, none, ...(cpu ? [cpu] : [])];
afterAll(() => {
  for (const device of devices) {
    const { liveBytes, liveBuffers } = device.stats();
    expect({ device: device.name, liveBytes, liveBuffers }).toEqual({
      device: device.name,
      liveBytes: 0,
      liveBuffers: 0,
    });
    device.close();
  }
});

type Outputs = Readonly<Record<string, Data>>;

/** What an output differs by in units of its tolerance, at most 1 where the row is green; names the worst. */
function excess(row: Row, got: Outputs, want: Outputs): { worst: number; where: string } {
  let result = { worst: 0, where: "" };
  const note = (where: string, worst: number) => {
    if (worst > result.worst) result = { worst, where };
  };
  if (row.values) {
    const [a, b] = [row.values(got), row.values(want)];
    for (const name of Object.keys(b)) note(name, distance(a[name]!, b[name]!) / (row.slack * roundoff.f32!));
    return result;
  }
  for (const name of Object.keys(want)) {
    const unit = roundoff[want[name]!.element];
    if (row.slack === 0 || unit === undefined)
      note(name, sameValues(got[name]!, want[name]!) ? 0 : Number.POSITIVE_INFINITY);
    else note(name, distance(valuesOf(got[name]!), valuesOf(want[name]!)) / (row.slack * unit));
  }
  return result;
}

const references = new Map<Case, Outputs>();
function reference(c: Case): Outputs {
  let outputs = references.get(c);
  if (!outputs) {
    outputs = run(ref, c);
    references.set(c, outputs);
  }
  return outputs;
}

/** What the first device makes of a case, made once; the last test that asks forgets it. */
const firsts = new Map<Case, Outputs>();
function first(c: Case): Outputs {
  const outputs = firsts.get(c) ?? run(tested[0]!, c);
  firsts.set(c, outputs);
  return outputs;
}

function caseOf(row: Row, name: string): Case {
  const found = row.cases.find((c) => c.name === `${row.op.name} ${name}`);
  if (!found) throw new Error(`${row.op.name}: no case ${name}`);
  return found;
}

/** One gradient to check: the case, its cotangents, what is wanted, what is there before. */
function gradRun(row: Row, g: GradCase) {
  const c = caseOf(row, g.case);
  const wanted = (g.to ?? row.grads!.inputs).filter((name) => c.tensors[name]);
  const name = `grad ${c.name}, ${g.from.join(" + ")} -> ${wanted.join(" + ")}`;
  const rng = random(name);
  const count = (data: Data) => data.bytes.length / elementBytes[data.element];
  const cotangents = Object.fromEntries(
    g.from.map((output) => {
      const element = elementOf(row.op, output, c.params) as "f32" | "bf16";
      const bytes = bytesNeeded(row.op, output, { ...c.params });
      return [output, floats(element, normals(rng, bytes / elementBytes[element]))];
    }),
  );
  const inputs = wanted.map((input): [string, Data] => [input, c.tensors[input]!]);
  const before = Object.fromEntries(
    inputs.map(([input, like]) => [input, floats("f32", normals(rng, count(like)))]),
  );
  const partial = Object.fromEntries(
    inputs.map(([input, like]) => [input, floats(like.element as "f32" | "bf16", normals(rng, count(like)))]),
  );
  return { c, name, wanted, cotangents, before, partial, terms: g.terms ?? 0 };
}

type Grad = ReturnType<typeof gradRun>;

/** Which destinations of a rule hold something that is added to: sums always, `into` with a partial gradient. */
function destinations(grad: Grad, row: Row): Record<string, Data> {
  const adds = new Set<string>();
  const probe = Object.fromEntries(grad.wanted.map((name) => [name, grad.before[name]!]));
  withMemory(none, (memory) => {
    const placed = memory.placeAll(grad.c);
    row.op.vjp!({
      value: (name: string) => placed[name]!.view,
      maybe: (name: string) => placed[name]?.view ?? null,
      has: (name: string) => placed[name] !== undefined,
      param: (name: string) => grad.c.params[name]!,
      grad: (name: string) => (grad.cotangents[name] ? placed[name]!.view : null),
      wants: (name: string) => grad.wanted.includes(name),
      into: (name: string) => {
        adds.add(name);
        probe[name] = grad.partial[name]!;
        return { view: placed[name]!.view, accumulate: true };
      },
      sumDtype: () => 0,
      sum: (name: string) => {
        adds.add(name);
        return placed[name]!.view;
      },
      write: (name: string) => placed[name]!.view,
      share: () => {},
      temp: () => ({ buffer: 0, offset: 0, length: 0 }),
      zeros: () => ({ buffer: 0, offset: 0, length: 0 }),
      emit: () => {},
    } as never);
  });
  return Object.fromEntries([...adds].filter((name) => probe[name]).map((name) => [name, probe[name]!]));
}

/** RLV_TABLE_REFERENCES=FILE: taken from there if it is there, else written there, for programs on the same table. */
const kept = process.env.RLV_TABLE_REFERENCES;
const complexSteps: Map<string, Outputs> =
  kept !== undefined && existsSync(kept) ? deserialize(new Uint8Array(readFileSync(kept)).buffer) : new Map();
afterAll(() => {
  if (kept === undefined || existsSync(kept)) return;
  writeFileSync(`${kept}.${process.pid}`, new Uint8Array(serialize(complexSteps)));
  renameSync(`${kept}.${process.pid}`, kept);
});
function complexStep(grad: Grad): Outputs {
  let result = complexSteps.get(grad.name);
  if (!result) {
    result = referenceGradients(ref, grad.c, grad.cotangents, grad.wanted);
    complexSteps.set(grad.name, result);
  }
  return result;
}

/** Gradients against the complex step, or those of `peer`; in units of the tolerance. */
function gradExcess(
  row: Row,
  grad: Grad,
  full: boolean,
  { mutate, peer }: { mutate?: Mutation; peer?: Device } = {},
): { worst: number; where: string } {
  const added: Record<string, Data> = full && !peer ? destinations(grad, row) : {};
  const options = { ...grad, before: added, partial: full ? added : {}, mutate };
  const got = gradients(tested[0]!, grad.c, options).gradients;
  const want = peer ? gradients(peer, grad.c, options).gradients : complexStep(grad);
  let result = { worst: 0, where: "" };
  for (const name of grad.wanted) {
    const present = added[name] ? valuesOf(added[name]) : null;
    const exact = valuesOf(want[name]!).map((g, i) => g + (present ? present[i]! : 0));
    // Every rule writes every gradient that a case wants.
    const far = got[name] ? distance(valuesOf(got[name]), exact, grad.terms) : Number.POSITIVE_INFINITY;
    const slack = row.grads!.slack;
    const worst =
      slack === 0 ? (far === 0 ? 0 : Number.POSITIVE_INFINITY) : far / (slack * roundoff[coarsest(grad.c)]!);
    if (worst > result.worst || Number.isNaN(worst))
      result = { worst: Number.isNaN(worst) ? Infinity : worst, where: name };
  }
  return result;
}

const report = process.env.RLV_TABLE_REPORT === "1";
function expectGreen(title: string, { worst, where }: { worst: number; where: string }): void {
  if (report) process.stderr.write(`${title}: ${worst.toFixed(3)} of the tolerance (${where})\n`);
  if (!(worst <= 1)) throw new Error(`${where}: ${worst.toPrecision(3)} times the tolerance`);
}

test("guard: a write outside a tensor and a changed input are found", () => {
  withMemory(tested[0]!, (memory) => {
    const slot = memory.place("victim", "f32", 20);
    const write = (n: number) => {
      tested[0]!.emit(fill, { y: { ...slot.view, length: slot.view.length + 1 }, n, value: 1 });
      tested[0]!.finish();
    };
    write(5);
    memory.check([]);
    write(6);
    expect(() => memory.check([])).toThrow("victim: a write outside, at byte 20");
  });
  withMemory(tested[0]!, (memory) => {
    const slot = memory.place("victim", "f32", 16, f32([1, 2, 3, 4]).bytes);
    memory.check([slot]);
    tested[0]!.emit(fill, { y: slot.view, n: 1, value: 0 });
    tested[0]!.finish();
    expect(() => memory.check([slot])).toThrow("victim: an input was written");
  });
});

test("rows: every operation of the catalogue, under its own name", () => {
  const named = Object.values(rows).map((row) => row.op.name);
  expect(named.toSorted()).toEqual(catalogue.map(({ op }) => op.name).toSorted());
});

for (const row of Object.values(rows)) {
  const { op } = row;
  const { family } = catalogue.find((entry) => entry.op === op)!;
  test(`rows: ${op.name} is tested as what it is`, () => {
    expect(row.slack).toBeLessThanOrEqual(LARGEST_SLACK);
    expect(row.grads?.slack ?? 0).toBeLessThanOrEqual(LARGEST_SLACK);
    expect(row.grads !== undefined).toBe(op.kind === "forward");
    expect(row.coveredBy !== undefined).toBe(op.kind === "backward");
    expect(row.cases.length > 0 && row.mutants.length > 0).toBe(op.kind !== "backward");
    expect(new Set(row.cases.map((c) => c.name)).size).toBe(row.cases.length);
  });

  if (row.coveredBy) {
    test(`rows: ${op.name} runs in the gradients of ${row.coveredBy}`, () => {
      const by = rows[row.coveredBy as keyof typeof rows];
      const emitted = by.grads!.cases.flatMap((g) => {
        const grad = gradRun(by, g);
        return gradients(none, grad.c, { ...grad, before: {}, partial: {} }).emitted;
      });
      expect(emitted).toContain(op.name);
      expect(by.grads!.mutants.map((mutant) => mutant.op)).toContain(op.name);
    });
  }

  for (const c of row.cases) {
    test(`value ${c.name}`, () => expectGreen(`value ${c.name}`, excess(row, first(c), reference(c))));

    // Each may be off by the tolerance.
    if (cpu)
      test(`cpu ${c.name}`, () => {
        const { worst, where } = excess(row, first(c), run(cpu, c));
        expectGreen(`cpu ${c.name}`, { worst: worst / 2, where });
      });

    test(`threads ${c.name}`, () => {
      const one = first(c);
      firsts.delete(c);
      for (const device of tested.slice(1)) expect(sameBits(one, run(device, c))).toBe(true);
    });

    test(`null ${c.name}`, () => {
      withMemory(none, (memory) => {
        const placed = memory.placeAll(c);
        const before = none.stats();
        none.emit(op, argumentsOf(c, placed) as never);
        none.finish();
        const after = none.stats();
        const named = Object.values(placed).reduce((sum, slot) => sum + slot.view.length * 16, 0);
        expect(after.operations - before.operations).toBe(1);
        expect(after.flops - before.flops).toBe(evaluate(op.flops, op, { ...c.params }));
        expect(after.bytes - before.bytes).toBe(named);
      });
    });
  }

  if (row.cases.length > 0) {
    test(`contract ${op.name}`, () => {
      for (const [tensor, field] of Object.entries(op.tensors)) {
        const c = row.cases.find((each) => each.tensors[tensor] !== null);
        if (!c) throw new Error(`${op.name}: no case has ${tensor}`);
        withMemory(none, (memory) => {
          const args = argumentsOf(c, memory.placeAll(c));
          const view = args[tensor] as View;
          const attempt = (replacement: View | null) => () => {
            none.emit(op, { ...args, [tensor]: replacement } as never);
            none.finish();
          };
          const complaint = `[${op.name}] ${tensor}`;
          expect(attempt({ ...view, length: view.length - 1 })).toThrow(complaint);
          expect(attempt({ ...view, length: view.length + 1000 })).toThrow(complaint);
          expect(attempt({ ...view, buffer: view.buffer + (1 << 18) })).toThrow(complaint);
          if (!field.optional) expect(attempt(null)).toThrow(complaint);
          attempt(view)();
        });
      }
    });
  }

  for (const mutant of row.mutants) {
    test(`mutant ${op.name}: ${mutant.name}`, () => {
      let applied = 0;
      for (const c of row.cases) {
        const broken = mutant.change(c);
        if (!broken) continue;
        applied++;
        if (excess(row, run(tested[0]!, broken), reference(c)).worst <= 1)
          throw new Error(`${c.name} stays green`);
      }
      expect(applied).toBeGreaterThan(0);
    });
  }

  for (const refusal of row.refusals ?? []) {
    test(`refuse ${op.name}: ${refusal.name}`, () => {
      const c = caseOf(row, refusal.case);
      const broken = refusal.change(c);
      for (const device of [tested[0]!, tested.at(-1)!, ref]) {
        expect(() => run(device, broken)).toThrow(DeviceError);
        // Operations that share a check name their family.
        expect(() => run(device, broken)).toThrow(new RegExp(`^\\[(${op.name}|${family}): `));
        expect(excess(row, run(device, c), reference(c)).worst).toBeLessThanOrEqual(1);
      }
    });
  }

  if (!row.grads) {
    if (op.kind !== "backward")
      test(`grad ${op.name} has none`, () => {
        const c = row.cases[0]!;
        expect(() => referenceGradients(ref, c, {}, [])).toThrow("has no gradient");
      });
    continue;
  }
  const grads = row.grads;

  for (const g of grads.cases) {
    const { name } = gradRun(row, g);
    test(name, () => {
      const grad = gradRun(row, g);
      expectGreen(name, gradExcess(row, grad, false));
      expectGreen(`${name}, added to what is there`, gradExcess(row, grad, true));
    });

    if (cpu)
      test(`cpu ${name}`, () => {
        const { worst, where } = gradExcess(row, gradRun(row, g), false, { peer: cpu });
        expectGreen(`cpu ${name}`, { worst: worst / 2, where });
      });

    test(`threads ${name}`, () => {
      const grad = gradRun(row, g);
      const added = destinations(grad, row);
      const [one, ...others] = tested.map(
        (device) => gradients(device, grad.c, { ...grad, before: added, partial: added }).gradients,
      );
      for (const other of others) expect(sameBits(one!, other)).toBe(true);
    });

    test(`null ${name}`, () => {
      const grad = gradRun(row, g);
      const before = none.stats().operations;
      const { emitted } = gradients(none, grad.c, { ...grad, before: {}, partial: {} });
      expect(none.stats().operations - before).toBeGreaterThanOrEqual(1 + emitted.length);
    });
  }

  for (const mutant of grads.mutants) {
    test(`mutant ${mutant.op}: ${mutant.name}`, () => {
      let applied = 0;
      for (const g of grads.cases) {
        const grad = gradRun(row, g);
        let changed = false;
        const mutate: Mutation = (emitted, args) => {
          const broken = emitted === mutant.op ? mutant.change(args, grad.c) : null;
          changed ||= broken !== null;
          return broken ?? args;
        };
        const { worst } = gradExcess(row, grad, true, { mutate });
        if (!changed) continue;
        applied++;
        if (worst <= 1) throw new Error(`${grad.name} stays green`);
      }
      expect(applied).toBeGreaterThan(0);
    });
  }
}

test("null: a buffer counts and needs no memory", () => {
  const { liveBytes, liveBuffers } = none.stats();
  const bytes = 60 * 2 ** 30;
  const buffer = none.buffer(bytes, "large");
  expect(none.stats().liveBytes - liveBytes).toBe(bytes);
  expect(none.stats().liveBuffers - liveBuffers).toBe(1);
  expect(() => buffer.view()).toThrow("no memory");
  buffer.free();
  expect(none.stats().liveBytes).toBe(liveBytes);
});

test("ref: a gradient of something that has none is refused", () => {
  const c = caseOf(rows.embedFwd, "f32 to f32 9x33 of 70");
  const cotangents = { y: f32(new Float32Array(9 * 33)) };
  expect(() => referenceGradients(ref, c, cotangents, ["ids"])).toThrow("float inputs");
  expect(() => referenceGradients(ref, c, { table: f32([1]) }, [])).toThrow("cotangents belong to outputs");
  expect(() => referenceGradients(ref, c, { y: f32([1]) }, [])).toThrow("range too short");
  expect(() => referenceGradients(tested[0]!, c, cotangents, ["table"])).toThrow("only the ref device");
});

test("ref refuses backward operations", () => {
  const grad = gradRun(rows.swigluFwd, rows.swigluFwd.grads!.cases[0]!);
  expect(() => gradients(ref, grad.c, { ...grad, before: {}, partial: {} })).toThrow("use rlv_ref_vjp");
});
