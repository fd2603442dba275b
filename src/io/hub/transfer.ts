import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  statfsSync,
} from "node:fs";
import { dirname } from "node:path";
import { RlvError } from "../../core/errors.ts";
import { fsyncDir, fsyncFile, readFully, withFileErrors, writeFully } from "../atomic.ts";
import { ask, type HubContext, HubError, Passing, refuse, withPatience } from "./request.ts";

/** What a file must turn out to be. */
export interface Expected {
  /** sha256 of the content, or sha1 of it as a git blob; also the blob's name. */
  readonly hash: string;
  readonly size: number;
}

/** Whether a hash is one that content can be checked against. */
export function isContentHash(hash: string): boolean {
  return /^([0-9a-f]{40}|[0-9a-f]{64})$/.test(hash);
}

function hasherFor({ hash, size }: Expected): Bun.CryptoHasher {
  if (hash.length === 64) return new Bun.CryptoHasher("sha256");
  return new Bun.CryptoHasher("sha1").update(`blob ${size}\0`);
}

/** The bytes of a blob that are here so far, with their hash; they stay when the process ends. */
class Partial implements Disposable {
  readonly path: string;
  readonly #fd: number;
  #hasher: Bun.CryptoHasher;
  length: number;
  /** Most bytes there ever were: going over the same again is no progress. */
  furthest: number;
  /** Whether the bytes came in more than one answer, of which one may be at fault. */
  pieced: boolean;

