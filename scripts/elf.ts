/** Reads what the loader of Linux reads of a 64-bit little-endian ELF file (gABI; LSB for symbol versions). */
import { readFileSync } from "node:fs";

export interface Elf {
  readonly machine: string;
  readonly kind: "shared" | "program";
  readonly soname: string | null;
  /** The program that loads this one; null for a library. */
  readonly interpreter: string | null;
  /** DT_NEEDED, in order. */
  readonly needed: readonly string[];
  /** DT_RPATH and DT_RUNPATH. */
  readonly searchPaths: readonly string[];
  /** Versions of symbols that it needs, `GLIBC_2.17`, sorted. */
  readonly versions: readonly string[];
  /** Names that other files may link to, sorted. */
  readonly exports: readonly string[];
  readonly executableStack: boolean;
}

const MACHINES: Readonly<Record<number, string>> = { 62: "x86_64", 183: "aarch64" };
const PT = { load: 1, dynamic: 2, interp: 3, gnuStack: 0x6474e551 } as const;
const DT = { needed: 1, strtab: 5, symtab: 6, soname: 14, rpath: 15, runpath: 29 } as const;
const DT_VERNEED = 0x6ffffffe;
const DT_VERNEEDNUM = 0x6fffffff;
const SHT_DYNSYM = 11;

export function readElf(path: string): Elf {
  const bytes = readFileSync(path);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const u16 = (at: number) => view.getUint16(at, true);
  const u32 = (at: number) => view.getUint32(at, true);
  const u64 = (at: number) => Number(view.getBigUint64(at, true));
  if (bytes.length < 64 || u32(0) !== 0x464c457f || bytes[4] !== 2 || bytes[5] !== 1)
    throw new Error(`not a 64-bit little-endian ELF file: ${path}`);
  const text = (at: number) => bytes.toString("latin1", at, bytes.indexOf(0, at));

  const segments = Array.from({ length: u16(56) }, (_, i) => {
    const at = u64(32) + i * u16(54);
    return {
      type: u32(at),
      flags: u32(at + 4),
      offset: u64(at + 8),
      address: u64(at + 16),
      size: u64(at + 32),
    };
  });
  /** Where in the file an address of memory comes from. */
  const place = (address: number): number => {
    const segment = segments.find(
      (each) => each.type === PT.load && address >= each.address && address < each.address + each.size,
    );
    if (segment === undefined) throw new Error(`address ${address} is in no segment: ${path}`);
    return address - segment.address + segment.offset;
  };

  const dynamic: (readonly [tag: number, value: number])[] = [];
  const table = segments.find((each) => each.type === PT.dynamic);
  if (table !== undefined)
    for (let at = table.offset; u64(at) !== 0; at += 16) dynamic.push([u64(at), u64(at + 8)]);
  const all = (tag: number) => dynamic.filter(([each]) => each === tag).map(([, value]) => value);
  const strings = all(DT.strtab).map(place)[0] ?? 0;
  const named = (tag: number) => all(tag).map((offset) => text(strings + offset));

  const versions = new Set<string>();
  let need = all(DT_VERNEED).map(place)[0] ?? 0;
  for (let i = all(DT_VERNEEDNUM)[0] ?? 0; i > 0; i--) {
    let auxiliary = need + u32(need + 8);
    for (let j = u16(need + 2); j > 0; j--) {
      versions.add(text(strings + u32(auxiliary + 8)));
      auxiliary += u32(auxiliary + 12);
    }
    need += u32(need + 12);
  }

  // Only the section header says how many symbols there are; the hash tables of the loader say it in other ways.
  const exports: string[] = [];
  for (let i = 0; i < u16(60); i++) {
    const section = u64(40) + i * u16(58);
    if (u32(section + 4) !== SHT_DYNSYM) continue;
    const [offset, size] = [u64(section + 24), u64(section + 32)];
    for (let at = offset; at < offset + size; at += 24) {
      const defined = u16(at + 6) !== 0;
      const visible = bytes[at + 4]! >> 4 !== 0;
      if (defined && visible) exports.push(text(strings + u32(at)));
    }
  }

  const interpreter = segments.find((each) => each.type === PT.interp);
  const stack = segments.find((each) => each.type === PT.gnuStack);
  return {
    machine: MACHINES[u16(18)] ?? `machine ${u16(18)}`,
    kind: interpreter === undefined ? "shared" : "program",
    soname: named(DT.soname)[0] ?? null,
    interpreter: interpreter === undefined ? null : text(interpreter.offset),
    needed: named(DT.needed),
    searchPaths: [...named(DT.rpath), ...named(DT.runpath)],
    versions: [...versions].sort(),
    exports: exports.sort(),
    executableStack: stack === undefined || (stack.flags & 1) !== 0,
  };
}
