import { type FieldInfo, fieldsOf, type Schema } from "../config/fields.ts";

/** A flag of a command, as argv.ts reads it and help.ts shows it. */
export interface Flag {
  readonly name: string;
  readonly aliases: readonly string[];
  /** May stand without a value: `--json` = `--json true`. */
  readonly boolean: boolean;
  /** What stands for the value in help; empty for a boolean. */
  readonly value: string;
  readonly description: string;
  /** Text of the default; undefined = none to show. */
  readonly fallback: string | undefined;
}

/** A command line taken apart: raw strings, typed later by the schemas. */
export interface Invocation {
  readonly args: readonly string[];
  /** By canonical name. */
  readonly flags: ReadonlyMap<string, string>;
  readonly json: boolean;
}

export interface Command {
  readonly name: string;
  /** `train [RECIPE | FILE.yaml | FILE.json]`. */
  readonly usage: string;
  /** How many positional arguments it takes. */
  readonly maxArgs: number;
  readonly summary: string;
  /** The first is the one to copy. */
  examples(argv: readonly string[]): readonly string[];
  /** Sections below the flags. */
  notes?(argv: readonly string[]): readonly string[];
  /** The flags may depend on the rest of the line: those of train are the recipe's. */
  flags(argv: readonly string[]): readonly Flag[];
  /** Returns the exit code; throws errors of core/errors.ts. */
  run(invocation: Invocation): Promise<number>;
}

export const JSON_FLAG: Flag = {
  name: "json",
  aliases: [],
  boolean: true,
  value: "",
  description: "print one JSON object on stdout; everything else goes to stderr",
  fallback: undefined,
};

/** The flags of a schema, with the values it starts from. */
export function flagsOf(schema: Schema, starting?: ReadonlyMap<string, unknown>): Flag[] {
  return fieldsOf(schema).map((info) => ({
    name: info.name,
    aliases: info.aliases,
    boolean: info.kind === "boolean" && !info.nullable,
    value: placeholder(info),
    description: info.description,
    fallback: fallbackText(starting === undefined ? info.fallback : starting.get(info.name)),
  }));
}

function placeholder(info: FieldInfo): string {
  switch (info.kind) {
    case "choice":
      return info.choices.join("|");
    case "integer":
      return "N";
    case "number":
      return "X";
    case "boolean":
      return info.nullable ? "true|false|none" : "true|false";
    case "text":
      return "TEXT";
  }
}

function fallbackText(value: unknown): string | undefined {
  if (value === undefined) return "required";
  return value === null ? "none" : String(value);
}

/** One JSON object on stdout. NaN and infinities, which JSON lacks, become null with their place on stderr. */
export function printJson(value: unknown): void {
  const lost: string[] = [];
  const json = JSON.stringify(value, (key, inner: unknown) => {
    if (typeof inner === "number" && !Number.isFinite(inner)) lost.push(`${key} = ${inner}`);
    return inner;
  });
  if (lost.length > 0) process.stderr.write(`rlv: not a number in the result: ${lost.join(", ")}\n`);
  process.stdout.write(`${json}\n`);
}
