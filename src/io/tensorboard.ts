import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { assert, RlvError, UsageError } from "../core/errors.ts";
import { fileError, withFileErrors, writeFully } from "./atomic.ts";

/**
 * TensorBoard event files. A file is a row of TFRecords (uint64 length, masked crc32c of the length, data,
 * masked crc32c of the data); each holds an Event protobuf (tensorflow/core/util/event.proto): 1 wall_time
 * double, 2 step int64, 3 file_version, 5 summary, 7 session_log, 10 source_metadata.
 */

/** CRC-32C (Castagnoli), reflected polynomial 0x82f63b78, one byte at a time. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ bytes[i]!) & 255]!;
  return (crc ^ 0xffffffff) >>> 0;
}

/** TFRecord stores crcs rotated and shifted, so that a crc of data that holds crcs stays strong. */
export function maskedCrc32c(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** A protobuf message under construction. */
class Message {
  readonly bytes: number[] = [];

  #varint(value: number): void {
    let rest = value;
    while (rest >= 128) {
      this.bytes.push((rest % 128) | 128);
      rest = Math.floor(rest / 128);
    }
    this.bytes.push(rest);
  }

  /** Proto3 leaves out zeros. */
  integer(field: number, value: number): this {
    assert(Number.isSafeInteger(value) && value >= 0, `event file: integer ${value}`);
    if (value === 0) return this;
    this.#varint(field * 8);
    this.#varint(value);
    return this;
  }

  double(field: number, value: number): this {
    this.#varint(field * 8 + 1);
    this.bytes.push(...new Uint8Array(new Float64Array([value]).buffer));
    return this;
  }

  float(field: number, value: number): this {
    this.#varint(field * 8 + 5);
    this.bytes.push(...new Uint8Array(new Float32Array([value]).buffer));
    return this;
  }

  data(field: number, value: Uint8Array | string | Message): this {
    const bytes =
      typeof value === "string"
        ? new TextEncoder().encode(value)
        : value instanceof Message
          ? value.bytes
          : value;
    this.#varint(field * 8 + 2);
    this.#varint(bytes.length);
    for (const byte of bytes) this.bytes.push(byte);
    return this;
  }
}

export interface EventWriterOptions {
  /** Seconds since 1970 of the file's name and first record. */
  readonly wallTime?: number;
  readonly host?: string;
  readonly pid?: number;
  /** Named in the first record as the program that wrote the file. */
  readonly source?: string;
  /** On resume: TensorBoard drops events of earlier files from this step on. */
  readonly purgeFromStep?: number;
}

/** Writes one event file. Records are collected until `flush`, once a step; a failed flush leaves whole records. */
export class EventWriter implements Disposable {
  readonly path: string;
  #fd: number | null;
  #length = 0;
  #pending: Uint8Array[] = [];

  constructor(dir: string, options: EventWriterOptions = {}) {
    const wallTime = options.wallTime ?? Date.now() / 1000;
    withFileErrors("create", dir, () => mkdirSync(dir, { recursive: true }));
    const host = (options.host ?? hostname()).replaceAll(/[^A-Za-z0-9._-]/g, "_");
    const stem = `events.out.tfevents.${Math.floor(wallTime)}.${host}.${options.pid ?? process.pid}`;
    [this.path, this.#fd] = createNumbered(dir, stem);
    const source = new Message().data(1, options.source ?? "rlv");
    this.#record(new Message().double(1, wallTime).data(3, "brain.Event:2").data(10, source));
    if (options.purgeFromStep !== undefined) {
      const start = new Message().integer(1, 1);
      this.#record(new Message().double(1, wallTime).integer(2, options.purgeFromStep).data(7, start));
    }
    this.flush();
  }

  /** Summary value with simple_value (field 2): float32. */
  scalar(tag: string, value: number, step: number, wallTime = Date.now() / 1000): void {
    const entry = new Message().data(1, tag).float(2, value);
    this.#summary(entry, step, wallTime);
  }

  /** A text for the text dashboard (Markdown), under `TAG/text_summary` as SummaryWriter names it. */
  text(tag: string, value: string, step: number, wallTime = Date.now() / 1000): void {
    const DT_STRING = 7;
    const shape = new Message().data(2, new Message().integer(1, 1));
    const tensor = new Message().integer(1, DT_STRING).data(2, shape).data(8, value);
    const plugin = new Message().data(1, new Message().data(1, "text"));
    this.#summary(
      new Message().data(1, `${tag}/text_summary`).data(8, tensor).data(9, plugin),
      step,
      wallTime,
    );
  }