  constructor(
    target: string,
    readonly expected: Expected,
  ) {
    this.path = `${target}.rlv.incomplete`;
    this.#fd = withFileErrors("create", this.path, () => openSync(this.path, "a+", 0o666));
    this.length = fstatSync(this.#fd).size;
    this.#hasher = hasherFor(expected);
    if (this.length > expected.size) this.restart();
    const chunk = new Uint8Array(Math.min(1 << 20, this.length));
    for (let at = 0; at < this.length; at += chunk.length) {
      const part = chunk.subarray(0, Math.min(chunk.length, this.length - at));
      readFully(this.#fd, part, at, this.path);
      this.#hasher.update(part);
    }
    this.furthest = this.length;
    this.pieced = this.length > 0;
  }

  /** @returns whether there are more bytes now than ever before */
  append(bytes: Uint8Array): boolean {
    writeFully(this.#fd, bytes, this.path);
    this.#hasher.update(bytes);
    this.length += bytes.length;
    const further = this.length > this.furthest;
    this.furthest = Math.max(this.furthest, this.length);
    return further;
  }

  restart(): void {
    withFileErrors("write", this.path, () => ftruncateSync(this.#fd, 0));
    this.#hasher = hasherFor(this.expected);
    this.length = 0;
    this.pieced = false;
  }

  /** Of all bytes; once. */
  digest(): string {
    return this.#hasher.digest("hex");
  }

  discard(): void {
    withFileErrors("remove", this.path, () => rmSync(this.path));
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
    // Nothing arrived, or what did has its name by now.
    if (this.length === 0) rmSync(this.path, { force: true });
  }
}

/** Says how far a large file has come, every few seconds. */
class Meter {
  #since = performance.now();
  #said = performance.now();
  #arrived = 0;
  constructor(
    readonly context: HubContext,
    readonly what: string,
    readonly size: number,
  ) {}

  add(bytes: number, length: number): void {
    this.#arrived += bytes;
    const now = performance.now();
    if (now - this.#said < 3000) return;
    this.#said = now;
    const megabytes = (n: number) => (n / 1e6).toFixed(1);
    const rate = megabytes((1000 * this.#arrived) / (now - this.#since));
    this.context.progress(
      `${this.what}: ${Math.floor((100 * length) / this.size)} % of ${megabytes(this.size)} MB, ${rate} MB/s`,
    );
  }
}

/**
 * Downloads a blob to `target`: goes on where an earlier attempt or call ended, checks size and hash, and only then
 * gives the file its name. The caller holds the blob's lock.
 * @param locate where the bytes are; asked again when a signed address has expired
 */
export async function downloadBlob(
  context: HubContext,
  what: string,
  target: string,
  expected: Expected,
  locate: (again: boolean) => Promise<string>,
): Promise<void> {
  withFileErrors("create folder", dirname(target), () => mkdirSync(dirname(target), { recursive: true }));
  using partial = new Partial(target, expected);
  requireSpace(dirname(target), expected.size - partial.length);
  const meter = new Meter(context, what, expected.size);
  let address = await locate(false);
  let relocated = false;
  let again = false;
  for (;;) {
    await withPatience(context, what, async (progressed) => {
      if (partial.length === expected.size) return;
      const arrived = (bytes: number) => meter.add(bytes, partial.length);
      const expired = await receive(context, what, address, partial, (bytes, further) => {
        if (further) progressed();
        arrived(bytes);
      });
      if (!expired) return;
      if (relocated) throw new HubError("the address of the file is refused", what, "try again later");
      relocated = true;
      address = await locate(true);
      throw new Passing("its address has expired", 0);
    });
    const digest = partial.digest();
    if (digest === expected.hash) break;
    if (!partial.pieced || again) {
      partial.discard();
      throw new HubError(
        `the bytes are not those the hub announced (hash ${digest})`,
        what,
        "download it again; nothing was kept",
      );
    }
    again = true;
    partial.restart();
  }
  fsyncFile(partial.path);
  withFileErrors("write", target, () => renameSync(partial.path, target));
  fsyncDir(dirname(target));
}

/** One request for what is missing. @returns true if the address is no longer valid */
async function receive(
  context: HubContext,
  what: string,
  address: string,
  partial: Partial,
  arrived: (bytes: number, further: boolean) => void,
): Promise<boolean> {
  const { size } = partial.expected;
  const idle = new AbortController();
  const timer = setTimeout(() => idle.abort(), context.patience.idle);
  try {
    const headers: Record<string, string> = { "Accept-Encoding": "identity" };
    if (partial.length > 0) headers.Range = `bytes=${partial.length}-`;
    const response = await ask(context, address, { headers, signal: idle.signal });
    const { status } = response;
    if (status === 416 || (status === 206 && !continues(response, partial.length, size))) {
      await response.body?.cancel();
      partial.restart();
      throw new Passing(`status ${status} does not fit what is here`, 0);
    }
    if (status !== 200 && status !== 206) {
      const foreign = new URL(address, `${context.endpoint}/`).origin !== new URL(context.endpoint).origin;
      if (!foreign) return await refuse(response, what, context);
      await response.body?.cancel();
      return true;
    }
    if (status === 206) partial.pieced = true;
    else if (partial.length > 0) partial.restart();
    for await (const bytes of response.body ?? []) {
      timer.refresh();
      if (partial.length + bytes.length > size) {
        partial.discard();
        throw new HubError(`more than the ${size} bytes the hub announced`, what, "try again later");
      }
      arrived(bytes.length, partial.append(bytes));
    }
  } catch (error) {
    if (error instanceof RlvError || error instanceof Passing) throw error;
    const reason = idle.signal.aborted
      ? `nothing arrived for ${context.patience.idle / 1000} s`
      : `the connection broke (${(error as Error).message})`;
    throw new Passing(`${reason}, ${partial.length} of ${size} bytes are here`);
  } finally {
    clearTimeout(timer);
  }
  if (partial.length < size) throw new Passing(`ended after ${partial.length} of ${size} bytes`);
  return false;
}

/** Whether a partial answer begins where we end and belongs to a file of the right size. */
function continues(response: Response, from: number, size: number): boolean {
  const match = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get("Content-Range") ?? "");
  return match !== null && Number(match[1]) === from && (match[2] === "*" || Number(match[2]) === size);
}

function requireSpace(folder: string, bytes: number): void {
  const { bavail, bsize } = withFileErrors("look at", folder, () => statfsSync(folder));
  if (bavail * bsize >= bytes) return;
  throw new RlvError(
    `disk full: ${(bytes / 1e6).toFixed(1)} MB are missing and ${((bavail * bsize) / 1e6).toFixed(1)} MB are free`,
    folder,
    "free some space there or set HF_HUB_CACHE to another folder",
  );
}
