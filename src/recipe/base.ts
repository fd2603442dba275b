/** Which folders the flags --model and --adapter mean. */
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { hubSettings } from "../core/env.ts";
import { UsageError } from "../core/errors.ts";
import { isDualFolder, readDualConfig } from "../io/dual-folder.ts";
import { cachedSnapshot } from "../io/hub/download.ts";
import { isRepoName, repoOf, repoOfSnapshot } from "../io/hub/repo.ts";
import { PATIENCE } from "../io/hub/request.ts";
import { modelFiles } from "../io/hub/wanted.ts";
import { isAdapterFolder, readAdapterConfig } from "../io/peft-folder.ts";
import { resolveBuiltin } from "./builtin.ts";

export interface ModelFolders {
  readonly model: string;
  /** A PEFT adapter of it, or none. */
  readonly adapter: string | null;
}

/**
 * The name of a model in adapter_config.json: what the hub's cache has by its name there, a folder of this machine by its
 * full path, other names as they are.
 */
export function baseName(given: string): string {
  const path = resolve(given);
  return repoOfSnapshot(path) ?? (existsSync(given) ? path : given);
}

/** A folder that holds an adapter alone brings the base it names. */
export function resolveModel(model: string, adapter: string | null): ModelFolders {
  const folder = resolveBuiltin(model);
  if (!isAdapterFolder(folder)) return { model: folder, adapter };
  if (adapter !== null)
    throw new UsageError("--model is an adapter too", folder, "give --model BASE --adapter FOLDER");
  const remedy = `give --model BASE --adapter ${folder}`;
  const { base = null } = isDualFolder(folder) ? readDualConfig(folder) : readAdapterConfig(folder);
  if (base === null) throw new UsageError("adapter_config.json names no base model", folder, remedy);
  if (base.startsWith("builtin:")) return { model: resolveBuiltin(base), adapter: folder };
  // As PEFT, from the working folder; or beside the adapter.
  const found = [resolve(base), join(folder, base), ...cachedModel(base)].find((path) =>
    existsSync(join(path, "config.json")),
  );
  if (found === undefined)
    throw new UsageError(`its base ${JSON.stringify(base)} is no model folder here`, folder, remedy);
  return { model: found, adapter: folder };
}

/** The folder of a model on the hub, if its cache has it; one or none. */
export function cachedModel(name: string): string[] {
  if (!isRepoName(name)) return [];
  const context = { ...hubSettings(), patience: PATIENCE, progress: () => {} };
  const cached = cachedSnapshot(context, repoOf(name, "model"), modelFiles);
  return cached === null ? [] : [cached.folder];
}
