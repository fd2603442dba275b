/**
 * Parameters by their Hugging Face names, in the layout kernels read. Matrices are packed (and padded with
 * zeros), vectors are float32. Weights, gradients and moments are one buffer each, so that clearing all
 * gradients is one operation.
 */
import { assert } from "../core/errors.ts";
import { f32ToBf16 } from "../core/float-formats.ts";
import type { Buffer, Device } from "../device/device.ts";
import { dequantize, type QuantizationScheme, roundTrip, type StoredFormat } from "../io/bitsandbytes.ts";
import type { Weights } from "../io/hf-folder.ts";
import {
  ceilDiv,
  Dtype,
  type DtypeCode,
  MOMENT_BLOCK,
  type MomentCode,
  MomentDtype,
  packedLength,
  quantBytes,
  quantScales,
  sizeOf,
} from "../ops/define.ts";
import { copy, fill, packWeight, unpackWeight } from "../ops/elementwise.ts";
import { dequantizeWeight, quantizeWeight } from "../ops/quant.ts";
import { Storage, Tensor } from "../tape/tensor.ts";
import { decodeMoments, encodeMoments, packRows, unpackRows } from "./moments.ts";
import { QuantizedWeight, type QuantPlan } from "./quantized.ts";
import { loadStored, type StoredValues } from "./stored.ts";

const ALIGN = 64;
/** Windows on large buffers: an operation counts bytes in 32 bits. */
const COPY_BYTES = 2 ** 30;
/** Least bytes of a bucket of gradients. */
const BUCKET_BYTES = 8 << 20;
/** Bytes from which giving memory back costs less than it is worth. */
const WORTH_DROPPING = 64 << 20;
const align = (bytes: number): number => Math.ceil(bytes / ALIGN) * ALIGN;

export interface Parameter {
  readonly name: string;
  /** Shape in the model folder. */
  readonly shape: readonly number[];
  readonly matrix: boolean;
  /** Elements as kernels read them; of a quantized matrix its codes. */
  readonly tensor: Tensor;
  readonly quantized: QuantizedWeight | null;
  /** What is done to plain values as they are loaded. */
  readonly scheme: QuantizationScheme | null;
  /** Elements in the device layout, padding included. */
  readonly length: number;
  /** Low 16 bits of the float32 master of a trained bfloat16 matrix. */
  readonly remainder: Storage | null;
  readonly gradient: Storage | null;
  readonly gradientDtype: DtypeCode;
  readonly moments: readonly [m: Storage, v: Storage] | null;
  readonly momentDtype: MomentCode;
  /** Scales of 8-bit moments. */
  readonly momentScales: readonly [m: Storage, v: Storage] | null;
}

export interface GradientPiece {
  readonly bytes: ArrayBuffer;
  readonly dtype: DtypeCode;
}

/** Gradients that are worth a message: their memory may be touched when nothing submitted writes to it. */
export interface GradientBucket {
  readonly parameters: readonly Tensor[];
  pieces(): Iterable<GradientPiece>;
}

export interface ParameterOptions {
  readonly dtype: DtypeCode;
  readonly trainable: boolean;
  /** Of matrices: moments of vectors are float32. */
  readonly momentDtype: MomentCode;
  /** Of the matrices that `roundsGradient` names; float32 elsewhere. Only bfloat16 weights have bfloat16 gradients. */
  readonly gradientDtype?: DtypeCode;
  readonly roundsGradient?: (name: string) => boolean;
  /** How a frozen matrix is quantized; null: it is packed. */
  readonly quantize?: (name: string, shape: readonly number[]) => QuantPlan | null;
}

export class Parameters {
  readonly list: readonly Parameter[];
  readonly #byName = new Map<string, Parameter>();
  readonly #buffers: Buffer[] = [];
  readonly #weights: Buffer;
  readonly #remainders: Buffer | null;
  readonly #gradients: Buffer | null;
  /** The gradients are zeros that take no memory. */
  #dropped = false;
  readonly bytes: { readonly weights: number; readonly gradients: number; readonly optimizer: number };

