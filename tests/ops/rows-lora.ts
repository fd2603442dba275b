/** Rows of low-rank adapters. That a row alone is the row in a batch, also in place: lora.test.ts. */
import { Dtype, type OpDef } from "../../src/ops/define.ts";
import * as lora from "../../src/ops/lora.ts";
import {
  type CaseSpec,
  casesOf,
  type Row,
  scaledArg,
  scaledParam,
  swappedArgs,
  withParam,
  withTensor,
} from "./row.ts";
import { mapped, u32 } from "./tensors.ts";

const { f32: F32, bf16: BF16 } = Dtype;

const spec = (m: number, k: number, n: number, r: number, dt: number, scale = 0.5): CaseSpec => ({
  name: `${dt === BF16 ? "bf16" : "f32"} ${m}x${k} to ${n} by ${r}`,
  params: { m, n, k, r, split: r, scale, scale2: 0, dt },
});

/** Two adapters behind each other, with rows that skip the weights of the first, the second, both or none. */
const dual = (m: number, k: number, n: number, split: number, r: number, dt: number): CaseSpec => ({
  name: `${dt === BF16 ? "bf16" : "f32"} ${m}x${k} to ${n} by ${split} of ${r}, routed`,
  params: { m, n, k, r, split, scale: 0.1, scale2: 0.3, dt },
  given: (rng) => ({ routes: u32(Array.from({ length: m }, () => Math.floor(4 * rng.uniform()))) }),
});

const times = (name: string, factor: number) => withTensor(name, (d) => mapped(d, (x) => x * factor));

const loraFwd: Row = {
  op: lora.loraFwd as unknown as OpDef,
  slack: 16,
  cases: casesOf(lora.loraFwd as unknown as OpDef, [
    spec(1, 1, 1, 1, F32),
    spec(31, 33, 35, 8, F32),
    spec(13, 64, 32, 16, F32, 2),
    spec(127, 31, 33, 5, F32),
    spec(3, 40, 127, 33, F32),
    spec(70, 17, 20, 40, F32),
    spec(2, 527, 17, 8, F32),
    spec(1, 1, 1, 1, BF16, 8),
    spec(31, 33, 35, 8, BF16),
    spec(66, 32, 64, 16, BF16, 0.1),
    spec(33, 127, 31, 7, BF16),
    spec(5, 40, 70, 33, BF16),
    spec(65, 530, 17, 16, BF16),
    dual(31, 33, 35, 5, 8, F32),
    dual(40, 34, 20, 8, 16, F32),
    dual(9, 530, 17, 16, 48, F32),
    dual(5, 20, 36, 0, 8, F32),
    dual(31, 33, 35, 5, 8, BF16),
    dual(35, 32, 36, 8, 16, BF16),
    dual(7, 40, 33, 33, 40, BF16),
  ]),
  mutants: [
    { name: "scale x 1.5", change: (c) => (c.params.split ? scaledParam("scale", 1.5)(c) : null) },
    { name: "x x 1.5", change: times("x", 1.5) },
    { name: "a x 1.5", change: times("a", 1.5) },
    { name: "b x 1.5", change: times("b", 1.5) },
    { name: "base x 3", change: times("base", 3) },
    {
      name: "the first scale for both",
      change: (c) =>
        c.params.split === c.params.r || c.params.split === 0
          ? null
          : withParam("scale2", c.params.scale!)(c),
    },
    {
      name: "split later",
      change: (c) => (c.tensors.routes ? withParam("split", c.params.split! + 2)(c) : null),
    },
  ],
  grads: {
    inputs: ["base", "x", "a", "b"],
    slack: 16,
    cases: [
      { case: "f32 1x1 to 1 by 1", from: ["y"] },
      { case: "f32 31x33 to 35 by 8", from: ["y"] },
      { case: "f32 13x64 to 32 by 16", from: ["y"] },
      { case: "f32 127x31 to 33 by 5", from: ["y"] },
      { case: "f32 3x40 to 127 by 33", from: ["y"] },
      { case: "f32 70x17 to 20 by 40", from: ["y"] },
      { case: "f32 31x33 to 35 by 8", from: ["y"], to: ["a", "b"] },
      { case: "f32 31x33 to 35 by 8", from: ["y"], to: ["x"] },
      { case: "f32 31x33 to 35 by 8", from: ["y"], to: ["b"] },
      { case: "bf16 31x33 to 35 by 8", from: ["y"] },
      { case: "bf16 66x32 to 64 by 16", from: ["y"] },
      { case: "bf16 33x127 to 31 by 7", from: ["y"] },
      { case: "bf16 5x40 to 70 by 33", from: ["y"] },
      { case: "f32 31x33 to 35 by 5 of 8, routed", from: ["y"] },
      { case: "f32 40x34 to 20 by 8 of 16, routed", from: ["y"] },
      { case: "f32 40x34 to 20 by 8 of 16, routed", from: ["y"], to: ["a"] },
      { case: "f32 40x34 to 20 by 8 of 16, routed", from: ["y"], to: ["b"] },
      { case: "f32 40x34 to 20 by 8 of 16, routed", from: ["y"], to: ["x"] },
      { case: "f32 5x20 to 36 by 0 of 8, routed", from: ["y"] },
      { case: "bf16 31x33 to 35 by 5 of 8, routed", from: ["y"] },
      { case: "bf16 35x32 to 36 by 8 of 16, routed", from: ["y"] },
      { case: "bf16 7x40 to 33 by 33 of 40, routed", from: ["y"] },
    ],
    mutants: [
      {
        name: "scale x 1.5",
        op: "lora_bwd",
        change: (args, c) =>
          (args.dx || args.da) && c.params.split ? scaledArg("scale", 1.5)(args, c) : null,
      },
      {
        name: "accumulate flipped",
        op: "lora_bwd",
        change: (args) => (args.dx ? { ...args, accumulate: args.accumulate ? 0 : 1 } : null),
      },
      { name: "a row missing", op: "lora_bwd", change: (args) => ({ ...args, m: (args.m as number) - 1 }) },
      {
        name: "u for du's place",
        op: "lora_bwd",
        change: (args, c) => (args.db ? swappedArgs("u", "du")(args, c) : null),
      },
      {
        name: "rows are not skipped",
        op: "lora_bwd",
        change: (args) =>
          args.routes && (args.da || args.db) ? { ...args, routes: null, masked: null } : null,
      },
    ],
  },
};

export const loraRows = { loraFwd };
