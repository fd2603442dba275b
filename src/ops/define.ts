/**
 * How an operation is defined: its wire contract (src/device/operation.ts), its cost and its gradient.
 * `scripts/gen` writes the C structs, their checks and the native op table from these definitions.
 */
import type { ArgsOf, DtypeCode, Operation, Params, Tensors, View } from "../device/operation.ts";

export * from "../core/nf4.ts";
export * from "../device/operation.ts";

/** What a gradient rule may ask for and do. Implemented by the tape. */
export interface GradContext<In extends string, Out extends string, P extends string> {
  /** A forward input or output, recomputed if its storage was given up. */
  value(name: In | Out): View;
  /** The same for an optional one; null if the operation ran without it. */
  maybe(name: In | Out): View | null;
  /** Whether the operation ran with this tensor; its value need not exist any more. */
  has(name: In | Out): boolean;
  param(name: P): number;
  /** Cotangent of an output; null if nothing downstream used it. */
  grad(name: Out): View | null;
  /** Whether a gradient for this input is wanted at all. */
  wants(name: In): boolean;
  /** Where to write the gradient of an input; `accumulate` tells that a partial sum is there already. */
  into(name: In): { readonly view: View; readonly accumulate: boolean };
  /** Like `into` for operations that always add: the destination holds zeros or a partial sum. */
  sum(name: In): View;
  /** Element type of what `sum` gives. */
  sumDtype(name: In): DtypeCode;
  /** Like `into` for operations that can only overwrite: a partial sum is added by the tape afterwards. */
  write(name: In): View;
  /** The gradient of `name` is this very tensor (already a cotangent or written by `write`). */
  share(name: In, view: View): void;
  /** Step memory that lives until the rule returns, uninitialised. */
  temp(bytes: number): View;
  /** `count` float32 zeros that live until the rule returns. */
  zeros(count: number): View;
  emit<T2 extends Tensors, P2 extends Params>(op: Operation<T2, P2>, args: ArgsOf<T2, P2>): void;
}

type InNames<T extends Tensors> = {
  [K in keyof T & string]: T[K]["access"] extends "in" ? K : never;
}[keyof T & string];
type OutNames<T extends Tensors> = {
  [K in keyof T & string]: T[K]["access"] extends "out" ? K : never;
}[keyof T & string];

export type VjpRule<T extends Tensors, P extends Params> = (
  g: GradContext<InNames<T>, OutNames<T>, keyof P & string>,
) => void;

/**
 * Running the operation once more with the same arguments yields `output` again. `alias` replaces arguments
 * in that run: by another input or output that is kept anyway, or by nothing.
 */
export interface Recompute {
  readonly output: string;
  readonly alias: Readonly<Record<string, string | null>>;
}

export interface OpDef<T extends Tensors = Tensors, P extends Params = Params> extends Operation<T, P> {
  /** `forward` operations have a gradient; `backward`, `state` and `data` operations have none by nature. */
  readonly kind: "forward" | "backward" | "state" | "data";
  /** Inputs and outputs the gradient rule reads; everything else may be given up after the forward pass. */
  readonly saves: readonly string[];
  /** How the gradient pass gets a cheap output again instead of keeping it; null: outputs are kept. */
  readonly recompute: Recompute | null;
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
    readonly recompute?: Recompute;
    readonly vjp: VjpRule<T, P>;
  },
): OpDef<T, P> {
  return { name, kind: "forward", recompute: null, ...def };
}

/** An operation without a gradient: a gradient itself, an update of state, or movement of data. */
export function defineOp<const T extends Tensors, const P extends Params>(
  name: string,
  kind: "backward" | "state" | "data",
  def: Common<T, P>,
): OpDef<T, P> {
  return { name, kind, saves: [], recompute: null, vjp: null, ...def };
}