  constructor(
    readonly device: Device,
    shapes: ReadonlyMap<string, readonly number[]>,
    readonly options: ParameterOptions,
    label: string,
  ) {
    const plans = [...shapes].map(([name, shape]) => {
      const matrix = shape.length === 2;
      const dtype = matrix ? options.dtype : Dtype.f32;
      const length = matrix ? packedLength(shape[0]!, shape[1]!, dtype) : shape[0]!;
      const rounds = matrix && dtype === Dtype.bf16 && (options.roundsGradient?.(name) ?? false);
      const gradientDtype = rounds ? (options.gradientDtype ?? Dtype.f32) : Dtype.f32;
      const plan = matrix ? (options.quantize?.(name, shape) ?? null) : null;
      assert(plan === null || !options.trainable, `${name}: quantized weights are frozen`);
      const [type, scheme] = [plan?.code ?? null, plan?.scheme ?? null];
      const bytes =
        type === null
          ? length * sizeOf(dtype)
          : quantBytes(shape[0]!, shape[1]!, type) + 4 * quantScales(shape[0]!, shape[1]!, type);
      return { name, shape, matrix, dtype, length, gradientDtype, type, scheme, bytes };
    });
    const split = options.trainable && options.dtype === Dtype.bf16;
    const layout = (bytesOf: (plan: (typeof plans)[number]) => number, suffix: string) => {
      const offsets: number[] = [];
      let total = 0;
      for (const plan of plans) {
        offsets.push(total);
        total += align(bytesOf(plan));
      }
      const buffer = this.#own(device.buffer(Math.max(total, ALIGN), `${label} ${suffix}`));
      return { buffer, at: (i: number) => Storage.inBuffer(buffer, offsets[i]!, bytesOf(plans[i]!)), total };
    };
    const weights = layout((p) => p.bytes, "weights");
    const remainders = split ? layout((p) => (p.matrix ? p.length * 2 : 0), "remainders") : null;
    const gradients = options.trainable
      ? layout((p) => p.length * sizeOf(p.gradientDtype), "gradients")
      : null;
    const momentDtype = (p: (typeof plans)[number]) => (p.matrix ? options.momentDtype : Dtype.f32);
    const momentSize = (p: (typeof plans)[number]) => p.length * sizeOf(momentDtype(p));
    const firsts = options.trainable ? layout(momentSize, "first moments") : null;
    const seconds = options.trainable ? layout(momentSize, "second moments") : null;
    const scaled = options.trainable && options.momentDtype === MomentDtype.f8;
    const scaleSize = (p: (typeof plans)[number]) => (p.matrix ? ceilDiv(p.length, MOMENT_BLOCK) * 4 : 0);
    const firstScales = scaled ? layout(scaleSize, "first moments' scales") : null;
    const secondScales = scaled ? layout(scaleSize, "second moments' scales") : null;
    this.#weights = weights.buffer;
    this.#remainders = remainders?.buffer ?? null;
    this.#gradients = gradients?.buffer ?? null;
    this.list = plans.map((p, i) => {
      const storage = weights.at(i);
      const quantized =
        p.type === null
          ? null
          : new QuantizedWeight(p.name, p.shape as readonly [number, number], p.type, storage);
      const tensor = quantized?.codes ?? new Tensor(p.shape, p.dtype, storage, p.name);
      tensor.requiresGrad = options.trainable;
      tensor.gradient = gradients?.at(i) ?? null;
      tensor.gradientDtype = p.gradientDtype;
      const parameter: Parameter = {
        name: p.name,
        shape: p.shape,
        matrix: p.matrix,
        tensor,
        quantized,
        scheme: p.scheme,
        length: p.length,
        remainder: p.matrix ? (remainders?.at(i) ?? null) : null,
        gradient: tensor.gradient,
        gradientDtype: p.gradientDtype,
        moments: firsts && seconds ? [firsts.at(i), seconds.at(i)] : null,
        momentDtype: momentDtype(p),
        momentScales:
          firstScales && secondScales && p.matrix ? [firstScales.at(i), secondScales.at(i)] : null,
      };
      this.#byName.set(p.name, parameter);
      return parameter;
    });
    this.bytes = {
      weights: weights.total + (remainders?.total ?? 0),
      gradients: gradients?.total ?? 0,
      optimizer: [firsts, seconds, firstScales, secondScales].reduce((sum, l) => sum + (l?.total ?? 0), 0),
    };
  }

