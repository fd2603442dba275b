import { closeSync, fstatSync, openSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { assert, shown, UsageError } from "../core/errors.ts";
import { bf16ToF32, f16ToF32 } from "../core/float-formats.ts";
import { AtomicFile, fileError, readFully, writeFileAtomic } from "./atomic.ts";
import { type Json, JsonNumber, parseStrictJson } from "./strict-json.ts";

/**
 * safetensors: uint64 length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes,
 * little-endian, row-major, without gaps. The reader takes what the reference implementation takes
 * (github.com/huggingface/safetensors, safetensors/src/tensor.rs), less what that lets slip: duplicate names
 * and a header that does not begin with `{`.
 */

/**
 * Bits of one element. The order is the reference's alignment order, and so the order of tensors in a file
 * (reversed, then by name).
 */
const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;
export type StoredDtype = keyof typeof DTYPE_BITS;
const RANK = new Map(Object.keys(DTYPE_BITS).map((dtype, rank) => [dtype, rank]));

export interface StoredTensor {
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
  /** Absolute byte offset in the file. */
  readonly begin: number;
  readonly bytes: number;
}

const MAX_HEADER_BYTES = 100_000_000;
/** Typed arrays of this runtime end at 4 GiB. */
const MAX_ARRAY_BYTES = 2 ** 32;
const REMEDY = "the file is damaged or was not written by a safetensors library; get it again";

/** Bytes of a tensor, or null where the product overflows 64 bits or does not fill whole bytes. */
function byteLength(dtype: StoredDtype, shape: readonly number[]): bigint | null {
  let count = 1n;
  for (const size of shape) {
    count *= BigInt(size);
    if (count >= 1n << 64n) return null;
  }
  const bits = count * BigInt(DTYPE_BITS[dtype]);
  return bits >= 1n << 64n || bits % 8n !== 0n ? null : bits / 8n;
}

/** An open safetensors file: its header is checked, tensors are read when asked for. */
export class SafetensorsFile implements Disposable {
  #fd: number | null;
  constructor(
    fd: number,
    readonly path: string,
    readonly metadata: Readonly<Record<string, string>>,
    /** In the order of their bytes. */
    readonly tensors: ReadonlyMap<string, StoredTensor>,
  ) {
    this.#fd = fd;
  }

  tensor(name: string): StoredTensor {
    const tensor = this.tensors.get(name);
    if (!tensor)
      throw new UsageError(`no tensor ${shown(name)}`, this.path, "check that it is the right model");
    return tensor;
  }

  /** The tensor's bytes, a copy owned by the caller. */
  read(name: string): Uint8Array {
    const { bytes } = this.tensor(name);
    this.#checkArray(name, bytes);
    const target = new Uint8Array(bytes);
    this.readInto(name, target);
    return target;
  }

  /** Fills `target` with the tensor's bytes from byte `from` on; without `from`, target takes the whole tensor. */
  readInto(name: string, target: Uint8Array, from?: number): void {
    assert(this.#fd !== null, `${this.path}: read after close`);
    const { begin, bytes } = this.tensor(name);
    const start = from ?? 0;
    assert(
      from === undefined ? target.length === bytes : start >= 0 && start + target.length <= bytes,
      `${this.path}: ${name}: ${target.length} bytes from ${start} asked of a tensor of ${bytes}`,
    );
    readFully(this.#fd, target, begin + start, this.path);
  }

  /** The values of an F32, BF16, F16 or F64 tensor as float32 (F64 rounds to nearest). */
  readFloat32(name: string): Float32Array {
    const { dtype, bytes } = this.tensor(name);
    const count = (bytes * 8) / DTYPE_BITS[dtype];
    this.#checkArray(name, count * 4);
    const values = new Float32Array(count);
    if (dtype === "F32") {
      this.readInto(name, new Uint8Array(values.buffer));
      return values;
    }
    const widen = WIDEN[dtype as keyof typeof WIDEN];
    if (!widen)
      throw new UsageError(`tensor ${shown(name)} is ${dtype}`, this.path, "expected F32, BF16, F16 or F64");
    // In pieces, so that the narrow copy never doubles the memory of a large tensor.
    const size = DTYPE_BITS[dtype] / 8;
    const piece = 1 << 20;
    const buffer = new Uint8Array(Math.min(count, piece) * size);
    for (let at = 0; at < count; at += piece) {
      const part = values.subarray(at, Math.min(count, at + piece));
      this.readInto(name, buffer.subarray(0, part.length * size), at * size);
      widen(buffer.buffer, part);
    }
    return values;
  }

  #checkArray(name: string, bytes: number): void {
    if (bytes > MAX_ARRAY_BYTES)
      throw new UsageError(`tensor ${shown(name)} takes ${bytes} bytes`, this.path, "arrays end at 4 GiB");
  }

  close(): void {
    if (this.#fd === null) return;
    closeSync(this.#fd);
    this.#fd = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

const WIDEN = {
  BF16: (from: ArrayBuffer, to: Float32Array) => bf16ToF32(new Uint16Array(from, 0, to.length), to),
  F16: (from: ArrayBuffer, to: Float32Array) => f16ToF32(new Uint16Array(from, 0, to.length), to),
  F64: (from: ArrayBuffer, to: Float32Array) => to.set(new Float64Array(from, 0, to.length)),
};

/** Opens a safetensors file and checks its whole header. Throws UsageError for every malformed file. */
export function openSafetensors(path: string): SafetensorsFile {
  const fd = openFile(path);
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new UsageError("not a regular file", path, "name a .safetensors file");
    const { text, dataBegin } = readHeader(fd, stat.size, path);
    const { metadata, tensors } = parseHeader(text, dataBegin, stat.size, path);
    return new SafetensorsFile(fd, path, metadata, tensors);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function openFile(path: string): number {
  try {
    return openSync(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT")
      throw new UsageError("no such file", path, "check the path of the model");
    throw fileError(error, "open", path);
  }
}

function readHeader(fd: number, size: number, path: string): { text: string; dataBegin: number } {
  if (size < 8)
    throw new UsageError(`file of ${size} bytes is too short for a safetensors header`, path, REMEDY);
  const prefix = new Uint8Array(8);
  readFully(fd, prefix, 0, path);
  const length = new DataView(prefix.buffer).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES)
    throw new UsageError(`header of ${length} bytes exceeds ${MAX_HEADER_BYTES}`, path, REMEDY);
  const dataBegin = 8 + Number(length);
  if (dataBegin > size)
    throw new UsageError(
      `header of ${length} bytes ends past the end of the file (${size} bytes)`,
      path,
      REMEDY,
    );
  const bytes = new Uint8Array(Number(length));
  readFully(fd, bytes, 8, path);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new UsageError("header is not UTF-8", path, REMEDY);
  }
  if (text[0] !== "{") throw new UsageError("header is not a JSON object", path, REMEDY);
  return { text, dataBegin };
}

function parseHeader(text: string, dataBegin: number, fileSize: number, path: string) {
  const header = parseStrictJson(text, path);
  if (!(header instanceof Map)) throw new UsageError("header is not a JSON object", path, REMEDY);
  let metadata: Record<string, string> = {};
  const entries: [name: string, tensor: StoredTensor][] = [];
  for (const [name, value] of header) {
    if (name === "__metadata__") metadata = parseMetadata(value, path);
    else entries.push([name, parseEntry(name, value, dataBegin, path)]);
  }
  entries.sort(([, a], [, b]) => a.begin - b.begin || a.bytes - b.bytes);
  let end = dataBegin;
  for (const [name, tensor] of entries) {
    if (tensor.begin !== end) {
      const what = tensor.begin > end ? "a gap before" : "overlapping";
      throw new UsageError(`${what} tensor ${shown(name)}`, path, REMEDY);
    }
    end += tensor.bytes;
  }
  if (end !== fileSize) {
    const what = end > fileSize ? "the file is truncated" : "bytes after the last tensor";
    throw new UsageError(`${what}: tensors end at byte ${end}, the file at ${fileSize}`, path, REMEDY);
  }
  return { metadata, tensors: new Map(entries) };
}

function parseMetadata(value: Json, path: string): Record<string, string> {
  if (value === null) return {};
  const metadata: Record<string, string> = Object.create(null);
  if (!(value instanceof Map)) throw new UsageError("__metadata__ is not an object", path, REMEDY);
  for (const [key, text] of value) {
    if (typeof text !== "string")
      throw new UsageError(`__metadata__ ${shown(key)} is not a string`, path, REMEDY);
    metadata[key] = text;
  }
  return metadata;
}

function parseEntry(name: string, value: Json, dataBegin: number, path: string): StoredTensor {
  const fail = (what: string): never => {
    throw new UsageError(`tensor ${shown(name)}: ${what}`, path, REMEDY);
  };
  if (!(value instanceof Map)) return fail("its entry is not an object");
  const dtype = value.get("dtype");
  const shape = value.get("shape");
  const offsets = value.get("data_offsets");
  if (dtype === undefined) return fail("dtype is missing");
  if (shape === undefined) return fail("shape is missing");
  if (offsets === undefined) return fail("data_offsets is missing");
  if (typeof dtype !== "string" || !RANK.has(dtype))
    return fail(`unknown dtype ${typeof dtype === "string" ? shown(dtype) : "(not a string)"}`);
  if (!Array.isArray(shape)) return fail("shape is not a list");
  if (!Array.isArray(offsets) || offsets.length !== 2) return fail("data_offsets is not a pair");
  const dims = shape.map((size) => natural(size) ?? fail("shape holds something else than a whole number"));
  const [from, to] = offsets.map(
    (offset) => natural(offset) ?? fail("data_offsets holds something else than a whole number"),
  ) as [number, number];
  if (from > to) return fail(`data_offsets [${from}, ${to}] run backwards`);
  const expected = byteLength(dtype as StoredDtype, dims);
  if (expected === null) return fail(`shape [${dims}] of ${dtype} has no byte length`);
  if (expected !== BigInt(to - from))
    return fail(`shape [${dims}] of ${dtype} takes ${expected} bytes, data_offsets give ${to - from}`);
  return { dtype: dtype as StoredDtype, shape: dims, begin: dataBegin + from, bytes: to - from };
}

/** A whole number from 0 to 2^53 - 1 as JSON spells it, else undefined. */
function natural(value: Json): number | undefined {
  if (!(value instanceof JsonNumber) || !/^[0-9]+$/.test(value.text)) return undefined;
  const number = Number(value.text);
  return Number.isSafeInteger(number) ? number : undefined;
}

/** A tensor to be written; `data` as a function is called when its turn comes, so that one is in memory at a time. */
export interface TensorSource {
  readonly name: string;
  readonly dtype: StoredDtype;
  readonly shape: readonly number[];
  readonly data: Uint8Array | (() => Uint8Array);
}

function sourceBytes(tensor: TensorSource): number {
  const bytes = byteLength(tensor.dtype, tensor.shape);
  assert(
    bytes !== null && bytes <= Number.MAX_SAFE_INTEGER,
    `tensor ${tensor.name}: no byte length for ${tensor.dtype} [${tensor.shape}]`,
  );
  return Number(bytes);
}

/** Order of strings by their UTF-8 bytes, as the reference sorts names. */
function compareUtf8(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

/**
 * Writes one file, byte for byte as the reference library does: widest dtypes first, then by name, header
 * padded with spaces to 8 bytes. Complete or absent (temporary file, sync, rename).
 */
export function writeSafetensors(
  path: string,
  tensors: Iterable<TensorSource>,
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): void {
  const sorted = [...tensors].sort(
    (a, b) => RANK.get(b.dtype)! - RANK.get(a.dtype)! || compareUtf8(a.name, b.name),
  );
  const entries: string[] = [];
  const keys = Object.keys(metadata).sort(compareUtf8);
  if (keys.length > 0)
    entries.push(
      `"__metadata__":{${keys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(metadata[key])}`).join(",")}}`,
    );
  const seen = new Set<string>(["__metadata__"]);
  let offset = 0;
  for (const tensor of sorted) {
    assert(
      !seen.has(tensor.name) && tensor.name.isWellFormed(),
      `bad or repeated tensor name ${shown(tensor.name)}`,
    );
    seen.add(tensor.name);
    const end = offset + sourceBytes(tensor);
    const info = { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [offset, end] };
    entries.push(`${JSON.stringify(tensor.name)}:${JSON.stringify(info)}`);
    offset = end;
  }
  const text = Buffer.from(`{${entries.join(",")}}`);
  const header = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8, " ");
  assert(header.length - 8 <= MAX_HEADER_BYTES, `${path}: header of ${header.length} bytes`);
  header.writeBigUInt64LE(BigInt(header.length - 8));
  text.copy(header, 8);
  using file = new AtomicFile(path);
  file.write(header);
  for (const tensor of sorted) {
    const data = typeof tensor.data === "function" ? tensor.data() : tensor.data;
    const bytes = sourceBytes(tensor);
    assert(
      data.byteLength === bytes,
      `tensor ${tensor.name}: ${data.byteLength} bytes given, ${bytes} expected`,
    );
    file.write(data);
  }
  file.commit();
}

export const SHARD_INDEX = "model.safetensors.index.json";
const OWN_FILES = /^model(-\d{5}-of-\d{5})?\.safetensors$/;

/**
 * Writes a folder's weights as transformers does: `model.safetensors`, or, beyond `maxShardBytes`, shards in
 * the order given plus an index. Weight files of an earlier save that are not part of this one are removed.
 * Returns the names of the files written.
 */
export function writeSafetensorsFolder(
  folder: string,
  tensors: Iterable<TensorSource>,
  maxShardBytes = 5_000_000_000,
): string[] {
  const shards: TensorSource[][] = [[]];
  let shardBytes = 0;
  let totalSize = 0;
  let parameters = 0;
  for (const tensor of tensors) {
    const bytes = sourceBytes(tensor);
    if (shardBytes + bytes > maxShardBytes && shards.at(-1)!.length > 0) {
      shards.push([]);
      shardBytes = 0;
    }
    shards.at(-1)!.push(tensor);
    shardBytes += bytes;
    totalSize += bytes;
    parameters += (bytes * 8) / DTYPE_BITS[tensor.dtype];
  }
  const pad = (number: number) => String(number).padStart(5, "0");
  const names = shards.map((_, i) =>
    shards.length === 1 ? "model.safetensors" : `model-${pad(i + 1)}-of-${pad(shards.length)}.safetensors`,
  );
  shards.forEach((shard, i) => {
    writeSafetensors(join(folder, names[i]!), shard);
  });
  if (shards.length > 1) {
    const map = shards.flatMap((shard, i) => shard.map((tensor) => [tensor.name, names[i]!] as const));
    map.sort(([a], [b]) => compareUtf8(a, b));
    const index = {
      metadata: { total_parameters: parameters, total_size: totalSize },
      weight_map: Object.fromEntries(map),
    };
    writeFileAtomic(join(folder, SHARD_INDEX), `${JSON.stringify(index, null, 2)}\n`);
    names.push(SHARD_INDEX);
  }
  const stale = readdirSync(folder).filter(
    (name) => (OWN_FILES.test(name) || name === SHARD_INDEX) && !names.includes(name),
  );
  for (const name of stale) rmSync(join(folder, name));
  return names;
}
