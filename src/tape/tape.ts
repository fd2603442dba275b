/**
 * Reverse-mode differentiation over operations of the catalogue. A graph emits operations; when it records, it
 * keeps what the gradient rules read, gives up what is cheap to compute again, and runs the rules backwards.
 */
import { assert } from "../core/errors.ts";
import type { Device } from "../device/device.ts";
import {
  type ArgsOf,
  Dtype,
  type DtypeCode,
  type GradContext,
  type OpDef,
  type Operation,
  type Params,
  sizeOf,
  type Tensors,
  type View,
} from "../ops/define.ts";
import { add, copy, fill } from "../ops/elementwise.ts";
import "../ops/index.ts";
import { Arena } from "./arena.ts";
import { Storage, Tensor } from "./tensor.ts";

type AnyOp = OpDef<Tensors, Params>;
type TensorArgs = Readonly<Record<string, Tensor | null>>;

/** One recorded step of the forward pass. */
export interface Node {
  readonly args: TensorArgs;
  readonly op: AnyOp | null;
  readonly params: Readonly<Record<string, number>>;
  /** Storages kept for the gradient pass. */
  readonly kept: Storage[];
  /** A checkpointed block: inputs and how to run it again. */
  readonly block: {
    readonly inputs: readonly Tensor[];
    readonly outputs: readonly Tensor[];
    readonly run: BlockFn;
  } | null;
}

/** A pure function of its inputs on a graph; run twice when checkpointed. */
export type BlockFn = (graph: Graph, inputs: readonly Tensor[]) => readonly Tensor[];

/** Memory of one training step or one rollout: device tensors, and tensors that the host writes. */
export class StepMemory {
  readonly arena: Arena;
  readonly host: Arena;
  constructor(
    readonly device: Device,
    limit?: number,
  ) {
    this.arena = new Arena(device, "step", { limit });
    this.host = new Arena(device, "host", { deferred: true });
  }

  /** Runs everything emitted so far; host memory given up before may be written again. */
  finish(): void {
    this.device.finish();
    this.host.settle();
  }

  get used(): number {
    return this.arena.used + this.host.used;
  }
  get peak(): number {
    return this.arena.peak + this.host.peak;
  }

  dispose(): void {
    this.finish();
    this.arena.dispose();
    this.host.dispose();
  }
}

export class Graph {
  #nodes: Node[] = [];
  #gradients = new Map<Tensor, Storage>();
  /** The first node that reads a parameter: the last that adds to its gradient. */
  #firstReaders = new Map<Tensor, Node>();
  /** Parameters that a block reads before it is run again. */
  #read: Set<Tensor> | null = null;
  constructor(
    readonly memory: StepMemory,
    readonly recording: boolean,
  ) {}

  get device(): Device {
    return this.memory.device;
  }

  /** An uninitialised step tensor. */
  empty(shape: readonly number[], dtype: DtypeCode, label: string): Tensor {
    let n = 1;
    for (const d of shape) n *= d;
    return new Tensor(shape, dtype, Storage.inArena(this.memory.arena, n * sizeOf(dtype)), label);
  }

  /** A tensor in the memory of another, for an operation that writes over its input. Both are released. */
  over(tensor: Tensor): Tensor {
    return new Tensor(tensor.shape, tensor.dtype, tensor.storage!.retain(), tensor.label);
  }

  /** 32-bit values written by the host, readable by operations emitted from now on. */
  upload(data: Uint32Array | Int32Array | Float32Array, label: string): Tensor {
    const storage = Storage.inArena(this.memory.host, data.byteLength);
    const tensor = new Tensor([data.length], Dtype.f32, storage, label);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    this.device.trace?.uploaded(storage.view.buffer, storage.view.offset, bytes);
    if (this.device.hasMemory && data.length > 0)
      new Uint8Array(storage.buffer.view(storage.offset, data.byteLength)).set(bytes);
    return tensor;
  }

