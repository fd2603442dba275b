import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { temporaryName, withFileErrors, writeFileAtomic } from "../atomic.ts";
import { cacheName, isCommit, isSafePath, type Repo } from "./repo.ts";

/** A file of a repository as its listing has it. */
export interface TreeFile {
  readonly size: number;
  /** sha1 of the git blob; of an LFS file that is its pointer. */
  readonly blobId: string;
  /** sha256 and size of an LFS file's content. */
  readonly lfs: { readonly sha256: string; readonly size: number } | null;
}

/** Name of a file's blob in the cache: the hash of its content. */
export function hashOf(file: TreeFile): string {
  return file.lfs?.sha256 ?? file.blobId;
}

const TREE_FORMAT = 1;
const TAG = `Signature: 8a477f597d28d172789f06886806bc55
# This file marks a folder whose content can be downloaded again.
# For information about cache directory tags see https://bford.info/cachedir/
`;

/** A repository's part of the cache, laid out as Python's huggingface_hub lays it out and reads it. */
export class RepoCache {
  readonly folder: string;
  constructor(
    readonly root: string,
    readonly repo: Repo,
  ) {
    this.folder = join(root, cacheName(repo));
  }

  blob(hash: string): string {
    return join(this.folder, "blobs", hash);
  }

  lock(hash: string): string {
    return join(this.root, ".locks", cacheName(this.repo), `${hash}.lock`);
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }

  /** The commit of the repository's revision when it was last asked for; null if it never was. */
  commit(): string | null {
    const { revision } = this.repo;
    if (isCommit(revision)) return revision;
    const commit = read(join(this.folder, "refs", revision))?.trim();
    return commit !== undefined && isCommit(commit) ? commit : null;
  }

  writeCommit(commit: string): void {
    const { revision } = this.repo;
    if (isCommit(revision)) return;
    const path = join(this.folder, "refs", revision);
    if (read(path) !== commit) this.#write(path, commit);
  }

  /** The files of a commit; null if they were never listed. */
  tree(commit: string): ReadonlyMap<string, TreeFile> | null {
    const text = read(this.#tree(commit));
    if (text === undefined) return null;
    try {
      const { format_version, files } = JSON.parse(text) as { format_version: unknown; files: object };
      if (format_version !== TREE_FORMAT) return null;
      const entries = Object.entries(files).map(([path, file]): [string, TreeFile] => {
        const { size, blob_id, lfs_sha256, lfs_size } = file as Record<string, unknown>;
        if (typeof size !== "number" || typeof blob_id !== "string") throw new TypeError("not a listing");
        const lfs =
          typeof lfs_sha256 === "string" && typeof lfs_size === "number"
            ? { sha256: lfs_sha256, size: lfs_size }
            : null;
        return [path, { size, blobId: blob_id, lfs }];
      });
      return new Map(entries);
    } catch {
      // Another version's, or damaged: it is listed again.
      return null;
    }
  }

  writeTree(commit: string, tree: ReadonlyMap<string, TreeFile>): void {
    const files = [...tree.keys()].sort().map((path) => {
      const { size, blobId, lfs } = tree.get(path)!;
      const extra = lfs === null ? {} : { lfs_sha256: lfs.sha256, lfs_size: lfs.size };
      return [path, { size, blob_id: blobId, ...extra }];
    });
    const content = { format_version: TREE_FORMAT, files: Object.fromEntries(files) };
    this.#write(this.#tree(commit), JSON.stringify(content, null, 1));
  }

  /** Whether a file of a commit is there, content included. */
  has(commit: string, file: string): boolean {
    return isSafePath(file) && existsSync(join(this.snapshot(commit), file));
  }

  /** Whether a blob is there in full. */
  hasBlob(hash: string, size: number): boolean {
    return statSync(this.blob(hash), { throwIfNoEntry: false })?.size === size;
  }

  /** Makes a file of a commit point to its blob. */
  link(commit: string, file: string, hash: string): string {
    const path = join(this.snapshot(commit), file);
    const target = relative(dirname(path), this.blob(hash));
    withFileErrors("link", path, () => {
      if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() && readlinkSync(path) === target)
        return;
      mkdirSync(dirname(path), { recursive: true });
      const temporary = temporaryName(path, "");
      symlinkSync(target, temporary);
      renameSync(temporary, path);
    });
    return path;
  }

  /** Whether a commit is known to lack a file. */
  lacks(commit: string, file: string): boolean {
    return existsSync(join(this.folder, ".no_exist", commit, file));
  }

  writeLack(commit: string, file: string): void {
    this.#write(join(this.folder, ".no_exist", commit, file), "");
  }

  #tree(commit: string): string {
    return join(this.folder, "trees", `${commit}.json`);
  }

  #write(path: string, text: string): void {
    const tag = join(this.root, "CACHEDIR.TAG");
    withFileErrors("create folder", dirname(path), () => mkdirSync(dirname(path), { recursive: true }));
    if (!existsSync(tag)) writeFileAtomic(tag, TAG);
    writeFileAtomic(path, text);
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR" || code === "EISDIR") return undefined;
    return withFileErrors("read", path, () => {
      throw error;
    });
  }
}
