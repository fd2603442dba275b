import { UsageError } from "../../core/errors.ts";

export type RepoType = "model" | "dataset";

/** A repository on the hub. */
export interface Repo {
  readonly type: RepoType;
  /** ORG/NAME, or NAME alone for the oldest ones. */
  readonly name: string;
  /** Branch, tag or commit. */
  readonly revision: string;
}

const NAME = /^[A-Za-z0-9][\w.-]*(\/[A-Za-z0-9][\w.-]*)?$/;
const COMMIT = /^[0-9a-f]{40}$/;

export function isRepoName(name: string): boolean {
  return NAME.test(name) && name.length <= 96 && !/\.\.|--|\.git$|[.-](\/|$)/.test(name);
}

export function isCommit(revision: string): boolean {
  return COMMIT.test(revision);
}

export function repoOf(name: string, type: RepoType, revision = "main"): Repo {
  if (!isRepoName(name))
    throw new UsageError("not the name of a repository", name, "names look like Qwen/Qwen3-0.6B");
  if (!isSafePath(revision))
    throw new UsageError("not a revision", revision, "give a branch, a tag or a commit");
  return { type, name, revision };
}

/** Whether a path that the hub names stays inside the folder it is put into. */
export function isSafePath(path: string): boolean {
  return (
    path.length > 0 &&
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they have no place in a file name
    !/[\\\u0000-\u001f:]/.test(path) &&
    path.split("/").every((part) => part !== "" && part !== "." && part !== "..")
  );
}

/** Folder of the repository in the cache, and of its locks. */
export function cacheName({ type, name }: Repo): string {
  return [`${type}s`, ...name.split("/")].join("--");
}

/** The name of the repository that a folder of the cache is a snapshot of; null for any other folder. */
export function repoOfSnapshot(folder: string): string | null {
  const [, name] = /(?:^|\/)models--([^/]+)\/snapshots\/[0-9a-f]{40}\/?$/.exec(folder) ?? [];
  return name?.split("--").join("/") ?? null;
}

const encoded = (path: string) => path.split("/").map(encodeURIComponent).join("/");

/** Paths on the hub. */
export const paths = {
  revision: ({ type, name, revision }: Repo) =>
    `/api/${type}s/${name}/revision/${encodeURIComponent(revision)}`,
  tree: ({ type, name }: Repo, commit: string) =>
    `/api/${type}s/${name}/tree/${commit}?recursive=true&expand=false`,
  file: ({ type, name }: Repo, revision: string, file: string) =>
    `${type === "model" ? "" : `/${type}s`}/${name}/resolve/${encodeURIComponent(revision)}/${encoded(file)}`,
};

/** A shell pattern over whole paths, as Python's fnmatch: * also matches /. A pattern that ends in / is a folder. */
export function matcher(patterns: readonly string[]): (path: string) => boolean {
  const rules = patterns.map((pattern) => {
    const whole = pattern.endsWith("/") ? `${pattern}*` : pattern;
    const source = whole.replace(
      /\[(!?)([^\]]+)\]|[\s\S]/g,
      (token, not: string, set: string | undefined) => {
        if (set !== undefined) return `[${not === "" ? "" : "^"}${set.replace(/[\\^]/g, "\\$&")}]`;
        if (token === "*") return "[\\s\\S]*";
        return token === "?" ? "[\\s\\S]" : token.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
      },
    );
    return new RegExp(`^${source}$`);
  });
  return (path) => rules.some((rule) => rule.test(path));
}