  /** Emits an operation; records it if a gradient may flow through it. */
  apply<T extends Tensors, P extends Params>(
    op: OpDef<T, P>,
    args: { readonly [K in keyof T]?: Tensor | null },
    params: { readonly [K in keyof P]: number },
  ): void {
    const tensors = args as TensorArgs;
    const views: Record<string, View | null | number> = { ...params };
    for (const name of Object.keys(op.tensors)) views[name] = tensors[name]?.view ?? null;
    this.device.emit(op, views as unknown as ArgsOf<T, P>);
    if (op.kind !== "forward") return;
    if (this.#read) for (const tensor of Object.values(tensors)) if (tensor?.gradient) this.#read.add(tensor);
    if (!this.recording) return;
    const wanted = Object.entries(op.tensors).some(
      ([name, f]) => f.access === "in" && tensors[name]?.requiresGrad,
    );
    if (!wanted) return;
    this.#record(op as unknown as AnyOp, tensors, params);
  }

  /** Records an operation whose outputs are known already, without running it. */
  assume<T extends Tensors, P extends Params>(
    op: OpDef<T, P>,
    tensors: { readonly [K in keyof T]?: Tensor | null },
    params: { readonly [K in keyof P]: number },
  ): void {
    assert(this.recording, `[${op.name}] assumed without a gradient pass`);
    this.#record(op as unknown as AnyOp, tensors as TensorArgs, params);
  }

  #record(op: AnyOp, args: TensorArgs, params: Readonly<Record<string, number>>): void {
    const node: Node = { args, op, params, kept: [], block: null };
    const keep = (tensor: Tensor | null | undefined) => {
      if (!tensor?.storage) return;
      if (tensor.producer?.op?.recompute && isRecomputed(tensor)) return;
      node.kept.push(tensor.storage.retain());
    };
    for (const name of op.saves) keep(args[name]);
    for (const [name, f] of Object.entries(op.tensors)) {
      if (f.access !== "out" || !args[name]) continue;
      args[name].producer = node;
      args[name].requiresGrad = true;
    }
    // What recomputing needs beyond the gradient rule's own reads.
    if (op.recompute) {
      for (const name of recomputeSources(op, args)) if (!op.saves.includes(name)) keep(args[name]);
    }
    this.#add(node, Object.values(args));
  }

  #add(node: Node, read: Iterable<Tensor | null | undefined>): void {
    this.#nodes.push(node);
    for (const tensor of read)
      if (tensor?.gradient && !this.#firstReaders.has(tensor)) this.#firstReaders.set(tensor, node);
  }

  /**
   * Runs `run` without recording and again in the gradient pass: keeps the inputs and what else it `reads` (data
   * without gradient), and nothing in between.
   */
  checkpoint(inputs: readonly Tensor[], reads: readonly Tensor[], run: BlockFn): readonly Tensor[] {
    if (!this.recording) return run(this, inputs);
    const forward = new Graph(this.memory, false);
    forward.#read = new Set();
    const outputs = run(forward, inputs);
    const node: Node = {
      args: {},
      op: null,
      params: {},
      kept: [...inputs, ...reads].map((t) => t.storage!.retain()),
      block: { inputs, outputs, run },
    };
    for (const t of outputs) {
      t.producer = node;
      t.requiresGrad = true;
    }
    this.#add(node, forward.#read);
    return outputs;
  }

  /** The caller needs these no more; the gradient pass keeps what it must. */
  release(...tensors: (Tensor | null | undefined)[]): void {
    for (const t of tensors) {
      if (!t) continue;
      assert(t.storage, `${t.label} released twice`);
      const storage = t.storage;
      storage.release();
      if (storage.users === 0) t.storage = null;
    }
  }

