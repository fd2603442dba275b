/**
 * Parameters by their Hugging Face names, in the layout kernels read. Matrices are packed (and padded with
 * zeros), vectors are float32. Weights, gradients and moments are one buffer each, so that clearing all
 * gradients is one operation.
 */
import { assert } from "../core/errors.ts";
import { f32ToBf16 } from "../core/float-formats.ts";
import type { Buffer, Device } from "../device/device.ts";
import {
  ceilDiv,
  Dtype,
  type DtypeCode,
  MOMENT_BLOCK,
  type MomentCode,
  MomentDtype,
  packedLength,
  sizeOf,
} from "../ops/define.ts";
import { cast, fill, packWeight, unpackWeight } from "../ops/elementwise.ts";
import { Storage, Tensor } from "../tape/tensor.ts";
import { decodeMoments, encodeMoments, packRows, unpackRows } from "./moments.ts";

const ALIGN = 64;
const align = (bytes: number): number => Math.ceil(bytes / ALIGN) * ALIGN;

export interface Parameter {
  readonly name: string;
  /** Shape in the model folder. */
  readonly shape: readonly number[];
  readonly matrix: boolean;
  readonly tensor: Tensor;
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

/** Row-major values in an open file. */
export interface StoredValues {
  readonly fd: number;
  readonly begin: number;
  readonly bytes: number;
  readonly dtype: DtypeCode;
}

export interface ParameterOptions {
  readonly dtype: DtypeCode;
  readonly trainable: boolean;
  /** Of matrices: moments of vectors are float32. */
  readonly momentDtype: MomentCode;
}

export class Parameters {
  readonly list: readonly Parameter[];
  readonly #byName = new Map<string, Parameter>();
  readonly #buffers: Buffer[] = [];
  readonly #gradients: Buffer | null;
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
      return { name, shape, matrix, dtype, length };
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
    const weights = layout((p) => p.length * sizeOf(p.dtype), "weights");
    const remainders = split ? layout((p) => (p.matrix ? p.length * 2 : 0), "remainders") : null;
    const gradients = options.trainable ? layout((p) => p.length * 4, "gradients") : null;
    const momentDtype = (p: (typeof plans)[number]) => (p.matrix ? options.momentDtype : Dtype.f32);
    const momentSize = (p: (typeof plans)[number]) => p.length * sizeOf(momentDtype(p));
    const firsts = options.trainable ? layout(momentSize, "first moments") : null;
    const seconds = options.trainable ? layout(momentSize, "second moments") : null;
    const scaled = options.trainable && options.momentDtype === MomentDtype.f8;
    const scaleSize = (p: (typeof plans)[number]) => (p.matrix ? ceilDiv(p.length, MOMENT_BLOCK) * 4 : 0);
    const firstScales = scaled ? layout(scaleSize, "first moments' scales") : null;
    const secondScales = scaled ? layout(scaleSize, "second moments' scales") : null;
    this.#gradients = gradients?.buffer ?? null;
    this.list = plans.map((p, i) => {
      const tensor = new Tensor(p.shape, p.dtype, weights.at(i), p.name);
      tensor.requiresGrad = options.trainable;
      tensor.gradient = gradients?.at(i) ?? null;
      const parameter: Parameter = {
        name: p.name,
        shape: p.shape,
        matrix: p.matrix,
        tensor,
        length: p.length,
        remainder: p.matrix ? (remainders?.at(i) ?? null) : null,
        gradient: tensor.gradient,
        gradientDtype: Dtype.f32,
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
  maybe(name: string): Tensor | null {
    return this.#byName.get(name)?.tensor ?? null;
  }
  /** Numbers in the model folder's sense, without padding. */
  get count(): number {
    return this.list.reduce((sum, p) => sum + p.shape.reduce((a, b) => a * b, 1), 0);
  }

  zeroGradients(): void {
    assert(this.#gradients, "frozen parameters have no gradients");
    this.device.emit(fill, { y: this.#gradients.range(), n: this.#gradients.bytes / 4, value: 0 });
  }

  /** Sets a parameter from row-major float32 values. Blocks until it is there. */
  load(name: string, values: Float32Array): void {
    const p = this.get(name);
    this.#store(values, p);
  }

  /** Sets matrices and vectors straight from files, row-major float32 or bfloat16, through one staging buffer. */
  loadStored(sources: Iterable<{ readonly name: string; readonly stored: StoredValues }>): void {
    const list = [...sources];
    if (!this.device.hasMemory || list.length === 0) return;
    const staging = this.device.buffer(Math.max(...list.map(({ stored }) => stored.bytes)), "load staging");
    try {
      for (const { name, stored } of list) {
        const p = this.get(name);
        staging.readFile(stored.fd, stored.begin, 0, stored.bytes);
        const to = p.tensor.storage!.view;
        if (p.matrix) {
          const [n, k] = [p.shape[0]!, p.shape[1]!];
          const lo = stored.dtype === Dtype.f32 ? (p.remainder?.view ?? null) : null;
          if (p.remainder && !lo) this.#clear(p.remainder);
          this.device.emit(packWeight, {
            w: to,
            lo,
            src: staging.range(),
            n,
            k,
            dt: p.tensor.dtype,
            sdt: stored.dtype,
          });
        } else {
          this.device.emit(cast, {
            y: to,
            x: staging.range(),
            n: p.length,
            dt: stored.dtype,
            ydt: Dtype.f32,
          });
        }
        this.device.finish();
      }
    } finally {
      staging.free();
    }
  }

  #clear(storage: Storage): void {
    this.device.emit(fill, { y: storage.view, n: Math.ceil(storage.bytes / 4), value: 0 });
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

  readGradient(name: string): Float32Array {
    const p = this.get(name);
    assert(p.gradient, `${name} is frozen`);
    return this.#fetch(p, p.gradient, Dtype.f32, null);
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
    const [n, k] = [p.shape[0]!, p.shape[1]!];
    const staging = this.device.buffer(n * k * 4, `${p.name} staging`);
    try {
      this.device.emit(unpackWeight, {
        dst: staging.range(),
        w: from.view,
        lo: remainder?.view ?? null,
        n,
        k,
        dt: p.tensor.dtype,
        edt,
        ddt: Dtype.f32,
      });
      this.device.finish();
      return new Float32Array(staging.view(0, n * k * 4)).slice();
    } finally {
      staging.free();
    }
  }

  #store(values: Float32Array, p: Parameter): void {
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
      this.device.emit(packWeight, {
        w: to.view,
        lo: p.remainder?.view ?? null,
        src: staging.range(),
        n,
        k,
        dt: p.tensor.dtype,
        sdt: Dtype.f32,
      });
      this.device.finish();
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
