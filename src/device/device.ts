import { threadCount } from "../core/env.ts";
import { assert, DeviceError, OutOfMemory, Stale } from "../core/errors.ts";
import { cString, type Library, lib, nativeView, type Pointer, readText, softBuilt } from "./lib.ts";
import {
  type ArgsOf,
  evaluate,
  NONE,
  type Operation,
  operationId,
  type Params,
  type ParamType,
  type TensorField,
  type Tensors,
  type View,
} from "./operation.ts";

export type DeviceName = "cpu" | "metal" | "soft" | "ref" | "null";

export interface DeviceStats {
  readonly liveBytes: number;
  readonly liveBuffers: number;
  readonly peakBytes: number;
  readonly operations: number;
  readonly batches: number;
  readonly barriers: number;
  readonly flops: number;
  readonly bytes: number;
  readonly scratchBytes: number;
  /** Peak resident memory of the process, bytes. */
  readonly residentPeak: number;
}

/** Record words are collected here and cross to the native side in one call per submit. */
const INITIAL_WORDS = 1 << 14;
/** Native code waits so long at a time. */
const SLICE_MS = 50;

interface Encoder {
  readonly id: number;
  readonly words: number;
  readonly tensors: readonly [name: string, field: TensorField][];
  readonly params: readonly [name: string, type: ParamType][];
}
const encoders = new Map<Operation, Encoder>();

function encoderOf(op: Operation): Encoder {
  let encoder = encoders.get(op);
  if (!encoder) {
    const tensors = Object.entries(op.tensors);
    const params = Object.entries(op.params);
    encoder = { id: operationId(op), words: 1 + 3 * tensors.length + params.length, tensors, params };
    encoders.set(op, encoder);
  }
  return encoder;
}

/** Sees what a device is given: operations, and data that the host wrote for them. */
export interface Trace {
  emitted(op: Operation, args: Readonly<Record<string, unknown>>): void;
  /** `offset` in units of 16 bytes. */
  uploaded(buffer: number, offset: number, data: Uint8Array): void;
}

/** An open device: buffers, one ordered stream of operations, statistics. */
export class Device {
  readonly handle: number;
  readonly library: Library;
  readonly info: Readonly<Record<string, unknown>>;
  trace: Trace | null = null;
  #words = new Uint32Array(INITIAL_WORDS);
  #floats = new Float32Array(this.#words.buffer);
  #count = 0;
  #ticket = 0;
  #closed = false;

  private constructor(
    readonly name: DeviceName,
    handle: number,
    library: Library,
  ) {
    this.handle = handle;
    this.library = library;
    const info = readText((out, n) => library.rlv_info(handle, out, n));
    try {
      this.info = info === "" ? this.throwError() : JSON.parse(info);
    } catch (error) {
      library.rlv_close(handle);
      throw error;
    }
  }

  /** Whether this is a Mac with Apple silicon. */
  static readonly metalIsHere = process.platform === "darwin" && process.arch === "arm64";

  /** What can be opened here. */
  static available(): DeviceName[] {
    return [
      "cpu",
      ...(Device.metalIsHere ? ["metal" as const] : []),
      ...(softBuilt() ? ["soft" as const] : []),
      "ref",
      "null",
    ];
  }

  /** "name cpu, isa avx512, threads 2", for logs. */
  describe(): string {
    return Object.entries(this.info)
      .map(([key, value]) => `${key} ${value}`)
      .join(", ");
  }

  /** threads null: RLV_THREADS, Slurm's grant, or every core. */
  static open(name: DeviceName = "cpu", threads: number | null = null): Device {
    const wanted = threadCount(threads);
    const library = lib(name === "soft" ? "soft" : "native");
    const handle = library.rlv_open(cString(name), wanted);
    if (handle === 0) throw new DeviceError(readText((out, n) => library.rlv_error(0, out, n)));
    return new Device(name, handle, library);
  }

  /** A GPU is handed several decoding steps at once: it should not wait for the host after each. */
  get isGpu(): boolean {
    return this.name === "metal" || this.name === "soft";
  }

  get hasMemory(): boolean {
    return this.name !== "null";
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.library.rlv_close(this.handle);
  }

  /** A zeroed buffer of at least `bytes`. */
  buffer(bytes: number, label: string): Buffer {
    this.#open();
    const units = Math.max(1, Math.ceil(bytes / 16));
    assert(units < 2 ** 32, `${label}: ${bytes} bytes`);
    const handle = this.library.rlv_buffer_new(this.handle, units, cString(label));
    if (handle === 0) {
      const stats = this.stats();
      throw new OutOfMemory(bytes, stats.liveBytes, null, label);
    }
    return new Buffer(this, handle, units * 16, label);
  }

