/** Frozen weights as codes and scales: what takes the place of a packed weight in products and the embedding. */
import { UsageError } from "../core/errors.ts";
import {
  isNf4Table,
  nestScales,
  type QuantizationScheme,
  readScales,
  type StoredFormat,
  unnestScales,
} from "../io/bitsandbytes.ts";
import { isLinearMap, type ModelConfig, type Weights } from "../io/hf-folder.ts";
import {
  Dtype,
  PANEL,
  QUANT_BLOCK,
  type QuantCode,
  QuantType,
  quantBytes,
  quantScales,
  type View,
} from "../ops/define.ts";
import { Storage, Tensor } from "../tape/tensor.ts";

export interface Quantization {
  readonly type: keyof typeof QuantType;
  /** Embedding and head too; log-probabilities (`Transformer.score`) need them plain. */
  readonly head: boolean;
  /** Scales of nf4 are quantized themselves; true if absent. */
  readonly double?: boolean;
}

/** What a flag calls int8 or int4: the values that bitsandbytes would compute with. */
export function quantizationOf(flag: "int8" | "int4"): Quantization {
  return { type: flag === "int4" ? "nf4" : "int8", head: false, double: true };
}

export const schemeOf = ({ type, double }: Quantization): QuantizationScheme => ({
  type,
  double: type === "nf4" && (double ?? true),
});

/** How a matrix of a model with quantized weights is held. */
export interface QuantPlan {
  /** As codes of this type; null: as plain values, because no product takes its codes. */
  readonly code: QuantCode | null;
  /** What is done to plain values as they are loaded; null: they come as codes. */
  readonly scheme: QuantizationScheme | null;
}

/** Whether products can take the codes of a folder: bytes, or nf4 in blocks that are parts of rows or whole rows. */
function heldCode(name: string, { type, shape, blocksize, table }: StoredFormat): QuantCode | null {
  if (!isLinearMap(name)) return null;
  if (type === "int8") return QuantType.int8;
  const whole = shape[1] % QUANT_BLOCK === 0 && blocksize % QUANT_BLOCK === 0;
  return type === "nf4" && whole && isNf4Table(table!) ? QuantType.nf4 : null;
}

/** How each matrix is held: as the folder has it, or as `asked` makes it. */
export function quantPlans(
  { quantization }: ModelConfig,
  asked: Quantization | null,
  where: string,
): (name: string, shape: readonly number[]) => QuantPlan | null {
  if (!quantization) {
    return (name, [, k]) => {
      const table = /^(lm_head|model\.embed_tokens)\.weight$/.test(name);
      if (!asked || !(isLinearMap(name) || (asked.head && table))) return null;
      const held = asked.type === "int8" || k! % QUANT_BLOCK === 0;
      return { code: held ? QuantType[asked.type] : null, scheme: schemeOf(asked) };
    };
  }
  const types = new Set([...quantization.stored.values()].map(({ type }) => type));
  if (asked && (types.size !== 1 || !types.has(asked.type)))
    throw new UsageError(
      `a model quantized to ${[...types].join(" and ")} is not quantized to ${asked.type}`,
      where,
      "take the plain model",
    );
  return (name) => {
    const format = quantization.stored.get(name);
    return format ? { code: heldCode(name, format), scheme: null } : null;
  };
}

/** What to tell the user about matrices that take the memory of plain ones; null: nothing. */
export function quantizationNote(config: ModelConfig, plans: ReadonlyMap<string, QuantPlan>): string | null {
  const plain = [...plans].filter(([, { code }]) => code === null);
  if (plain.length === 0) return null;
  const types = new Set(
    plain.map(([name, { scheme }]) => scheme?.type ?? config.quantization!.stored.get(name)!.type),
  );
  return (
    `${plain.length} of ${plans.size} quantized matrices (${[...types].join(", ")}) lie dequantized in memory: ` +
    `products take int8, and nf4 in blocks of a multiple of ${QUANT_BLOCK} values within rows`
  );
}

/** Bytes of a file that are rearranged at a time. */
const CHUNK_BYTES = 4 << 20;

export class QuantizedWeight {
  /** Formats and layouts: src/ops/quant.ts. */
  readonly codes: Tensor;
  readonly scales: Tensor;

  /** `storage` holds the codes, then the scales. */
  constructor(
    readonly label: string,
    readonly shape: readonly [n: number, k: number],
    readonly type: QuantCode,
    storage: Storage,
  ) {
    const [n, k] = shape;
    const [codes, scales] = [quantBytes(n, k, type), quantScales(n, k, type)];
    const at = (offset: number, bytes: number, name: string) =>
      new Tensor(
        [bytes / 4],
        Dtype.f32,
        Storage.inBuffer(storage.buffer, storage.offset + offset, bytes),
        name,
      );
    this.codes = at(0, codes, label);
    this.scales = at(codes, scales * 4, `${label} scales`);
  }

  /** Codes, scales and type of `count` rows from `first` (a multiple of 32) on. */
  rows(first: number, count: number): { codes: View; scales: View; qt: QuantCode } {
    const [, k] = this.shape;
    const part = ({ storage }: Tensor, sizeOf: (n: number) => number) =>
      storage!.buffer.range(storage!.offset + sizeOf(first), sizeOf(count));
    return {
      codes: part(this.codes, (n) => quantBytes(n, k, this.type)),
      scales: part(this.scales, (n) => 4 * quantScales(n, k, this.type)),
      qt: this.type,
    };
  }

