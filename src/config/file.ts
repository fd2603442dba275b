import { readFileSync } from "node:fs";
import { isMap, isScalar, LineCounter, parseDocument } from "yaml";
import { UsageError } from "../core/errors.ts";

/** One value of a config file and where it stands. */
export interface Entry {
  readonly value: unknown;
  /** `my.yaml line 3`. */
  readonly where: string;
}

/** Reads a YAML 1.2 or JSON file of keys and values. */
export function readConfigFile(path: string): Map<string, Entry> {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT") throw new UsageError("no such config file", path, "check the path");
    if (code === "EISDIR")
      throw new UsageError(
        "the config is a folder",
        path,
        "give a .yaml or .json file, or --model for a model folder",
      );
    throw new UsageError(`the config file cannot be read (${code})`, path);
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new UsageError("the config file is not UTF-8 text", path, "save it as UTF-8");
  }
  return path.endsWith(".json") ? parseJson(text, path) : parseYaml(text, path);
}

function parseJson(text: string, path: string): Map<string, Entry> {
  try {
    JSON.parse(text);
  } catch (error) {
    throw new UsageError(
      `not valid JSON (${(error as Error).message.replace(/^JSON Parse error: /, "")})`,
      path,
      "mend the file, or name it .yaml if it is YAML",
    );
  }
  // JSON is YAML 1.2; JSON.parse sees neither duplicate keys nor lines.
  return parseYaml(text, path);
}

/** Keys and values of a YAML mapping; every problem names its line. */
export function parseYaml(text: string, path: string): Map<string, Entry> {
  const lines = new LineCounter();
  const document = parseDocument(text, {
    version: "1.2",
    uniqueKeys: true,
    lineCounter: lines,
    prettyErrors: false,
    logLevel: "silent",
  });
  const problem = document.errors[0] ?? document.warnings[0];
  if (problem !== undefined) {
    const where = `${path} line ${lines.linePos(problem.pos[0]).line}`;
    if (problem.code === "DUPLICATE_KEY") {
      const key = /^[\w-]+/.exec(text.slice(problem.pos[0]).replace(/^["']/, ""))?.[0] ?? "a key";
      throw new UsageError(`${key} is given twice`, where, "keep one of them");
    }
    throw new UsageError(`not valid YAML (${problem.message.split("\n")[0]})`, where);
  }
  const root = document.contents;
  if (root === null) return new Map();
  if (!isMap(root))
    throw new UsageError("a config file holds lines of key: value", path, "see rlv train --help");
  const entries = new Map<string, Entry>();
  for (const pair of root.items) {
    const key = pair.key;
    const at = isScalar(key) && key.range ? key.range[0] : 0;
    const where = `${path} line ${lines.linePos(at).line}`;
    if (!isScalar(key) || typeof key.value !== "string")
      throw new UsageError("a config key must be a name", where, "see rlv train --help");
    const value = pair.value;
    const plain =
      value !== null && typeof value === "object" && "toJS" in value
        ? (value as { toJS(doc: unknown): unknown }).toJS(document)
        : value;
    entries.set(key.value, { value: plain, where });
  }
  return entries;
}
