import * as z from "zod";

/**
 * A config key is declared once, as a zod type with a default, a description and its other names; flags, help,
 * typing of raw strings and error messages are all read back from that declaration here.
 */
export interface FieldOptions {
  /** Other names under which the same key is accepted, as a flag and in a file. */
  readonly aliases?: readonly string[];
}

/** A key with a default. */
export function field<T extends z.ZodType>(
  type: T,
  fallback: z.output<T>,
  description: string,
  options: FieldOptions = {},
) {
  return type
    .default(fallback as never)
    .meta({ description, aliases: options.aliases ?? [] }) as z.ZodDefault<T>;
}

/** A key that must be given. */
export function required<T extends z.ZodType>(type: T, description: string, options: FieldOptions = {}): T {
  return type.meta({ description, aliases: options.aliases ?? [] }) as T;
}

/** `none` on the command line, null in a file. */
export function orNone<T extends z.ZodType>(type: T) {
  return z.nullable(type);
}

export const int = (least: number, most?: number) => {
  const type = z.number().int().min(least);
  return most === undefined ? type : type.max(most);
};
/** 0 included. */
export const nonNegative = () => z.number().min(0);
export const positive = () => z.number().gt(0);
/** From 0 to 1, both included. */
export const fraction = () => z.number().min(0).max(1);
export const text = () => z.string().min(1);

export type FieldKind = "number" | "integer" | "boolean" | "choice" | "text" | "rewards" | "detector";

export interface FieldInfo {
  readonly name: string;
  readonly kind: FieldKind;
  /** Of a choice. */
  readonly choices: readonly string[];
  /** Accepts none. */
  readonly nullable: boolean;
  /** undefined: the key must be given. */
  readonly fallback: unknown;
  readonly description: string;
  readonly aliases: readonly string[];
  /** What a valid value is, in words: "a number above 0". */
  readonly expects: string;
}

export type Schema = z.ZodObject;

/** Every key of a schema in the order of declaration. */
export function fieldsOf(schema: Schema): FieldInfo[] {
  return Object.entries(schema.shape).map(([name, type]) => describe(name, type as z.ZodType));
}

function describe(name: string, declared: z.ZodType): FieldInfo {
  const meta = z.globalRegistry.get(declared) as { description?: string; aliases?: string[] } | undefined;
  let type: z.ZodType = declared;
  let fallback: unknown;
  let nullable = false;
  for (;;) {
    if (type instanceof z.ZodDefault) {
      fallback = type.def.defaultValue;
      type = type.def.innerType as z.ZodType;
    } else if (type instanceof z.ZodNullable) {
      nullable = true;
      type = type.def.innerType as z.ZodType;
    } else break;
  }
  const kind = kindOf(name, type);
  const choices = type instanceof z.ZodEnum ? type.options.map(String) : [];
  const words = kind === "choice" ? `one of ${choices.join(", ")}` : wordsOf(kind, type);
  return {
    name,
    kind,
    choices,
    nullable,
    fallback,
    description: meta?.description ?? "",
    aliases: meta?.aliases ?? [],
    expects: nullable ? `${words}, or none` : words,
  };
}

function kindOf(name: string, type: z.ZodType): FieldKind {
  if (type instanceof z.ZodNumber) return type.isInt ? "integer" : "number";
  if (type instanceof z.ZodBoolean) return "boolean";
  if (type instanceof z.ZodEnum) return "choice";
  if (type instanceof z.ZodString) return "text";
  if (type instanceof z.ZodArray) return "rewards";
  if (type instanceof z.ZodObject) return "detector";
  throw new Error(`config key ${name} has a type that flags cannot carry: ${type.def.type}`);
}

function wordsOf(kind: FieldKind, type: z.ZodType): string {
  if (kind === "boolean") return "true or false";
  if (kind === "text") return "text";
  if (kind === "rewards") return "names of rewards";
  if (kind === "detector") return "the name of a detector";
  const bounds = boundsOf(type);
  const noun = kind === "integer" ? "a whole number" : "a number";
  if (bounds.least && bounds.most) {
    const range = `from ${bounds.least.value} to ${bounds.most.value}`;
    return bounds.least.inclusive
      ? `${noun} ${range}`
      : `${noun} above ${bounds.least.value} up to ${bounds.most.value}`;
  }
  if (bounds.least)
    return bounds.least.inclusive
      ? `${noun}, at least ${bounds.least.value}`
      : `${noun} above ${bounds.least.value}`;
  return noun;
}

interface Bound {
  readonly value: number;
  readonly inclusive: boolean;
}

function boundsOf(type: z.ZodType): { least?: Bound; most?: Bound } {
  const found: { least?: Bound; most?: Bound } = {};
  for (const check of type.def.checks ?? []) {
    const def = check._zod.def as { check: string; value?: number; inclusive?: boolean };
    if (def.value === undefined) continue;
    const bound = { value: def.value, inclusive: def.inclusive === true };
    if (def.check === "greater_than") found.least = bound;
    if (def.check === "less_than") found.most = bound;
  }
  return found;
}

const DECIMAL = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;

/**
 * Types the raw string of a flag by its field. What does not fit is returned as it came, so that the schema
 * rejects it with the same message as a wrong value in a file.
 */
export function typed(info: FieldInfo, raw: string): unknown {
  if (info.nullable && (raw === "none" || raw === "null")) return null;
  if (info.kind === "number" || info.kind === "integer") return DECIMAL.test(raw) ? Number(raw) : raw;
  if (info.kind === "boolean") return raw === "true" ? true : raw === "false" ? false : raw;
  return raw;
}
