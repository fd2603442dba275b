import { assert, Stale } from "../core/errors.ts";
import type { Buffer } from "../device/device.ts";
import { Dtype, type DtypeCode, type View } from "../ops/define.ts";
import type { Arena, Block } from "./arena.ts";
import type { Node } from "./tape.ts";

/** Where a tensor's bytes lie: a range of an arena, counted by its users, or of a buffer that outlives the step. */
export class Storage {
  users = 1;
  readonly view: View;
  private constructor(
    readonly buffer: Buffer,
    readonly offset: number,
    readonly bytes: number,
    private readonly owner: { readonly arena: Arena; readonly block: Block } | null,
  ) {
    this.view = buffer.range(offset, bytes);
  }

  static inArena(arena: Arena, bytes: number): Storage {
    const block = arena.alloc(bytes);
    return new Storage(block.chunk.buffer, block.offset, bytes, { arena, block });
  }

  static inBuffer(buffer: Buffer, offset: number, bytes: number): Storage {
    return new Storage(buffer, offset, bytes, null);
  }

  retain(): this {
    this.users++;
    return this;
  }

  release(): void {
    assert(this.users > 0, "storage released twice");
    if (--this.users === 0 && this.owner) this.owner.arena.free(this.owner.block);
  }
}

/** A typed, shaped range of device memory. Step tensors end with `release`; use after that is an error. */
export class Tensor {
  /** Null once given up; a recomputable tensor gets a new one in the gradient pass. */
  storage: Storage | null;
  /** The recorded operation that wrote it. */
  producer: Node | null = null;
  requiresGrad = false;
  /** Where the gradient of a parameter accumulates. Null for step tensors and frozen parameters. */
  gradient: Storage | null = null;
  gradientDtype: DtypeCode = Dtype.f32;
  constructor(
    readonly shape: readonly number[],
    readonly dtype: DtypeCode,
    storage: Storage,
    readonly label: string,
  ) {
    this.storage = storage;
  }

  get size(): number {
    let n = 1;
    for (const d of this.shape) n *= d;
    return n;
  }

  get view(): View {
    if (!this.storage || this.storage.users === 0) {
      throw new Stale("tensor used after it was released", `${this.label} [${this.shape}]`);
    }
    return this.storage.view;
  }

  /** Elements on the host; the stream must have finished. Zeros on a device without memory. */
  float32(): Float32Array {
    assert(this.dtype === Dtype.f32, `${this.label}: not float32`);
    return new Float32Array(this.#host(this.size * 4));
  }

  uint32(): Uint32Array {
    return new Uint32Array(this.#host(this.size * 4));
  }

  #host(bytes: number): ArrayBuffer {
    void this.view;
    const { buffer, offset } = this.storage!;
    return buffer.device.hasMemory ? buffer.view(offset, bytes) : new ArrayBuffer(bytes);
  }
}
