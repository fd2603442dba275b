/**
 * How an operation is defined. One definition per operation carries the whole contract: its tensors with
 * access and size, its parameters, its cost and its gradient. `scripts/gen` writes the C structs, their
 * checks and the native op table from it; the TypeScript encoder reads it directly.
 *
 * Size expressions are strings valid in both C and TypeScript. They may use the parameters and
 *   size(dt)              bytes of an element of dtype dt
 *   packed_len(n, k, dt)  elements of an [n, k] matrix in the packed layout of dtype dt
 *   ceil_div(a, b), min(a, b)
 */

/** Element types on devices. Values are part of the ABI. */
export const Dtype = { f32: 0, bf16: 1 } as const;
export type DtypeCode = (typeof Dtype)[keyof typeof Dtype];

export const PANEL = 32;
export const PAGE = 16;
export const VOCAB_TILE = 512;
export const ROW_BLOCK = 64;
export const NORM_BLOCK = 65536;
/** u32 words of one segment record: start, len, parent, pos0, page_start, cached_len, root, 0. */
export const SEGMENT_WORDS = 8;
export const NONE = 0xffffffff;

export type Access = "in" | "out" | "inout" | "scratch";

export interface TensorField {
  readonly access: Access;
  /** Bytes needed, as an expression over the parameters. */
  readonly bytes: string;
  readonly optional: boolean;
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
  (bytes: string): TensorField & { readonly access: A; readonly optional: true } => ({
    access,
    bytes,
    optional: true,
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

type Tensors = Readonly<Record<string, TensorField>>;
type Params = Readonly<Record<string, ParamType>>;

export type ArgsOf<T extends Tensors, P extends Params> = {
  readonly [K in keyof T as T[K]["optional"] extends true ? never : K]: View;
} & { readonly [K in keyof T as T[K]["optional"] extends true ? K : never]?: View | null } & {
  readonly [K in keyof P]: number;
};

/** What a gradient rule may ask for and do. Implemented by the tape. */
export interface GradContext<In extends string, Out extends string, P extends string> {
  /** A forward input or output, recomputed if its storage was given up. */
  value(name: In | Out): View;
  maybe(name: In | Out): View | null;
  param(name: P): number;
  /** Cotangent of an output; null if nothing downstream used it. */
  grad(name: Out): View | null;
  /** Whether a gradient for this input is wanted at all. */
  wants(name: In): boolean;
  /** Where to write the gradient of an input; `accumulate` tells that a partial sum is there already. */
  into(name: In): { readonly view: View; readonly accumulate: boolean };
  /** Like `into` for operations that always add: the destination holds zeros or a partial sum. */
  sum(name: In): View;
  /** Like `into` for operations that can only overwrite: a partial sum is added by the tape afterwards. */
  write(name: In): View;
  /** The gradient of `name` is this very tensor (already a cotangent or written by `write`). */
  share(name: In, view: View): void;
  /** Step memory that lives until the rule returns. */
  temp(bytes: number): View;
  emit<T2 extends Tensors, P2 extends Params>(op: OpDef<T2, P2>, args: ArgsOf<T2, P2>): void;
}

type InNames<T extends Tensors> = { [K in keyof T & string]: T[K]["access"] extends "in" ? K : never }[keyof T & string];
type OutNames<T extends Tensors> = { [K in keyof T & string]: T[K]["access"] extends "out" ? K : never }[keyof T &
  string];

export type VjpRule<T extends Tensors, P extends Params> = (
  g: GradContext<InNames<T>, OutNames<T>, keyof P & string>,
) => void;

export interface OpDef<T extends Tensors = Tensors, P extends Params = Params> {
  readonly name: string;
  readonly doc: string;
  readonly tensors: T;
  readonly params: P;
  /** Floating point operations, as an expression over the parameters. */
  readonly flops: string;
  /** `forward` operations have a gradient; `backward`, `state` and `data` operations have none by nature. */
  readonly kind: "forward" | "backward" | "state" | "data";
  /** Inputs and outputs the gradient rule reads; everything else may be given up after the forward pass. */
  readonly saves: readonly string[];
  /** Whether outputs are cheap to compute again from the inputs instead of being kept. */
  readonly recompute: boolean;
  readonly vjp: VjpRule<T, P> | null;
}

interface Common<T extends Tensors, P extends Params> {
  readonly doc: string;
  readonly tensors: T;
  readonly params: P;
  readonly flops: string;
}

/** An operation with a gradient: leaving out `vjp` or `saves` does not compile. */
export function defineForward<const T extends Tensors, const P extends Params>(
  name: string,
  def: Common<T, P> & {
    readonly saves: readonly (keyof T & string)[];
    readonly recompute?: boolean;
    readonly vjp: VjpRule<T, P>;
  },
): OpDef<T, P> {
  return { name, kind: "forward", recompute: false, ...def };
}

/** An operation without a gradient: a gradient itself, an update of state, or movement of data. */
export function defineOp<const T extends Tensors, const P extends Params>(
  name: string,
  kind: "backward" | "state" | "data",
  def: Common<T, P>,
): OpDef<T, P> {
  return { name, kind, saves: [], recompute: false, vjp: null, ...def };
}

export function sizeOf(dtype: number): number {
  return dtype === Dtype.bf16 ? 2 : 4;
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

type Evaluator = (params: Record<string, number>) => number;
const compiled = new Map<string, Evaluator>();

/** Value of a size or cost expression. */
export function evaluate(expression: string, op: OpDef, params: Record<string, number>): number {
  const key = `${op.name}\n${expression}`;
  let fn = compiled.get(key);
  if (!fn) {
    const names = Object.keys(op.params);
    const body = new Function(
      "size",
      "packed_len",
      "ceil_div",
      "min",
      `return ({${names.join(",")}}) => ${expression};`,
    ) as (...helpers: unknown[]) => Evaluator;
    fn = body(sizeOf, packedLength, ceilDiv, Math.min);
    compiled.set(key, fn);
  }
  return fn(params);
}
