/** Frozen weights as codes and scales: what takes the place of a packed weight in products and the embedding. */
import { UsageError } from "../core/errors.ts";
import {
  Dtype,
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
}

/** The type of a parameter under a model's quantization: linear layers, and tables if the head is included. */
export function quantTypeOf(name: string, { type, head }: Quantization): QuantCode | null {
  const linear = /_proj\.weight$/.test(name);
  const table = /^(lm_head|model\.embed_tokens)\.weight$/.test(name);
  return linear || (head && table) ? QuantType[type] : null;
}

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

  /** Bytes of codes and scales of a matrix that can be quantized. */
  static bytes(label: string, [n, k]: readonly [n: number, k: number], type: QuantCode): number {
    if (type === QuantType.nf4 && k % QUANT_BLOCK !== 0) {
      throw new UsageError(
        `nf4 takes rows of a multiple of ${QUANT_BLOCK} values, not ${k}`,
        label,
        "quantize to int8",
      );
    }
    return quantBytes(n, k, type) + quantScales(n, k, type) * 4;
  }
}
