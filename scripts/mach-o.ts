/**
 * Reads what a 64-bit little-endian Mach-O file (macOS library or program) says to the system: for what it was built,
 * what it needs, what it offers, and whether its code signature matches its bytes.
 *
 *   bun scripts/mach-o.ts FILE     prints it as JSON
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

export interface Import {
  readonly symbol: string;
  /** Install name of the library it comes from; "" for anything but a library. */
  readonly library: string;
  /** May be missing at run time. */
  readonly weak: boolean;
}

export interface Signature {
  /** Anyone's: no certificate. */
  readonly adHoc: boolean;
  readonly identifier: string;
  /** Pages of the file whose hash is not the signed one, or places that are not covered. */
  readonly problems: readonly string[];
}

export interface MachO {
  readonly arch: string;
  readonly kind: string;
  readonly platform: string;
  readonly minimumOs: string;
  readonly installName: string | null;
  /** Install names of the libraries it needs. */
  readonly libraries: readonly string[];
  readonly searchPaths: readonly string[];
  readonly imports: readonly Import[];
  /** What dlsym finds. */
  readonly exports: readonly string[];
  /** Symbols that are looked up in every loaded library at start. */
  readonly coalesced: readonly string[];
  /** Symbols of this file that are not undefined, exported or not. */
  readonly defined: ReadonlySet<string>;
  readonly signature: Signature | null;
}

const COMMAND = {
  symbols: 0x2,
  needs: [0xc, 0x80000018, 0x8000001f, 0x80000023] as readonly number[],
  installName: 0xd,
  signature: 0x1d,
  searchPath: 0x8000001c,
  dyldInfo: [0x22, 0x80000022] as readonly number[],
  build: 0x32,
  exportsTrie: 0x80000033,
};
const ARCHS: ReadonlyMap<number, string> = new Map([
  [0x0100000c, "arm64"],
  [0x01000007, "x86_64"],
]);
const KINDS: Readonly<Record<number, string>> = { 2: "program", 6: "library" };
const PLATFORMS: Readonly<Record<number, string>> = { 1: "macos", 2: "ios" };