  /**
   * Bytes of a file as a buffer that operations read without a copy, at any offset; null where this device, the
   * system or the file does not allow it: then `Buffer.readFile` is the way, and says what is wrong with the file.
   */
  mapFile(fd: number, from: number, bytes: number, label: string): Buffer | null {
    this.#open();
    const handle = this.library.rlv_map_file(this.handle, fd, from, bytes, cString(label));
    return handle === 0 ? null : new Buffer(this, handle, Math.ceil(bytes / 16) * 16, label);
  }

  /** Appends one operation to the stream; it runs after `submit`. */
  emit<T extends Tensors, P extends Params>(op: Operation<T, P>, args: ArgsOf<T, P>): void {
    const encoder = encoderOf(op as unknown as Operation);
    this.trace?.emitted(op as unknown as Operation, args);
    if (this.#count + encoder.words > this.#words.length) this.#grow(encoder.words);
    this.#count = encode(
      encoder,
      op.name,
      args as Record<string, unknown>,
      this.#words,
      this.#floats,
      this.#count,
    );
  }

  /** Hands the collected operations to the device. Returns at once, a ticket of all that was emitted so far. */
  submit(): number {
    this.#open();
    if (this.#count === 0) return this.#ticket;
    const ticket = this.library.rlv_submit(this.handle, this.#words, this.#count);
    this.#count = 0;
    if (ticket === 0) this.throwError();
    this.#ticket = ticket;
    return ticket;
  }

  /** Waits at most `milliseconds` for what a ticket stands for; whether it is done. */
  reached(ticket: number, milliseconds = SLICE_MS): boolean {
    if (ticket === 0) return true;
    const state = this.library.rlv_wait(this.handle, ticket, milliseconds);
    if (state === 2) this.throwError();
    return state === 0;
  }

  /** Submits and waits until everything is done, in slices so that signals are not lost. */
  finish(): void {
    const ticket = this.submit();
    while (!this.reached(ticket));
  }

  stats(): DeviceStats {
    const out = new Float64Array(10);
    this.library.rlv_stats(this.handle, out, out.length);
    return {
      liveBytes: out[0]!,
      liveBuffers: out[1]!,
      peakBytes: out[2]!,
      operations: out[3]!,
      batches: out[4]!,
      barriers: out[5]!,
      flops: out[6]!,
      bytes: out[7]!,
      scratchBytes: out[8]!,
      residentPeak: out[9]!,
    };
  }

  /** Rows of {calls, ns, flops, bytes} by operation id since profiling was switched on. */
  profile(enable: boolean, operations: number): Float64Array {
    const out = new Float64Array(4 * (operations + 1));
    this.library.rlv_profile(this.handle, out, out.length, enable ? 1 : 0);
    return out;
  }

  /** Measured limit: float32 or bfloat16 GFLOP/s, or GB/s of streaming reads, with all threads. */
  measure(what: "f32" | "bf16" | "read", seconds = 0.2): number {
    const measured = this.library.rlv_measure(this.handle, { f32: 0, bf16: 1, read: 2 }[what], seconds);
    // Devices that compute nothing have no limit, and no error.
    const text = measured === 0 ? this.#takeError() : "";
    if (text !== "") throw new DeviceError(text);
    return measured;
  }

  /** Bytes of the process that `measure("read")` keeps from its first run on; 0 if it gives them back. */
  get measureBytes(): number {
    return this.library.rlv_measure(this.handle, 3, 0);
  }

  /** Complex-step gradient of one forward operation; `ref` device only. Views by tensor name. */
  vjp<T extends Tensors, P extends Params>(
    op: Operation<T, P>,
    args: ArgsOf<T, P>,
    cotangents: Readonly<Record<string, View>>,
    gradients: Readonly<Record<string, View>>,
  ): void {
    this.finish();
    const encoder = encoderOf(op as unknown as Operation);
    const words = new Uint32Array(encoder.words);
    encode(encoder, op.name, args as Record<string, unknown>, words, new Float32Array(words.buffer), 0);
    const refs = (views: Readonly<Record<string, View>>) => {
      const out = new Uint32Array(3 * encoder.tensors.length);
      encoder.tensors.forEach(([name], i) => {
        const view = views[name];
        if (view) out.set([view.buffer, view.offset, view.length], 3 * i);
      });
      return out;
    };
    const status = this.library.rlv_ref_vjp(
      this.handle,
      words,
      words.length,
      refs(cotangents),
      refs(gradients),
    );
    if (status !== 0) this.throwError();
  }

  #grow(more: number): void {
    const words = new Uint32Array(Math.max(this.#words.length * 2, this.#count + more));
    words.set(this.#words.subarray(0, this.#count));
    this.#words = words;
    this.#floats = new Float32Array(words.buffer);
  }

  /** Takes the device's first error and throws it. */
  throwError(): never {
    const text = this.#takeError();
    throw text.includes("stale handle") ? new Stale(text) : new DeviceError(text || "the device failed");
  }

  #takeError(): string {
    return readText((out, n) => this.library.rlv_error(this.handle, out, n));
  }

  #open(): void {
    assert(!this.#closed, `device ${this.name} is closed`);
  }
}

function encode(
  encoder: Encoder,
  name: string,
  args: Record<string, unknown>,
  words: Uint32Array,
  floats: Float32Array,
  start: number,
): number {
  let at = start;
  words[at++] = encoder.id | (encoder.words << 16);
  for (const [tensor, field] of encoder.tensors) {
    const view = args[tensor] as View | null | undefined;
    if (!view) {
      assert(field.optional, `[${name}] ${tensor} is missing`);
      words[at] = words[at + 1] = words[at + 2] = 0;
    } else {
      words[at] = view.buffer;
      words[at + 1] = view.offset;
      words[at + 2] = view.length;
    }
    at += 3;
  }
  for (const [param, type] of encoder.params) {
    const value = args[param];
    if (typeof value !== "number")
      throw new DeviceError(`[${name}] ${param}: expected a number, got ${value}`);
    if (type === "f32") floats[at++] = value;
    else {
      assert(
        Number.isInteger(value) && value >= 0 && value <= NONE,
        `[${name}] ${param}: ${value} is not a u32`,
      );
      words[at++] = value;
    }
  }
  return at;
}

/** Bytes an operation's tensor needs for given parameters. */
export function bytesNeeded(op: Operation, tensor: string, params: Record<string, number>): number {
  return evaluate(op.tensors[tensor]!.bytes, op, params);
}

/** Native memory, or the pages of a file, owned by whoever created it; freed explicitly. */
export class Buffer {
  #address: Pointer | null = null;
  #freed = false;
  constructor(
    readonly device: Device,
    readonly handle: number,
    readonly bytes: number,
    readonly label: string,
  ) {}

  /** A window on the bytes; valid until `free`. The stream must be idle when both sides touch the same range. */
  view(offset = 0, bytes = this.bytes - offset): ArrayBuffer {
    if (this.#freed) throw new Stale("buffer used after it was freed", this.label);
    assert(offset >= 0 && offset + bytes <= this.bytes, `${this.label}: view [${offset}, ${offset + bytes})`);
    if (this.#address === null) {
      const address = this.device.library.rlv_buffer_ptr(this.device.handle, this.handle);
      assert(
        address !== null && Number(address) !== 0,
        `${this.label}: no memory on device ${this.device.name}`,
      );
      this.#address = address as Pointer;
    }
    return nativeView(this.#address!, offset, bytes);
  }

  /** Fills [offset, offset+bytes) from a file. Bytes go from the page cache to their place without a stop. */
  readFile(fd: number, from: number, offset: number, bytes: number): void {
    if (this.#freed) throw new Stale("buffer used after it was freed", this.label);
    assert(offset % 16 === 0 && offset + bytes <= this.bytes, `${this.label}: read of ${bytes} at ${offset}`);
    if (
      this.device.library.rlv_read_file(this.device.handle, this.handle, offset / 16, fd, from, bytes) !== 0
    ) {
      this.device.throwError();
    }
  }

  /** Makes every byte zero, at once; what was never written costs nothing. */
  clear(): void {
    if (this.#freed) throw new Stale("buffer used after it was freed", this.label);
    this.device.submit();
    if (this.device.library.rlv_buffer_clear(this.device.handle, this.handle) !== 0) this.device.throwError();
  }

  /** The byte range [offset, offset+bytes) as an operation's argument. */
  range(offset = 0, bytes = this.bytes - offset): View {
    return { buffer: this.handle, offset: offset / 16, length: Math.ceil(bytes / 16) };
  }

  free(): void {
    if (this.#freed) return;
    this.#freed = true;
    this.#address = null;
    this.device.library.rlv_buffer_free(this.device.handle, this.handle);
  }
}

/** Forces a file's data to the medium; on macOS fsync alone does not. */
export function fullSync(fd: number): void {
  const code = lib().rlv_fullsync(fd);
  if (code !== 0) throw new DeviceError(`sync failed with errno ${code}`);
}
