/**
 * Parameters straight from files: matrices are packed from the mapped pages where the device can read those, else
 * from a staging buffer, a piece at a time, so that a load needs little memory beyond the weights themselves.
 */
import { DeviceError } from "../core/errors.ts";
import type { Buffer, Device } from "../device/device.ts";
import type { View } from "../device/operation.ts";
import { Dtype, type DtypeCode, PANEL, packedLength, sizeOf } from "../ops/define.ts";
import { cast, packWeight } from "../ops/elementwise.ts";
import { quantizeWeight } from "../ops/quant.ts";
import type { Parameter } from "./parameters.ts";

/** Row-major values in an open file. */
export interface StoredValues {
  readonly fd: number;
  readonly path: string;
  readonly begin: number;
  readonly bytes: number;
  readonly dtype: DtypeCode;
}

/** Bytes of files that are in memory for one batch of operations; the next batch is fetched while it runs. */
const BATCH_BYTES = 32 << 20;

/** Whole panels of a matrix, or a vector. */
interface Piece {
  readonly parameter: Parameter;
  readonly stored: StoredValues;
  /** First row or element, and how many. */
  readonly row: number;
  readonly rows: number;
  readonly begin: number;
  readonly bytes: number;
  /** Where it lies in a staging buffer. */
  readonly at: number;
}

export interface Source {
  readonly parameter: Parameter;
  readonly stored: StoredValues;
}

function batchesOf(sources: readonly Source[]): Piece[][] {
  const batches: Piece[][] = [];
  let room = 0;
  for (const { parameter, stored } of sources) {
    const rowBytes = (parameter.matrix ? parameter.shape[1]! : 1) * sizeOf(stored.dtype);
    const rows = parameter.shape[0]!;
    for (let row = 0; row < rows; ) {
      if (room < PANEL * rowBytes) {
        batches.push([]);
        room = Math.max(BATCH_BYTES, PANEL * rowBytes);
      }
      const fit = Math.floor(room / rowBytes / PANEL) * PANEL;
      const count = Math.min(rows - row, fit);
      const batch = batches.at(-1)!;
      const last = batch.at(-1);
      const at = last ? Math.ceil((last.at + last.bytes) / 16) * 16 : 0;
      batch.push({
        parameter,
        stored,
        row,
        rows: count,
        begin: stored.begin + row * rowBytes,
        bytes: count * rowBytes,
        at,
      });
      room -= Math.ceil((count * rowBytes) / 16) * 16;
      row += count;
    }
  }
  return batches;
}

function emit(device: Device, piece: Piece, src: View, remainders: boolean): void {
  const { parameter: p, stored, row, rows } = piece;
  const to = p.tensor.storage!;
  if (!p.matrix) {
    device.emit(cast, {
      y: to.buffer.range(to.offset + row * 4, rows * 4),
      x: src,
      n: rows,
      dt: stored.dtype,
      ydt: Dtype.f32,
    });
    return;
  }
  const k = p.shape[1]!;
  if (p.quantized) {
    device.emit(quantizeWeight, { ...p.quantized.rows(row, rows), src, n: rows, k, sdt: stored.dtype });
    return;
  }
  const { dtype } = p.tensor;
  const first = packedLength(row, k, dtype);
  const length = packedLength(rows, k, dtype);
  const part = ({ buffer, offset }: { buffer: Buffer; offset: number }, size: number) =>
    buffer.range(offset + first * size, length * size);
  device.emit(packWeight, {
    w: part(to, sizeOf(dtype)),
    lo: remainders && p.remainder ? part(p.remainder, 2) : null,
    src,
    n: rows,
    k,
    dt: dtype,
    sdt: stored.dtype,
  });
}

/** Batches take turns in two staging buffers, made when first needed. */
class Fetcher {
  readonly #staging: (Buffer | null)[] = [null, null];
  readonly #bytes: number;
  constructor(
    readonly device: Device,
    batches: readonly Piece[][],
  ) {
    this.#bytes = Math.max(...batches.map((batch) => batch.at(-1)!.at + batch.at(-1)!.bytes));
  }

  /** Views of a batch's pieces; `mapped` collects what is to be freed when they have been used. */
  fetch(batch: readonly Piece[], turn: number, mapped: Buffer[]): View[] {
    return batch.map(({ parameter, stored, begin, bytes, at }) => {
      // Kernels for vectors want whole elements at aligned addresses.
      const pages = parameter.matrix ? this.device.mapFile(stored.fd, begin, bytes, stored.path) : null;
      if (pages) {
        mapped.push(pages);
        return pages.range();
      }
      this.#staging[turn] ??= this.device.buffer(this.#bytes, "load staging");
      const staging = this.#staging[turn]!;
      try {
        staging.readFile(stored.fd, begin, at, bytes);
      } catch (error) {
        if (!(error instanceof DeviceError)) throw error;
        throw new DeviceError(`cannot read ${parameter.name} (${error.message})`, stored.path);
      }
      return staging.range(at, bytes);
    });
  }

  free(): void {
    for (const buffer of this.#staging) buffer?.free();
  }
}

/** Fills parameters from files, with their remainders unless those are not wanted. Blocks until they are there. */
export function loadStored(device: Device, sources: readonly Source[], remainders: boolean): void {
  const batches = batchesOf(sources);
  if (!device.hasMemory || batches.length === 0) return;
  const fetcher = new Fetcher(device, batches);
  let running: Buffer[] = [];
  let next: Buffer[] = [];
  try {
    batches.forEach((batch, i) => {
      const views = fetcher.fetch(batch, i % 2, next);
      device.finish();
      for (const buffer of running) buffer.free();
      [running, next] = [next, []];
      for (const [j, piece] of batch.entries()) emit(device, piece, views[j]!, remainders);
      device.submit();
    });
    device.finish();
  } finally {
    for (const buffer of [...running, ...next]) buffer.free();
    fetcher.free();
  }
}
