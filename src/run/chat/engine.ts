/** Chats with several models side by side on one device; adapters of one model share its weights. */
import { realpathSync } from "node:fs";
import type { ChatModelInfo } from "../../core/chat.ts";
import type { ChatEngineOptions, ChatModelSpec } from "../../core/chat-process.ts";
import { UsageError } from "../../core/errors.ts";
import { Device } from "../../device/device.ts";
import type { ModelConfig } from "../../io/hf-folder.ts";
import { hasChatTemplate } from "../../io/template.ts";
import { Transformer, type TransformerOptions } from "../../nn/transformer.ts";
import { StepMemory } from "../../tape/tape.ts";
import {
  dtypeCode,
  loadAdapters,
  openDevice,
  openModel,
  openTokenizer,
  readAdapterOptions,
  readCausalConfig,
} from "../open-model.ts";
import { bytesText } from "../reporter.ts";
import { ChatModel, chatEngine, knowsThinking } from "./model.ts";

/** The weights of a folder, open for as many chats as `users` says. */
interface Base {
  readonly model: Transformer;
  users: number;
}

interface Open {
  readonly chat: ChatModel;
  readonly model: Transformer;
  readonly folder: string;
  readonly info: ChatModelInfo;
  /** Counts up with every use. */
  used: number;
}

export class ChatEngine {
  readonly device: Device;
  readonly #memory: StepMemory;
  readonly #bases = new Map<string, Base>();
  readonly #open = new Map<string, Open>();
  #clock = 0;

  constructor(
    readonly options: ChatEngineOptions,
    /** Bytes that may still be taken. */
    readonly available: () => number = () => process.availableMemory(),
  ) {
    this.device = openDevice(options.device, options.threads);
    this.#memory = new StepMemory(this.device);
  }

  get ids(): string[] {
    return [...this.#open.keys()];
  }

  /** The chat of an open model. */
  chat(id: string): ChatModel {
    const open = this.#open.get(id);
    if (!open) throw new UsageError("the model is not open", id, "open it first");
    open.used = ++this.#clock;
    return open.chat;
  }

  /**
   * Opens a model, or finds it open. Where memory is short, models that are neither replying nor in `keep` are closed,
   * those not used for longest first; what does not fit then is refused.
   */
  open(spec: ChatModelSpec, keep: readonly string[] = []): { info: ChatModelInfo; closed: string[] } {
    const there = this.#open.get(spec.id);
    if (there) {
      there.used = ++this.#clock;
      return { info: there.info, closed: [] };
    }
    const config = readCausalConfig(spec.model);
    const folder = realpathSync(spec.model);
    const context = Math.min(config.maxPositionEmbeddings, this.options.max_length);
    const options = this.#options(spec, config, context);
    const size = sizeOf(config, options);
    const closed = this.#makeRoom(spec, folder, size, keep);
    const tokenizer = openTokenizer(spec.model, config);
    const base = this.#base(folder, options);
    let model = base.model;
    let opened: ChatModel | null = null;
    try {
      if (spec.adapter !== null) {
        model = new Transformer(this.device, config, { ...options, weightsOf: base.model }, spec.label);
        loadAdapters(model, spec.adapter);
      }
      const scaled = model.dual ? model : null;
      const chat = new ChatModel(this.#memory, model, tokenizer, context, spec.label, scaled);
      opened = chat;
      if (spec.scales) chat.setScales(spec.scales);
      const info: ChatModelInfo = {
        id: spec.id,
        label: spec.label,
        architecture: config.architecture,
        parameters: base.model.parameters.count + (model.adapters?.count ?? 0),
        device: this.device.name,
        context,
        template: hasChatTemplate(tokenizer),
        thinking: knowsThinking(tokenizer),
        scales: chat.scales,
        bytes: size.base + size.own,
        notes: base.model.quantizationNote ? [base.model.quantizationNote] : [],
      };
      this.#open.set(spec.id, { chat, model, folder, info, used: ++this.#clock });
      return { info, closed };
    } catch (error) {
      opened?.dispose();
      if (model !== base.model) model.dispose();
      this.#release(folder);
      throw error;
    }
  }

  close(id: string): void {
    const open = this.#open.get(id);
    if (!open) return;
    this.#open.delete(id);
    open.chat.dispose();
    if (open.model.options.weightsOf) open.model.dispose();
    this.#release(open.folder);
  }

  dispose(): void {
    for (const id of this.ids) this.close(id);
    this.#memory.dispose();
    this.device.close();
  }

  #options(spec: ChatModelSpec, config: ModelConfig, maxPositions: number): TransformerOptions {
    const lora = spec.adapter === null ? null : readAdapterOptions(spec.adapter, config);
    return { dtype: dtypeCode(this.options.dtype), trainable: false, maxPositions, lora };
  }

  #base(folder: string, options: TransformerOptions): Base {
    const there = this.#bases.get(folder);
    if (there) {
      there.users++;
      return there;
    }
    const model = openModel(folder, this.device, { ...options, lora: null }, folder);
    const base = { model, users: 1 };
    this.#bases.set(folder, base);
    return base;
  }

  #release(folder: string): void {
    const base = this.#bases.get(folder)!;
    if (--base.users > 0) return;
    this.#bases.delete(folder);
    base.model.dispose();
  }

  #makeRoom(spec: ChatModelSpec, folder: string, size: Size, keep: readonly string[]): string[] {
    const closed: string[] = [];
    for (;;) {
      const needed = size.own + (this.#bases.has(folder) ? 0 : size.base);
      const available = this.available();
      if (needed <= available) return closed;
      const idle = [...this.#open]
        .filter(([id, { chat }]) => !keep.includes(id) && !chat.busy)
        .sort((a, b) => a[1].used - b[1].used)[0];
      if (!idle)
        throw new UsageError(
          `the model needs ${bytesText(needed)}, ${bytesText(available)} are available`,
          spec.label,
          `close another one, lower --max_length${this.options.dtype === "float32" ? ", or give --dtype bfloat16" : ""}`,
        );
      this.close(idle[0]);
      closed.push(idle[0]);
    }
  }
}

/** Bytes of weights that several models may share, and of a model's own: adapters, cache and the largest pass. */
interface Size {
  readonly base: number;
  readonly own: number;
}

/** Of a model that holds a whole conversation. */
function sizeOf(config: ModelConfig, options: TransformerOptions): Size {
  const device = Device.open("null");
  try {
    const model = new Transformer(device, config, options);
    const memory = new StepMemory(device);
    const engine = chatEngine(memory, model, options.maxPositions);
    const pieces = Math.min(options.maxPositions - 1, engine.options.prefillTokens);
    engine.encode(new Int32Array(pieces)).release();
    const base = model.parameters.bytes.weights;
    const own = (model.adapters?.bytes.weights ?? 0) + engine.store.bytes + memory.peak;
    engine.dispose();
    memory.dispose();
    model.dispose();
    return { base, own };
  } finally {
    device.close();
  }
}