  #summary(value: Message, step: number, wallTime: number): void {
    this.#record(new Message().double(1, wallTime).integer(2, step).data(5, new Message().data(1, value)));
  }

  #record(event: Message): void {
    const length = event.bytes.length;
    const record = new Uint8Array(length + 16);
    const view = new DataView(record.buffer);
    view.setBigUint64(0, BigInt(length), true);
    view.setUint32(8, maskedCrc32c(record.subarray(0, 8)), true);
    record.set(event.bytes, 12);
    view.setUint32(12 + length, maskedCrc32c(record.subarray(12, 12 + length)), true);
    this.#pending.push(record);
  }

  flush(): void {
    if (this.#pending.length === 0) return;
    assert(this.#fd !== null, `${this.path}: written after close`);
    const bytes = Buffer.concat(this.#pending);
    try {
      writeFully(this.#fd, bytes, this.path, this.#length);
    } catch (error) {
      ftruncateSync(this.#fd, this.#length);
      throw error;
    }
    this.#length += bytes.length;
    this.#pending = [];
  }

  close(): void {
    if (this.#fd === null) return;
    try {
      this.flush();
    } finally {
      closeSync(this.#fd);
      this.#fd = null;
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Creates `STEM.N` with the first N that is free: two writers may start within one second. */
function createNumbered(dir: string, stem: string): [path: string, fd: number] {
  for (let number = 0; ; number++) {
    const path = join(dir, `${stem}.${number}`);
    try {
      return [path, openSync(path, "wx", 0o666)];
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EEXIST") continue;
      throw fileError(error, "create", path);
    }
  }
}

export interface TensorBoardEvent {
  readonly wallTime: number;
  readonly step: number;
  readonly fileVersion: string | null;
  readonly scalars: readonly (readonly [tag: string, value: number])[];
  /** A writer began here: what earlier files have from this step on is dropped. */
  readonly restarts: boolean;
  /** Tags whose value is something else than a scalar. */
  readonly otherTags: readonly string[];
  /** The record's protobuf bytes. */
  readonly data: Uint8Array;
}

/** Events of a file. A record cut short at the end (the writer was killed) ends the list; a wrong crc throws. */
export function readEvents(path: string): TensorBoardEvent[] {
  const bytes = withFileErrors("read", path, () => readFileSync(path));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const events: TensorBoardEvent[] = [];
  for (let at = 0; at + 12 <= bytes.length; ) {
    if (view.getUint32(at + 8, true) !== maskedCrc32c(bytes.subarray(at, at + 8)))
      throw new UsageError(`wrong crc of a record's length at byte ${at}`, path, "the file is damaged");
    const end = at + 12 + Number(view.getBigUint64(at, true));
    if (end + 4 > bytes.length) break;
    const data = bytes.subarray(at + 12, end);
    if (view.getUint32(end, true) !== maskedCrc32c(data))
      throw new UsageError(`wrong crc of the record at byte ${at}`, path, "the file is damaged");
    events.push(parseEvent(data, path));
    at = end + 4;
  }
  return events;
}

type Field = [field: number, value: number | Uint8Array];

/** Fields of a protobuf message; fixed-size values are given as their bytes. */
function* parseMessage(data: Uint8Array, path: string): Generator<Field> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = data[at++];
      if (byte === undefined || scale > 2 ** 63) throw new RlvError("broken event", path);
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < data.length) {
    const key = varint();
    const type = key % 8;
    if (type === 0) yield [Math.floor(key / 8), varint()];
    else {
      const length = type === 1 ? 8 : type === 5 ? 4 : type === 2 ? varint() : Number.NaN;
      if (!(at + length <= data.length)) throw new RlvError("broken event", path);
      yield [Math.floor(key / 8), data.subarray(at, at + length)];
      at += length;
    }
  }
}

function parseEvent(data: Uint8Array, path: string): TensorBoardEvent {
  let wallTime = 0;
  let step = 0;
  let fileVersion: string | null = null;
  let restarts = false;
  const scalars: [string, number][] = [];
  const otherTags: string[] = [];
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  const fixed = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (const [field, value] of parseMessage(data, path)) {
    if (field === 2 && typeof value === "number") step = value;
    if (typeof value === "number") continue;
    if (field === 1) wallTime = fixed(value).getFloat64(0, true);
    if (field === 3) fileVersion = text(value);
    if (field === 7) restarts = true;
    if (field !== 5) continue;
    for (const [inner, entry] of parseMessage(value, path)) {
      if (inner !== 1 || typeof entry === "number") continue;
      let tag = "";
      let scalar: number | null = null;
      for (const [part, content] of parseMessage(entry, path)) {
        if (typeof content === "number") continue;
        if (part === 1) tag = text(content);
        if (part === 2) scalar = fixed(content).getFloat32(0, true);
      }
      if (scalar === null) otherTags.push(tag);
      else scalars.push([tag, scalar]);
    }
  }
  return { wallTime, step, fileVersion, restarts, scalars, otherTags, data };
}
