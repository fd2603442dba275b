/** Rows of dropout. That masks have the right share, and differ by every part of their key: dropout.test.ts. */
import { Dtype, type OpDef } from "../../src/ops/define.ts";
import * as dropoutOps from "../../src/ops/dropout.ts";
import { type CaseSpec, casesOf, type Row, scaledArg, scaledParam, withParam } from "./row.ts";

const { f32: F32, bf16: BF16 } = Dtype;

function spec(n: number, dt: number, p: number, key: Record<string, number> = {}): CaseSpec {
  return {
    name: `${dt === BF16 ? "bf16" : "f32"} ${n} at ${p}`,
    params: {
      ...{ n, dt, seed: 42, purpose: 7, site: 3, step: 11, part: 2 },
      ...{ threshold: Math.round(p * 2 ** 32), scale: Math.fround(1 / (1 - p)) },
      ...key,
    },
  };
}

const op = dropoutOps.dropout as unknown as OpDef;

const dropout: Row = {
  op,
  // One rounding; of bfloat16 a second.
  slack: 2,
  cases: casesOf(op, [
    spec(1, F32, 0.1),
    spec(63, F32, 0.5, { seed: 0xffffffff, step: 0xfffffff0 }),
    spec(257, F32, 0.05),
    spec(3001, F32, 0.9),
    spec(512, F32, 0),
    spec(1, BF16, 0.1),
    spec(255, BF16, 0.5),
    spec(2049, BF16, 0.05),
  ]),
  mutants: [
    { name: "scale x 1.5", change: (c) => (c.params.n! > 1 ? scaledParam("scale", 1.5)(c) : null) },
    // A key that differs draws another mask; the smallest cases may agree by chance.
    ...["seed", "purpose", "site", "step", "part"].map((name) => ({
      name: `another ${name}`,
      change: (c: Parameters<ReturnType<typeof withParam>>[0]) =>
        c.params.n! > 1 && c.params.threshold! > 0 ? withParam(name, 5)(c) : null,
    })),
  ],
  grads: {
    inputs: ["x"],
    slack: 2,
    cases: [
      { case: "f32 63 at 0.5", from: ["y"] },
      { case: "f32 257 at 0.05", from: ["y"] },
      { case: "bf16 255 at 0.5", from: ["y"] },
    ],
    mutants: [
      { name: "scale x 1.5", op: "dropout", change: scaledArg("scale", 1.5) },
      { name: "another step", op: "dropout", change: (args) => ({ ...args, step: 5 }) },
    ],
  },
};

export const dropoutRows = { dropout };
