/**
 * What crosses to the native library for one operation: tensors with access and size, parameters, cost.
 *
 * Size expressions are strings valid in both C and TypeScript. They may use the parameters and
 *   size(dt)              bytes of an element of dtype dt
 *   packed_len(n, k, dt)  elements of an [n, k] matrix in the packed layout of dtype dt
 *   quant_bytes(n, k, qt), quant_scales(n, k, qt)   bytes of codes, and scales, of a quantized [n, k] matrix
 *   ceil_div(a, b), min(a, b)
 */

import { QUANT_BLOCK } from "../core/nf4.ts";

/** Element types on devices. Values are part of the ABI. */
export const Dtype = { f32: 0, bf16: 1 } as const;
export type DtypeCode = (typeof Dtype)[keyof typeof Dtype];

/** How frozen weights are quantized (src/ops/quant.ts). Values are part of the ABI. */
export const QuantType = { int8: 0, nf4: 1 } as const;
export type QuantCode = (typeof QuantType)[keyof typeof QuantType];
/** Types of AdamW's moments: also 8-bit floats with a float32 scale for every block (src/ops/optimizer.ts). */
export const MomentDtype = { ...Dtype, f8: 2 } as const;
export type MomentCode = (typeof MomentDtype)[keyof typeof MomentDtype];
/** The largest code that a parameter naming a type may have: moments alone know more than Dtype. */
export function largestDtype(param: string): number {
  return param === "mdt" ? MomentDtype.f8 : Dtype.bf16;
}

export const PANEL = 32;
export const PAGE = 16;
export const VOCAB_TILE = 512;
export const ROW_BLOCK = 64;
export const NORM_BLOCK = 65536;
/** Neighbours in packed memory that share the scale of their 8-bit moments. */
export const MOMENT_BLOCK = 256;
/** u32 words of one segment record: start, len, parent, pos0, page_start, cached_len, root, 0. */
export const SEGMENT_WORDS = 8;
export const NONE = 0xffffffff;

export type Access = "in" | "out" | "inout" | "scratch";

export interface TensorField {
  readonly access: Access;
  /** Bytes needed, as an expression over the parameters. */
  readonly bytes: string;
  readonly optional: boolean;
  /** Of an optional tensor: it must be there where the tensor of this name is. */
  readonly beside?: string;
}

export type ParamType = "u32" | "f32";

const field =
  <A extends Access>(access: A) =>
  (bytes: string): TensorField & { readonly access: A; readonly optional: false } => ({
    access,
    bytes,
    optional: false,
  });
const optionalField =
  <A extends Access>(access: A) =>
  (bytes: string, beside?: string): TensorField & { readonly access: A; readonly optional: true } => ({
    access,
    bytes,
    optional: true,
    ...(beside === undefined ? {} : { beside }),
  });

export const input = field("in");
export const output = field("out");
export const inout = field("inout");
export const scratch = field("scratch");
export const optional = {
  input: optionalField("in"),
  output: optionalField("out"),
  inout: optionalField("inout"),
  scratch: optionalField("scratch"),
};

/** A byte range of a device buffer: handle, offset and length, the latter two in units of 16 bytes. */
export interface View {
  readonly buffer: number;
  readonly offset: number;
  readonly length: number;
}

/**
 * Parameters that no valid record has as 0: a row without columns takes no byte, so that no length would say how many
 * rows there are, and kernels divide by them.
 */
export const NEVER_ZERO: ReadonlySet<string> = new Set([
  "cols",
  "k",
  "head_dim",
  "heads",
  "kv_heads",
  "vocab",
]);

export type Tensors = Readonly<Record<string, TensorField>>;
export type Params = Readonly<Record<string, ParamType>>;

export type ArgsOf<T extends Tensors, P extends Params> = {
  readonly [K in keyof T as T[K]["optional"] extends true ? never : K]: View;
} & { readonly [K in keyof T as T[K]["optional"] extends true ? K : never]?: View | null } & {
  readonly [K in keyof P]: number;
};

export interface Operation<T extends Tensors = Tensors, P extends Params = Params> {
  readonly name: string;
  readonly doc: string;
  readonly tensors: T;
  readonly params: P;
  /** Floating point operations, as an expression over the parameters. */
  readonly flops: string;
}

const ids = new Map<string, number>();

/** Gives operations their ids, 1-based in the given order: the catalogue calls this once. */
export function registerOperations(names: readonly string[]): void {
  names.forEach((name, i) => {
    ids.set(name, i + 1);
  });
}

export function operationId(op: { readonly name: string }): number {
  const id = ids.get(op.name);
  if (id === undefined) throw new Error(`operation ${op.name} is not in the catalogue`);
  return id;
}

export function sizeOf(dtype: number): number {
  return dtype === Dtype.bf16 ? 2 : dtype === MomentDtype.f8 ? 1 : 4;
}

export function ceilDiv(a: number, b: number): number {
  return Math.ceil(a / b);
}

/**
 * Elements of an [n, k] matrix as kernels read it: panels of 32 outputs. float32: [n/32][k][32];
 * bfloat16: [n/32][k/2][32][2], pairs along k. Padding is zero.
 */
export function packedLength(n: number, k: number, dtype: number): number {
  const depth = dtype === Dtype.bf16 ? ceilDiv(k, 2) * 2 : k;
  return ceilDiv(n, PANEL) * PANEL * depth;
}

/** Bytes of the codes of a quantized [n, k] matrix. nf4 needs k in whole blocks; others are sized up. */
export function quantBytes(n: number, k: number, type: number): number {
  const depth = type === QuantType.nf4 ? (ceilDiv(k, QUANT_BLOCK) * QUANT_BLOCK) / 2 : ceilDiv(k, 2) * 2;
  return ceilDiv(n, PANEL) * PANEL * depth;
}

/** Scales of a quantized [n, k] matrix, those of padding included. */
export function quantScales(n: number, k: number, type: number): number {
  return ceilDiv(n, PANEL) * PANEL * (type === QuantType.nf4 ? ceilDiv(k, QUANT_BLOCK) : 1);
}

type Evaluator = (params: Record<string, number>) => number;
const compiled = new Map<string, Evaluator>();

/** Value of a size or cost expression. */
export function evaluate(expression: string, op: Operation, params: Record<string, number>): number {
  const key = `${op.name}\n${expression}`;
  let fn = compiled.get(key);
  if (!fn) {
    const names = Object.keys(op.params);
    const body = new Function(
      "size",
      "packed_len",
      "quant_bytes",
      "quant_scales",
      "ceil_div",
      "min",
      `return ({${names.join(",")}}) => ${expression};`,
    ) as (...helpers: unknown[]) => Evaluator;
    fn = body(sizeOf, packedLength, quantBytes, quantScales, ceilDiv, Math.min);
    compiled.set(key, fn);
  }
  return fn(params);
}