  #own(buffer: Buffer): Buffer {
    this.#buffers.push(buffer);
    return buffer;
  }

  get(name: string): Parameter {
    const parameter = this.#byName.get(name);
    assert(parameter, `no parameter ${name}`);
    return parameter;
  }
  tensor(name: string): Tensor {
    return this.get(name).tensor;
  }
  /** A matrix in the form that products read. */
  weight(name: string): Tensor | QuantizedWeight {
    const p = this.get(name);
    return p.quantized ?? p.tensor;
  }
  maybe(name: string): Tensor | null {
    return this.#byName.get(name)?.tensor ?? null;
  }
  /** Numbers in the model folder's sense, without padding. */
  get count(): number {
    return this.list.reduce((sum, p) => sum + p.shape.reduce((a, b) => a * b, 1), 0);
  }

  zeroGradients(): void {
    assert(this.#gradients, "frozen parameters have no gradients");
    if (!this.#dropped)
      this.device.emit(fill, { y: this.#gradients.range(), n: this.#gradients.bytes / 4, value: 0 });
    this.#dropped = false;
  }

  /** All gradients in buckets of neighbours, the last of the list first: about as a backward pass completes them. */
  gradientBuckets(): GradientBucket[] {
    const buckets: Parameter[][] = [];
    let bytes = Number.POSITIVE_INFINITY;
    for (const parameter of this.list.toReversed()) {
      if (bytes >= BUCKET_BYTES) {
        buckets.push([]);
        bytes = 0;
      }
      buckets.at(-1)!.unshift(parameter);
      bytes += parameter.gradient!.bytes;
    }
    return buckets.map((parameters) => ({
      parameters: parameters.map(({ tensor }) => tensor),
      pieces: () => this.#gradientPieces(parameters),
    }));
  }

  /** Memory of neighbours' gradients in pieces of one type each, padding included. */
  *#gradientPieces(parameters: readonly Parameter[]): Iterable<GradientPiece> {
    assert(this.#gradients, "frozen parameters have no gradients");
    let begin = parameters[0]!.gradient!.offset;
    for (const [i, { gradient, gradientDtype: dtype }] of parameters.entries()) {
      if (parameters[i + 1]?.gradientDtype === dtype) continue;
      const end = gradient!.offset + align(gradient!.bytes);
      for (; begin < end; begin += COPY_BYTES)
        yield { bytes: this.#gradients.view(begin, Math.min(COPY_BYTES, end - begin)), dtype };
      begin = end;
    }
  }

  /** The optimizer has used the gradients: large ones need no memory until the next are added up. */
  dropGradients(): void {
    if (!this.#gradients || this.#gradients.bytes < WORTH_DROPPING || !this.device.hasMemory) return;
    this.device.finish();
    this.#gradients.clear();
    this.#dropped = true;
  }

  /** Gives back the memory of frozen weights, until they are loaded again. */
  dropWeights(): void {
    assert(!this.options.trainable, "trained weights are not given back");
    this.device.finish();
    this.#weights.clear();
  }

  /** Sets a parameter from row-major float32 values. Blocks until it is there. */
  load(name: string, values: Float32Array): void {
    const p = this.get(name);
    this.#store(values, p);
  }

  /** Whether values can be taken straight from a file: not those that are rounded on the host first. */
  takesStored(name: string): boolean {
    const p = this.get(name);
    return p.scheme === null || p.quantized !== null;
  }

  /** Sets parameters straight from files, row-major float32 or bfloat16. Blocks until they are there. */
  loadStored(stored: ReadonlyMap<string, StoredValues>): void {
    // Remainders of bfloat16 values are zero: all of them at once, without touching fresh memory.
    const exact = this.list.every((p) => !p.matrix || stored.get(p.name)?.dtype === Dtype.bf16);
    if (exact) this.#remainders?.clear();
    const sources = [...stored].map(([name, values]) => ({ parameter: this.get(name), stored: values }));
    loadStored(this.device, sources, !exact);
    if (!this.device.hasMemory) return;
    for (const { parameter } of sources) parameter.quantized?.settle(parameter.scheme!);
  }

  /** Sets a matrix from the codes of a folder. Blocks until it is there. */
  loadCodes(name: string, from: Weights, format: StoredFormat): void {
    const p = this.get(name);
    if (!this.device.hasMemory) return;
    if (p.quantized) {
      this.device.finish();
      p.quantized.load(from, name, format);
    } else this.load(name, dequantize(from, name, format));
  }

  /**
   * Copies values and remainders from parameters of the same names, shapes and dtype on the same device; quantized ones
   * are dequantized, and the other way round.
   */
  copyFrom(other: Parameters): void {
    assert(
      other.device === this.device && other.options.dtype === this.options.dtype,
      "parameters are copied on one device, in one dtype",
    );
    assert(
      this.list.length === other.list.length &&
        this.list.every((p) => String(p.shape) === String(other.get(p.name).shape)),
      "parameters are copied between models of one shape",
    );
    if (!this.device.hasMemory) return;
    const alike = (a: Parameter, b: Parameter) =>
      a.quantized?.type === b.quantized?.type && (a.quantized !== null || a.scheme?.type === b.scheme?.type);
    if (!this.list.every((p) => alike(p, other.get(p.name)))) {
      for (const { name } of this.list) this.load(name, other.read(name));
      return;
    }
    this.#copy(this.#weights, other.#weights);
    if (this.#remainders) {
      assert(other.#remainders, "a frozen model has no remainders to copy");
      this.#copy(this.#remainders, other.#remainders);
    }
    this.device.finish();
  }

  #copy(to: Buffer, from: Buffer): void {
    for (let at = 0; at < to.bytes; at += COPY_BYTES) {
      const n = Math.min(COPY_BYTES, to.bytes - at);
      this.device.emit(copy, { y: to.range(at, n), x: from.range(at, n), n });
    }
  }

  /** The weights as they lie in memory, in order: equal for equal models of one dtype, on every device. */
  *packedBytes(): Iterable<Uint8Array> {
    this.device.finish();
    for (let at = 0; at < this.#weights.bytes; at += COPY_BYTES)
      yield new Uint8Array(this.#weights.view(at, Math.min(COPY_BYTES, this.#weights.bytes - at)));
  }

  /** Row-major float32 values; the exact master of a trained bfloat16 matrix. */
  read(name: string): Float32Array {
    const p = this.get(name);
    return this.#fetch(p, p.tensor.storage!, p.tensor.dtype, p.remainder);
  }

  /** Row-major values as the kernels see them: without the remainder. */
  readRounded(name: string): Float32Array {
    const p = this.get(name);
    return this.#fetch(p, p.tensor.storage!, p.tensor.dtype, null);
  }

  /** Row-major bfloat16 patterns of what the kernels see. */
  readBf16(name: string): Uint16Array {
    const p = this.get(name);
    if (!p.matrix || p.quantized) return f32ToBf16(this.readRounded(name));
    const bytes = this.#unpack(p, p.tensor.storage!, p.tensor.dtype, null, Dtype.bf16);
    return new Uint16Array(bytes);
  }

  readGradient(name: string): Float32Array {
    const p = this.get(name);
    assert(p.gradient, `${name} is frozen`);
    return this.#fetch(p, p.gradient, p.gradientDtype, null);
  }

  readMoment(name: string, which: 0 | 1): Float32Array {
    const p = this.get(name);
    assert(p.moments, `${name} is frozen`);
    const [storage, scales] = [p.moments[which], p.momentScales?.[which]];
    if (p.momentDtype !== MomentDtype.f8) return this.#fetch(p, storage, p.momentDtype, null);
    this.device.finish();
    const values = decodeMoments(
      new Uint8Array(storage.buffer.view(storage.offset, p.length)),
      floatsOf(scales!),
      which,
    );
    return unpackRows(values, p.shape[0]!, p.shape[1]!, p.tensor.dtype);
  }

  loadMoment(name: string, which: 0 | 1, values: Float32Array): void {
    const p = this.get(name);
    assert(p.moments, `${name} is frozen`);
    const storage = p.moments[which];
    const size = p.shape.reduce((a, b) => a * b, 1);
    assert(values.length === size, `${name}: ${values.length} values for shape [${p.shape}]`);
    if (!this.device.hasMemory) return;
    this.device.finish();
    // The layout is the parameter's own, whatever the type of the elements.
    const packed = p.matrix ? packRows(values, p.shape[0]!, p.shape[1]!, p.tensor.dtype) : values;
    const bytes = storage.buffer.view(storage.offset, storage.bytes);
    if (p.momentDtype === MomentDtype.f8)
      encodeMoments(packed, which, new Uint8Array(bytes), floatsOf(p.momentScales![which]));
    else if (p.momentDtype === Dtype.bf16) f32ToBf16(packed, new Uint16Array(bytes));
    else new Float32Array(bytes).set(packed);
  }

  /** Packed elements of dtype `edt` lie in the layout of the parameter's own dtype. */
  #fetch(p: Parameter, from: Storage, edt: DtypeCode, remainder: Storage | null): Float32Array {
    if (!p.matrix) {
      this.device.finish();
      return new Float32Array(from.buffer.view(from.offset, p.length * 4)).slice();
    }
    return new Float32Array(this.#unpack(p, from, edt, remainder, Dtype.f32));
  }

  /** A matrix in row-major order as elements of `ddt`: a copy. */
  #unpack(
    p: Parameter,
    from: Storage,
    edt: DtypeCode,
    remainder: Storage | null,
    ddt: DtypeCode,
  ): ArrayBuffer {
    const [n, k] = [p.shape[0]!, p.shape[1]!];
    const bytes = n * k * sizeOf(ddt);
    const staging = this.device.buffer(bytes, `${p.name} staging`);
    try {
      if (p.quantized) {
        assert(ddt === Dtype.f32, `${p.name}: quantized weights are read as float32`);
        const { codes, scales, type: qt } = p.quantized;
        const dst = staging.range();
        this.device.emit(dequantizeWeight, { dst, codes: codes.view, scales: scales.view, n, k, qt });
      } else {
        this.device.emit(unpackWeight, {
          dst: staging.range(),
          w: from.view,
          lo: remainder?.view ?? null,
          n,
          k,
          dt: p.tensor.dtype,
          edt,
          ddt,
        });
      }
      this.device.finish();
      return staging.view(0, bytes).slice(0);
    } finally {
      staging.free();
    }
  }

  #store(given: Float32Array, p: Parameter): void {
    const values = p.scheme && !p.quantized ? roundTrip(given, p.shape[1]!, p.scheme) : given;
    const to = p.tensor.storage!;
    const size = p.shape.reduce((a, b) => a * b, 1);
    assert(values.length === size, `${p.name}: ${values.length} values for shape [${p.shape}]`);
    if (!this.device.hasMemory) return;
    this.device.finish();
    if (!p.matrix) {
      new Float32Array(to.buffer.view(to.offset, p.length * 4)).set(values);
      return;
    }
    const [n, k] = [p.shape[0]!, p.shape[1]!];
    const staging = this.device.buffer(size * 4, `${p.name} staging`);
    try {
      new Float32Array(staging.view(0, size * 4)).set(values);
      if (p.quantized) {
        const codes = p.quantized.rows(0, n);
        this.device.emit(quantizeWeight, { ...codes, src: staging.range(), n, k, sdt: Dtype.f32 });
      } else {
        this.device.emit(packWeight, {
          w: to.view,
          lo: p.remainder?.view ?? null,
          src: staging.range(),
          n,
          k,
          dt: p.tensor.dtype,
          sdt: Dtype.f32,
        });
      }
      this.device.finish();
      if (p.scheme) p.quantized?.settle(p.scheme);
    } finally {
      staging.free();
    }
  }

  dispose(): void {
    this.device.finish();
    for (const buffer of this.#buffers) buffer.free();
  }
}

const floatsOf = (storage: Storage) => new Float32Array(storage.buffer.view(storage.offset, storage.bytes));
