import { existsSync } from "node:fs";
import { UsageError } from "../../core/errors.ts";
import { hashOf, RepoCache, type TreeFile } from "./cache.ts";
import { FileLock } from "./lock.ts";
import { isCommit, isSafePath, paths, type Repo } from "./repo.ts";
import { ask, type HubContext, HubError, NotOnHub, refuse, withPatience } from "./request.ts";
import { downloadBlob, type Expected, isContentHash } from "./transfer.ts";

/** Which files of a repository are wanted. */
export type Include = (path: string) => boolean;

const OFFLINE = "unset HF_HUB_OFFLINE, or fetch it with rlv download where there is a network";

export interface Cached {
  readonly folder: string;
  /** Whether it was checked against the commit's listing; older programs leave none. */
  readonly listed: boolean;
}

/**
 * The folder that the cache has of a repository's revision; null if it has none, or if wanted files are known to be
 * missing. No request is made.
 */
export function cachedSnapshot(context: HubContext, repo: Repo, include: Include): Cached | null {
  const cache = new RepoCache(context.cache, repo);
  const commit = cache.commit();
  if (commit === null || !existsSync(cache.snapshot(commit))) return null;
  const folder = cache.snapshot(commit);
  const tree = cache.tree(commit);
  if (tree === null) return { folder, listed: false };
  const wanted = [...tree.keys()].filter(include);
  return wanted.length > 0 && wanted.every((file) => cache.has(commit, file))
    ? { folder, listed: true }
    : null;
}

/**
 * The folder with the wanted files of a repository's revision as the hub has it now; what is missing is downloaded.
 * If the hub cannot be reached, what the cache has of the revision.
 */
export async function downloadSnapshot(context: HubContext, repo: Repo, include: Include): Promise<string> {
  const cached = cachedSnapshot(context, repo, include);
  if (cached !== null && (context.offline || (isCommit(repo.revision) && cached.listed)))
    return cached.folder;
  if (context.offline) throw new UsageError("not whole in the cache, and the hub is off", repo.name, OFFLINE);
  let commit: string;
  try {
    commit = await commitOf(context, repo);
  } catch (error) {
    if (cached === null || !(error instanceof HubError)) throw error;
    context.progress(`${error.message.split("\n")[0]}; taking ${repo.name} from the cache`);
    return cached.folder;
  }
  const cache = new RepoCache(context.cache, repo);
  const tree = cache.tree(commit) ?? (await list(context, repo, commit));
  cache.writeTree(commit, tree);
  cache.writeCommit(commit);
  const wanted = [...tree].filter(([path]) => include(path));
  if (wanted.length === 0)
    throw new UsageError(
      `none of its ${tree.size} files is wanted`,
      repo.name,
      "check the name and the pattern",
    );
  for (const [path] of wanted)
    if (!isSafePath(path))
      throw new UsageError(
        `the repository names a file outside its folder: ${JSON.stringify(path)}`,
        repo.name,
        "do not use this repository",
      );
  for (const [path, file] of wanted) {
    if (cache.has(commit, path)) continue;
    const hash = hashOf(file);
    if (cache.hasBlob(hash, file.lfs?.size ?? file.size)) cache.link(commit, path, hash);
    else await fetchFile(context, cache, commit, path, file);
  }
  return cache.snapshot(commit);
}

/** One file of a repository, as Python's hf_hub_download finds it: no listing is made. */
export async function downloadFile(context: HubContext, repo: Repo, file: string): Promise<string> {
  if (!isSafePath(file)) throw new UsageError("not a file of a repository", file, "give its path there");
  const cache = new RepoCache(context.cache, repo);
  const known = cache.commit();
  const here = (commit: string) => `${cache.snapshot(commit)}/${file}`;
  const missing = (commit: string) =>
    new NotOnHub(
      "the hub has no such file",
      `${repo.name}/${file}`,
      "check its name and revision",
      "file",
      commit,
    );
  if (known !== null && (context.offline || isCommit(repo.revision))) {
    if (cache.has(known, file)) return here(known);
    if (cache.lacks(known, file)) throw missing(known);
  }
  if (context.offline)
    throw new UsageError("not in the cache, and the hub is off", `${repo.name}/${file}`, OFFLINE);
  try {
    const found = await describe(context, repo, repo.revision, file);
    cache.writeCommit(found.commit);
    if (!cache.hasBlob(found.hash, found.size))
      await fetchBlob(context, cache, `${repo.name}/${file}`, found);
    return cache.link(found.commit, file, found.hash);
  } catch (error) {
    if (error instanceof NotOnHub && error.kind === "file" && error.commit !== null) {
      cache.writeLack(error.commit, file);
      cache.writeCommit(error.commit);
    }
    if (!(error instanceof HubError) || known === null || !cache.has(known, file)) throw error;
    context.progress(`${error.message.split("\n")[0]}; taking ${repo.name}/${file} from the cache`);
    return here(known);
  }
}