  /**
   * Adds the gradients of Σ seeds·tensor to the gradients of the parameters. `seeds` are consumed. Gradients of
   * tensors in `leaves` are returned (null where nothing flowed). `final` is told of every parameter that was read, when
   * all that adds to its gradient has been emitted.
   */
  backward(
    seeds: readonly (readonly [Tensor, Tensor])[],
    leaves: readonly Tensor[] = [],
    final?: (parameter: Tensor) => void,
  ): (Storage | null)[] {
    const finals = Map.groupBy(final ? this.#firstReaders : [], ([, node]) => node);
    for (const [tensor, seed] of seeds) this.#accumulate(tensor, seed.storage!.retain());
    for (const [, seed] of seeds) this.release(seed);
    const keep = new Set(leaves);
    for (let i = this.#nodes.length - 1; i >= 0; i--) {
      const node = this.#nodes[i]!;
      if (node.block) this.#backwardBlock(node);
      else this.#backwardOp(node);
      this.#retire(node, keep);
      for (const [parameter] of finals.get(node) ?? []) final!(parameter);
    }
    this.#nodes = [];
    this.#firstReaders.clear();
    const result = leaves.map((t) => this.#gradients.get(t) ?? null);
    for (const [tensor, storage] of this.#gradients) if (!keep.has(tensor)) storage.release();
    this.#gradients.clear();
    return result;
  }

  /** Drops the record without running it. */
  discard(): void {
    for (const node of this.#nodes) for (const storage of node.kept) storage.release();
    this.#nodes = [];
    this.#firstReaders.clear();
  }

  #backwardOp(node: Node): void {
    const op = node.op!;
    const outputs = Object.entries(op.tensors).filter(([name, f]) => f.access === "out" && node.args[name]);
    if (!outputs.some(([name]) => this.#gradients.has(node.args[name]!))) return;
    const context = new RuleContext(this, node);
    op.vjp!(context as never);
    context.close();
  }

  #backwardBlock(node: Node): void {
    const { inputs, outputs, run } = node.block!;
    if (!outputs.some((t) => this.#gradients.has(t))) return;
    const inner = new Graph(this.memory, true);
    // Stand-ins: the block is differentiated with respect to them.
    const locals = inputs.map((t, i) => {
      const local = new Tensor(t.shape, t.dtype, node.kept[i]!.retain(), t.label);
      local.requiresGrad = t.requiresGrad;
      return local;
    });
    const again = run(inner, locals);
    const seeds: [Tensor, Tensor][] = [];
    outputs.forEach((t, i) => {
      const gradient = this.#gradients.get(t);
      if (gradient) seeds.push([again[i]!, new Tensor(t.shape, t.dtype, gradient.retain(), t.label)]);
    });
    const gradients = inner.backward(seeds, locals);
    inner.release(...again);
    gradients.forEach((g, i) => {
      if (g) this.#accumulate(inputs[i]!, g);
    });
    inner.release(...locals);
  }

  #retire(node: Node, keep: ReadonlySet<Tensor>): void {
    for (const storage of node.kept) storage.release();
    const outputs = node.block
      ? node.block.outputs
      : Object.entries(node.op!.tensors).flatMap(([name, f]) =>
          f.access === "out" && node.args[name] ? [node.args[name]] : [],
        );
    for (const tensor of outputs) {
      const gradient = this.#gradients.get(tensor);
      if (gradient && !keep.has(tensor)) {
        gradient.release();
        this.#gradients.delete(tensor);
      }
      if (rematerialised.has(tensor)) {
        rematerialised.delete(tensor);
        tensor.storage!.release();
        tensor.storage = null;
      }
      tensor.producer = null;
    }
  }

  /** Takes over one use of `storage` as (part of) the gradient of `tensor`. */
  #accumulate(tensor: Tensor, storage: Storage): void {
    const present = this.#gradients.get(tensor);
    if (!present) {
      this.#gradients.set(tensor, storage);
      return;
    }
    const sum = Storage.inArena(this.memory.arena, storage.bytes);
    this.device.emit(add, {
      y: sum.view,
      a: present.view,
      b: storage.view,
      n: tensor.size,
      dt: tensor.dtype,
    });
    present.release();
    storage.release();
    this.#gradients.set(tensor, sum);
  }

  // What the gradient rules use.
  gradientOf(tensor: Tensor): Storage | null {
    return this.#gradients.get(tensor) ?? null;
  }
  setGradient(tensor: Tensor, storage: Storage): void {
    this.#accumulate(tensor, storage);
  }
  replaceGradient(tensor: Tensor, storage: Storage): void {
    this.#gradients.get(tensor)?.release();
    this.#gradients.set(tensor, storage);
  }
  /** The only holder may add to it in place. */
  exclusive(tensor: Tensor): Storage | null {
    const present = this.#gradients.get(tensor);
    return present && present.users === 1 ? present : null;
  }

  /** Brings back a recomputable tensor. */
  materialise(tensor: Tensor): View {
    if (tensor.storage && tensor.storage.users > 0) return tensor.view;
    const node = tensor.producer;
    const op = node?.op;
    assert(node && op?.recompute, `${tensor.label} was released and cannot be computed again`);
    const storage = Storage.inArena(this.memory.arena, tensor.size * sizeOf(tensor.dtype));
    const views: Record<string, View | null | number> = { ...node.params };
    for (const [name, f] of Object.entries(op.tensors)) {
      if (name === op.recompute.output) views[name] = storage.view;
      else {
        const source = sourceOf(op, node.args, name);
        views[name] = source && f.access !== "out" ? this.materialise(node.args[source]!) : null;
      }
    }
    this.device.emit(op, views as never);
    tensor.storage = storage;
    rematerialised.add(tensor);
    return storage.view;
  }
}

/** Tensors whose storage the gradient pass made again; it ends when their producer has been differentiated. */
const rematerialised = new WeakSet<Tensor>();

function isRecomputed(tensor: Tensor): boolean {
  const node = tensor.producer!;
  return node.args[node.op!.recompute!.output] === tensor;
}

/** The argument that stands for `name` when an operation is run again. */
function sourceOf(op: AnyOp, args: TensorArgs, name: string): string | null {
  const alias = op.recompute!.alias;
  if (!(name in alias)) return args[name] ? name : null;
  const other = alias[name];
  if (other === null || other === undefined) return null;
  return args[other] ? other : args[name] ? name : null;
}

function recomputeSources(op: AnyOp, args: TensorArgs): string[] {
  return Object.entries(op.tensors)
    .filter(([, f]) => f.access === "in")
    .map(([name]) => sourceOf(op, args, name))
    .filter((name): name is string => name !== null);
}

/** What one gradient rule sees: values, cotangents, and places for what it computes. */
class RuleContext implements GradContext<string, string, string> {
  readonly #temps: Storage[] = [];
  readonly #written = new Map<string, Storage>();
  readonly #cotangents: Storage[] = [];
  constructor(
    private readonly graph: Graph,
    private readonly node: Node,
  ) {}

  value(name: string): View {
    const view = this.maybe(name);
    assert(view, `[${this.node.op!.name}] gradient rule reads ${name}, which is absent`);
    return view;
  }
  maybe(name: string): View | null {
    const tensor = this.node.args[name];
    if (!tensor) return null;
    if (tensor.storage && tensor.storage.users > 0) return tensor.view;
    return this.graph.materialise(tensor);
  }
  has(name: string): boolean {
    return Boolean(this.node.args[name]);
  }
  param(name: string): number {
    const value = this.node.params[name];
    assert(value !== undefined, `[${this.node.op!.name}] no parameter ${name}`);
    return value;
  }
  grad(name: string): View | null {
    const tensor = this.node.args[name];
    const storage = tensor ? this.graph.gradientOf(tensor) : null;
    if (!storage) return null;
    this.#cotangents.push(storage);
    return storage.view;
  }
  wants(name: string): boolean {
    return this.node.args[name]?.requiresGrad === true;
  }
  into(name: string): { view: View; accumulate: boolean } {
    const tensor = this.node.args[name]!;
    const present = this.graph.exclusive(tensor);
    if (present) return { view: present.view, accumulate: true };
    const shared = this.graph.gradientOf(tensor);
    const bytes = tensor.size * sizeOf(tensor.dtype);
    const storage = Storage.inArena(this.graph.memory.arena, bytes);
    if (!shared) {
      this.graph.setGradient(tensor, storage);
      return { view: storage.view, accumulate: false };
    }
    // Someone else reads the partial sum: add to a copy.
    this.graph.device.emit(copy, { y: storage.view, x: shared.view, n: bytes });
    this.graph.replaceGradient(tensor, storage);
    return { view: storage.view, accumulate: true };
  }
  sum(name: string): View {
    const gradient = this.node.args[name]!.gradient;
    assert(gradient, `[${this.node.op!.name}] ${name} has no gradient to add to`);
    return gradient.view;
  }
  sumDtype(name: string): DtypeCode {
    return this.node.args[name]!.gradientDtype;
  }
  write(name: string): View {
    const tensor = this.node.args[name]!;
    const storage = Storage.inArena(this.graph.memory.arena, tensor.size * sizeOf(tensor.dtype));
    this.#written.set(name, storage);
    return storage.view;
  }
  share(name: string, view: View): void {
    const tensor = this.node.args[name];
    if (!tensor?.requiresGrad) return;
    const storage =
      [...this.#written.values()].find((s) => s.view === view) ??
      this.#cotangents.find((s) => s.view === view);
    assert(storage, `[${this.node.op!.name}] share(${name}): not a cotangent and not written by this rule`);
    this.graph.setGradient(tensor, storage.retain());
  }
  temp(bytes: number): View {
    const storage = Storage.inArena(this.graph.memory.arena, bytes);
    this.#temps.push(storage);
    return storage.view;
  }
  zeros(count: number): View {
    const view = this.temp(count * 4);
    this.graph.device.emit(fill, { y: view, n: count, value: 0 });
    return view;
  }
  emit<T extends Tensors, P extends Params>(op: Operation<T, P>, args: ArgsOf<T, P>): void {
    this.graph.device.emit(op, args);
  }
  close(): void {
    for (const storage of this.#temps) storage.release();
    for (const storage of this.#written.values()) storage.release();
  }
}
