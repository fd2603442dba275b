import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { RlvError } from "../core/errors.ts";
import { embeddedPage } from "./embedded.ts";

/** A file of the page, as build/web/content.json lists it. */
export interface AssetEntry {
  readonly name: string;
  readonly type: string;
  readonly bytes: number;
  readonly sha256: string;
}

export interface Asset {
  readonly type: string;
  readonly data: Uint8Array<ArrayBuffer>;
  /** For ETag. */
  readonly sha256: string;
  /** Its name contains its hash: it may be kept for ever. */
  readonly immutable: boolean;
}

const FOLDER = resolve(import.meta.dir, "../../build/web");
const REMEDY = "run ./rlv, which bundles the page, or node_modules/.bin/bun scripts/build-web.ts";

/** The files of the page by name, all in memory: a page built anew beside a running server changes nothing for it. */
export function readAssets(): ReadonlyMap<string, Asset> {
  const entries = embeddedPage ?? listed();
  return new Map(entries.map((entry) => [entry.name, read(entry)]));
}

function listed(): (AssetEntry & { readonly path: string })[] {
  const path = resolve(FOLDER, "content.json");
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    throw new RlvError("the page is not built", path, REMEDY);
  }
  const entries = JSON.parse(text) as AssetEntry[];
  return entries.map((entry) => ({ ...entry, path: resolve(FOLDER, entry.name) }));
}

function read({ name, type, sha256, path }: AssetEntry & { readonly path: string }): Asset {
  const data = new Uint8Array(readFileSync(path));
  if (createHash("sha256").update(data).digest("hex") !== sha256)
    throw new RlvError("a file of the page is damaged", path, REMEDY);
  return { type, data, sha256, immutable: name !== "index.html" };
}
