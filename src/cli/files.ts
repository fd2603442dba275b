import { accessSync, constants, mkdirSync, readdirSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { hubSettings } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { cachedSnapshot, downloadSnapshot, type Include } from "../io/hub/download.ts";
import { isRepoName, type RepoType, repoOf } from "../io/hub/repo.ts";
import { type HubContext, PATIENCE, type Progress } from "../io/hub/request.ts";
import { datasetFiles, modelFiles } from "../io/hub/wanted.ts";
import { talk } from "./talk.ts";

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
    "give a Hugging Face model folder, or a name on the hub such as Qwen/Qwen3-0.6B",
  );
}

/** A name such as Qwen/Qwen3-0.6B, and not a path: its first part is no folder here. */
function isHubName(name: string): boolean {
  return /^[^/]+\/[^/]+$/.test(name) && isRepoName(name) && kindOf(dirname(name)) === undefined;
}

/** The folder of a repository in the cache; what it lacks is downloaded, and nothing is asked when it is whole. */
async function fromHub(name: string, type: RepoType, include: Include): Promise<string> {
  const context = hubContext(talk);
  const repo = repoOf(name, type);
  const cached = cachedSnapshot(context, repo, include);
  if (cached?.listed) return cached.folder;
  talk(`${name}: looking on the hub`);
  return downloadSnapshot(context, repo, include);
}

/** The hub as the environment describes it. */
export function hubContext(progress: Progress): HubContext {
  return { ...hubSettings(), patience: PATIENCE, progress };
}

/** The folder of a model: a folder as it is, a name on the hub by way of the cache. */
export async function findModel(name: string, key: string): Promise<string> {
  if (!isBuiltin(name) && kindOf(name) === undefined && isHubName(name))
    return fromHub(name, "model", modelFiles);
  requireFolder(name, key);
  return name;
}

/** A dataset: a file or folder as it is, a name on the hub by way of the cache. */
export async function findDataset(name: string, key: string): Promise<string> {
  if (kindOf(name) === "folder") return name;
  if (kindOf(name) === undefined && isHubName(name)) return fromHub(name, "dataset", datasetFiles);
  requireFile(name, key);
  return name;
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
