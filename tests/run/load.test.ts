/** Weights from files: whatever the offset, the shape and the way, the bytes are those of the plain conversion. */
import { afterAll, describe, expect, test } from "bun:test";
import {
  closeSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { bf16ToF32, f32ToBf16 } from "../../src/core/float-formats.ts";
import type { Device } from "../../src/device/device.ts";
import { Parameters } from "../../src/nn/parameters.ts";
import type { StoredValues } from "../../src/nn/stored.ts";
import { Dtype, type DtypeCode } from "../../src/ops/define.ts";
import "../../src/ops/index.ts";
import { fill } from "../../src/ops/elementwise.ts";
import { openModel, weightsHash } from "../../src/run/open-model.ts";
import { openTestDevice, testDeviceName } from "../test-device.ts";

const scratch = mkdtempSync(join(tmpdir(), "rlv-load-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const builtin = join(import.meta.dir, "../../src/recipe/arithmetic/model");

const { f32, bf16 } = Dtype;
const SHAPES = new Map<string, readonly number[]>([
  ["row", [1, 77]],
  ["column", [95, 1]],
  ["vector", [19]],
  ["one", [1, 1]],
  ["panel", [32, 64]],
  ["odd", [33, 127]],
  ["wide", [100, 513]],
  ["even", [64, 96]],
  ["long vector", [1027]],
]);
/** More than is fetched at once, and not a whole number of panels. */
const LARGE = new Map<string, readonly number[]>([
  ["before", [3, 5]],
  ["large", [8203, 1031]],
  ["after", [65, 31]],
]);

const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** float32 values of every magnitude, with some halves between two bfloat16 numbers. */
function valuesOf(n: number, seed: number, dtype: DtypeCode): Float32Array {
  const bits = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    const x = Math.imul(i + seed * 7919 + 1, 2654435761) >>> 0;
    bits[i] = (x & 0xbfffffff) ^ (Math.imul(x, 40503) >>> 8);
    if (i % 7 === 0) bits[i] = (bits[i]! & 0xffff0000) | 0x8000;
    if ((bits[i]! & 0x7f800000) === 0x7f800000) bits[i] = 0x3f800000;
  }
  const values = new Float32Array(bits.buffer);
  return dtype === bf16 ? bf16ToF32(f32ToBf16(values)) : values;
}

let serial = 0;
/** A file of the tensors one after another behind `before` bytes. */
function store(shapes: ReadonlyMap<string, readonly number[]>, dtype: DtypeCode, before: number) {
  const path = join(scratch, `tensors-${serial++}`);
  const parts: Uint8Array[] = [new Uint8Array(before).fill(0xff)];
  const values = new Map<string, Float32Array>();
  const places = new Map<string, { begin: number; bytes: number }>();
  let begin = before;
  for (const [name, shape] of shapes) {
    const of = valuesOf(size(shape), serial + values.size, dtype);
    const bytes = new Uint8Array((dtype === bf16 ? f32ToBf16(of) : of).buffer);
    values.set(name, of);
    places.set(name, { begin, bytes: bytes.length });
    parts.push(bytes);
    begin += bytes.length;
  }
  writeFileSync(path, Buffer.concat(parts));
  return { path, values, places };
}

type Stored = ReturnType<typeof store>;

function load(parameters: Parameters, file: Stored, dtype: DtypeCode): void {
  const fd = openSync(file.path, "r");
  try {
    const stored = new Map<string, StoredValues>();
    for (const [name, place] of file.places) stored.set(name, { fd, path: file.path, ...place, dtype });
    parameters.loadStored(stored);
  } finally {
    closeSync(fd);
  }
}

function contents(parameters: Parameters): Buffer {
  const rests = parameters.list.map(
    ({ remainder: r }) => r && new Uint8Array(r.buffer.view(r.offset, r.bytes)),
  );
  return Buffer.concat([...parameters.packedBytes(), ...rests.filter((rest) => rest !== null)]);
}

function withDevice(body: (device: Device) => void, threads = 2): void {
  const device = openTestDevice(threads);
  try {
    body(device);
  } finally {
    device.close();
  }
}

const noMaps = (device: Device): void => {
  device.mapFile = () => null;
};

describe("loading", () => {
  const name = (dtype: DtypeCode) => (dtype === bf16 ? "bfloat16" : "float32");
  const same = (
    device: Device,
    shapes: ReadonlyMap<string, readonly number[]>,
    stored: DtypeCode,
    dtype: DtypeCode,
    trainable: boolean,
    before: number,
  ) => {
    const file = store(shapes, stored, before);
    const options = { dtype, trainable, momentDtype: dtype };
    const loaded = new Parameters(device, shapes, options, "loaded");
    const plain = new Parameters(device, shapes, options, "plain");
    // What an earlier load left is overwritten, padding included.
    for (const p of loaded.list) {
      device.emit(fill, { y: p.tensor.storage!.view, n: Math.floor(p.tensor.storage!.bytes / 4), value: 3 });
      if (p.remainder) device.emit(fill, { y: p.remainder.view, n: p.remainder.bytes >> 2, value: 3 });
    }
    load(loaded, file, stored);
    for (const [name, values] of file.values) plain.load(name, values);
    expect(contents(loaded).equals(contents(plain))).toBe(true);
    loaded.dispose();
    plain.dispose();
  };
  for (const stored of [f32, bf16])
    for (const dtype of [f32, bf16])
      for (const trainable of dtype === bf16 ? [false, true] : [false])
        test(`${name(stored)} as ${trainable ? "trained " : ""}${name(dtype)}, at any byte, mapped or read`, () => {
          withDevice((device) => {
            for (const before of [0, 1, 2, 3, 7, 8, 4095, 4097])
              same(device, SHAPES, stored, dtype, trainable, before);
            noMaps(device);
            for (const before of [0, 3]) same(device, SHAPES, stored, dtype, trainable, before);
          });
        });
  // Software Metal would take minutes.
  test.skipIf(testDeviceName === "soft")("a matrix larger than one piece", () => {
    withDevice((device) => {
      same(device, LARGE, f32, bf16, true, 9);
      noMaps(device);
      same(device, LARGE, f32, f32, false, 9);
    });
  });

  test("files of both dtypes for one trained model", () => {
    withDevice((device) => {
      const options = { dtype: bf16, trainable: true, momentDtype: f32 };
      const both = new Map([...SHAPES].flatMap(([name, shape]) => [0, 1].map((i) => [`${name}${i}`, shape])));
      const loaded = new Parameters(device, both as Map<string, readonly number[]>, options, "loaded");
      const plain = new Parameters(device, both as Map<string, readonly number[]>, options, "plain");
      const stored = new Map<string, StoredValues>();
      const fds: number[] = [];
      for (const [i, dtype] of [f32, bf16].entries()) {
        const file = store(SHAPES, dtype, 5);
        const fd = openSync(file.path, "r");
        fds.push(fd);
        for (const [name, place] of file.places)
          stored.set(`${name}${i}`, { fd, path: file.path, ...place, dtype });
        for (const [name, values] of file.values) plain.load(`${name}${i}`, values);
      }
      loaded.loadStored(stored);
      expect(contents(loaded).equals(contents(plain))).toBe(true);
      for (const fd of fds) closeSync(fd);
      loaded.dispose();
      plain.dispose();
    });
  });

  test("any number of threads", () => {
    for (const threads of [1, 3]) withDevice((device) => same(device, SHAPES, bf16, bf16, true, 5), threads);
  });

  test("a file that ends early is named, mapped or read", () => {
    for (const spoil of [() => {}, noMaps])
      withDevice((device) => {
        spoil(device);
        const file = store(SHAPES, bf16, 8);
        truncateSync(file.path, 9000);
        const parameters = new Parameters(
          device,
          SHAPES,
          { dtype: bf16, trainable: false, momentDtype: f32 },
          "short",
        );
        const { liveBuffers, liveBytes } = device.stats();
        expect(() => load(parameters, file, bf16)).toThrow(/cannot read .*the file ends early.*tensors-/);
        expect(device.stats()).toMatchObject({ liveBuffers, liveBytes });
        parameters.dispose();
      });
  });

  test("a model folder whose data begin anywhere is the same model", () => {
    withDevice((device) => {
      const options = { dtype: f32, trainable: false, maxPositions: 8 };
      const hashes = [0, 1, 2, 3].map((spaces) => {
        const folder = join(scratch, `shifted-${spaces}`);
        mkdirSync(folder);
        cpSync(builtin, folder, { recursive: true });
        const path = join(folder, "model.safetensors");
        const file = readFileSync(path);
        const header = Number(file.readBigUInt64LE(0));
        const length = Buffer.alloc(8);
        length.writeBigUInt64LE(BigInt(header + spaces));
        writeFileSync(
          path,
          Buffer.concat([
            length,
            file.subarray(8, 8 + header),
            Buffer.alloc(spaces, " "),
            file.subarray(8 + header),
          ]),
        );
        const model = openModel(folder, device, options);
        const hash = weightsHash(model);
        model.dispose();
        return hash;
      });
      expect(new Set(hashes).size).toBe(1);
    });
  });
});

describe("mapped files", () => {
  const mapped = (body: (device: Device, path: string, fd: number) => void) =>
    withDevice((device) => {
      const path = join(scratch, `mapped-${serial++}`);
      writeFileSync(path, new Uint8Array(10_000).fill(1));
      const fd = openSync(path, "r");
      try {
        body(device, path, fd);
      } finally {
        closeSync(fd);
      }
    });

  test.skipIf(testDeviceName !== "cpu")("count as buffers, not as bytes, and cannot be written", () => {
    mapped((device, path, fd) => {
      const before = device.stats();
      const buffer = device.mapFile(fd, 4099, 501, path)!;
      expect(device.stats()).toMatchObject({
        liveBytes: before.liveBytes,
        liveBuffers: before.liveBuffers + 1,
        peakBytes: before.peakBytes,
      });
      expect(() => {
        device.emit(fill, { y: buffer.range(0, 64), n: 16, value: 0 });
        device.finish();
      }).toThrow(/\[fill\] y: .*mapped-\d+' is a mapped file: it can only be read/);
      expect(() => buffer.clear()).toThrow("can only be read");
      expect(() => buffer.readFile(fd, 0, 0, 16)).toThrow("does not fit");
      expect(() => buffer.view()).toThrow("no memory");
      buffer.free();
      expect(device.stats()).toMatchObject({ liveBuffers: before.liveBuffers });
    });
  });

  test("are refused beyond the file's end and where there is nothing to map", () => {
    mapped((device, path, fd) => {
      expect(device.mapFile(fd, 9990, 11, path)).toBeNull();
      expect(device.mapFile(fd, 0, 0, path)).toBeNull();
      expect(device.mapFile(fd, -1, 5, path)).toBeNull();
      expect(device.mapFile(fd, Number.NaN, 5, path)).toBeNull();
      expect(device.mapFile(-1, 0, 5, path)).toBeNull();
      // No error is left behind.
      device.buffer(16, "still works").free();
      device.finish();
    });
  });
});

test("a cleared buffer is zero behind what was submitted before", () => {
  withDevice((device) => {
    for (const bytes of [16, 4096 + 48, 9 << 20]) {
      const buffer = device.buffer(bytes, "cleared");
      device.emit(fill, { y: buffer.range(), n: bytes / 4, value: 1 });
      buffer.clear();
      expect(new Uint8Array(buffer.view()).every((byte) => byte === 0)).toBe(true);
      buffer.free();
      expect(() => buffer.clear()).toThrow("after it was freed");
    }
    expect(device.stats().liveBytes).toBe(0);
  });
});

describe("copies and names of weights", () => {
  test("a copy is exact, remainders included, and a frozen one has the same rounded weights", () => {
    withDevice((device) => {
      const of = (trainable: boolean) =>
        new Parameters(device, SHAPES, { dtype: bf16, trainable, momentDtype: f32 }, "copied");
      const [source, trained, frozen] = [of(true), of(true), of(false)];
      const file = store(SHAPES, f32, 3);
      load(source, file, f32);
      trained.copyFrom(source);
      frozen.copyFrom(source);
      expect(contents(trained).equals(contents(source))).toBe(true);
      expect(Buffer.concat([...frozen.packedBytes()]).equals(Buffer.concat([...source.packedBytes()]))).toBe(
        true,
      );
      for (const [name, values] of file.values) expect(trained.read(name)).toEqual(values);
      expect(() => source.copyFrom(frozen)).toThrow("no remainders");
      for (const p of [source, trained, frozen]) p.dispose();
    });
  });

  test("bfloat16 for a folder is what the kernels see", () => {
    withDevice((device) => {
      for (const dtype of [f32, bf16]) {
        const parameters = new Parameters(
          device,
          SHAPES,
          { dtype, trainable: true, momentDtype: f32 },
          "rounded",
        );
        load(parameters, store(SHAPES, f32, 1), f32);
        for (const { name } of parameters.list)
          expect(parameters.readBf16(name)).toEqual(f32ToBf16(parameters.readRounded(name)));
        parameters.dispose();
      }
    });
  });

  test("one value changes the hash", () => {
    withDevice((device) => {
      const model = openModel(builtin, device, { dtype: f32, trainable: false, maxPositions: 8 });
      const before = weightsHash(model);
      const name = model.parameters.list[3]!.name;
      const values = model.parameters.read(name);
      values[1] = values[1]! + 1;
      model.parameters.load(name, values);
      expect(weightsHash(model)).not.toBe(before);
      values[1] = values[1]! - 1;
      model.parameters.load(name, values);
      expect(weightsHash(model)).toBe(before);
      model.dispose();
    });
  });
});
