/** A flag of a command, as argv.ts reads it and help.ts shows it. */
export interface Flag {
  readonly name: string;
  readonly aliases: readonly string[];
  /** May stand without a value: `--json` = `--json true`. */
  readonly boolean: boolean;
  /** Takes every following word KEY=VALUE, and may stand again: its value is those words, one a line. */
  readonly pairs?: boolean;
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
  /** What shells offer for its arguments: words for the first of them, and whether files may be any of them. */
  readonly completes?: { readonly words?: readonly string[]; readonly files?: boolean };
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
