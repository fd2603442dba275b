/** Runs one operation, or its gradient rule, on a device between guard zones. */
import { bytesNeeded, type Device } from "../../src/device/device.ts";
import { Dtype, type DtypeCode, type GradContext, type OpDef, type View } from "../../src/ops/define.ts";
import { fill } from "../../src/ops/elementwise.ts";
import { type Data, type Element, elementBytes, elementOf, f32, type Params, valuesOf } from "./tensors.ts";

const GUARD = 64;
const SENTINEL = 0xa5;
/** Bytes of tensors that nobody has written: NaN in every float type. */
const UNWRITTEN = 0xff;

export interface Case {
  readonly op: OpDef;
  readonly name: string;
  readonly params: Params;
  /** Inputs and initial contents; outputs and scratch are made by the run; null: an absent optional tensor. */
  readonly tensors: Readonly<Record<string, Data | null>>;
}

/** One tensor in device memory with sentinels before and behind, up to the next multiple of 64 bytes. */
export class Slot {
  readonly view: View;
  readonly #buffer;
  constructor(
    device: Device,
    readonly label: string,
    readonly element: Element,
    readonly size: number,
    readonly initial: Uint8Array | null,
  ) {
    if (initial && initial.length !== size)
      throw new Error(`${label}: ${initial.length} bytes given, ${size} needed`);
    this.#buffer = device.buffer(GUARD + Math.ceil(size / GUARD) * GUARD + GUARD, label);
    this.view = this.#buffer.range(GUARD, size);
    if (!device.hasMemory) return;
    const bytes = new Uint8Array(this.#buffer.view());
    bytes.fill(SENTINEL);
    if (initial) bytes.set(initial, GUARD);
    else bytes.fill(UNWRITTEN, GUARD, GUARD + size);
  }
  /** What lies there now; nothing on a device without memory. */
  get data(): Data {
    if (!this.#buffer.device.hasMemory) return { element: this.element, bytes: new Uint8Array(0) };
    return { element: this.element, bytes: new Uint8Array(this.#buffer.view(GUARD, this.size)).slice() };
  }
  /** Offset, relative to the tensor, of the first sentinel that was overwritten; null if all stand. */
  get damage(): number | null {
    const bytes = new Uint8Array(this.#buffer.view());
    for (let i = 0; i < bytes.length; i++) {
      if (i >= GUARD && i < GUARD + this.size) continue;
      if (bytes[i] !== SENTINEL) return i - GUARD;
    }
    return null;
  }
  free(): void {
    this.#buffer.free();
  }
}

export class Memory {
  readonly slots: Slot[] = [];
  constructor(readonly device: Device) {}
  place(label: string, element: Element, size: number, initial: Uint8Array | null = null): Slot {
    const slot = new Slot(this.device, label, element, size, initial);
    this.slots.push(slot);
    return slot;
  }
  /** Every tensor of a case. */
  placeAll(c: Case): Record<string, Slot> {
    const placed: Record<string, Slot> = {};
    for (const tensor of Object.keys(c.op.tensors)) {
      const data = c.tensors[tensor];
      if (data === null) continue;
      const size = bytesNeeded(c.op, tensor, c.params as Record<string, number>);
      placed[tensor] = this.place(
        `${c.op.name} ${tensor}`,
        elementOf(c.op, tensor, c.params),
        size,
        data?.bytes,
      );
    }
    return placed;
  }
  /** Throws if a sentinel was overwritten or a tensor that is only read has changed. */
  check(readOnly: Iterable<Slot>): void {
    if (!this.device.hasMemory) return;
    for (const slot of this.slots)
      if (slot.damage !== null)
        throw new Error(`${slot.label}: a write outside, at byte ${slot.damage} of ${slot.size}`);
    for (const slot of readOnly)
      if (slot.initial && Buffer.compare(slot.data.bytes, slot.initial.subarray(0, slot.size)) !== 0)
        throw new Error(`${slot.label}: an input was written`);
  }
  free(): void {
    for (const slot of this.slots) slot.free();
  }
}

export function withMemory<T>(device: Device, body: (memory: Memory) => T): T {
  const memory = new Memory(device);
  try {
    return body(memory);
  } finally {
    memory.free();
  }
}

export function argumentsOf(
  c: Case,
  placed: Readonly<Record<string, Slot>>,
): Record<string, View | number | null> {
  const args: Record<string, View | number | null> = { ...c.params };
  for (const tensor of Object.keys(c.op.tensors)) args[tensor] = placed[tensor]?.view ?? null;
  return args;
}

function inputsOf(c: Case, placed: Readonly<Record<string, Slot>>): Slot[] {
  return Object.keys(placed)
    .filter((name) => c.op.tensors[name]!.access === "in")
    .map((name) => placed[name]!);
}

/** Everything the operation writes, after one run. */
export function run(device: Device, c: Case): Record<string, Data> {
  return withMemory(device, (memory) => {
    const placed = memory.placeAll(c);
    device.emit(c.op, argumentsOf(c, placed) as never);
    device.finish();
    memory.check(inputsOf(c, placed));
    const access = (name: string) => c.op.tensors[name]!.access;
    const written = Object.keys(placed).filter((name) => access(name) === "out" || access(name) === "inout");
    return Object.fromEntries(written.map((name) => [name, placed[name]!.data]));
  });
}

/** Changes the arguments of an operation that a gradient rule emits. */
export type Mutation = (
  op: string,
  args: Record<string, View | number | null>,
) => Record<string, View | number | null>;

export interface GradientRun {
  /** Cotangents of outputs, in the outputs' element types. */
  readonly cotangents: Readonly<Record<string, Data>>;
  readonly wanted: readonly string[];
  /** What float32 sums hold before; zeros if absent. */
  readonly before?: Readonly<Record<string, Data>>;
  /** Partial gradients that `into` finds present. */
  readonly partial?: Readonly<Record<string, Data>>;
  readonly mutate?: Mutation;
}

export interface GradientResult {
  readonly gradients: Readonly<Record<string, Data>>;
  /** Backward operations that the rule emitted. */
  readonly emitted: readonly string[];
}

/** The rule's side of a gradient: what the tape does, for one operation and without any reuse of memory. */
class RuleContext implements GradContext<string, string, string> {
  readonly found = new Map<string, Slot>();
  readonly emitted: string[] = [];
  readonly #cotangents = new Map<string, Slot>();
  constructor(
    readonly memory: Memory,
    readonly c: Case,
    readonly placed: Readonly<Record<string, Slot>>,
    readonly options: GradientRun,
  ) {
    for (const [name, data] of Object.entries(options.cotangents))
      this.#cotangents.set(
        name,
        memory.place(`cotangent of ${name}`, data.element, data.bytes.length, data.bytes),
      );
  }
  value(name: string): View {
    if (!this.c.op.saves.includes(name))
      throw new Error(`${this.c.op.name}: the rule reads ${name}, not in saves`);
    return this.placed[name]!.view;
  }
  maybe(name: string): View | null {
    return this.has(name) ? this.value(name) : null;
  }
  has(name: string): boolean {
    return this.placed[name] !== undefined;
  }
  param(name: string): number {
    return this.c.params[name]!;
  }
  grad(name: string): View | null {
    return this.#cotangents.get(name)?.view ?? null;
  }
  wants(name: string): boolean {
    return this.options.wanted.includes(name);
  }
  into(name: string): { view: View; accumulate: boolean } {
    const partial = this.options.partial?.[name];
    return { view: this.#gradient(name, partial).view, accumulate: partial !== undefined };
  }
  sumDtype(): DtypeCode {
    return Dtype.f32;
  }
  sum(name: string): View {
    const like = this.placed[name]!;
    const count = like.size / elementBytes[like.element];
    const before = this.options.before?.[name] ?? f32(new Float32Array(count));
    const slot = this.memory.place(`sum of ${name}`, "f32", count * 4, before.bytes);
    this.found.set(name, slot);
    return slot.view;
  }
  write(name: string): View {
    return this.#gradient(name).view;
  }
  share(name: string, view: View): void {
    const all = [...this.found.values(), ...this.#cotangents.values()];
    const slot = all.find((each) => each.view === view);
    if (!slot) throw new Error(`${this.c.op.name}: share(${name}) of a foreign view`);
    this.found.set(name, slot);
  }
  temp(bytes: number): View {
    return this.memory.place("temporary", "u8", bytes).view;
  }
  zeros(count: number): View {
    const view = this.temp(count * 4);
    this.memory.device.emit(fill, { y: view, n: count, value: 0 });
    return view;
  }
  emit(op: { readonly name: string }, args: object): void {
    this.emitted.push(op.name);
    const original = args as Record<string, View | number | null>;
    this.memory.device.emit(op as never, (this.options.mutate?.(op.name, original) ?? original) as never);
  }
  #gradient(name: string, initial?: Data): Slot {
    const like = this.placed[name]!;
    const slot = this.memory.place(`gradient of ${name}`, like.element, like.size, initial?.bytes);
    this.found.set(name, slot);
    return slot;
  }
}

/** Gradients by the operation's own rule and the device's backward kernels. */
export function gradients(device: Device, c: Case, options: GradientRun): GradientResult {
  return withMemory(device, (memory) => {
    const placed = memory.placeAll(c);
    device.emit(c.op, argumentsOf(c, placed) as never);
    const context = new RuleContext(memory, c, placed, options);
    c.op.vjp!(context as never);
    device.finish();
    memory.check(inputsOf(c, placed));
    const wanted = options.wanted.filter((name) => context.found.has(name));
    return {
      gradients: Object.fromEntries(wanted.map((name) => [name, context.found.get(name)!.data])),
      emitted: context.emitted,
    };
  });
}

/** The same gradients by the complex step on the reference device, as float32. */
export function referenceGradients(
  ref: Device,
  c: Case,
  cotangents: Readonly<Record<string, Data>>,
  wanted: readonly string[],
): Record<string, Data> {
  return withMemory(ref, (memory) => {
    const placed = memory.placeAll(c);
    const from: Record<string, View> = {};
    for (const [name, data] of Object.entries(cotangents)) {
      const wide = f32(valuesOf(data));
      from[name] = memory.place(`cotangent of ${name}`, "f32", wide.bytes.length, wide.bytes).view;
    }
    const to: Record<string, Slot> = {};
    for (const name of wanted) {
      const like = placed[name]!;
      to[name] = memory.place(`gradient of ${name}`, "f32", (like.size / elementBytes[like.element]) * 4);
    }
    const views = Object.fromEntries(wanted.map((name) => [name, to[name]!.view]));
    ref.vjp(c.op, argumentsOf(c, placed) as never, from, views);
    memory.check([]);
    return Object.fromEntries(wanted.map((name) => [name, to[name]!.data]));
  });
}
