/**
 * The key-value store: pages of 16 positions per layer, counted by their users. A prefix is a list of pages that
 * nobody writes any more; sequences that continue it share its full pages and own a copy of the last, partial one.
 */
import { assert, OutOfMemory } from "../core/errors.ts";
import type { Buffer, Device } from "../device/device.ts";
import type { HeadShape, KvLayer } from "../nn/functional.ts";
import type { KvCache } from "../nn/transformer.ts";
import { kvCopy } from "../ops/attention.ts";
import { type DtypeCode, PAGE, sizeOf } from "../ops/define.ts";
import type { Graph } from "../tape/tape.ts";
import { Storage, Tensor } from "../tape/tensor.ts";

const WORTH_GIVING_BACK = 64 << 20;

export function pagesFor(tokens: number): number {
  return Math.ceil(tokens / PAGE);
}

/** Pages that a sequence of so many tokens fills: the ones that its continuations share. */
export function fullPages(tokens: number): number {
  return Math.floor(tokens / PAGE);
}

export class KvStore implements KvCache {
  readonly layers: readonly KvLayer[];
  readonly #buffers: Buffer[] = [];
  readonly #users: Uint32Array;
  #free: number[] = [];

  constructor(
    readonly device: Device,
    readonly shape: HeadShape,
    layers: number,
    readonly dtype: DtypeCode,
    readonly pages: number,
  ) {
    const bytes = pages * KvStore.pageBytes(shape, dtype);
    this.layers = Array.from({ length: layers }, (_, i) => {
      const buffer = device.buffer(bytes, `kv layer ${i}`);
      this.#buffers.push(buffer);
      return { kv: new Tensor([pages], dtype, Storage.inBuffer(buffer, 0, bytes), `kv layer ${i}`), pages };
    });
    this.#users = new Uint32Array(pages);
    for (let page = pages - 1; page >= 0; page--) this.#free.push(page);
  }

  /** Bytes of a page of one layer. */
  private static pageBytes(shape: HeadShape, dtype: DtypeCode): number {
    return shape.kvHeads * shape.headDim * 2 * PAGE * sizeOf(dtype);
  }

  /** Nobody has a page: gives large stores' memory back until the next prompt. */
  rest(): void {
    if (!this.device.hasMemory || this.#free.length < this.pages) return;
    const bytes = this.#buffers.reduce((sum, b) => sum + b.bytes, 0);
    if (bytes < WORTH_GIVING_BACK) return;
    this.device.finish();
    for (const buffer of this.#buffers) buffer.clear();
  }

  get bytes(): number {
    return this.layers.length * this.pages * KvStore.pageBytes(this.shape, this.dtype);
  }

  get freePages(): number {
    return this.#free.length;
  }

  alloc(): number {
    const page = this.#free.pop();
    if (page === undefined) throw new OutOfMemory(1, this.pages, this.pages, "kv pages");
    this.#users[page] = 1;
    return page;
  }

  retain(page: number): void {
    assert(this.#users[page]! > 0, `kv page ${page} is free`);
    this.#users[page]!++;
  }

  release(page: number): void {
    assert(this.#users[page]! > 0, `kv page ${page} is free`);
    if (--this.#users[page]! === 0) this.#free.push(page);
  }

  /** Emits copies of whole pages in every layer: pairs (source, destination). */
  copyPages(g: Graph, pairs: readonly (readonly [number, number])[]): void {
    if (pairs.length === 0) return;
    const list = g.upload(Uint32Array.from(pairs.flat()), "kv page copies");
    const { kvHeads: kv_heads, headDim: head_dim } = this.shape;
    for (const layer of this.layers) {
      g.apply(
        kvCopy,
        { kv: layer.kv, pairs: list },
        { count: pairs.length, kv_heads, head_dim, kv_pages: this.pages, dt: this.dtype },
      );
    }
    g.release(list);
  }

  dispose(): void {
    this.device.finish();
    for (const buffer of this.#buffers) buffer.free();
  }
}

/** The cached positions of one sequence. */
export class CachedSequence {
  readonly pages: number[] = [];
  length = 0;
  #frozen = false;
  constructor(readonly store: KvStore) {}

  /** Makes room for `count` more positions and returns their slots (page·16 + position mod 16). */
  extend(count: number): Uint32Array {
    assert(!this.#frozen, "a snapshot is not written any more");
    const slots = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      if (this.length % PAGE === 0) this.pages.push(this.store.alloc());
      slots[i] = this.pages[this.pages.length - 1]! * PAGE + (this.length % PAGE);
      this.length++;
    }
    return slots;
  }

  /** No more positions are added: others may share its pages. */
  snapshot(): this {
    this.#frozen = true;
    return this;
  }

  /** Gives up what lies behind the first `length` positions of a snapshot. */
  cut(length: number): this {
    assert(this.#frozen && length <= this.length, "only a snapshot is cut, to what it has");
    while (this.pages.length > pagesFor(length)) this.store.release(this.pages.pop()!);
    this.length = length;
    return this;
  }

  /**
   * `count` sequences that continue this snapshot: full pages are shared, the partial last page is copied (the
   * copies are emitted on `g`).
   */
  broadcast(g: Graph, count: number): CachedSequence[] {
    const copies: [number, number][] = [];
    const tails = Array.from({ length: count }, () => this.fork(copies));
    this.store.copyPages(g, copies);
    return tails;
  }

  /** One of them, whose copy of the partial page the caller emits with others. */
  fork(copies: [source: number, destination: number][]): CachedSequence {
    assert(this.#frozen, "broadcast needs a snapshot");
    const full = fullPages(this.length);
    const tail = new CachedSequence(this.store);
    for (let i = 0; i < full; i++) {
      this.store.retain(this.pages[i]!);
      tail.pages.push(this.pages[i]!);
    }
    if (this.length % PAGE !== 0) {
      const page = this.store.alloc();
      copies.push([this.pages[full]!, page]);
      tail.pages.push(page);
    }
    tail.length = this.length;
    return tail;
  }

  release(): void {
    for (const page of this.pages) this.store.release(page);
    this.pages.length = 0;
    this.length = 0;
  }
}
