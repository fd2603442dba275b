import { existsSync, readFileSync } from "node:fs";
import { Unsupported, UsageError } from "../core/errors.ts";

/** A JSON object as a file holds it; fields are checked where they are read. */
export type JsonObject = Record<string, unknown>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The object in a JSON file, undefined where the file is missing. Broken JSON is the user's to mend. */
export function readJsonObject(file: string, remedy: string): JsonObject | undefined {
  if (!existsSync(file)) return undefined;
  let parsed: unknown;
  try {
    parsed = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new UsageError(`not valid JSON (${(error as Error).message})`, file, remedy);
  }
  if (!isObject(parsed)) throw new UsageError("not a JSON object", file, remedy);
  return parsed;
}

/** Reads the fields of one part of tokenizer.json and names the file in every complaint. */
export class Part {
  readonly type: string;

  constructor(
    readonly json: JsonObject,
    readonly file: string,
    readonly kind: string,
  ) {
    this.type = typeof json.type === "string" ? json.type : "";
  }

  string(name: string, fallback?: string): string {
    const value = this.json[name] ?? fallback;
    if (typeof value !== "string") this.broken(name, "a string");
    return value as string;
  }

  number(name: string, fallback?: number): number {
    const value = this.json[name] ?? fallback;
    if (typeof value !== "number") this.broken(name, "a number");
    return value as number;
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.json[name] ?? fallback;
    if (typeof value !== "boolean") this.broken(name, "true or false");
    return value as boolean;
  }

  /** The nested parts of a Sequence. */
  parts(name: string): Part[] {
    const value = this.json[name];
    if (!Array.isArray(value) || !value.every(isObject)) this.broken(name, "a list of objects");
    return (value as JsonObject[]).map((json) => new Part(json, this.file, this.kind));
  }

  /** `pattern`: {"String": …} or {"Regex": …}. */
  pattern(): { readonly text: string } | { readonly regex: string } {
    const value = this.json.pattern;
    if (isObject(value) && typeof value.String === "string") return { text: value.String };
    if (isObject(value) && typeof value.Regex === "string") return { regex: value.Regex };
    return this.broken("pattern", '{"String": …} or {"Regex": …}');
  }

  broken(name: string, expected: string): never {
    throw new UsageError(
      `${this.kind} ${this.type || "without a type"}: "${name}" must be ${expected}`,
      this.file,
      "save the tokenizer again with a current version of the tokenizers library",
    );
  }

  unknown(known: readonly string[]): never {
    throw new Unsupported(
      `unknown ${this.kind} type "${this.type}"`,
      this.file,
      `rlv reads ${known.join(", ")}; convert the tokenizer to one of these`,
    );
  }

  unsupported(what: string): never {
    throw new Unsupported(
      `${this.kind} ${this.type}: ${what} is not supported`,
      this.file,
      "use a model whose tokenizer does without it",
    );
  }
}