async function json(
  context: HubContext,
  what: string,
  address: string,
): Promise<{ body: unknown; next: string | null }> {
  return withPatience(context, what, async () => {
    const response = await ask(context, address);
    if (!response.ok) return refuse(response, what, context);
    const link = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("Link") ?? "");
    try {
      return { body: await response.json(), next: link?.[1] ?? null };
    } catch {
      throw new HubError("the hub's answer is not JSON", what, "check HF_ENDPOINT");
    }
  });
}

const oddAnswer = (what: string) =>
  new HubError("the hub's answer is not understood", what, "check HF_ENDPOINT");

async function commitOf(context: HubContext, repo: Repo): Promise<string> {
  const { body } = await json(context, `${repo.name}@${repo.revision}`, paths.revision(repo));
  const sha = (body as { sha?: unknown } | null)?.sha;
  if (typeof sha !== "string" || !isCommit(sha)) throw oddAnswer(repo.name);
  return sha;
}

/** The files of a commit, page by page. */
async function list(context: HubContext, repo: Repo, commit: string): Promise<Map<string, TreeFile>> {
  const tree = new Map<string, TreeFile>();
  for (let page: string | null = paths.tree(repo, commit); page !== null; ) {
    const { body, next } = await json(context, repo.name, page);
    if (!Array.isArray(body)) throw oddAnswer(repo.name);
    for (const entry of body as Record<string, unknown>[]) {
      if (entry.type !== "file") continue;
      const { path, size, oid } = entry;
      const lfs = entry.lfs as { oid?: unknown; size?: unknown } | undefined;
      if (typeof path !== "string" || typeof size !== "number" || typeof oid !== "string")
        throw oddAnswer(repo.name);
      const large =
        typeof lfs?.oid === "string" && typeof lfs.size === "number"
          ? { sha256: lfs.oid, size: lfs.size }
          : null;
      tree.set(path, { size, blobId: oid, lfs: large });
    }
    page = next;
  }
  return tree;
}

interface Described extends Expected {
  readonly commit: string;
  /** Where the bytes are. */
  readonly address: string;
}

/** What a HEAD request says of a file. */
async function describe(context: HubContext, repo: Repo, revision: string, file: string): Promise<Described> {
  const what = `${repo.name}/${file}`;
  const path = paths.file(repo, revision, file);
  return withPatience(context, what, async () => {
    const response = await ask(context, path, {
      method: "HEAD",
      headers: { "Accept-Encoding": "identity" },
      stayOnHub: true,
    });
    const elsewhere = response.status >= 300 && response.status < 400;
    if (!response.ok && !elsewhere) return refuse(response, what, context);
    const header = (...names: string[]) =>
      names.map((name) => response.headers.get(name)).find((value) => value !== null) ?? "";
    const commit = header("X-Repo-Commit");
    const hash = header("X-Linked-Etag", "ETag").replace(/^W\//, "").replace(/^"|"$/g, "");
    const size = header("X-Linked-Size", "Content-Length");
    if (!isCommit(commit) || !isContentHash(hash) || !/^\d+$/.test(size))
      throw new HubError("the hub does not say what the file is", what, "check HF_ENDPOINT");
    const location = elsewhere ? header("Location") : response.url || path;
    return { commit, hash, size: Number(size), address: new URL(location, response.url || undefined).href };
  });
}

async function fetchFile(
  context: HubContext,
  cache: RepoCache,
  commit: string,
  file: string,
  listed: TreeFile,
): Promise<void> {
  const what = `${cache.repo.name}/${file}`;
  const found = await describe(context, cache.repo, commit, file);
  if (found.hash !== hashOf(listed) || found.commit !== commit)
    throw new HubError("the hub describes the file and lists it differently", what, "try again later");
  await fetchBlob(context, cache, what, found);
  cache.link(commit, file, found.hash);
}

async function fetchBlob(
  context: HubContext,
  cache: RepoCache,
  what: string,
  found: Described,
): Promise<void> {
  using _lock = await FileLock.acquire(cache.lock(found.hash), () =>
    context.progress(`${what}: another process is downloading it, waiting`),
  );
  if (cache.hasBlob(found.hash, found.size)) return;
  const file = what.slice(cache.repo.name.length + 1);
  await downloadBlob(context, what, cache.blob(found.hash), found, async (again) =>
    again ? (await describe(context, cache.repo, found.commit, file)).address : found.address,
  );
}
