import { assert, OutOfMemory } from "../core/errors.ts";
import type { Buffer, Device } from "../device/device.ts";

const ALIGN = 64;
const CHUNK = 8 << 20;

/** A range of an arena. Freed explicitly; the epoch tells a stale one from a reused range. */
export interface Block {
  readonly chunk: Chunk;
  readonly offset: number;
  readonly bytes: number;
}

interface Chunk {
  readonly buffer: Buffer;
  /** Free ranges, ascending, never adjacent: [offset, bytes, offset, bytes, …]. */
  free: number[];
}

/**
 * Step memory: first fit over a few large buffers. The stream runs in order and tracks byte ranges, so a range
 * may be reused as soon as the last operation on it has been emitted. With `deferred`, freed ranges come back
 * only at `settle`: for memory that the host writes directly, which no queued operation may still read.
 */
export class Arena {
  #chunks: Chunk[] = [];
  #pending: Block[] = [];
  #used = 0;
  #peak = 0;
  #capacity = 0;
  constructor(
    readonly device: Device,
    readonly label: string,
    private readonly options: { readonly limit?: number; readonly deferred?: boolean } = {},
  ) {}

  get used(): number {
    return this.#used;
  }
  get peak(): number {
    return this.#peak;
  }
  /** Bytes of the underlying buffers. */
  get capacity(): number {
    return this.#capacity;
  }

  alloc(bytes: number): Block {
    const size = Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
    for (const chunk of this.#chunks) {
      const offset = take(chunk, size);
      if (offset >= 0) return this.#account({ chunk, offset, bytes: size });
    }
    const wanted = Math.max(CHUNK, size);
    const limit = this.options.limit ?? Number.POSITIVE_INFINITY;
    if (this.#capacity + wanted > limit && this.#capacity + size > limit) {
      throw new OutOfMemory(size, this.#used, limit, this.label);
    }
    const chunk: Chunk = { buffer: this.device.buffer(wanted, this.label), free: [0, wanted] };
    this.#capacity += wanted;
    this.#chunks.push(chunk);
    return this.#account({ chunk, offset: take(chunk, size), bytes: size });
  }

  free(block: Block): void {
    if (this.options.deferred) this.#pending.push(block);
    else this.#giveBack(block);
  }

  /** The stream is idle: deferred ranges may be reused. */
  settle(): void {
    for (const block of this.#pending) this.#giveBack(block);
    this.#pending = [];
  }

  resetPeak(): void {
    this.#peak = this.#used;
  }

  dispose(): void {
    for (const chunk of this.#chunks) chunk.buffer.free();
    this.#chunks = [];
    this.#used = 0;
    this.#capacity = 0;
  }

  #account(block: Block): Block {
    this.#used += block.bytes;
    if (this.#used > this.#peak) this.#peak = this.#used;
    return block;
  }

  #giveBack(block: Block): void {
    put(block.chunk, block.offset, block.bytes);
    this.#used -= block.bytes;
  }
}

function take(chunk: Chunk, size: number): number {
  const free = chunk.free;
  for (let i = 0; i < free.length; i += 2) {
    if (free[i + 1]! < size) continue;
    const offset = free[i]!;
    if (free[i + 1] === size) free.splice(i, 2);
    else {
      free[i] = offset + size;
      free[i + 1]! -= size;
    }
    return offset;
  }
  return -1;
}

function put(chunk: Chunk, offset: number, bytes: number): void {
  const free = chunk.free;
  let i = 0;
  while (i < free.length && free[i]! < offset) i += 2;
  assert(i === 0 || free[i - 2]! + free[i - 1]! <= offset, "arena range freed twice");
  assert(i === free.length || offset + bytes <= free[i]!, "arena range freed twice");
  const joinsLeft = i > 0 && free[i - 2]! + free[i - 1]! === offset;
  const joinsRight = i < free.length && offset + bytes === free[i];
  if (joinsLeft && joinsRight) {
    free[i - 1]! += bytes + free[i + 1]!;
    free.splice(i, 2);
  } else if (joinsLeft) free[i - 1]! += bytes;
  else if (joinsRight) {
    free[i] = offset;
    free[i + 1]! += bytes;
  } else free.splice(i, 0, offset, bytes);
}
