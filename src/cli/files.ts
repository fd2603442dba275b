import { accessSync, constants, mkdirSync, readdirSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { UsageError } from "../core/errors.ts";

/** Files inside rlv are named builtin:…; the recipe that owns them resolves the name. */
export function isBuiltin(path: string): boolean {
  return path.startsWith("builtin:");
}

function kindOf(path: string): "file" | "folder" | undefined {
  try {
    const stat = statSync(path);
    return stat.isDirectory() ? "folder" : "file";
  } catch {
    return undefined;
  }
}

/** A readable input file, checked before anything heavy. */
export function requireFile(path: string, key: string): void {
  if (isBuiltin(path)) return;
  const kind = kindOf(path);
  if (kind === undefined) throw new UsageError(`no such file for --${key}`, path, "check the path");
  if (kind === "folder")
    throw new UsageError(`--${key} needs a file and this is a folder`, path, "check the path");
  try {
    accessSync(path, constants.R_OK);
  } catch {
    throw new UsageError(`the file for --${key} cannot be read (permission denied)`, path);
  }
}

/** A model or tokenizer folder; what is in it is checked by its loader. */
export function requireFolder(path: string, key: string): void {
  if (isBuiltin(path)) return;
  const kind = kindOf(path);
  if (kind === "folder") return;
  throw new UsageError(
    kind === undefined ? `no such folder for --${key}` : `--${key} needs a folder and this is a file`,
    path,
    "give a Hugging Face model folder on this machine",
  );
}

/** The folder of an output file: made if missing, writable; the file is not the input. */
export function requireOutput(path: string, key: string, input: string): void {
  if (resolve(path) === resolve(input))
    throw new UsageError(`--${key} would overwrite its own input`, path, "choose another file");
  if (kindOf(path) === "folder") throw new UsageError(`--${key} needs a file and this is a folder`, path);
  const folder = dirname(resolve(path));
  try {
    mkdirSync(folder, { recursive: true });
    accessSync(folder, constants.W_OK | constants.X_OK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    throw new UsageError(
      `the folder of --${key} cannot be written (${code})`,
      folder,
      "choose another folder",
    );
  }
}

/** A folder to be written, absent or empty: nothing that is there gets lost or mixed with what comes. */
export function requireNewFolder(path: string, key: string): void {
  const kind = kindOf(path);
  if (kind === "file") throw new UsageError(`--${key} needs a folder and this is a file`, path);
  if (kind === "folder" && readdirSync(path).length > 0)
    throw new UsageError(`the folder for --${key} is not empty`, path, "choose another folder");
}