  /** Codes and scales of a folder, while nothing runs on the device. */
  load(from: Weights, name: string, format: StoredFormat): void {
    const [n, k] = this.shape;
    const rowBytes = this.type === QuantType.nf4 ? k / 2 : k;
    const panels = Math.max(1, Math.floor(CHUNK_BYTES / (PANEL * rowBytes)));
    const rearrange = this.type === QuantType.nf4 ? panelOfNf4 : panelOfBytes;
    const panelBytes = quantBytes(PANEL, k, this.type);
    const storage = this.codes.storage!;
    for (let row = 0; row < n; row += panels * PANEL) {
      const rows = Math.min(panels * PANEL, n - row);
      const bytes = new Uint8Array(rows * rowBytes);
      from.readInto(name, bytes, row * rowBytes);
      for (let first = 0; first < rows; first += PANEL) {
        const at = ((row + first) / PANEL) * panelBytes;
        const part = bytes.subarray(first * rowBytes, Math.min(rows, first + PANEL) * rowBytes);
        rearrange(part, k, storage.buffer.view(storage.offset + at, panelBytes));
      }
    }
    const scales = readScales(from, name, format);
    this.#setScales(
      this.type === QuantType.int8
        ? scales.map((scb) => scb / 127)
        : blocksOf(scales, (n * k) / QUANT_BLOCK, format.blocksize / QUANT_BLOCK),
    );
  }

  /** After the device has quantized plain values: asks that they were finite, and quantizes scales too. */
  settle({ double }: QuantizationScheme): void {
    const scales = this.#getScales();
    if (!scales.every(Number.isFinite))
      throw new UsageError(
        `weights that are not finite${this.type === QuantType.int8 ? ", or beyond float16" : ""}`,
        this.label,
        "they cannot be quantized",
      );
    if (double) this.#setScales(unnestScales(nestScales(scales)));
  }

  get #scaleView(): Float32Array {
    const { buffer, offset, bytes } = this.scales.storage!;
    return new Float32Array(buffer.view(offset, bytes));
  }
  /** Scales in the order of files, a row's next to each other; on the device those of 32 rows are. */
  #getScales(): Float32Array {
    const [rows, blocks, view] = [this.shape[0], this.#blocks, this.#scaleView];
    const scales = new Float32Array(rows * blocks);
    for (let row = 0; row < rows; row++)
      for (let b = 0; b < blocks; b++) scales[row * blocks + b] = view[scaleIndex(row, b, blocks)]!;
    return scales;
  }
  #setScales(scales: Float32Array): void {
    const [rows, blocks, view] = [this.shape[0], this.#blocks, this.#scaleView];
    view.fill(0);
    for (let row = 0; row < rows; row++)
      for (let b = 0; b < blocks; b++) view[scaleIndex(row, b, blocks)] = scales[row * blocks + b]!;
  }
  /** Scales of a row. */
  get #blocks(): number {
    return this.type === QuantType.nf4 ? this.shape[1] / QUANT_BLOCK : 1;
  }
}

const scaleIndex = (row: number, block: number, blocks: number): number =>
  (Math.floor(row / PANEL) * blocks + block) * PANEL + (row % PANEL);

/** Scales of blocks of 64, each from the larger block that it lies in. */
function blocksOf(scales: Float32Array, count: number, share: number): Float32Array {
  if (share === 1) return scales;
  const shared = new Float32Array(count);
  for (let i = 0; i < count; i++) shared[i] = scales[Math.floor(i / share)]!;
  return shared;
}

/** Up to 32 rows of bytes [rows, k] as a panel: pairs of columns of all rows side by side. */
function panelOfBytes(rows: Uint8Array, k: number, to: ArrayBuffer): void {
  const panel = new Uint16Array(to).fill(0);
  for (let lane = 0; lane * k < rows.length; lane++) {
    const row = lane * k;
    const pairs = k >> 1;
    for (let p = 0; p < pairs; p++)
      panel[p * PANEL + lane] = rows[row + 2 * p]! | (rows[row + 2 * p + 1]! << 8);
    if (k % 2 === 1) panel[pairs * PANEL + lane] = rows[row + k - 1]!;
  }
}

/** Up to 32 rows of nibbles [rows, k], the earlier in the high half: even columns of eight in one word, odd in the next. */
function panelOfNf4(rows: Uint8Array, k: number, to: ArrayBuffer): void {
  const panel = new Uint32Array(to).fill(0);
  const [rowBytes, words] = [k / 2, k / 8];
  for (let lane = 0; lane * rowBytes < rows.length; lane++)
    for (let i = 0, at = lane * rowBytes; i < words; i++, at += 4) {
      const [a, b, c, d] = [rows[at]!, rows[at + 1]!, rows[at + 2]!, rows[at + 3]!];
      const even = (a >> 4) | (b & 0xf0) | ((c & 0xf0) << 4) | ((d & 0xf0) << 8);
      const odd = (a & 15) | ((b & 15) << 4) | ((c & 15) << 8) | ((d & 15) << 12);
      panel[i * PANEL + lane] = even | (odd << 16);
    }
}
