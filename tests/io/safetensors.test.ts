import { describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { RlvError, UsageError } from "../../src/core/errors.ts";
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from "../../src/core/float-formats.ts";
import {
  openSafetensors,
  type StoredDtype,
  type TensorSource,
  writeSafetensors,
  writeSafetensorsFolder,
} from "../../src/io/safetensors.ts";
import { loadTensors } from "../golden-tensors.ts";
import { goldenDirs } from "../goldens-dirs.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

/** A file image from a header (text or bytes) and the number of data bytes. */
function image(header: string | Uint8Array, dataBytes = 0, statedLength?: bigint): Uint8Array {
  const text = Buffer.from(header as string);
  const bytes = Buffer.alloc(8 + text.length + dataBytes);
  bytes.writeBigUInt64LE(statedLength ?? BigInt(text.length));
  text.copy(bytes, 8);
  for (let i = 0; i < dataBytes; i++) bytes[8 + text.length + i] = i + 1;
  return bytes;
}

const entry = (dtype: string, shape: string, offsets: string) =>
  `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
const a4 = `"a":${entry("F32", "[1]", "[0,4]")}`;

const MALFORMED: Readonly<Record<string, [Uint8Array, RegExp]>> = {
  "empty file": [new Uint8Array(0), /too short/],
  "seven bytes": [new Uint8Array(7), /too short/],
  "header length 0": [image(""), /not a JSON object/],
  "header beyond the limit": [image("{}", 0, 100_000_001n), /exceeds 100000000/],
  "header length 2^64-1": [image("{}", 0, 2n ** 64n - 1n), /exceeds/],
  "header past the end": [image("{}", 0, 3n), /past the end/],
  "not UTF-8": [image(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)), /UTF-8/],
  "overlong UTF-8": [image(Uint8Array.of(0x7b, 0x22, 0xc0, 0xaf, 0x22, 0x7d)), /UTF-8/],
  "byte-order mark": [image("\ufeff{}"), /not a JSON object/],
  array: [image("[]"), /not a JSON object/],
  null: [image("null"), /not a JSON object/],
  "leading space": [image(" {}"), /not a JSON object/],
  "trailing garbage": [image("{} x"), /unexpected text/],
  "trailing zero bytes": [image("{}\0\0"), /unexpected text/],
  "second object": [image("{}{}"), /unexpected text/],
  "trailing comma": [image(`{${a4},}`, 4), /invalid JSON/],
  "unclosed object": [image(`{${a4}`, 4), /ends early/],
  "single quotes": [image("{'a':1}"), /invalid JSON/],
  "raw newline in a name": [image(`{"a\nb":${entry("F32", "[1]", "[0,4]")}}`, 4), /control character/],
  "half a surrogate": [image(`{"\\ud800":${entry("F32", "[1]", "[0,4]")}}`, 4), /surrogate/],
  "bad escape": [image(`{"\\x":${entry("F32", "[1]", "[0,4]")}}`, 4), /invalid escape/],
  "nested 200 deep": [image(`{"a":${"[".repeat(200)}${"]".repeat(200)}}`), /nested too deeply/],
  "nested a million deep": [image(`{"a":${"[".repeat(1e6)}`), /nested too deeply/],
  "entry is a number": [image(`{"a":1}`), /not an object/],
  "entry is an array": [image(`{"a":["F32",[1],[0,4]]}`, 4), /not an object/],
  "unknown dtype": [image(`{"a":${entry("F31", "[1]", "[0,4]")}}`, 4), /unknown dtype "F31"/],
  "dtype in lower case": [image(`{"a":${entry("f32", "[1]", "[0,4]")}}`, 4), /unknown dtype/],
  "dtype of Object.prototype": [image(`{"a":${entry("constructor", "[1]", "[0,4]")}}`, 4), /unknown dtype/],
  "dtype not a string": [image(`{"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}}`, 4), /unknown dtype/],
  "dtype missing": [image(`{"a":{"shape":[1],"data_offsets":[0,4]}}`, 4), /dtype is missing/],
  "shape missing": [image(`{"a":{"dtype":"F32","data_offsets":[0,4]}}`, 4), /shape is missing/],
  "offsets missing": [image(`{"a":{"dtype":"F32","shape":[1]}}`, 4), /data_offsets is missing/],
  "duplicate dtype": [
    image(`{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
    /duplicate key "dtype"/,
  ],
  "duplicate tensor": [image(`{${a4},${a4}}`, 4), /duplicate key "a"/],
  "duplicate tensor by escape": [image(`{${a4},${a4.replace('"a"', '"\\u0061"')}}`, 4), /duplicate key "a"/],
  "duplicate metadata": [image('{"__metadata__":{},"__metadata__":{}}'), /duplicate key/],
  "duplicate metadata key": [image('{"__metadata__":{"k":"1","k":"2"}}'), /duplicate key/],
  "metadata a string": [image('{"__metadata__":"x"}'), /not an object/],
  "metadata number": [image('{"__metadata__":{"k":1}}'), /not a string/],
  "metadata null value": [image('{"__metadata__":{"k":null}}'), /not a string/],
  "negative dim": [image(`{"a":${entry("F32", "[-1]", "[0,4]")}}`, 4), /whole number/],
  "minus zero": [image(`{"a":${entry("F32", "[-0]", "[0,0]")}}`), /whole number/],
  "float dim": [image(`{"a":${entry("F32", "[1.0]", "[0,4]")}}`, 4), /whole number/],
  "exponent dim": [image(`{"a":${entry("F32", "[1e0]", "[0,4]")}}`, 4), /whole number/],
  "string dim": [image(`{"a":${entry("F32", '["1"]', "[0,4]")}}`, 4), /whole number/],
  "leading zero": [image(`{"a":${entry("F32", "[01]", "[0,4]")}}`, 4), /invalid JSON/],
  "dim beyond 2^53": [image(`{"a":${entry("F32", "[9007199254740993]", "[0,4]")}}`, 4), /whole number/],
  "dim beyond 2^64": [image(`{"a":${entry("F32", "[18446744073709551617]", "[0,4]")}}`, 4), /whole number/],
  "product wraps to 1 in 64 bits": [
    image(`{"a":${entry("U8", "[4294967296,4294967296,1]", "[0,0]")}}`),
    /no byte length/,
  ],
  "product of doubles rounds": [
    image(`{"a":${entry("U8", "[94906267,94906267]", "[0,1]")}}`, 1),
    /takes 9007199515875289/,
  ],
  "shape not a list": [image(`{"a":${entry("F32", "1", "[0,4]")}}`, 4), /not a list/],
  "one offset": [image(`{"a":${entry("F32", "[1]", "[0]")}}`, 4), /not a pair/],
  "three offsets": [image(`{"a":${entry("F32", "[1]", "[0,4,4]")}}`, 4), /not a pair/],
  "offset negative": [image(`{"a":${entry("F32", "[1]", "[-4,0]")}}`, 4), /whole number/],
  "begin after end": [image(`{"a":${entry("F32", "[1]", "[4,0]")}}`, 4), /run backwards/],
  "length differs from the shape": [image(`{"a":${entry("F32", "[2]", "[0,4]")}}`, 4), /takes 8 bytes/],
  "half a byte": [image(`{"a":${entry("F4", "[3]", "[0,1]")}}`, 1), /no byte length/],
  "gap at the start": [image(`{"a":${entry("F32", "[1]", "[4,8]")}}`, 8), /gap before/],
  "gap between": [image(`{${a4},"b":${entry("F32", "[1]", "[8,12]")}}`, 12), /gap before tensor "b"/],
  overlap: [image(`{${a4},"b":${entry("F32", "[1]", "[2,6]")}}`, 6), /overlapping tensor "b"/],
  "same bytes twice": [image(`{${a4},"b":${entry("F32", "[1]", "[0,4]")}}`, 4), /overlapping/],
  truncated: [image(`{${a4}}`, 3), /truncated/],
  "bytes after the last tensor": [image(`{${a4}}`, 5), /bytes after the last tensor/],
  "no tensors but bytes": [image("{}", 1), /bytes after the last tensor/],
};

describe("what is refused", () => {
  for (const [name, [bytes, message]] of Object.entries(MALFORMED)) {
    test(name, () => {
      using folder = new TemporaryFolder();
      const path = folder.file("x.safetensors");
      writeFileSync(path, bytes);
      const error = errorOf(() => openSafetensors(path));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toMatch(message);
      expect(error.message).toContain(path);
      expect(error.message).not.toContain("\n");
    });
  }

  test("no such file, a folder", () => {
    using folder = new TemporaryFolder();
    expect(() => openSafetensors(folder.file("none"))).toThrow(UsageError);
    expect(() => openSafetensors(folder.path)).toThrow(/not a regular file/);
  });

  test("a file that shrinks after it was opened", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x.safetensors");
    const whole = image(`{${a4}}`, 4);
    writeFileSync(path, whole);
    using file = openSafetensors(path);
    writeFileSync(path, whole.subarray(0, whole.length - 1));
    expect(() => file.read("a")).toThrow(/ends early/);
  });

  test("open files are closed when the header is bad", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x.safetensors");
    writeFileSync(path, image("[]"));
    const before = readdirSync("/dev/fd").length;
    for (let i = 0; i < 50; i++) errorOf(() => openSafetensors(path));
    expect(readdirSync("/dev/fd").length).toBeLessThan(before + 10);
  });
});

describe("what is accepted, as by the reference", () => {
  const accepted: Readonly<Record<string, [Uint8Array, Record<string, number[]>]>> = {
    "no tensors": [image("{}"), {}],
    "padding and white space": [image("{ }\n\t\r    "), {}],
    "metadata null": [image('{"__metadata__":null}'), {}],
    "header order differs from data order": [
      image(`{"b":${entry("U8", "[2]", "[4,6]")},${a4}}`, 6),
      { a: [1], b: [2] },
    ],
    "scalar and empty tensors": [
      image(
        `{"e":${entry("F32", "[0,7]", "[4,4]")},"s":${entry("F32", "[]", "[0,4]")},"f":${entry("I8", "[0]", "[0,0]")}}`,
        4,
      ),
      { f: [0], s: [], e: [0, 7] },
    ],
    "unknown field, unaligned data": [
      image(
        `{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"note":[{}]},"y":${entry("F32", "[1]", "[1,5]")}}`,
        5,
      ),
      { x: [1], y: [1] },
    ],
    "names with escapes and __proto__": [
      image(
        `{"__proto__":${entry("U8", "[1]", "[0,1]")},"\\u00e9\\n\\ud83d\\ude00":${entry("U8", "[1]", "[1,2]")}}`,
        2,
      ),
      JSON.parse('{"__proto__":[1],"é\\n😀":[1]}'),
    ],
  };
  for (const [name, [bytes, shapes]] of Object.entries(accepted)) {
    test(name, () => {
      using folder = new TemporaryFolder();
      writeFileSync(folder.file("x"), bytes);
      using file = openSafetensors(folder.file("x"));
      expect([...file.tensors].map(([key, tensor]) => [key, tensor.shape])).toEqual(
        Object.entries(shapes) as never,
      );
      for (const [key, tensor] of file.tensors)
        expect([...file.read(key)]).toEqual([...bytes.subarray(tensor.begin, tensor.begin + tensor.bytes)]);
    });
  }
});

const DTYPES: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  F64: 8,
  I64: 8,
  U64: 8,
};

const sources = fc.uniqueArray(
  fc
    .record({
      name: fc
        .string({ unit: "grapheme", minLength: 1, maxLength: 12 })
        .filter((name) => name.isWellFormed()),
      dtype: fc.constantFrom(...(Object.keys(DTYPES) as StoredDtype[])),
      shape: fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 3 }),
      salt: fc.nat(255),
    })
    .map(({ name, dtype, shape, salt }) => {
      const length = shape.reduce((product, size) => product * size, 1) * DTYPES[dtype]!;
      return { name, dtype, shape, data: Uint8Array.from({ length }, (_, i) => i * 7 + salt) };
    }),
  { selector: (tensor) => tensor.name, maxLength: 8 },
);

describe("properties", () => {
  test("what is written is read back, whatever the tensors", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("p.safetensors");
    fc.assert(
      fc.property(sources, fc.dictionary(fc.string(), fc.string()), (tensors, metadata) => {
        for (const key of Object.keys(metadata)) fc.pre(key.isWellFormed() && metadata[key]!.isWellFormed());
        writeSafetensors(path, tensors, metadata);
        using file = openSafetensors(path);
        expect({ ...file.metadata }).toEqual({ ...metadata });
        expect(file.tensors.size).toBe(tensors.length);
        for (const tensor of tensors) {
          const { dtype, shape, begin } = file.tensor(tensor.name);
          expect([dtype, [...shape]]).toEqual([tensor.dtype, [...tensor.shape]]);
          expect(begin % DTYPES[dtype]!).toBe(0);
          expect(Buffer.compare(file.read(tensor.name), tensor.data)).toBe(0);
        }
      }),
      { numRuns: 100 },
    );
  });

  test("a file with a few bytes changed, cut or added gives a typed error or a consistent result", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("fuzz.safetensors");
    const tensors: TensorSource[] = [
      { name: "weight", dtype: "F32", shape: [2, 3], data: new Uint8Array(24) },
      { name: "bias", dtype: "BF16", shape: [5], data: new Uint8Array(10) },
    ];
    writeSafetensors(path, tensors);
    const whole = readFileSync(path);
    let refused = 0;
    const edit = fc.record({ at: fc.nat(whole.length - 1), byte: fc.nat(255) });
    fc.assert(
      fc.property(
        fc.array(edit, { minLength: 1, maxLength: 4 }),
        fc.integer({ min: -40, max: 8 }),
        (edits, grow) => {
          const bytes = Buffer.alloc(whole.length + grow);
          whole.copy(bytes);
          for (const { at, byte } of edits) if (at < bytes.length) bytes[at] = byte;
          writeFileSync(path, bytes);
          try {
            using file = openSafetensors(path);
            let end = 8 + Number(bytes.readBigUInt64LE());
            for (const [name, tensor] of file.tensors) {
              expect(tensor.begin).toBe(end);
              end += tensor.bytes;
              expect(file.read(name).length).toBe(tensor.bytes);
            }
            expect(end).toBe(bytes.length);
          } catch (error) {
            if (!(error instanceof UsageError)) throw error;
            refused += 1;
          }
        },
      ),
      { numRuns: 500 },
    );
    expect(refused).toBeGreaterThan(300);
  });

  test("random header text never gives anything but a UsageError", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("fuzz.safetensors");
    const piece = fc.constantFrom(
      "{",
      "}",
      "[",
      "]",
      ",",
      ":",
      '"a"',
      '"dtype"',
      '"F32"',
      "1",
      "-",
      "1e9",
      "null",
      '"',
      "\\u",
      " ",
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 30 }), (pieces) => {
        writeFileSync(path, image(`{${pieces.join("")}`));
        try {
          openSafetensors(path).close();
        } catch (error) {
          if (!(error instanceof UsageError)) throw error;
        }
      }),
      { numRuns: 300 },
    );
  });
});

/** Every .safetensors file of the goldens, written by the reference library (hub/ holds stand-ins of plain text). */
function goldenFiles(): string[] {
  return goldenDirs().flatMap((dir) =>
    readdirSync(dir, { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".safetensors") && !name.startsWith("hub/"))
      .map((name) => join(dir, name)),
  );
}

describe("against files of the reference library", () => {
  test("every golden file is read as an independent reader reads it, and written again to the same bytes", () => {
    using folder = new TemporaryFolder();
    const files = goldenFiles();
    expect(files.length).toBeGreaterThan(0);
    for (const path of files) {
      using file = openSafetensors(path);
      const slash = path.lastIndexOf("/");
      const expected = loadTensors(path.slice(0, slash), path.slice(slash + 1));
      expect([...file.tensors.keys()].sort()).toEqual([...expected.keys()].sort());
      for (const [name, { dtype, shape, data }] of expected) {
        const stored = file.tensor(name);
        expect([stored.dtype as string, [...stored.shape]]).toEqual([dtype, [...shape]]);
        if (!["F32", "F16", "BF16", "F64"].includes(dtype)) continue;
        const values = file.readFloat32(name);
        for (let i = 0; i < data.length; i++)
          if (!Object.is(values[i], Math.fround(data[i]!))) throw new Error(`${path}: ${name}[${i}]`);
      }
      const again = folder.file("again.safetensors");
      const tensors = [...file.tensors]
        .reverse()
        .map(
          ([name, { dtype, shape }]): TensorSource => ({ name, dtype, shape, data: () => file.read(name) }),
        );
      writeSafetensors(again, tensors, file.metadata);
      if (Buffer.compare(readFileSync(again), readFileSync(path)) !== 0)
        throw new Error(`${path}: other bytes`);
    }
  });
});

describe("reading", () => {
  test("float32, bfloat16, float16 and float64 widen exactly, in pieces longer than one buffer", () => {
    using folder = new TemporaryFolder();
    const count = (1 << 20) + 3;
    const values = Float32Array.from({ length: count }, (_, i) => (i % 509) - 254);
    const tensors: TensorSource[] = [
      { name: "f32", dtype: "F32", shape: [count], data: new Uint8Array(values.buffer) },
      { name: "bf16", dtype: "BF16", shape: [count], data: new Uint8Array(f32ToBf16(values).buffer) },
      { name: "f16", dtype: "F16", shape: [count], data: new Uint8Array(f32ToF16(values).buffer) },
      { name: "f64", dtype: "F64", shape: [count], data: new Uint8Array(Float64Array.from(values).buffer) },
      { name: "i32", dtype: "I32", shape: [1], data: new Uint8Array(4) },
    ];
    writeSafetensors(folder.file("x"), tensors);
    using file = openSafetensors(folder.file("x"));
    for (const name of ["f32", "f16", "f64"])
      expect(
        Buffer.compare(new Uint8Array(file.readFloat32(name).buffer), new Uint8Array(values.buffer)),
      ).toBe(0);
    // -254..254 fit bfloat16's eight bits.
    expect(file.readFloat32("bf16")).toEqual(values);
    expect(() => file.readFloat32("i32")).toThrow(/is I32/);
    expect(() => file.read("none")).toThrow(UsageError);
    const part = new Uint8Array(8);
    file.readInto("f32", part, 12);
    expect([...new Float32Array(part.buffer)]).toEqual([values[3]!, values[4]!]);
    expect(() => file.readInto("f32", part)).toThrow(/bytes/);
    expect(() => file.readInto("f32", part, count * 4 - 4)).toThrow(/bytes/);
    file.close();
    expect(() => file.read("f32")).toThrow(/after close/);
  });
});

describe("writing", () => {
  test("one tensor's data is asked for at a time, in file order", () => {
    using folder = new TemporaryFolder();
    const asked: string[] = [];
    const make = (name: string, dtype: StoredDtype, bytes: number): TensorSource => ({
      name,
      dtype,
      shape: [1],
      data: () => {
        asked.push(name);
        return new Uint8Array(bytes);
      },
    });
    writeSafetensors(folder.file("x"), [
      make("z", "U8", 1),
      make("b", "F32", 4),
      make("a", "F32", 4),
      make("q", "I64", 8),
    ]);
    expect(asked).toEqual(["q", "a", "b", "z"]);
  });

  test("wrong byte count, repeated name, reserved name: an error, and the old file stays", () => {
    using folder = new TemporaryFolder();
    const path = folder.file("x");
    const one: TensorSource = { name: "a", dtype: "F32", shape: [1], data: new Uint8Array(4) };
    writeSafetensors(path, [one]);
    const before = readFileSync(path);
    for (const bad of [
      [{ ...one, data: new Uint8Array(5) }],
      [{ ...one, data: () => new Uint8Array(3) }],
      [one, one],
      [{ ...one, name: "__metadata__" }],
      [{ ...one, name: "\ud800" }],
      [
        one,
        {
          ...one,
          name: "b",
          data: () => {
            throw new RlvError("device lost");
          },
        },
      ],
    ] as TensorSource[][])
      expect(() => writeSafetensors(path, bad)).toThrow(RlvError);
    expect(readFileSync(path)).toEqual(before);
    expect(readdirSync(folder.path)).toEqual(["x"]);
  });

  test("shards as transformers names and indexes them; a smaller save removes the old shards", () => {
    using folder = new TemporaryFolder();
    const dir = folder.file("model");
    mkdirSync(dir);
    const make = (name: string, count: number): TensorSource => ({
      name,
      dtype: "F32",
      shape: [count],
      data: new Uint8Array(count * 4).fill(count),
    });
    const tensors = [make("embed", 10), make("w1", 3), make("w2", 3), make("huge", 50), make("w3", 1)];
    expect(writeSafetensorsFolder(dir, tensors, 40)).toEqual([
      "model-00001-of-00004.safetensors",
      "model-00002-of-00004.safetensors",
      "model-00003-of-00004.safetensors",
      "model-00004-of-00004.safetensors",
      "model.safetensors.index.json",
    ]);
    const index = JSON.parse(readFileSync(join(dir, "model.safetensors.index.json"), "utf8"));
    expect(index).toEqual({
      metadata: { total_parameters: 67, total_size: 268 },
      weight_map: {
        embed: "model-00001-of-00004.safetensors",
        huge: "model-00003-of-00004.safetensors",
        w1: "model-00002-of-00004.safetensors",
        w2: "model-00002-of-00004.safetensors",
        w3: "model-00004-of-00004.safetensors",
      },
    });
    writeFileSync(join(dir, "other.safetensors"), "kept");
    expect(writeSafetensorsFolder(dir, tensors)).toEqual(["model.safetensors"]);
    expect(readdirSync(dir).sort()).toEqual(["model.safetensors", "other.safetensors"]);
  });
});

describe("float formats", () => {
  const words = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const isNaN16 = (word: number, infinity: number) => (word & 0x7fff) > infinity;

  test("every 16-bit pattern survives widening and narrowing; NaN stays NaN", () => {
    for (const [widen, narrow, infinity] of [
      [bf16ToF32, f32ToBf16, 0x7f80],
      [f16ToF32, f32ToF16, 0x7c00],
    ] as const) {
      const back = narrow(widen(words));
      for (let i = 0; i < 65536; i++) {
        if (isNaN16(i, infinity)) expect(isNaN16(back[i]!, infinity)).toBe(true);
        else if (back[i] !== i) throw new Error(`${i} became ${back[i]}`);
      }
    }
  });

  test("widening is exact by the definition of the format", () => {
    const f16 = f16ToF32(words);
    const bf16 = bf16ToF32(words);
    for (let i = 0; i < 65536; i++) {
      const sign = i & 0x8000 ? -1 : 1;
      const define = (bits: number, bias: number) => {
        const exponent = (i & 0x7fff) >> bits;
        const fraction = (i & ((1 << bits) - 1)) / (1 << bits);
        const last = 2 * bias + 1;
        if (exponent === last) return fraction === 0 ? sign * Infinity : Number.NaN;
        return exponent === 0
          ? sign * fraction * 2 ** (1 - bias)
          : sign * (1 + fraction) * 2 ** (exponent - bias);
      };
      if (!Object.is(f16[i], define(10, 15))) throw new Error(`f16 ${i}: ${f16[i]}`);
      if (!Object.is(bf16[i], define(7, 127))) throw new Error(`bf16 ${i}: ${bf16[i]}`);
    }
  });

  test("narrowing takes the nearest value, the even one of two equally near", () => {
    const check = (narrow: typeof f32ToBf16, widen: typeof bf16ToF32, infinity: number) => {
      const values = widen(words.slice(0, infinity + 1));
      const top = values[infinity - 1]! + (values[infinity - 1]! - values[infinity - 2]!);
      const at = (i: number) => (i === infinity ? top : values[i]!);
      for (let i = 0; i < infinity; i++) {
        // The middle of two neighbours is exact in float32 for both formats but for bf16's smallest steps.
        const middle = Math.fround((at(i) + at(i + 1)) / 2);
        if (middle === at(i) || middle === at(i + 1)) continue;
        const bits = new Uint32Array(Float32Array.of(middle).buffer);
        const below = new Float32Array(Uint32Array.of(bits[0]! - 1).buffer)[0]!;
        const above = new Float32Array(Uint32Array.of(bits[0]! + 1).buffer)[0]!;
        const got = narrow(Float32Array.of(middle, below, above, -middle));
        const even = i % 2 === 0 ? i : i + 1;
        expect([...got]).toEqual([even, i, i + 1, even | 0x8000]);
      }
    };
    check(f32ToF16, f16ToF32, 0x7c00);
    check(f32ToBf16, bf16ToF32, 0x7f80);
  });

  test("a NaN with its payload in the low bits does not become infinity", () => {
    const nan = new Float32Array(Uint32Array.of(0x7f800001, 0xff800001).buffer);
    expect([...f32ToBf16(nan)]).toEqual([0x7fc0, 0xffc0]);
  });
});
