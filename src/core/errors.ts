const lineBreak = (sign: string) =>
  sign === "\n" ? "\\n" : sign === "\r" ? "\\r" : `\\u${sign.charCodeAt(0).toString(16)}`;

/** A value from a file or a flag, fit for one line of an error message. */
export function shown(value: unknown): string {
  const text =
    value === undefined ? "missing" : typeof value === "number" ? String(value) : JSON.stringify(value);
  return cut(text, 100);
}

const cut = (text: string, most: number) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
/** Characters of WHAT with a place behind it: it may hold what a foreign file says. */
const LONGEST_WHAT = 500;

/**
 * Every failure a user can meet has a class here. The message is one line:
 * WHAT: WHERE: REMEDY. The exit code follows from the class.
 */
export class RlvError extends Error {
  /** Process exit code: 1 failed, 2 usage or bad input, 3 diverged, 130 interrupted. */
  readonly exitCode: number = 1;
  constructor(what: string, where?: string, remedy?: string) {
    // What was found in a file, or its name, may have line breaks.
    super(
      [where === undefined ? what : cut(what, LONGEST_WHAT), where, remedy]
        .filter((part) => part !== undefined && part !== "")
        .join(": ")
        .replace(/[\n\r\u2028\u2029]/g, lineBreak),
    );
    this.name = new.target.name;
  }
}

/** Bad flag, bad config, bad input file: the user can mend it. */
export class UsageError extends RlvError {
  override readonly exitCode = 2;
}

/** An operation, dtype or architecture that does not exist here. Never a silent fallback. */
export class Unsupported extends UsageError {}

/** A device refused or failed an operation. */
export class DeviceError extends RlvError {}

/** A tensor or buffer used after the end of its life. */
export class Stale extends DeviceError {}

export class OutOfMemory extends DeviceError {
  constructor(
    readonly asked: number,
    readonly inUse: number,
    /** null: the system refused, no limit of ours was reached. */
    readonly budget: number | null,
    label: string,
  ) {
    super(
      `out of memory: asked ${asked} bytes, ${inUse} in use${budget === null ? "" : `, budget ${budget}`}`,
      label,
      "lower --batch_size or --micro_batch_tokens, or set --gradient_checkpointing true",
    );
  }
}

/** NaN or Inf in loss, gradient or weights. */
export class Diverged extends RlvError {
  override readonly exitCode = 3;
}

/** Slurm refused a job, or does not answer. */
export class SlurmError extends RlvError {}

export class Interrupted extends RlvError {
  override readonly exitCode = 130;
}

/** Processes that train together no longer do: one is gone, or they do not hold the same weights. */
export class RanksError extends RlvError {}

/** A broken invariant of this program, not of its input. */
export class Bug extends RlvError {}

export function assert(condition: unknown, what: string): asserts condition {
  if (!condition) throw new Bug(what, undefined, "this is a defect of rlv, please report it");
}

/** The failure that came first: what `using` throws while cleaning up after it is a consequence. */
export function firstCause(error: unknown): unknown {
  return error instanceof SuppressedError ? firstCause(error.suppressed) : error;
}

export function exitCodeOf(error: unknown): number {
  const cause = firstCause(error);
  return cause instanceof RlvError ? cause.exitCode : 1;
}

/** What went wrong, in one line. */
export function messageLine(error: unknown): string {
  const cause = firstCause(error);
  const message = cause instanceof Error ? cause.message : String(cause);
  return message.split("\n")[0]!;
}

/** The one line that the user sees. */
export function errorLine(error: unknown): string {
  return `rlv: error: ${messageLine(error)}`;
}
