/** What the operation table says about one operation, and how its cases are built. */

import type { Random } from "../../src/core/rng.ts";
import type { OpDef } from "../../src/ops/define.ts";
import type { Case, Mutation } from "./run.ts";
import { type Data, type Params, random, randomTensor } from "./tensors.ts";

/** A broken variant; null where it does not apply to a case. */
export interface Mutant {
  readonly name: string;
  readonly change: (c: Case) => Case | null;
}

export interface BackwardMutant {
  readonly name: string;
  /** The backward operation whose arguments it changes. */
  readonly op: string;
  readonly change: (args: Parameters<Mutation>[1], c: Case) => ReturnType<Mutation> | null;
}

export interface Refusal {
  readonly name: string;
  readonly case: string;
  readonly change: (c: Case) => Case;
}

export interface GradCase {
  readonly case: string;
  /** Outputs with a cotangent. */
  readonly from: readonly string[];
  /** Inputs whose gradient is wanted; all float inputs with a gradient if absent. */
  readonly to?: readonly string[];
  /** Size of the terms that cancel in these gradients: errors are relative to it where results are smaller. */
  readonly terms?: number;
}

export interface Row {
  readonly op: OpDef;
  readonly cases: readonly Case[];
  /** Tolerance of values in roundings of the output type; 0: bit for bit. */
  readonly slack: number;
  /** What to compare in the place of the outputs as they are stored; counts as float32. */
  readonly values?: (outputs: Readonly<Record<string, Data>>) => Record<string, Float64Array>;
  readonly mutants: readonly Mutant[];
  readonly refusals?: readonly Refusal[];
  /** Forward operations: gradients. */
  readonly grads?: {
    /** Inputs that have a gradient. */
    readonly inputs: readonly string[];
    /** Tolerance in roundings of the coarsest type of the case. */
    readonly slack: number;
    readonly cases: readonly GradCase[];
    readonly mutants: readonly BackwardMutant[];
  };
  /** Backward operations: the forward row whose gradients run it. */
  readonly coveredBy?: string;
}

export interface CaseSpec {
  readonly name: string;
  readonly params: Params;
  /** Optional tensors that are present without being given: inputs with random values, outputs. */
  readonly with?: readonly string[];
  readonly given?: (rng: Random) => Readonly<Record<string, Data | null>>;
}

/** Fills in what a case does not give: normal values for inputs, nothing for absent optional tensors. */
export function caseOf(op: OpDef, spec: CaseSpec): Case {
  const name = `${op.name} ${spec.name}`;
  const rng = random(name);
  const given = spec.given?.(rng) ?? {};
  const tensors: Record<string, Data | null> = {};
  for (const [tensor, field] of Object.entries(op.tensors)) {
    if (tensor in given) tensors[tensor] = given[tensor]!;
    else if (field.optional && !spec.with?.includes(tensor)) tensors[tensor] = null;
    else if (field.access === "in" || field.access === "inout")
      tensors[tensor] = randomTensor(op, tensor, spec.params, rng);
  }
  return { op, name, params: spec.params, tensors };
}

export const casesOf = (op: OpDef, specs: readonly CaseSpec[]) => specs.map((spec) => caseOf(op, spec));

/** A parameter multiplied. */
export function scaledParam(name: string, factor: number): Mutant["change"] {
  return (c) => ({ ...c, params: { ...c.params, [name]: c.params[name]! * factor } });
}
export function withParam(name: string, value: number): Mutant["change"] {
  return (c) => (c.params[name] === value ? null : { ...c, params: { ...c.params, [name]: value } });
}
/** An input changed; the mutant does not apply where it is absent. */
export function withTensor(name: string, change: (data: Data, c: Case) => Data | null): Mutant["change"] {
  return (c) => {
    const data = c.tensors[name];
    return data ? { ...c, tensors: { ...c.tensors, [name]: change(data, c) } } : null;
  };
}
export const swapped = (a: string, b: string): Mutant["change"] => {
  return (c) => ({ ...c, tensors: { ...c.tensors, [a]: c.tensors[b]!, [b]: c.tensors[a]! } });
};

/** Backward mutants. */
export const scaledArg = (name: string, factor: number): BackwardMutant["change"] => {
  return (args) => ({ ...args, [name]: (args[name] as number) * factor });
};
export const swappedArgs = (a: string, b: string): BackwardMutant["change"] => {
  return (args) => ({ ...args, [a]: args[b]!, [b]: args[a]! });
};
/** An optional tensor left out; does not apply where it is absent. */
export const droppedArg = (name: string): BackwardMutant["change"] => {
  return (args) => (args[name] ? { ...args, [name]: null } : null);
};
/** One tensor in the place of another of the same size. */
export const replacedArg = (name: string, by: string): BackwardMutant["change"] => {
  return (args) => (args[by] ? { ...args, [name]: args[by]! } : null);
};