class Reader {
  readonly #view: DataView;
  constructor(readonly bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  u8 = (at: number) => this.#view.getUint8(at);
  u16 = (at: number) => this.#view.getUint16(at, true);
  u32 = (at: number) => this.#view.getUint32(at, true);
  /** Code signatures are big-endian. */
  big32 = (at: number) => this.#view.getUint32(at, false);
  text(at: number): string {
    const end = this.bytes.indexOf(0, at);
    return new TextDecoder().decode(this.bytes.subarray(at, end < 0 ? this.bytes.length : end));
  }
  /** Unsigned LEB128 and the place behind it. */
  uleb(at: number): [number, number] {
    let value = 0;
    let scale = 1;
    for (let next = at; ; next++, scale *= 128) {
      const byte = this.u8(next);
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return [value, next + 1];
    }
  }
}

const version = (packed: number) => `${packed >>> 16}.${(packed >>> 8) & 0xff}`;

/** Names in an export trie at `start`: nodes of (size of what ends here, that, number of edges, (text, child)...). */
function exportedNames(file: Reader, start: number, size: number): string[] {
  if (size === 0) return [];
  const names: string[] = [];
  const walk = (node: number, prefix: string): void => {
    const [terminal, behind] = file.uleb(start + node);
    if (terminal > 0) names.push(prefix);
    let at = behind + terminal;
    const edges = file.u8(at++);
    for (let i = 0; i < edges; i++) {
      const label = file.text(at);
      const [child, next] = file.uleb(at + label.length + 1);
      at = next;
      walk(child, prefix + label);
    }
  };
  walk(0, "");
  return names.sort();
}

/** Names in a list of binding opcodes: opcode in the upper four bits, its small operand in the lower. */
function boundNames(file: Reader, start: number, size: number): string[] {
  const names: string[] = [];
  // Numbers of LEB128 operands by opcode; strings are handled apart.
  const operands: Readonly<Record<number, number>> = { 2: 1, 6: 1, 7: 1, 8: 1, 10: 1, 12: 2 };
  for (let at = start; at < start + size; ) {
    const opcode = file.u8(at++) >>> 4;
    if (opcode === 4) {
      const name = file.text(at);
      names.push(name);
      at += name.length + 1;
    }
    for (let n = operands[opcode] ?? 0; n > 0; n--) at = file.uleb(at)[1];
  }
  return names;
}

function readSymbols(file: Reader, command: number, libraries: readonly string[]) {
  const [table, count, strings] = [file.u32(command + 8), file.u32(command + 12), file.u32(command + 16)];
  const imports: Import[] = [];
  const defined = new Set<string>();
  for (let i = 0; i < count; i++) {
    const at = table + 16 * i;
    const type = file.u8(at + 4);
    if ((type & 0xe0) !== 0) continue; // debugging
    const symbol = file.text(strings + file.u32(at));
    if ((type & 0x0e) !== 0) defined.add(symbol);
    else if ((type & 0x01) !== 0) {
      const description = file.u16(at + 6);
      const ordinal = description >>> 8;
      imports.push({ symbol, library: libraries[ordinal - 1] ?? "", weak: (description & 0x40) !== 0 });
    }
  }
  return { imports, defined };
}

const MAGIC = { superBlob: 0xfade0cc0, codeDirectory: 0xfade0c02, wrapper: 0xfade0b01 };

/** Hashes every page again and compares it with the code directory. */
function readSignature(file: Reader, offset: number): Signature {
  const problems: string[] = [];
  if (file.big32(offset) !== MAGIC.superBlob) problems.push("no super blob");
  const blobs = new Map<number, number>();
  for (let i = 0; i < file.big32(offset + 8); i++)
    blobs.set(file.big32(offset + 12 + 8 * i), offset + file.big32(offset + 16 + 8 * i));
  const directory = blobs.get(0);
  if (directory === undefined || file.big32(directory) !== MAGIC.codeDirectory)
    return { adHoc: false, identifier: "", problems: [...problems, "no code directory"] };
  const word = (at: number) => file.big32(directory + at);
  const [hashes, identifier, specialSlots, slots, limit] = [word(16), word(20), word(24), word(28), word(32)];
  const [hashSize, hashType] = [file.u8(directory + 36), file.u8(directory + 37)];
  const page = 2 ** file.u8(directory + 39);
  if (hashType !== 2 || hashSize !== 32) problems.push(`hash type ${hashType}, not SHA-256`);
  if (limit !== offset) problems.push(`covers ${limit} bytes of ${offset}`);
  if (slots !== Math.ceil(limit / page)) problems.push(`${slots} pages of ${Math.ceil(limit / page)}`);
  const matches = (slot: number, bytes: Uint8Array) => {
    const at = directory + hashes + slot * hashSize;
    return createHash("sha256")
      .update(bytes)
      .digest()
      .equals(file.bytes.subarray(at, at + hashSize));
  };
  for (let i = 0; i < slots; i++)
    if (!matches(i, file.bytes.subarray(i * page, Math.min((i + 1) * page, limit))))
      problems.push(`page ${i}`);
  // Blobs of the signature itself have the slots before the first page.
  for (const [slot, at] of blobs)
    if (
      slot >= 1 &&
      slot <= specialSlots &&
      !matches(-slot, file.bytes.subarray(at, at + file.big32(at + 4)))
    )
      problems.push(`special slot ${slot}`);
  const certificate = blobs.get(0x10000);
  const signed = certificate !== undefined && file.big32(certificate + 4) > 8;
  const adHoc = (word(12) & 0x2) !== 0 && !signed;
  return { adHoc, identifier: file.text(directory + identifier), problems };
}

export function readMachO(path: string): MachO {
  const file = new Reader(readFileSync(path));
  if (file.bytes.length < 32 || file.u32(0) !== 0xfeedfacf)
    throw new Error(`${path}: not a 64-bit Mach-O file`);
  const libraries: string[] = [];
  const searchPaths: string[] = [];
  let installName: string | null = null;
  let [platform, minimumOs] = ["", ""];
  let symbols: number | undefined;
  let exports: string[] = [];
  let coalesced: string[] = [];
  let signature: Signature | null = null;
  let at = 32;
  for (let i = 0; i < file.u32(16); i++, at += file.u32(at + 4)) {
    const command = file.u32(at);
    const name = () => file.text(at + file.u32(at + 8));
    const word = (n: number) => file.u32(at + 8 + 4 * n);
    if (COMMAND.needs.includes(command)) libraries.push(name());
    else if (command === COMMAND.installName) installName = name();
    else if (command === COMMAND.searchPath) searchPaths.push(name());
    else if (command === COMMAND.symbols) symbols = at;
    else if (command === COMMAND.signature) signature = readSignature(file, word(0));
    else if (command === COMMAND.exportsTrie) exports = exportedNames(file, word(0), word(1));
    else if (command === COMMAND.build) {
      platform = PLATFORMS[word(0)] ?? String(word(0));
      minimumOs = version(word(1));
    } else if (COMMAND.dyldInfo.includes(command)) {
      coalesced = boundNames(file, word(4), word(5));
      exports = exportedNames(file, word(8), word(9));
    }
  }
  return {
    arch: ARCHS.get(file.u32(4)) ?? file.u32(4).toString(16),
    kind: KINDS[file.u32(12)] ?? String(file.u32(12)),
    ...{ platform, minimumOs, installName, libraries, searchPaths, exports, coalesced, signature },
    ...(symbols === undefined
      ? { imports: [], defined: new Set<string>() }
      : readSymbols(file, symbols, libraries)),
  };
}

if (import.meta.main) {
  const { defined, ...rest } = readMachO(process.argv[2]!);
  process.stdout.write(`${JSON.stringify({ ...rest, defined: defined.size }, null, 2)}\n`);
}
